"""The figures as a table, one row a setting."""

from typing import Any

from headrace.bench.extras import extra
from headrace.bench.report import rate
from headrace.bench.sweep import Row, Sweep

CAPTION = (
    "training, loading: samples/s while training, and alone. waits: share of the training time in which the loop "
    "waited for data. of limit: loading against a {limit} of the same rows."
)


def table(sweep: Sweep) -> Any:
    """A rich table, the fastest first within each batch size and the best one bold; print it with `rich.print`.

    What does not apply or was not measured is "n/a".

    Raises:
        DependencyError: rich is not installed.
    """
    made = extra("rich.table").Table(
        box=extra("rich.box").SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption=CAPTION.format(limit=sweep.limit_name),
        caption_justify="left",
    )
    made.add_column("loader", no_wrap=True)
    for heading in ("batch", "workers", "pinned", "training", "waits", "loading", "of limit"):
        made.add_column(heading, justify="right", no_wrap=True)
    for batch_size in sweep.batch_sizes:
        best = sweep.best(batch_size=batch_size)
        rows = [row for row in sweep.rows if row.setting.batch_size == batch_size]
        for row in sorted(rows, key=lambda row: -row.samples_per_second):
            made.add_row(*_cells(sweep, row), style="bold green" if row is best else None)
        made.add_section()
    return made


def _cells(sweep: Sweep, row: Row) -> list[str]:
    setting, loading, training = row.setting, row.loading, row.training
    limit = sweep.gather_rate(setting.batch_size)
    return [
        row.name,
        str(setting.batch_size),
        str(setting.num_workers),
        {None: "n/a", False: "no", True: "yes"}[setting.pin_memory],
        "n/a" if training is None else rate(training.samples_per_second),
        "n/a" if training is None else f"{training.stall_share:.0%}",
        rate(loading.samples_per_second),
        "n/a" if limit is None else f"{loading.samples_per_second / limit:.0%}",
    ]
