"""What one process has of a store: its clients and threads, and the patience to get every byte right.

Guarantees: everything may be called from any thread; a `Reader` is used by the process that made it and by no other.
"""

import functools
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from headrace.errors import HeadraceError, StorageError
from headrace.storage.access import Filesystems, without_causes
from headrace.storage.cache import DiskCache
from headrace.storage.cancellation import check_cancelled
from headrace.storage.checksum import crc32
from headrace.storage.concurrency import Concurrency
from headrace.storage.counts import Counts
from headrace.storage.faults import MISFITS, Fault, Patience, Refused
from headrace.storage.file_lock import LockPatience
from headrace.storage.general import FsspecRanges
from headrace.storage.http_ranges import HttpRanges
from headrace.storage.local import LocalRanges
from headrace.storage.objects import RangeRead, StoredObject
from headrace.storage.ranges import BLOCK_BYTES, split
from headrace.storage.transfers import Part, Probe, Transfer, TransferQueue, Work
from headrace.storage.urls import is_url, server_of

Result = TypeVar("Result")

_OPENING_SECONDS = 30.0
_LEAST_SECONDS = 1.0  # for an attempt that begins when the deadline is near
_FAILURES_TO_TELL = 5  # in a row: the pauses add up to seconds by then

_log = logging.getLogger("headrace")


@dataclass(frozen=True, slots=True)
class Options:
    """What a store was told; see `Store`."""

    storage_options: Mapping[str, Any] = field(repr=False)  # may hold secrets
    cache_dir: Path | None
    cache_bytes: int | None
    max_requests: int
    max_request_bytes: int
    patience: Patience
    direct: bool
    confirm: bool


class Ranges(Protocol):
    """A way to read: one attempt at a time, which raises Fault (try again) or Refused (don't) where it fails."""

    def probe(self, probe: Probe) -> StoredObject:
        """The object, pinned; the attempt is over by `probe.ends`, or when it is given up."""

    def read(self, part: Part) -> None:
        """Fills what is missing of a part; over by `part.ends`, or when it is given up."""


