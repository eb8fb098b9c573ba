"""What headrace promises of tar shards, each as something to measure against what does the least, in the same run.

A rate is that of whole epochs, each measured next to the limit's, and which of the two comes first alternates. The
first epoch isn't counted: what is to be measured is a stream that goes on. All files are in memory, and their index is
there, unless a promise is about just that.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import DataLoader

import headrace as hr
from benchmarks.data import read_through
from benchmarks.peers.rival import Rival
from benchmarks.tar_data import BATCH_SIZE, make_images, make_small, places_beside
from benchmarks.tar_limits import IMAGE_SIZE, BarePool, KnownOffsets
from benchmarks.tar_memory import read_watched
from benchmarks.timing import Clock, Spent, alternating
from headrace.bench import measure
from headrace.formats.local_pin import LocalPin
from headrace.formats.tar_index_file import load_index
from headrace.formats.tar_scan import scan_file
from headrace.formats.tar_shards import index_beside, open_tar_index
from headrace.storage import Store

IMAGE_BATCH_SIZE = 64
IMAGE_THREADS = 2
EPOCHS = 3  # of small samples in a value: one takes a fifth of a second
STARTS = 9  # of a loader in a value
LOADS = 51  # of an index in a value: each takes a millisecond or two
HEADERS_OF_A_SAMPLE = 4  # of `cls` and `npy` each a header of its own, and one for a pax record


@dataclass
class Tar:
    """Where and how long to measure.

    Attributes:
        data_dir: Where the shards are made.
        shard_samples: Small samples in each of 20 shards.
        shard_images: Images in each of 8 shards.
        requests: Requests at once, of a store's clients.
        repetitions: Values of each promise.
        seconds: For a rival.
    """

    data_dir: Path
    shard_samples: int = 10_000
    shard_images: int = 1000
    requests: int = 16
    repetitions: int = 5
    seconds: float = 2.0
    _images: list[tuple[Spent, Spent]] = field(default_factory=list)

    def small(self) -> list[Path]:
        """The shards of small samples, in memory."""
        return _hot(make_small(self.data_dir, samples=self.shard_samples))

    def images(self) -> list[tuple[Spent, Spent]]:
        """For each repetition what an epoch of images took by headrace, and by the bare pool."""
        if not self._images:
            self._images.extend(_images(self))
        return self._images


def rates(where: Tar, *, num_workers: int) -> list[float]:
    """The rate of shuffled batches of arrays and labels over that of a gather of the arrays, in the same order."""
    loader = small_loader(where.small(), num_workers)
    return _over_gather(where, loader)


def torch_rates(where: Tar, *, num_workers: int) -> list[float]:
    """The same for torch's own DataLoader over a TarDataset that yields batches."""
    tars = hr.TarDataset(_names(where.small()), batch_size=BATCH_SIZE, shuffle=True, drop_last=True)
    return _over_gather(where, DataLoader(tars, batch_size=None, num_workers=num_workers))


def image_rates(where: Tar) -> list[float]:
    """The rate of images over that of the same decoder and resize in a bare pool, two threads each."""
    return [bare.seconds / ours.seconds for ours, bare in where.images()]


def image_cpu(where: Tar) -> list[float]:
    """The CPU time of images over that of the bare pool."""
    return [ours.cpu_seconds / bare.cpu_seconds for ours, bare in where.images()]


def scan(where: Tar) -> list[float]:
    """Microseconds that the scan of a shard takes for each block that is a header, on one thread."""
    pins = [LocalPin.of(str(path), path.stat()) for path in where.small()]
    values = []
    for _ in range(where.repetitions):
        began, headers = time.perf_counter(), 0
        for pin in pins:
            headers += HEADERS_OF_A_SAMPLE * scan_file(pin).samples
        values.append((time.perf_counter() - began) / headers * 1e6)
    return values


def load(where: Tar) -> list[float]:
    """Milliseconds to load the index of the small samples, its checks included."""
    index = open_tar_index(_names(where.small()), Store())
    beside = index_beside(index.shards)
    if beside is None or not Path(beside).exists():
        raise RuntimeError(f"expected the index beside the shards, {beside}")
    call = functools.partial(load_index, Path(beside), index.shards)
    return [statistics.median(_milliseconds(call) for _ in range(LOADS)) for _ in range(where.repetitions)]


