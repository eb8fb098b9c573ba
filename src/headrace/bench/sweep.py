"""Many loaders over many settings: loading alone and while training, beside what limits both."""

import functools
import itertools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from headrace.bench.measure import Step, measure
from headrace.bench.measurement import Measurement
from headrace.errors import ArgumentError

LEVEL = 0.97  # rates within 3 % of each other are level: repeated runs differ by as much


@dataclass(frozen=True, slots=True, order=True)
class Setting:
    """What a loader is made with.

    Attributes:
        batch_size: Samples a batch.
        num_workers: Threads or processes that read, as the loader takes the word.
        pin_memory: None where it does not apply, since there is no accelerator; a loader is then made with False.
    """

    batch_size: int
    num_workers: int = 0
    pin_memory: bool | None = None


Factory = Callable[[Setting], Iterable[Any]]


@dataclass(frozen=True, slots=True)
class Row:
    """One loader under one setting."""

    name: str
    setting: Setting
    loading: Measurement
    training: Measurement | None = None

    @property
    def samples_per_second(self) -> float:
        """While training where that was measured, else loading alone."""
        return (self.training or self.loading).samples_per_second


@dataclass(slots=True)
class Sweep:
    """What was measured: the rows, and the limits of each batch size.

    Attributes:
        rows: Each loader under each setting, in the order of measuring.
        gathers: By batch size, repeated measurements of the plain gather.
        steps: By batch size, repeated measurements of the training step alone, on a batch that is in memory already.
        limit_name: What loading alone is measured against, in words.
    """

    rows: list[Row] = field(default_factory=list)
    gathers: dict[int, list[Measurement]] = field(default_factory=dict)
    steps: dict[int, list[Measurement]] = field(default_factory=dict)
    limit_name: str = "plain gather"

    @property
    def names(self) -> list[str]:
        """The loaders, the first one first."""
        return list(dict.fromkeys(row.name for row in self.rows))

    @property
    def batch_sizes(self) -> list[int]:
        """The batch sizes, ascending."""
        return sorted({row.setting.batch_size for row in self.rows})

    def gather_rate(self, batch_size: int) -> float | None:
        """Samples/s of the limit of loading alone, such as the plain gather: the median over the run."""
        return _median_rate(self.gathers.get(batch_size, []))

    def step_rate(self, batch_size: int) -> float | None:
        """Samples/s of the training step alone: the median over the run."""
        return _median_rate(self.steps.get(batch_size, []))

    def best(self, *, name: str | None = None, batch_size: int | None = None) -> Row:
        """The fastest row; among those within 3 % of it, the one that needs the least CPU.

        Args:
            name: Only this loader.
            batch_size: Only this batch size.

        Raises:
            ArgumentError: There is no such row.
        """
        rows = [row for row in self.rows if name in (None, row.name) and batch_size in (None, row.setting.batch_size)]
        if not rows:
            raise ArgumentError(f"expected a measured row of {name or 'any loader'}, got none")
        fastest = max(row.samples_per_second for row in rows)
        return min((row for row in rows if row.samples_per_second >= LEVEL * fastest), key=_cost)

    def as_dicts(self) -> list[dict[str, object]]:
        """Every measurement, the limits' too, ready for JSON; `measured` says of what."""
        lines: list[dict[str, object]] = []
        for row in self.rows:
            lines.append({"measured": "loading", **row.loading.as_dict()})
            if row.training is not None:
                lines.append({"measured": "training", **row.training.as_dict()})
        limits = itertools.chain(*self.gathers.values(), *self.steps.values())
        lines.extend({"measured": "limit", **limit.as_dict()} for limit in limits)
        return lines


def grid(
    batch_sizes: Iterable[int], num_workers: Iterable[int] = (0,), pin_memory: Iterable[bool | None] = (None,)
) -> list[Setting]:
    """Every combination of the values.

    Example:
        >>> len(grid([64, 256], [0, 2], [False, True]))
        8
    """
    return [Setting(*values) for values in itertools.product(batch_sizes, num_workers, pin_memory)]


def sweep(
    loaders: Mapping[str, Factory],
    settings: Sequence[Setting],
    *,
    step: Step | None = None,
    gather: Callable[[int], Iterable[Any]] | None = None,
    limit_name: str = "plain gather",
    seconds: float = 1.0,
    warmup_seconds: float = 0.25,
    progress: Callable[[list[tuple[str, Setting]]], Iterable[tuple[str, Setting]]] | None = None,
) -> Sweep:
    """Measures each loader under each setting, and the limits among them.

    The limits are measured before and after the settings of each batch size, so that a machine that changes its speed
    in between is noticed by the median.

    Args:
        loaders: How each loader is made, by name; yours first.
        settings: What to make them with, see `grid`.
        step: The training step; None measures loading alone.
        gather: Makes the plain gather for a batch size, see `PlainGather`; None leaves that limit out. It may be
            another reader of the same rows that does nothing else.
        limit_name: What reports call it.
        seconds: The time for each measurement.
        warmup_seconds: The time before it that does not count.
        progress: Wraps the list of what is to be measured, as `tqdm.tqdm` does.

    Example:
        >>> import torch
        >>> data = torch.zeros(64, 8)
        >>> done = sweep({"split": lambda s: data.split(s.batch_size)}, grid([16]), seconds=0.001, warmup_seconds=0)
        >>> done.rows[0].name, done.rows[0].setting.batch_size
        ('split', 16)
    """
    timed = functools.partial(measure, warmup_seconds=warmup_seconds)
    done = Sweep(limit_name=limit_name)

    def measure_limits(batch_size: int) -> None:
        timed_limit = functools.partial(timed, settings={"batch_size": batch_size}, seconds=seconds / 2)
        if gather is not None:
            limit = timed_limit(lambda: gather(batch_size), name=limit_name)
            done.gathers.setdefault(batch_size, []).append(limit)
        if step is not None:
            batch = next(iter(first_loader(Setting(batch_size))))
            limit = timed_limit(itertools.repeat(batch), name="training step alone", step=step)
            done.steps.setdefault(batch_size, []).append(limit)

    def measure_row(name: str, setting: Setting) -> Row:
        timed_row = functools.partial(timed, name=name, settings=asdict(setting), seconds=seconds)
        loading = timed_row(lambda: loaders[name](setting))
        training = None if step is None else timed_row(lambda: loaders[name](setting), step=step)
        return Row(name, setting, loading, training)

    first_loader = next(iter(loaders.values()))
    by_size = sorted(settings, key=lambda setting: setting.batch_size)
    jobs = [(name, setting) for setting in by_size for name in loaders]
    watched = jobs if progress is None else progress(jobs)
    for batch_size, group in itertools.groupby(watched, key=lambda job: job[1].batch_size):
        measure_limits(batch_size)
        done.rows.extend(itertools.starmap(measure_row, group))
        measure_limits(batch_size)
    return done


def _median_rate(measurements: Sequence[Measurement]) -> float | None:
    return statistics.median(m.samples_per_second for m in measurements) if measurements else None


def _cost(row: Row) -> float:
    return (row.training or row.loading).cpu_seconds_per_million or 0.0
