"""What headrace promises of data in a store, each as something to measure against a plain client, or the local files.

What is timed is one epoch, from the first `next` to the last batch, and the CPU time of this process
alone: servers run in their own. The first epoch isn't counted: what is to be measured is a stream that goes on, whose
memory is used again, as the plain client's is. The data is twice as large as that memory: every epoch reads all of it.
"""

import contextlib
import functools
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import numpy as np

import headrace as hr
from benchmarks.data import make_shards, read_through
from benchmarks.plain_client import fetch_all
from benchmarks.servers.range_server import RangeServer
from benchmarks.servers.s3 import S3Server
from benchmarks.timing import Clock, Spent, alternating
from headrace.storage import RangeRead

# What a store looks like from afar: an answer begins after 20 ms, and no stream brings more than this
LATENCY_SECONDS = 0.02
STREAM_BYTES_PER_SECOND = 50e6
SHARDS = 16
BLOCK_BYTES = 8 << 20  # the largest that a dataset reads at once; one may be left in memory from the epoch before
BATCH_SIZE = 4096  # rows of 1 KB


@dataclass
class Remote:
    """Where and what to measure.

    Attributes:
        data_dir: Where the shards are made.
        shard_rows: Rows of 1 KB in each of 16 shards.
        requests: Requests at once, for both sides.
        repetitions: Values of each promise.
        num_workers: Of the loader.
    """

    data_dir: Path
    shard_rows: int = 65_536
    requests: int = 16
    repetitions: int = 3
    num_workers: int = 2
    _streams: dict[str, list[tuple[Spent, Spent]]] = field(default_factory=dict)

    def shards(self) -> list[Path]:
        """The 16 files, in memory."""
        paths = make_shards(self.data_dir, SHARDS, self.shard_rows)
        for path in paths:
            read_through(path)
        return paths

    def streams(self, kind: str) -> list[tuple[Spent, Spent]]:
        """For each repetition what an epoch took by headrace, and the same bytes by the plain client."""
        if kind not in self._streams:
            self._streams[kind] = list(_streams(self, kind))
        return self._streams[kind]


def rates(remote: Remote, *, kind: str) -> list[float]:
    """The rate of headrace over the plain client's."""
    return [plain.seconds / ours.seconds for ours, plain in remote.streams(kind)]


def cpu(remote: Remote, *, kind: str) -> list[float]:
    """The CPU time of headrace over the plain client's."""
    return [ours.cpu_seconds / plain.cpu_seconds for ours, plain in remote.streams(kind)]


def cached(remote: Remote, *, shuffle: bool | str = "window") -> list[float]:
    """The rate of an epoch from the disk cache over that from the same files, memory-mapped, on the local disk."""
    with _cached(remote) as (paths, urls, store):
        stored, local = _streamed(urls, store), hr.NumpyDataset({"x": [str(path) for path in paths]})
        first, second = (functools.partial(epoch, dataset, remote, shuffle=shuffle) for dataset in (stored, local))
        return _rates_from_cache(remote, store, first, second)


def cached_ranges(remote: Remote) -> list[float]:
    """The rate of reading all files in ranges from the disk cache over reading them from the local disk."""
    with _cached(remote) as (paths, urls, store):
        memory = np.empty(sum(path.stat().st_size for path in paths), np.uint8)

        def read(names: Sequence[str]) -> Spent:
            objects = store.open(names)
            stops = np.cumsum([one.object_bytes for one in objects]).tolist()
            rooms = [memory[stop - one.object_bytes : stop] for one, stop in zip(objects, stops, strict=True)]
            before = Clock()
            store.read_ranges([RangeRead(one, 0, room, keep=True) for one, room in zip(objects, rooms, strict=True)])
            return before.spent()

        files = [str(path) for path in paths]
        read(urls)
        return _rates_from_cache(remote, store, lambda: read(urls), lambda: read(files))


@contextlib.contextmanager
def _cached(remote: Remote) -> Iterator[tuple[list[Path], list[str], hr.Store]]:
    """The shards, their URLs, and a store with a cache of its own."""
    paths = remote.shards()
    with RangeServer(paths[0].parent) as server, tempfile.TemporaryDirectory(dir=remote.data_dir) as folder:
        cache_bytes = 2 * sum(path.stat().st_size for path in paths) + (64 << 20)  # whatever the disk has left
        store = hr.Store(cache_dir=Path(folder) / "cache", cache_bytes=cache_bytes, max_requests=remote.requests)
        yield paths, [f"{server.url}/{path.name}" for path in paths], store