def memory_growth(where: Tar, *, num_workers: int) -> list[float]:
    """MB by which the last third of some epochs in a process of their own holds more than the first."""
    paths = where.small()
    held = [read_watched(paths, num_workers=num_workers) for _ in range(max(1, where.repetitions // 2))]
    return [max(0, one.last_third - one.first_third) / 1e6 for one in held]


def resume(where: Tar, *, num_workers: int) -> list[float]:
    """The time to the first batch of a run that goes on at half of an epoch, over that of a fresh one.

    It begins before the dataset is opened.
    """
    paths = where.small()
    loader = small_loader(paths, num_workers)
    loader.seek(epoch=0, step=len(loader) // 2)
    state = loader.state_dict()

    def first_batch(state: dict[str, Any] | None) -> None:
        started = small_loader(paths, num_workers)
        if state is not None:
            started.load_state_dict(state)
        next(iter(started))

    ways = (functools.partial(first_batch, state), functools.partial(first_batch, None))
    values = []
    for repetition in range(where.repetitions):
        ordered = ways if repetition % 2 == 0 else ways[::-1]
        times = {way: statistics.median(_milliseconds(way) for _ in range(STARTS)) for way in ordered}
        values.append(times[ways[0]] / times[ways[1]])
    return values


def peer(where: Tar, *, rival: Rival) -> list[float]:
    """Our rate over a rival's, both shuffled, each with as many workers or threads as make it fastest: 0 or 2."""
    paths = where.small()
    loaders = {num_workers: small_loader(paths, num_workers) for num_workers in (0, 2)}
    theirs = functools.partial(
        rival.rate, paths, where.data_dir, batch_size=BATCH_SIZE, window=0, seconds=where.seconds
    )
    rate = functools.partial(measure, seconds=where.seconds, samples_in=_samples)
    values = []
    for _ in range(max(1, where.repetitions // 2)):
        fastest = max(theirs(num_workers=num_workers) for num_workers in loaders)
        values.append(max(rate(loader).samples_per_second for loader in loaders.values()) / fastest)
    return values


def small_loader(paths: Sequence[Path], num_workers: int) -> hr.DataLoader:
    """What is measured: the shards as a user would read them."""
    tars = hr.TarDataset(_names(paths), columns=["npy", "cls"])
    return hr.DataLoader(tars, batch_size=BATCH_SIZE, shuffle=True, drop_last=True, num_workers=num_workers)


def epoch(samples: int, batches: Iterable[Any], count: Callable[[Any], int], *, epochs: int = 1) -> Spent:
    """What epochs take, from before the first batch to the last."""
    before = Clock()
    read = sum(sum(map(count, batches)) for _ in range(epochs))
    spent = before.spent()
    if read != epochs * samples:
        raise RuntimeError(f"expected {epochs} epochs of {samples} samples, got {read} samples")
    return spent


def _over_gather(where: Tar, loader: Iterable[Any]) -> list[float]:
    paths = where.small()
    everything, places = places_beside(paths)
    read_through(everything)
    order = _order(hr.TarDataset(_names(paths)))
    samples = len(order) // BATCH_SIZE * BATCH_SIZE
    gather = KnownOffsets(everything, places, order, BATCH_SIZE)
    ours = functools.partial(epoch, samples, loader, _samples, epochs=EPOCHS)
    limit = functools.partial(epoch, samples, gather, len, epochs=EPOCHS)
    limit()
    ours()
    return [plain.seconds / own.seconds for own, plain in alternating(ours, limit, where.repetitions)]


def _images(where: Tar) -> Iterable[tuple[Spent, Spent]]:
    paths = _hot(make_images(where.data_dir, images=where.shard_images))
    everything, places = places_beside(paths)
    read_through(everything)
    tars = hr.TarDataset(_names(paths), columns=["jpg", "cls"], decode={"jpg": hr.image(IMAGE_SIZE)})
    loader = hr.DataLoader(tars, batch_size=IMAGE_BATCH_SIZE, shuffle=True, num_workers=IMAGE_THREADS)
    pool = BarePool(everything, places, _order(tars), IMAGE_BATCH_SIZE, IMAGE_THREADS)
    ours = functools.partial(epoch, len(places), loader, _samples)
    bare = functools.partial(epoch, len(places), pool, len)
    bare()
    ours()
    return alternating(ours, bare, where.repetitions)


def _order(tars: hr.TarDataset) -> npt.NDArray[np.int64]:
    """The order of the first epoch, shuffled as a loader does."""
    return np.fromiter(hr.OrderSampler(tars.samples, shuffle=True), np.int64, len(tars.samples))


def _hot(paths: list[Path]) -> list[Path]:
    for path in paths:
        read_through(path)
    return paths


def _names(paths: Iterable[Path]) -> list[str]:
    return [str(path) for path in paths]


def _samples(batch: Any) -> int:
    return int(batch["cls"].shape[0])


def _milliseconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e3
