"""What headrace promises, each as something to measure: a ratio to a limit of the same run, or a cost with a bound.

Each function gives one value for each repetition, cold reads one for every two. A ratio compares two measurements that
follow each other at once, and which of the two comes first alternates, so that a machine that changes its speed does it
to both.
"""

import functools
import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import DataLoader

import headrace as hr
from benchmarks.data import Files, drop_from_memory, make_rows, read_through
from benchmarks.limited import memory_can_be_limited, read_limited
from benchmarks.loaders import PerRowDataset
from headrace.bench import PlainGather, measure
from headrace.order import BlockTotals, Order, Steps, resolve_layout

ALLOWED_BYTES = 512 << 20  # for the readers of a larger file; the process itself needs half of it
LARGE_BATCH = 40_960  # rows of 1 KB: 42 MB
POSITIONS = 65_536  # of an order, computed at once

Loader = Iterable[Any] | Callable[[], Iterable[Any]]


@dataclass(frozen=True)
class MemmapTake:
    """What one would write by hand: `np.take(memmap, ids, axis=0)` for each batch, into fresh arrays.

    Attributes:
        rows: A memory map (samples, ...), as `np.load` gives it.
        sample_ids: int64 (samples,), the order.
        batch_size: Samples a batch.
    """

    rows: npt.NDArray[Any]
    sample_ids: npt.NDArray[np.int64]
    batch_size: int

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        for start in range(0, len(self.sample_ids) - self.batch_size + 1, self.batch_size):
            yield np.take(self.rows, self.sample_ids[start : start + self.batch_size], axis=0)


@dataclass(frozen=True)
class Bench:
    """Where and how long to measure.

    Attributes:
        data_dir: Where the files are made.
        rows: Rows of 256 float32 for the hot reads.
        cold_rows: Rows of 768 float32 for the cold reads, more than the readers of `cold_larger` may hold.
        repetitions: Values of each promise.
        seconds: For each of the two measurements of a value.
    """

    data_dir: Path
    rows: int = 1_000_000
    cold_rows: int = 700_000
    repetitions: int = 5
    seconds: float = 0.5

    def hot(self) -> Files:
        """The rows of 256 float32, in memory."""
        files = make_rows(self.data_dir, self.rows)
        read_through(files.x)
        return files

    def cold(self) -> Files:
        """The rows of 768 float32, wherever they are."""
        return make_rows(self.data_dir, self.cold_rows, 768)

    def ratios(self, loader: Loader, limit: Loader, *, batch_size: int) -> list[float]:
        """The loader's rate over the limit's, alternately measured; both give whole batches only."""
        rate_of = functools.partial(
            measure,
            seconds=self.seconds,
            warmup_seconds=self.seconds / 5,
            # told, not counted: the length of a tensor takes longer to ask for than that of an array
            samples_in=lambda _: batch_size,
        )
        values = []
        for repetition in range(self.repetitions):
            pair = (loader, limit) if repetition % 2 == 0 else (limit, loader)
            rates = {id(one): rate_of(one).samples_per_second for one in pair}
            values.append(rates[id(loader)] / rates[id(limit)])
        return values


def rows(bench: Bench, *, batch_size: int, num_workers: int) -> list[float]:
    """Shuffled batches that the caller may keep, against `np.take` of the same ids into fresh arrays."""
    dataset = hr.NumpyDataset({"x": str(bench.hot().x)})
    ids = np.fromiter(hr.OrderSampler(dataset, shuffle=True), np.int64, len(dataset))
    loader = functools.partial(_headrace, dataset, batch_size, num_workers)
    return bench.ratios(loader, MemmapTake(_mapped(bench.hot().x), ids, batch_size), batch_size=batch_size)


def large_batches(bench: Bench, *, num_workers: int) -> list[float]:
    """Batches of 40 MB that the caller may keep, against a gather into the same memory again and again."""
    dataset = hr.NumpyDataset({"x": str(bench.hot().x)})
    size = min(LARGE_BATCH, bench.rows)
    limit = PlainGather({"x": _mapped(bench.hot().x)}, size, reuse=True)
    return bench.ratios(functools.partial(_headrace, dataset, size, num_workers), limit, batch_size=size)


def torch_loader(bench: Bench) -> list[float]:
    """NumpyDataset in torch's DataLoader with no other argument, against a per-row Dataset in the same."""
    files = bench.hot()
    shuffled = functools.partial(DataLoader[Any], batch_size=256, shuffle=True, drop_last=True)
    ours = functools.partial(shuffled, hr.NumpyDataset(files.columns))
    return bench.ratios(ours, functools.partial(shuffled, PerRowDataset(files)), batch_size=256)


def hot_advice(bench: Bench, *, num_workers: int) -> list[float]:
    """Hot rows with the look-out for cold ones, against the same loader without it."""
    path = str(bench.hot().x)
    watching, blind = hr.NumpyDataset({"x": path}), hr.NumpyDataset({"x": path})
    blind.source._residency = _Blind()  # type: ignore[attr-defined]  # noqa: SLF001 (what is measured is its cost)
    return bench.ratios(
        functools.partial(_headrace, watching, 256, num_workers),
        functools.partial(_headrace, blind, 256, num_workers),
        batch_size=256,
    )


