"""What headrace promises of tar shards in a store: the first epoch from an S3 server, against a plain client.

The server is a process of its own on the loopback interface. Each epoch is a dataset's first: it finds nothing in its
memory, and no disk cache keeps anything of it, but where the index is still to be built.
"""

import contextlib
import functools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec

import headrace as hr
from benchmarks.plain_client import fetch_all
from benchmarks.servers.s3 import S3Server
from benchmarks.tar_data import BATCH_SIZE
from benchmarks.tar_promises import Tar, epoch
from benchmarks.timing import Clock, Spent, alternating
from headrace.storage import Store

NUM_WORKERS = 2
LEAST_RECEIVED = 0.99  # of the bytes: else something was kept from the epoch before


@dataclass(frozen=True, slots=True)
class Stored:
    """Shards in a store.

    Attributes:
        urls: Theirs, for headrace.
        signed_urls: For a plain client.
        options: The store's, as fsspec takes them.
        shard_bytes: Of each.
    """

    urls: list[str]
    signed_urls: list[str] = field(repr=False)
    options: dict[str, Any] = field(repr=False)  # credentials
    shard_bytes: int

    def plain(self, requests: int) -> Spent:
        """What it takes a plain client to read all bytes."""
        before = Clock()
        received = fetch_all(self.signed_urls, self.shard_bytes, requests)
        spent = before.spent()
        if received != self.total_bytes:
            raise RuntimeError(f"expected {self.total_bytes} bytes, got {received}")
        return spent

    @property
    def total_bytes(self) -> int:
        """Of all shards."""
        return self.shard_bytes * len(self.urls)


def first_epoch(where: Tar) -> list[float]:
    """The rate of bytes of a first epoch, its index there, over the plain client's; opening the dataset isn't timed."""
    with _stored(where) as stored, tempfile.TemporaryDirectory(dir=where.data_dir) as folder:
        hr.TarDataset(stored.urls, storage_options=stored.options, index_dir=folder)
        return _over_plain(where, stored, functools.partial(_indexed, where, stored, Path(folder)))


def without_index(where: Tar) -> list[float]:
    """The rate of opening shards, their index to be built and their blocks to be kept, and a first epoch then."""
    with _stored(where) as stored:
        return _over_plain(where, stored, functools.partial(_unindexed, where, stored))


def _over_plain(where: Tar, stored: Stored, ours: functools.partial[Spent]) -> list[float]:
    plain = functools.partial(stored.plain, where.requests)
    plain()
    pairs = alternating(ours, plain, where.repetitions)
    return [limit.seconds / own.seconds for own, limit in pairs]


def _indexed(where: Tar, stored: Stored, index_dir: Path) -> Spent:
    store = Store(storage_options=stored.options, max_requests=where.requests)
    tars = hr.TarDataset(stored.urls, columns=["npy", "cls"], store=store, index_dir=index_dir)
    before = store.counts().get("received_bytes", 0)
    spent = _epoch(tars)
    received = store.counts().get("received_bytes", 0) - before
    if received < LEAST_RECEIVED * stored.total_bytes:
        raise RuntimeError(f"expected an epoch of {stored.total_bytes} bytes from the store, got {received}")
    return spent


def _unindexed(where: Tar, stored: Stored) -> Spent:
    with tempfile.TemporaryDirectory(dir=where.data_dir) as folder:
        store = Store(
            cache_dir=Path(folder) / "cache",
            cache_bytes=2 * stored.total_bytes + (64 << 20),
            storage_options=stored.options,
            max_requests=where.requests,
        )
        before = Clock()
        tars = hr.TarDataset(stored.urls, columns=["npy", "cls"], store=store, index_dir=folder)
        _epoch(tars)
        return before.spent()


def _epoch(tars: hr.TarDataset) -> Spent:
    loader = hr.DataLoader(tars, batch_size=BATCH_SIZE, shuffle=True, num_workers=NUM_WORKERS)
    return epoch(len(tars.samples), loader, lambda batch: int(batch["cls"].shape[0]))


@contextlib.contextmanager
def _stored(where: Tar) -> Iterator[Stored]:
    paths = where.small()
    sizes = {path.stat().st_size for path in paths}
    if len(sizes) != 1:
        raise RuntimeError(f"the plain client wants shards of one length, got {sorted(sizes)}")
    with S3Server() as s3:
        urls = [s3.put("data", f"tar/{path.name}", path.read_bytes()) for path in paths]
        signer = fsspec.filesystem("s3", **s3.storage_options, config_kwargs={"signature_version": "s3v4"})
        yield Stored(urls, [signer.sign(url, expiration=7200) for url in urls], s3.storage_options, sizes.pop())