def _rates_from_cache(
    remote: Remote, store: hr.Store, from_cache: Callable[[], Spent], from_files: Callable[[], Spent]
) -> list[float]:
    from_cache()  # the first one fills the cache
    from_files()
    before = store.counts()
    pairs = list(alternating(from_cache, from_files, remote.repetitions))
    after = store.counts()
    if after["received_bytes"] - before["received_bytes"] > 1 << 20 or after["cache_hits"] == before.get("cache_hits"):
        raise RuntimeError(f"what was to come from the cache did not: {after}")
    return [files.seconds / cache.seconds for cache, files in pairs]


def epoch(dataset: hr.NumpyDataset, remote: Remote, *, shuffle: bool | str = False) -> Spent:
    """Reads a dataset once; shuffled within windows that its memory holds where they are asked for."""
    window: dict[str, Any] = {"shuffle_window": len(dataset) // 8} if shuffle else {}
    loader = hr.DataLoader(dataset, batch_size=BATCH_SIZE, num_workers=remote.num_workers, shuffle=shuffle, **window)
    before = Clock()
    samples = 0
    for batch in loader:
        samples += batch["x"].shape[0]
    spent = before.spent()
    if samples != len(dataset):
        raise RuntimeError(f"expected an epoch of {len(dataset)} samples, got {samples}")
    return spent


def checksum(paths: Sequence[Path]) -> int:
    """CRC32 of the rows of all shards, one after the other."""
    found = 0
    for path in paths:
        found = zlib.crc32(np.load(path, mmap_mode="r").data, found)
    return found


def _streams(remote: Remote, kind: str) -> Iterator[tuple[Spent, Spent]]:
    paths = remote.shards()
    object_bytes = paths[0].stat().st_size
    total_bytes = object_bytes * len(paths)
    with _served(kind, paths) as (urls, plain_urls, options):
        store = hr.Store(storage_options=options, max_requests=remote.requests)
        dataset = _streamed(urls, store)

        def ours() -> Spent:
            before_bytes = store.counts()["received_bytes"]
            spent = epoch(dataset, remote)
            received = store.counts()["received_bytes"] - before_bytes
            # two blocks may be left in memory from the epoch before
            if received < total_bytes - max(0.01 * total_bytes, 2 * BLOCK_BYTES):
                raise RuntimeError(f"expected an epoch of {total_bytes} bytes from the store, got {received}")
            return spent

        def plain() -> Spent:
            before = Clock()
            received = fetch_all(plain_urls, object_bytes, remote.requests)
            spent = before.spent()
            if received != total_bytes:
                raise RuntimeError(f"expected {total_bytes} bytes, got {received}")
            return spent

        plain()
        ours()  # the memory of both, and the server, are warm from here on
        yield from alternating(ours, plain, remote.repetitions)


def _streamed(urls: Sequence[str], store: hr.Store) -> hr.NumpyDataset:
    """A dataset in a store that finds nothing in its memory when an epoch begins anew: it holds a half of it."""
    dataset = hr.NumpyDataset({"x": list(urls)}, store=store)
    half = len(dataset) * dataset.schema["x"].sample_bytes // 2
    return hr.NumpyDataset({"x": list(urls)}, store=store, memory_bytes=half)


@contextlib.contextmanager
def _served(kind: str, paths: Sequence[Path]) -> Iterator[tuple[list[str], list[str], dict[str, Any]]]:
    """Serves the shards; gives their URLs for headrace, those for a plain client, and storage options."""
    if kind == "s3":
        with S3Server() as s3:
            urls = [s3.put("data", path.name, path.read_bytes()) for path in paths]
            signer = fsspec.filesystem("s3", **s3.storage_options, config_kwargs={"signature_version": "s3v4"})
            signed = [signer.sign(url, expiration=7200) for url in urls]
            yield urls, signed, s3.storage_options
        return
    slow = {"latency_seconds": LATENCY_SECONDS, "bytes_per_second": STREAM_BYTES_PER_SECOND}
    with RangeServer(paths[0].parent, **(slow if kind == "slow" else {})) as server:
        urls = [f"{server.url}/{path.name}" for path in paths]
        yield urls, urls, {}
