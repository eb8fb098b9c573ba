"""Bytes from anywhere: local files, S3, HTTP, and whatever fsspec opens, behind one verb.

Guarantees:
    - Everything may be called from any thread. What a process has (threads, connections, clients, locks) is made when
      it first reads and belongs to it alone: after a fork the child makes its own and uses nothing of its parent's.
    - Bytes are right, or an error says why there are none; see `headrace.storage` for what is checked.
    - Threads live only while there is something to read.
"""

import os
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.errors import ArgumentError
from headrace.storage.access import without_causes
from headrace.storage.cache import DiskCache
from headrace.storage.faults import Patience
from headrace.storage.names import expand
from headrace.storage.objects import RangeRead, StoredObject
from headrace.storage.reader import Options, Reader
from headrace.storage.transfers import Transfer


class Store:
    """Files and objects, read in ranges: `s3://`, `http(s)://`, `gs://`, any fsspec URL, and local paths.

    Example:
        >>> import fsspec, numpy as np
        >>> fsspec.filesystem("memory").pipe("/bucket/greeting", b"hello, world")
        >>> store = Store()
        >>> [greeting] = store.open(["memory://bucket/greeting"])
        >>> out = np.empty(5, np.uint8)
        >>> store.read_ranges([RangeRead(greeting, 7, out)])
        >>> out.tobytes()
        b'world'
    """

    def __init__(
        self,
        *,
        storage_options: Mapping[str, Any] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_bytes: int | None = None,
        max_requests: int = 32,
        max_request_bytes: int = 256 << 20,
        deadline_seconds: float = 300.0,
        stall_seconds: float = 10.0,
        direct: bool = True,
        confirm: bool = False,
        patience: Patience | None = None,
    ) -> None:
        """Opens nothing yet, but the cache folder.

        Args:
            storage_options: What fsspec's filesystem takes: credentials, `endpoint_url`, `anon`. By default the
                environment and profiles count, as everywhere in fsspec.
            cache_dir: A folder on a local disk for a cache that all processes of this node share; by default there is
                no cache.
            cache_bytes: The most that the cache holds; by default half of what is free, and never the disk's last 5 GB.
            max_requests: Requests under way at once; fewer while the server throttles.
            max_request_bytes: The bytes of all of these, about.
            deadline_seconds: How long one range of at most 8 MiB may take, with all attempts.
            stall_seconds: After how long without a byte a request is given up and made again.
            direct: Whether S3 and HTTP are read by headrace's own range reader; else by fsspec's clients, slower.
            confirm: Whether everything is read until two answers agree: for servers and links that alter data without a
                trace, at twice the cost.
            patience: All waits at once, in place of the two above.

        Raises:
            ArgumentError: A number makes no sense, or the cache is smaller than a block of 8 MiB.
            StorageError: The cache folder can't be used.
        """
        if storage_options is not None and not isinstance(storage_options, Mapping):
            got = type(storage_options).__name__  # not its value, which may be a secret
            raise ArgumentError(f"storage_options: expected a dict of options by name, got {got}")
        for name, number in (("max_requests", max_requests), ("max_request_bytes", max_request_bytes)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ArgumentError(f"{name}: expected a whole number, 1 or more, got {number!r}")
        for name, seconds in (("deadline_seconds", deadline_seconds), ("stall_seconds", stall_seconds)):
            if not seconds > 0:
                raise ArgumentError(f"{name}: expected more than 0 seconds, got {seconds!r}")
        if cache_bytes is not None and cache_dir is None:
            raise ArgumentError(f"cache_bytes: expected a cache_dir= to go with it, got {cache_bytes} alone")
        self._options = Options(
            storage_options=dict(storage_options or {}),
            cache_dir=None if cache_dir is None else Path(cache_dir).expanduser().absolute(),
            cache_bytes=cache_bytes,
            max_requests=max_requests,
            max_request_bytes=max_request_bytes,
            patience=patience or Patience(deadline_seconds=deadline_seconds, stall_seconds=stall_seconds),
            direct=direct,
            confirm=confirm,
        )
        self._of_process: dict[int, Reader] = {}
        if self._options.cache_dir is not None:
            DiskCache(self._options.cache_dir, cache_bytes)  # says now what is wrong with it

    def __getstate__(self) -> Options:
        return self._options

    def __setstate__(self, options: Options) -> None:
        self._options, self._of_process = options, {}

    def __repr__(self) -> str:
        named = ", ".join(sorted(self._options.storage_options))  # their values may be secrets
        cache_dir = None if self._options.cache_dir is None else str(self._options.cache_dir)
        return f"Store(storage_options={{{named}}}, cache_dir={cache_dir!r})"

    def for_local_files(self) -> "Store":
        """The same cache and waits, without the options that may let one into a store."""
        store = object.__new__(type(self))
        store.__setstate__(replace(self._options, storage_options={}))
        return store

    @property
    def has_cache(self) -> bool:
        """Whether blocks are kept on disk."""
        return self._options.cache_dir is not None

    @property
    def cache_dir(self) -> Path | None:
        """The folder of the disk cache; None where there is none."""
        return self._options.cache_dir

    @property
    def cache_budget_bytes(self) -> int:
        """The most that the disk cache holds; 0 where there is none."""
        return self._reader.cache_budget_bytes

    def expand(self, patterns: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str]:
        """The URLs and absolute local paths that patterns stand for: `{000..127}`, `{a,b}`, `*`, `?`, `[...]`, `**`.

        Lists keep their order; what a glob finds is sorted by code point. A local file of a pattern's very name wins.

        Raises:
            ArgumentError: A pattern stands for nothing.
            DependencyError: A package is missing; the text names the pip line.
            StorageError: A store cannot be listed.
        """
        with without_causes():
            return expand(patterns, self._reader.filesystems)

    def open(self, urls: Sequence[str]) -> list[StoredObject]:
        """Pins objects: every later read makes sure that length and version are still the same.

        Raises:
            DependencyError: A package is missing; the text names the pip line.
            StorageError: One doesn't exist or can't be read, or its server knows no byte ranges.
        """
        reader = self._reader
        probes = reader.probes(urls)
        try:
            reader.put(probes, urgent=True)
            return [probe.wait() for probe in probes]
        except BaseException:
            for probe in probes:
                probe.give_up()
            raise

    def read_ranges(self, reads: Sequence[RangeRead]) -> None:
        """Fills the memory of all of these, many at once; nothing writes into it afterwards, whatever happens.

        Raises:
            StorageError: The bytes of one cannot be had; the text names its URL, range, attempts and the last cause.
        """
        reader = self._reader
        transfers = reader.transfers(reads)
        try:
            reader.put([part for transfer in transfers for part in transfer.parts], urgent=True)
            for transfer in transfers:
                transfer.wait()
        except BaseException:
            for transfer in transfers:
                transfer.cancel()
            raise
        finally:
            for transfer in transfers:
                transfer.wait_released()

    def start(self, reads: Sequence[RangeRead], *, urgent: bool = False) -> list[Transfer]:
        """Begins to read, and returns at once.

        Args:
            reads: What to read. Leave the memory of each alone until its transfer is `released`.
            urgent: Whether to read it before what is queued.
        """
        reader = self._reader
        transfers = reader.transfers(reads)
        reader.put([part for transfer in transfers for part in transfer.parts], urgent=urgent)
        return transfers

    def keep(self, read: RangeRead) -> None:
        """Puts a range that the caller has into the disk cache, where reading it finds it. Nothing without a cache.

        Args:
            read: What would be read, as it would be asked for, with `keep` and `crc32`; `out` holds the bytes already.
        """
        self._reader.keep(read)

    def read_through(self, key: str, out: npt.NDArray[np.uint8], fetch: Callable[[], None]) -> None:
        """Fills memory from the disk cache, or by `fetch` where it isn't there, and keeps it.

        For bytes that are made of what is stored, decompressed say.

        Args:
            key: Names the bytes and their content: another version of them has another key.
            out: uint8 (bytes,), C-contiguous.
            fetch: Fills `out`; its errors pass through.

        Raises:
            ArgumentError: There is no cache.
            ReadCancelled: Another process is at it, and nobody wants it any more.
        """
        if self._options.cache_dir is None:
            raise ArgumentError("read_through: expected a store with a cache, got none: give Store(cache_dir=...)")
        self._reader.read_through(key, out, fetch)

    def counts(self) -> dict[str, int]:
        """What this process's reads took, by name: `requests`, `received_bytes`, `retries`, `cache_hits` and others."""
        reader = self._of_process.get(os.getpid())
        return {} if reader is None else reader.counts.as_dict()

    @property
    def _reader(self) -> Reader:
        pid = os.getpid()
        reader = self._of_process.get(pid)
        if reader is None:
            # Atomic: of two threads that come first at once, both get the same one. A parent's is never touched again.
            made = Reader(self._options)
            reader = self._of_process.setdefault(pid, made)
            if reader is made:
                weakref.finalize(self, _close, reader, pid).atexit = False
        return reader


def _close(reader: Reader, pid: int) -> None:
    if os.getpid() == pid:  # a child inherits this, but not the parent's locks and connections
        reader.close()
