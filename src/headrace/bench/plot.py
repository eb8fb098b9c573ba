"""The figures as a picture."""

from pathlib import Path
from typing import Any

from headrace.bench.extras import extra
from headrace.bench.report import rate
from headrace.bench.sweep import Row, Setting, Sweep

COLOURS = ("#0b6e99", "#e9a23b", "#a9b2b9", "#7a5195", "#2f8f5b", "#c0504d")
INK, FAINT, LIMIT = "#333333", "#777777", "#b03030"
PANEL_INCHES = (3.5, 2.7)
OFF_SCALE = 2.0  # a limit this many times above the tallest bar is told, not drawn: it would flatten the bars

_KINDS = {"training": "while training", "loading": "loading alone"}


def plot(sweep: Sweep, path: str | Path, *, title: str = "", subtitle: str = "") -> None:
    """Draws throughput against num_workers, a column of panels for each batch size, and writes it as PNG.

    The upper row is training, the lower one loading alone; a row has one scale. Dashed lines are the limits.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    sizes = sweep.batch_sizes
    kinds = [kind for kind in _KINDS if any(_rate(row, kind) is not None for row in sweep.rows)]
    width = max(PANEL_INCHES[0] * len(sizes) + 0.8, 7.5)
    height = PANEL_INCHES[1] * len(kinds) + 1.7
    figure = extra("matplotlib.figure").Figure(figsize=(width, height), dpi=150)
    extra("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    panels = figure.subplots(
        len(kinds),
        len(sizes),
        sharey="row",
        squeeze=False,
        gridspec_kw={
            "left": 0.95 / width,
            "right": 1 - 0.15 / width,
            "bottom": 0.95 / height,
            "top": 1 - 1.25 / height,
            "wspace": 0.06,
            "hspace": 0.32,
        },
    )
    for line, kind in enumerate(kinds):
        for panel, size in zip(panels[line], sizes, strict=True):
            _draw_panel(panel, sweep, kind, size)
            _draw_limit(panel, sweep, kind, size)
        panels[line][0].set_ylabel(f"samples/s, {_KINDS[kind]}", color=INK)
        panels[line][0].yaxis.set_major_formatter(_tick)
    for place, size in enumerate(sizes):
        panels[0][place].set_title(f"batch size {size:,}", color=INK, fontsize=11, pad=20)
        panels[-1][place].set_xlabel(_axis(sweep), color=INK)
    figure.align_ylabels(panels[:, 0])
    figure.legend(
        *panels[0][0].get_legend_handles_labels(),
        loc="lower center",
        bbox_to_anchor=(0.5, 0.1 / height),
        ncols=len(sweep.names),
        frameon=False,
        labelcolor=INK,
    )
    left = 0.15 / width
    figure.text(left, 1 - 0.2 / height, title, fontsize=14, fontweight="bold", color=INK, va="top")
    figure.text(left, 1 - 0.52 / height, subtitle, fontsize=9.5, color=FAINT, va="top")
    figure.savefig(path, format="png", facecolor="white")


def _draw_panel(panel: Any, sweep: Sweep, kind: str, batch_size: int) -> None:
    rows = [row for row in sweep.rows if row.setting.batch_size == batch_size]
    groups = sorted({_group(row.setting) for row in rows})
    bar = 0.84 / len(sweep.names)
    halo = [extra("matplotlib.patheffects").withStroke(linewidth=2.5, foreground="white")]
    for number, name in enumerate(sweep.names):
        mine = [row for row in rows if row.name == name]
        drawn = panel.bar(
            [groups.index(_group(row.setting)) + (number + 0.5) * bar - 0.42 for row in mine],
            [_rate(row, kind) or 0.0 for row in mine],
            width=bar * 0.92,
            color=COLOURS[number % len(COLOURS)],
            label=name,
            zorder=2,
        )
        labels = [rate(_rate(row, kind) or 0.0) for row in mine]
        panel.bar_label(drawn, labels, fontsize=6.5, color=INK, padding=1.5, path_effects=halo, zorder=4)
    panel.set_xticks(
        range(len(groups)), [f"{workers} pinned" if pinned else str(workers) for workers, pinned in groups]
    )
    panel.margins(x=0.03, y=0.12)
    panel.tick_params(length=0, colors=INK, labelsize=9)
    panel.grid(axis="y", color="#e8e8e8", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.spines["bottom"].set_color("#999999")


def _draw_limit(panel: Any, sweep: Sweep, kind: str, batch_size: int) -> None:
    of_step = kind == "training"
    limit = sweep.step_rate(batch_size) if of_step else sweep.gather_rate(batch_size)
    name = "training step alone" if of_step else sweep.limit_name
    if limit is None:
        return
    tallest = max(_rate(row, kind) or 0.0 for row in sweep.rows)
    fits = limit <= OFF_SCALE * tallest
    if fits:
        panel.axhline(limit, color=LIMIT, linewidth=1.2, linestyle=(0, (5, 3)), zorder=3)
    label = f"{'- -' if fits else 'off scale:'}  {name} {rate(limit)}"
    panel.text(0.5, 1.02, label, transform=panel.transAxes, ha="center", va="bottom", fontsize=8, color=LIMIT)


def _tick(value: float, _: int) -> str:
    unit, size = ("M", 1e6) if value >= 1e6 else ("k", 1e3)
    return f"{value / size:g} {unit}" if value else "0"


def _axis(sweep: Sweep) -> str:
    missing = all(row.setting.pin_memory is None for row in sweep.rows)
    return "num_workers (pin_memory n/a)" if missing else "num_workers"


def _group(setting: Setting) -> tuple[int, bool]:
    return setting.num_workers, bool(setting.pin_memory)


def _rate(row: Row, kind: str) -> float | None:
    measurement = row.training if kind == "training" else row.loading
    return None if measurement is None else measurement.samples_per_second
