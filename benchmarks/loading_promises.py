"""What headrace promises of the loader itself, each as something to measure, next to its limit in the same run.

Where there is a limit, both are measured alternately. Worker processes persist, and the pass in which they start isn't
counted: what is to be measured is a stream that goes on.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch.utils.data import DataLoader, Dataset

import headrace as hr
from benchmarks.data import make_rows, read_through
from benchmarks.loading_datasets import (
    BATCH_SAMPLES,
    BATCH_SHAPE,
    Burning,
    Pictures,
    ReadyBatches,
    ReadyRows,
    ready_batch,
    turns_in,
)
from benchmarks.parquet_data import COLUMNS, make_parquet
from benchmarks.parquet_promises import ROW_BYTES, WINDOW
from benchmarks.tar_data import make_images
from benchmarks.tar_limits import IMAGE_SIZE
from benchmarks.timing import Clock, Spent, alternating
from headrace.bench import Measurement, SimulatedStep, measure
from headrace.datasets import MapDataset
from headrace.loader.recorder import Recorder

BATCH_SIZE = 256
FREE_BATCHES = {0: 20_000, 2: 12_000}  # a second, promised of a source that costs nothing, by num_workers
SAMPLES = 10**9
BLOCK_SAMPLES = 1000  # of a source that is shuffled in windows: a million blocks
BURN_SECONDS = 50e-6
BURN_BATCH_SIZE = 64
STEP_SECONDS = 0.005
THREADS = 2
LEAST_CAPACITY = 1.2  # times what the step wants: less can't be expected to keep it busy
AIMED_CAPACITY = 1.35
STARTS = 5  # of a loader in a value
CALLS = 2000  # of `state_dict` in a value
PAIRS = 100  # of short passes with and without counting in a value
ROWS_SHARDS = 4  # times that the file of rows is read in an epoch, which would else be over in 60 steps


class Batches(Sized, Iterable[Any], Protocol):
    """A loader with a length."""


class Workload(NamedTuple):
    """What the training loop reads.

    Attributes:
        dataset: A headrace dataset.
        column: The one by which samples of a batch are counted.
        options: The loader's.
    """

    dataset: MapDataset
    column: str
    options: Mapping[str, Any]


class Trained(NamedTuple):
    """One stretch of the simulated training loop.

    Attributes:
        wait_share: The share of the time that it waited for batches.
        batch_size: Samples a step.
        capacity: Samples a second that the loader reads alone.
        late_share: The share of the time by which its steps took longer than they should, though they compute nothing:
            they wait for a core, as the loop does for its batches.
    """

    wait_share: float
    batch_size: int
    capacity: float
    late_share: float = 0.0

    @property
    def wanted(self) -> float:
        """Samples a second that the step takes if it never waits."""
        return self.batch_size / STEP_SECONDS

    @property
    def is_feasible(self) -> bool:
        """Whether the promise is about such a stretch."""
        return self.capacity >= LEAST_CAPACITY * self.wanted


@dataclass
class Loading:
    """Where and how long to measure.

    Attributes:
        data_dir: Where the files are made.
        rows: Rows of 1 KB.
        shard_images: Images in each of 8 tar shards.
        parquet_rows: Rows in 8 Parquet files.
        repetitions: Values of each promise.
        seconds: For each of a value's measurements, roughly.
    """

    data_dir: Path
    rows: int = 1_000_000
    shard_images: int = 1000
    parquet_rows: int = 2_000_000
    repetitions: int = 5
    seconds: float = 1.0
    trained: dict[str, list[Trained]] = field(default_factory=dict)

    @functools.cached_property
    def ready_batches(self) -> ReadyBatches:
        """Batches of 4 MB that cost nothing."""
        return ReadyBatches(max(8, round(1000 * self.seconds)))

    @functools.cached_property
    def handing_over(self) -> hr.DataLoader:
        """Two worker processes that have them."""
        return _processes(self.ready_batches, BATCH_SAMPLES, 2, collate_fn=ready_batch)

    @functools.cached_property
    def burning(self) -> Burning:
        """Samples of 50 us of Python."""
        batches = max(8, round(self.seconds / BURN_SECONDS / BURN_BATCH_SIZE))
        return Burning(batches * BURN_BATCH_SIZE, turns_in(BURN_SECONDS))

    @functools.cached_property
    def burning_in_two(self) -> hr.DataLoader:
        """Two worker processes that read them."""
        return _processes(self.burning, BURN_BATCH_SIZE, 2)

    def workload(self, kind: str) -> Workload:
        """A reference workload: "rows", "jpeg" or "parquet"; in memory as far as files are."""
        if kind == "rows":
            path = make_rows(self.data_dir, self.rows).x
            read_through(path)
            return Workload(hr.NumpyDataset({"x": [str(path)] * ROWS_SHARDS}), "x", {"shuffle": True})
        if kind == "jpeg":
            names = _hot(make_images(self.data_dir, images=self.shard_images))
            tars = hr.TarDataset(names, columns=["jpg", "cls"], decode={"jpg": hr.image(IMAGE_SIZE)})
            return Workload(tars.samples, "cls", {"shuffle": True})
        names = _hot(make_parquet(self.data_dir, self.parquet_rows))
        rows = hr.ParquetDataset(names, columns=list(COLUMNS), memory_bytes=self.parquet_rows * ROW_BYTES // 2)
        return Workload(rows, "label", {"shuffle": "window", "shuffle_window": WINDOW})


def overhead(where: Loading, *, num_workers: int) -> list[float]:
    """Microseconds a batch of whole shuffled passes over a source that costs nothing."""
    batches = max(8, round(20_000 * where.seconds))
    loader = _loader(ReadyRows(batches * BATCH_SIZE), num_workers)
    whole_pass(loader)
    return [whole_pass(loader).seconds / batches * 1e6 for _ in range(where.repetitions)]


def hand_over(where: Loading, *, targets: int) -> list[float]:
    """The rate of batches of 4 MB from two worker processes over that of copies, into so many warm arrays in turn.

    Who holds one batch while the next one is written, in two processes, can't do with less than four arrays, which are
    more than the caches nearest to the cores hold.
    """
    ours = where.handing_over
    copies = functools.partial(_copies, len(ours), targets)
    return _times_as_fast(functools.partial(whole_pass, ours), copies, where.repetitions)


def hand_over_torch(where: Loading) -> list[float]:
    """The same over the rate of torch's DataLoader with two workers."""
    limit = _torch(where.ready_batches, BATCH_SAMPLES, collate_fn=ready_batch)
    return _over(where.handing_over, limit, where.repetitions)