class Reader:
    """Reads ranges for one process.

    Attributes:
        filesystems: Its fsspec filesystems.
        counts: What its reads took.
    """

    def __init__(self, options: Options) -> None:
        self._options, self._patience = options, options.patience
        self.counts = Counts()
        self.filesystems = Filesystems(options.storage_options)
        self._local = LocalRanges()
        self._http = HttpRanges(self.filesystems, self._patience, self.counts.add)
        self._general = FsspecRanges(self.filesystems, self._patience, self.counts.add)
        self._queue = TransferQueue(
            self._run, max_requests=options.max_requests, max_request_bytes=options.max_request_bytes
        )
        self._servers: dict[str, Concurrency] = {}
        self._cache = None
        if options.cache_dir is not None:
            waiting = LockPatience(min(LockPatience.patience_seconds, self._patience.deadline_seconds))
            self._cache = DiskCache(options.cache_dir, options.cache_bytes, count=self.counts.add, patience=waiting)

    def close(self) -> None:
        """Ends connections that are idle, now and later."""
        self._http.close()

    def probes(self, urls: Sequence[str]) -> list[Probe]:
        """Looks to be taken at objects, which `put` begins."""
        return [Probe(url) for url in urls]

    def transfers(self, reads: Sequence[RangeRead]) -> list[Transfer]:
        """Ranges to be read, which `put` begins."""
        return [Transfer(read, _parts(read), self._queue) for read in reads]

    def put(self, work: Iterable[Work], *, urgent: bool) -> None:
        """Begins some work, and returns at once."""
        self._queue.put(work, urgent=urgent)

    @property
    def cache_budget_bytes(self) -> int:
        """The most that the disk cache holds; 0 where there is none."""
        return 0 if self._cache is None else self._cache.budget_bytes

    def keep(self, read: RangeRead) -> None:
        """Puts a range into the cache whose bytes the caller has."""
        if self._cache is None:
            return
        for part in _parts(read):
            key = self._key(part)
            if key is not None:
                # a block that is there but damaged is read, too: not into the caller's memory
                out = np.empty_like(part.out)
                copy = functools.partial(np.copyto, out, part.out)
                self._cache.read_through(key, out, copy, check=check_cancelled)

    def read_through(self, key: str, out: npt.NDArray[np.uint8], fetch: Callable[[], None]) -> None:
        """Fills memory with what was made of stored bytes: from the cache, else by `fetch`."""
        assert self._cache is not None
        # no range's key begins so
        self._cache.read_through(f"made\n{key}", out, fetch, check=check_cancelled)

    def _run(self, work: Work) -> None:
        """Does some work, in a thread of the queue; what goes wrong is told to those who wait for it."""
        try:
            with without_causes():
                self._do(work)
        except BaseException as error:  # noqa: BLE001 (raised to those who wait)
            work.release(error)
        else:
            work.release()

    def _do(self, work: Work) -> None:
        what = f"cannot {work}"
        try:
            if isinstance(work, Probe):
                work.found = self._probe(work, what)
            elif isinstance(work, Part):
                self._read(work, what)
                work.fill()
        except HeadraceError:
            raise
        except Exception as error:  # noqa: BLE001 (what clients and servers make Python raise)
            raise StorageError(f"{what}: {self.filesystems.said(error)}") from None

    def _probe(self, probe: Probe, what: str) -> StoredObject:
        ranges = self._ranges(probe.url)
        # a wrong address should be told before one loses patience
        seconds = min(self._patience.deadline_seconds, _OPENING_SECONDS)
        return self._persist(lambda: ranges.probe(probe), probe, probe.url, what, seconds)

    def _read(self, part: Part, what: str) -> None:
        read, key = part.read, self._key(part.read)
        if self._cache is None or key is None:
            self._fetch(part, what)
            return
        self._cache.read_through(key, read.out, lambda: self._fetch(part, what), filled=part.fill, check=part.check)

    def _key(self, read: RangeRead) -> str | None:
        """What a range is called in the cache; None where it isn't kept there."""
        source = read.source
        # an object that could be replaced without a trace must be asked for each time
        if not read.keep or not source.version or not is_url(source.url):
            return None
        identity = self.filesystems.identity(source.url)
        return f"{identity}\n{source.version}\n{source.object_bytes}\n{read.offset}\n{len(read.out)}\n{read.crc32}"

    def _fetch(self, part: Part, what: str) -> None:
        """Gets a part from where it is stored, until its checksum is the expected one, or has come twice."""
        read, ranges = part.read, self._ranges(part.read.source.url)
        known, seen = read.crc32, set[int]()

        def attempt() -> None:
            ranges.read(part)
            if known is None and not self._options.confirm:
                return
            found = crc32(read.out)
            if found == known or (known is None and found in seen):
                return
            part.arrived = 0
            seen.add(found)
            if known is not None:
                raise Fault("wrong-checksum", f"expected CRC32 {known:08x}, got {found:08x}", at_most=MISFITS)
            if len(seen) > 1:
                raise Fault("disagreement", f"got other bytes in each of {len(seen)} answers", at_most=MISFITS)
            attempt()

        self._persist(attempt, part, read.source.url, what, self._patience.deadline_seconds)

    def _persist(
        self, attempt: Callable[[], Result], work: Work, url: str, what: str, deadline_seconds: float
    ) -> Result:
        """Makes attempts until one succeeds, there is no use in another, or the deadline is over.

        The time in which it waits for its turn, while the server throttles, doesn't count.
        """
        server = self._server(url)
        spent_seconds = 0.0
        alike, kind = 0, ""
        while True:
            began = float("inf")
            try:
                with server.slot(work.check):
                    began = time.monotonic()
                    work.ends = began + max(deadline_seconds - spent_seconds, _LEAST_SECONDS)
                    result = attempt()
            except Refused as refusal:
                spent_seconds += time.monotonic() - began
                raise StorageError(f"{what}: {refusal}{_after(work.attempts + 1, spent_seconds)}") from None
            except Fault as fault:
                work.check()  # given up: no retry
                spent_seconds += time.monotonic() - began
                work.attempts += 1
                alike, kind = (alike + 1 if fault.kind == kind else 1), fault.kind
                self.counts.add("retries")
                self.counts.add(f"retries_{kind}")
                if fault.throttled:
                    server.shrink()
                pause_seconds = self._pause_seconds(fault, work.attempts, alike)
                spent_seconds += pause_seconds
                if spent_seconds > deadline_seconds or alike == fault.at_most:
                    raise StorageError(
                        f"{what}: {fault}{_after(work.attempts, spent_seconds - pause_seconds)}"
                    ) from None
                if work.attempts == _FAILURES_TO_TELL:
                    _log.warning("%s so far, going on: %s", what, fault)
            else:
                server.grow()
                return result
            work.pause(pause_seconds)

    def _pause_seconds(self, fault: Fault, attempts: int, alike: int) -> float:
        if fault.at_once and alike == 1:
            return 0.0
        asked_for = min(fault.after_seconds, self._patience.longest_pause_seconds)
        return max(self._patience.pause_seconds(attempts), asked_for)

    def _ranges(self, url: str) -> Ranges:
        if not is_url(url):
            return self._local
        if self._options.direct and self.filesystems.is_direct(url):
            return self._http
        return self._general

    def _server(self, url: str) -> Concurrency:
        """The bounds of the server that a URL names: of the bucket, where it names that."""
        place = server_of(url)
        server = self._servers.get(place)
        if server is None:
            server = self._servers.setdefault(place, Concurrency(self._options.max_requests))
        return server


def _parts(read: RangeRead) -> list[RangeRead]:
    """A read as parts, each a request and a cache block of its own; none where it has no bytes."""
    if len(read.out) <= BLOCK_BYTES or read.crc32 is not None:
        return [read] if len(read.out) else []
    first = read.offset
    return [
        RangeRead(read.source, start, read.out[start - first : stop - first], keep=read.keep)
        for start, stop in split(first, read.stop, BLOCK_BYTES)
    ]


def _after(attempts: int, seconds: float) -> str:
    times = "1 attempt" if attempts == 1 else f"{attempts} attempts"
    return f"\n  gave up after {times} in {seconds:.1f} s"