def cold_larger(bench: Bench, *, num_workers: int) -> list[float]:
    """Random rows of a file larger than the memory allowed, against a gather through a plain memory map."""
    path = bench.cold().x
    values = []
    for _ in range(-(-bench.repetitions // 2)):
        rates = {}
        for reader in ("plain", "headrace"):
            drop_from_memory(path)
            read = read_limited(
                path, reader, seconds=6 * bench.seconds, memory_bytes=ALLOWED_BYTES, num_workers=num_workers
            )
            rates[reader] = read["rows"] / read["seconds"]
        values.append(rates["headrace"] / rates["plain"])
    return values


def cold_fits(bench: Bench, *, num_workers: int) -> list[float]:
    """One epoch over a cold file that fits into memory, against reading it through first and then gathering.

    Each value is of two epochs either way, in the order a, b, b, a: disks that are rationed are fast only for the first
    gigabytes, so what comes second was twice as slow.
    """
    path = bench.cold().x
    first, ours = _read_then_gather, functools.partial(_epoch, num_workers)
    values = []
    for _ in range(-(-bench.repetitions // 2)):
        spent = dict.fromkeys((first, ours), 0.0)
        for way in (first, ours, ours, first):
            gc.collect()  # pages that are mapped stay in memory, so what mapped them must be gone
            drop_from_memory(path)
            spent[way] += _milliseconds(functools.partial(way, path))
        values.append(spent[first] / spent[ours])
    return values


def memory_growth(bench: Bench, *, num_workers: int) -> list[float]:
    """MB that the process's own memory grows by while it reads a file larger than what it may hold."""
    path, bound = bench.cold().x, ALLOWED_BYTES if memory_can_be_limited() else None
    return [
        read_limited(path, "headrace", seconds=10 * bench.seconds, memory_bytes=bound, num_workers=num_workers)[
            "grown_bytes"
        ]
        / 1e6
        for _ in range(max(1, bench.repetitions // 3))
    ]


def global_order(bench: Bench) -> list[float]:
    """Nanoseconds a sample of a global shuffle of 10^12."""
    order = Order(10**12, resolve_layout(10**12, BlockTotals(1, 1), random_access=True, shuffle=True))
    return _nanoseconds(bench, lambda start: order.sample_ids(0, np.arange(start, start + POSITIONS)))


def window_order(bench: Bench) -> list[float]:
    """Nanoseconds a sample of a window shuffle over a million blocks, rank 3 of 8 at 256 samples a step."""
    order = _million_blocks()
    steps = Steps(order.samples, order.layout.lanes, 256, rank=3, world_size=8)
    count = POSITIONS // (256 // 8)
    return _nanoseconds(bench, lambda start: order.sample_ids(0, steps.share(start, count).sequence))


def global_set_up(bench: Bench) -> list[float]:
    """Milliseconds to begin an epoch of a global shuffle of 10^12."""
    return [_milliseconds(_begin_global) for _ in range(bench.repetitions)]


def global_set_up_memory(bench: Bench) -> list[float]:
    """MB, at most, to begin an epoch of a global shuffle of 10^12."""
    values = []
    for _ in range(bench.repetitions):
        tracemalloc.start()
        _begin_global()
        values.append(tracemalloc.get_traced_memory()[1] / 1e6)
        tracemalloc.stop()
    return values


def window_set_up(bench: Bench) -> list[float]:
    """Milliseconds to begin an epoch of a window shuffle over a million blocks."""
    lengths = np.full(10**6, 10**6)
    return [
        _milliseconds(lambda: _million_blocks(lengths).sample_ids(0, np.arange(1))) for _ in range(bench.repetitions)
    ]


class _Blind:
    """In place of what watches for cold data."""

    def expect(self, sample_ids: npt.ArrayLike, locate: object) -> None:
        """Does nothing."""


def _headrace(dataset: hr.NumpyDataset, batch_size: int, num_workers: int) -> hr.DataLoader:
    return hr.DataLoader(dataset, batch_size=batch_size, shuffle=True, drop_last=True, num_workers=num_workers)


def _mapped(path: Path) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = np.load(path, mmap_mode="r")
    return array


def _read_then_gather(path: Path) -> None:
    read_through(path)
    for _ in PlainGather({"x": _mapped(path)}, 256):
        pass


def _epoch(num_workers: int, path: Path) -> None:
    for _ in _headrace(hr.NumpyDataset({"x": str(path)}), 256, num_workers):
        pass


def _begin_global() -> None:
    order = Order(10**12, resolve_layout(10**12, BlockTotals(1, 1), random_access=True, shuffle=True))
    order.sample_ids(0, np.arange(1))


def _million_blocks(lengths: npt.NDArray[np.int64] | None = None) -> Order:
    lengths = np.full(10**6, 10**6) if lengths is None else lengths
    samples = 10**12
    layout = resolve_layout(samples, BlockTotals(10**6, 10**6 << 24), random_access=False, shuffle="window")
    return Order(samples, layout, block_lengths=lengths)


def _nanoseconds(bench: Bench, compute: Callable[[int], npt.NDArray[np.int64]]) -> list[float]:
    """Per position, the median of some calls at different places; once for each repetition."""
    compute(0)
    return [
        statistics.median(_milliseconds(functools.partial(compute, call * 10**9)) for call in range(1, 12))
        * (1e6 / POSITIONS)
        for _ in range(bench.repetitions)
    ]


def _milliseconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e3