def foreign_processes(where: Loading) -> list[float]:
    """The rate of two worker processes over that of one, where each sample is 50 us of Python."""
    return _over(where.burning_in_two, _processes(where.burning, BURN_BATCH_SIZE, 1), where.repetitions)


def foreign_torch(where: Loading) -> list[float]:
    """The rate of two worker processes over that of torch's DataLoader with two, likewise."""
    return _over(where.burning_in_two, _torch(where.burning, BURN_BATCH_SIZE), where.repetitions)


def pictures_torch(where: Loading) -> list[float]:
    """The same where each sample is a new array of 0.6 MB, and a batch of 64 is stacked from them."""
    pictures = Pictures(max(8, round(20 * where.seconds)) * BATCH_SAMPLES)
    return _over(_processes(pictures, BATCH_SAMPLES, 2), _torch(pictures, BATCH_SAMPLES), where.repetitions)


def stall(where: Loading, *, kind: str) -> list[float]:
    """The percentage of its time that a training loop with a step of 5 ms waits.

    The step wants three quarters of what the loader can read, which is measured before the loop and after it. A stretch
    in which that was less than 1.2 times of what the step wants doesn't count, since others then had the cores: it is
    measured again.
    """
    workload = where.workload(kind)
    stretches = where.trained[kind] = []
    largest = max(1, len(workload.dataset) // 8)  # an epoch has at least so many steps
    batch_size = min(BATCH_SIZE, largest)

    def read(batch_size: int) -> float:
        return _stretch(where, workload, batch_size, None).samples_per_second

    for _ in range(3 * where.repetitions):
        batch_size = max(1, min(int(read(batch_size) * STEP_SECONDS / AIMED_CAPACITY), largest))
        before = read(batch_size)
        trained = _stretch(where, workload, batch_size, SimulatedStep(STEP_SECONDS))
        waits, works = trained.wait_seconds / trained.seconds, trained.batches * STEP_SECONDS / trained.seconds
        stretch = Trained(waits, batch_size, (before + read(batch_size)) / 2, max(0.0, 1 - waits - works))
        if stretch.is_feasible:
            stretches.append(stretch)
        if len(stretches) == where.repetitions:
            break
    return [100 * stretch.wait_share for stretch in stretches]


def stall_remark(where: Loading, *, kind: str) -> str:
    """What was read and wanted in the stretch of the median."""
    stretches = sorted(where.trained[kind])
    if not stretches:
        return f"never read {LEAST_CAPACITY} times of what the step wants"
    middle = stretches[len(stretches) // 2]
    return (
        f"batch {middle.batch_size:,}: {middle.capacity:,.0f}/s read alone, {middle.wanted:,.0f}/s wanted, "
        f"{middle.capacity / middle.wanted:.2f}x; steps late by {100 * middle.late_share:.1f} % of the time"
    )


def state_dict(where: Loading) -> list[float]:
    """Microseconds of `state_dict()` in the middle of an epoch of 10^9 samples."""
    loader = _loader(ReadyRows(SAMPLES), 0)
    loader.seek(epoch=0, step=len(loader) // 2)
    batches = iter(loader)
    values = []
    for _ in range(where.repetitions):
        next(batches)
        values.append(_milliseconds(lambda: [loader.state_dict() for _ in range(CALLS)]) * 1e3 / CALLS)
    return values


def resume(where: Loading, *, num_workers: int, in_windows: bool) -> list[float]:
    """The time to the first batch from a state at a random position of 10^9 samples, over that of a fresh start.

    Both begin with making the loader.
    """
    source = ReadyRows(SAMPLES, block_samples=BLOCK_SAMPLES if in_windows else None)
    rng = np.random.default_rng([0, 8])
    loader = _loader(source, num_workers)
    states: list[Any] = []
    for step in rng.integers(1, len(loader), where.repetitions * STARTS).tolist():
        loader.seek(epoch=0, step=step)
        states.append(loader.state_dict())

    def started(state: Any) -> float:
        began = time.perf_counter()
        loader = _loader(source, num_workers)
        if state is not None:
            loader.load_state_dict(state)
        batches = iter(loader)
        next(batches)
        spent = time.perf_counter() - began
        del batches  # ends its threads, which isn't counted
        return spent

    started(None)
    values = []
    for repetition in range(where.repetitions):
        times: dict[bool, list[float]] = {False: [], True: []}
        for start in range(STARTS):
            state = states[repetition * STARTS + start]
            for resumed in (False, True) if start % 2 == 0 else (True, False):
                times[resumed].append(started(state if resumed else None))
        values.append(statistics.median(times[True]) / statistics.median(times[False]))
    return values


def stats_cost(where: Loading, *, num_workers: int) -> list[float]:
    """The percentage that counting takes of the time for a batch at the rate that is promised.

    It is the difference between two loaders over a source that costs nothing, one of which counts nothing: between the
    fastest of many short passes of each, since it is far less than what disturbs most of them.
    """
    batches = max(8, round(1000 * where.seconds))
    counting, silent = (_loader(ReadyRows(batches * BATCH_SIZE), num_workers) for _ in range(2))
    recorder = _Silent()
    recorder.sample_bytes = silent._pipeline.recorder.sample_bytes  # noqa: SLF001 (it looks at batches no more often)
    silent._pipeline.recorder = recorder  # noqa: SLF001 (what is measured is its cost)
    one_pass, silent_pass = (functools.partial(whole_pass, loader) for loader in (counting, silent))
    values = []
    for _ in range(where.repetitions):
        pairs = zip(*alternating(one_pass, silent_pass, PAIRS), strict=True)
        counted, uncounted = (min(spent.seconds for spent in passes) / batches for passes in pairs)
        values.append(100 * (counted - uncounted) * FREE_BATCHES[num_workers])
    return values


def whole_pass(loader: Batches) -> Spent:
    """What a pass takes, from before its first batch to its end."""
    clock, batches = Clock(), 0
    for _ in loader:
        batches += 1
    spent = clock.spent()
    if batches != len(loader):
        raise RuntimeError(f"expected {len(loader)} batches, got {batches}")
    return spent


class _Silent(Recorder):
    """A recorder that counts nothing."""

    def asked(self) -> None:
        pass

    def delivered(self, samples: int, nbytes: int = 0) -> bool:  # noqa: ARG002 (not counted)
        return False

    def waited(self) -> None:
        pass


def _loader(source: ReadyRows, num_workers: int) -> hr.DataLoader:
    return hr.DataLoader(
        MapDataset(source), batch_size=BATCH_SIZE, shuffle=True, drop_last=True, num_workers=num_workers
    )


def _processes(dataset: Dataset[Any], batch_size: int, num_workers: int, **options: Any) -> hr.DataLoader:
    return hr.DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        worker_type="process",
        persistent_workers=True,
        **options,
    )


def _torch(dataset: Dataset[Any], batch_size: int, **options: Any) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size=batch_size, num_workers=2, persistent_workers=True, **options)


def _over(ours: Batches, limit: Batches, repetitions: int) -> list[float]:
    whole_pass(limit)
    return _times_as_fast(functools.partial(whole_pass, ours), functools.partial(whole_pass, limit), repetitions)


def _times_as_fast(ours: Callable[[], Spent], limit: Callable[[], Spent], repetitions: int) -> list[float]:
    ours()
    return [other.seconds / own.seconds for own, other in alternating(ours, limit, repetitions)]


def _copies(batches: int, targets: int) -> Spent:
    """What as many copies of 4 MB take, out of an array that is in memory into so many in turn."""
    source = np.ones(BATCH_SHAPE, np.float32)
    into = [np.ones(BATCH_SHAPE, np.float32) for _ in range(targets)]
    clock = Clock()
    for batch in range(batches):
        np.copyto(into[batch % targets], source)
    return clock.spent()


def _stretch(where: Loading, workload: Workload, batch_size: int, step: Callable[[Any], None] | None) -> Measurement:
    """What is measured within a pass: its start isn't counted."""
    dataset, column, options = workload
    loader = hr.DataLoader(dataset, batch_size=batch_size, drop_last=True, num_workers=THREADS, **options)
    warmup = max(1, min(10, len(loader) // 4))
    return measure(
        loader,
        step=step,
        seconds=where.seconds,
        batches=len(loader) - warmup,
        warmup_seconds=0,
        warmup_batches=warmup,
        samples_in=lambda batch: int(batch[column].shape[0]),
    )


def _hot(paths: list[Path]) -> list[str]:
    for path in paths:
        read_through(path)
    return [str(path) for path in paths]


def _milliseconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e3
