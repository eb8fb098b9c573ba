"""The answer in words."""

import textwrap
from collections.abc import Callable, Mapping

from headrace.bench.sweep import LEVEL, Row, Setting, Sweep

DATA_LIMITS = 0.5  # a loop that waits longer than this share of the time is limited by its data
STEP_LIMITS = 0.1  # one that waits less than this is limited by its training step
WIDTH = 92


def report(
    sweep: Sweep, *, code: Callable[[str, Setting], str] | None = None, notes: Mapping[str, str] | None = None
) -> str:
    """What limits, which setting is best, how the others compare, and the line of code to paste.

    Args:
        sweep: What was measured.
        code: The line of code that makes this loader with this setting; None leaves it out.
        notes: More paragraphs, by their headings.

    Raises:
        ArgumentError: Nothing was measured.
    """
    best = sweep.best()
    paragraphs = {"What limits": _what_limits(sweep, best), "Best setting": _best_setting(sweep, best)}
    others = [sweep.best(name=name) for name in sweep.names if name != best.name]
    if others:
        paragraphs["The others"] = _compare(best, others)
    paragraphs["Loading alone"] = _loading_alone(sweep, best)
    paragraphs.update(notes or {})
    indent = " " * (max(map(len, paragraphs)) + 2)
    filled = [
        textwrap.fill(text, WIDTH, initial_indent=heading.ljust(len(indent)), subsequent_indent=indent)
        for heading, text in paragraphs.items()
    ]
    if code is not None:
        filled.append(f"{'To paste'.ljust(len(indent))}{code(best.name, best.setting)}")
    return "\n".join(filled)


def rate(samples_per_second: float) -> str:
    """A rate in three digits.

    Example:
        >>> rate(1_234_567), rate(45_678), rate(912.3)
        ('1.23 M', '45.7 k', '912')
    """
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if samples_per_second >= 0.9995 * size:
            return f"{_three_digits(samples_per_second / size)} {unit}"
    return _three_digits(samples_per_second)


def words(setting: Setting) -> str:
    """A setting as its arguments; what does not apply is left out.

    Example:
        >>> words(Setting(256, 2))
        'batch_size=256, num_workers=2'
    """
    pinned = "" if setting.pin_memory is None else f", pin_memory={setting.pin_memory}"
    return f"batch_size={setting.batch_size}, num_workers={setting.num_workers}{pinned}"


def _three_digits(value: float) -> str:
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def _what_limits(sweep: Sweep, best: Row) -> str:
    training = best.training
    if training is None:
        return "Only loading was measured, so the data is all there was to wait for."
    waited = f"the loop waited for data {training.stall_share:.0%} of the time with {best.name} at its best"
    if training.stall_share >= DATA_LIMITS:
        text = f"The data: {waited}."
    elif training.stall_share <= STEP_LIMITS:
        text = f"The training step, not the data: {waited}."
    else:
        text = f"The training step more than the data: {waited}."
    alone = sweep.step_rate(best.setting.batch_size)
    if alone is not None:
        text += (
            f" {training.step} alone, on a batch that is in memory already, trains {rate(alone)} samples/s; "
            f"fed from the files it trains {rate(training.samples_per_second)}."
        )
    return text


def _best_setting(sweep: Sweep, best: Row) -> str:
    text = f"{best.name} with {words(best.setting)}: {rate(best.samples_per_second)} samples/s."
    sizes = [size for size in sweep.batch_sizes if size != best.setting.batch_size]
    rows = [sweep.best(name=best.name, batch_size=size) for size in sizes]
    if rows:
        parts = [f"{words(row.setting)} ({rate(row.samples_per_second)})" for row in rows]
        text += f" If you train with another batch size: {'; '.join(parts)}."
    return text


def _compare(best: Row, others: list[Row]) -> str:
    parts = []
    for other in others:
        waiting = "" if other.training is None else f", waiting {other.training.stall_share:.0%}"
        times = best.samples_per_second / other.samples_per_second
        fast = f"{times:.1f} times as fast as" if times > 1 / LEVEL else "level with"
        parts.append(
            f"{fast} {other.name} at its own best ({words(other.setting)}: {rate(other.samples_per_second)}{waiting})"
        )
    return f"That is {', and '.join(parts)}."


def _loading_alone(sweep: Sweep, best: Row) -> str:
    fastest = max((row for row in sweep.rows if row.name == best.name), key=lambda row: row.loading.samples_per_second)
    loading = fastest.loading
    text = (
        f"With nothing to train, {best.name} brings up to {rate(loading.samples_per_second)} samples/s "
        f"({loading.megabytes_per_second:,.0f} MB/s; {words(fastest.setting)})"
    )
    limit = sweep.gather_rate(fastest.setting.batch_size)
    if limit is None:
        return f"{text}."
    share = loading.samples_per_second / limit
    return f"{text}, {share:.0%} of a {sweep.limit_name} of the same rows by one thread ({rate(limit)})."
