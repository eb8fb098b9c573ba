"""What one process has of a store: its clients and threads, and the patience to get every byte right.

Guarantees: everything may be called from any thread; a `Reader` is used by the process that made it and by no other.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from headrace.errors import StorageError
from headrace.storage.access import Filesystems, without_causes
from headrace.storage.cache import DiskCache
from headrace.storage.cancellation import POLL_SECONDS, check_cancelled
from headrace.storage.checksum import crc32
from headrace.storage.concurrency import Concurrency
from headrace.storage.counts import Counts
from headrace.storage.faults import Fault, Patience, Refused
from headrace.storage.general import FsspecRanges
from headrace.storage.http_ranges import HttpRanges
from headrace.storage.local import LocalRanges
from headrace.storage.objects import RangeRead, StoredObject
from headrace.storage.ranges import BLOCK_BYTES, split
from headrace.storage.transfers import Part, Transfer, TransferQueue
from headrace.storage.urls import is_url, shown

Result = TypeVar("Result")

_OPENING_SECONDS = 30.0
_FAILURES_TO_TELL = 5  # in a row: the pauses add up to seconds by then

_log = logging.getLogger("headrace")


@dataclass(frozen=True, slots=True)
class Options:
    """What a store was told; see `Store`."""

    storage_options: Mapping[str, Any]
    cache_dir: Path | None
    cache_bytes: int | None
    max_requests: int
    max_request_bytes: int
    patience: Patience
    direct: bool
    confirm: bool


class Ranges(Protocol):
    """A way to read: one attempt at a time, which raises Fault (try again) or Refused (don't) where it fails."""

    def probe(self, url: str) -> StoredObject:
        """The object, pinned."""

    def read(self, part: Part) -> None:
        """Fills what is missing of a part."""


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
            self._cache = DiskCache(options.cache_dir, options.cache_bytes, count=self.counts.add)

    def close(self) -> None:
        """Ends connections that are idle, now and later."""
        self._http.close()

    def probe(self, url: str) -> StoredObject:
        """Pins an object; see `Store.open`."""
        ranges = self._ranges(url)
        # a wrong address should be told before one loses patience
        seconds = min(self._patience.deadline_seconds, _OPENING_SECONDS)
        with without_causes():
            return self._persist(
                lambda: ranges.probe(url),
                url,
                f"cannot open {shown(url)}",
                seconds,
                check=check_cancelled,
                pause=_pause,
            )

    def start(self, reads: Sequence[RangeRead], *, urgent: bool) -> list[Transfer]:
        """Begins to read; see `Store.start`."""
        transfers = [Transfer(read, _parts(read), self._queue) for read in reads]
        self._queue.put([part for transfer in transfers for part in transfer.parts], urgent=urgent)
        return transfers

    def _run(self, part: Part) -> None:
        """Reads a part, in a thread of the queue; what goes wrong is told to those who wait for it."""
        try:
            with without_causes():
                self._read(part)
            part.fill()
        except BaseException as error:  # noqa: BLE001 (raised to those who wait)
            part.release(error)
        else:
            part.release()

    def _read(self, part: Part) -> None:
        read = part.read
        # an object that could be replaced without a trace must be asked for each time
        if self._cache is None or not read.keep or not read.source.version or not is_url(read.source.url):
            self._fetch(part)
            return
        source = read.source
        identity = self.filesystems.identity(source.url)
        key = f"{identity}\n{source.version}\n{source.object_bytes}\n{read.offset}\n{len(read.out)}\n{read.crc32}"
        self._cache.read_through(key, read.out, lambda: self._fetch(part), filled=part.fill, check=part.check)

    def _fetch(self, part: Part) -> None:
        """Gets a part from where it is stored, until its checksum is the expected one, or has come twice."""
        ranges, read, seen = self._ranges(part.read.source.url), part.read, set[int]()

        def attempt() -> None:
            ranges.read(part)
            if read.crc32 is not None and (found := crc32(read.out)) != read.crc32:
                part.arrived = 0
                raise Fault("wrong-checksum", f"expected CRC32 {read.crc32:08x}, got {found:08x}", at_most=5)

        while True:
            self._persist(
                attempt,
                read.source.url,
                f"cannot read {read}",
                self._patience.deadline_seconds,
                check=part.check,
                pause=part.pause,
                part=part,
            )
            if not self._options.confirm or read.crc32 is not None or (found := crc32(read.out)) in seen:
                return
            if seen:
                self.counts.add("retries")
                self.counts.add("retries_disagreement")
            seen.add(found)
            part.arrived = 0

    def _persist(
        self,
        attempt: Callable[[], Result],
        url: str,
        what: str,
        deadline_seconds: float,
        *,
        check: Callable[[], None],
        pause: Callable[[float], None],
        part: Part | None = None,
    ) -> Result:
        """Makes attempts until one succeeds, there is no use in another, or the deadline is over."""
        server = self._server(url)
        began = time.monotonic()
        failures = alike = 0
        kind = ""
        while True:
            try:
                with server.slot(check):
                    result = attempt()
            except Refused as refusal:
                raise StorageError(f"{what}: {refusal}{_after(failures + 1, began)}") from None
            except Fault as fault:
                failures += 1
                alike, kind = (alike + 1 if fault.kind == kind else 1), fault.kind
                self.counts.add("retries")
                self.counts.add(f"retries_{kind}")
                if fault.throttled:
                    server.shrink()
                pause_seconds = max(
                    self._patience.pause_seconds(failures),
                    min(fault.after_seconds, self._patience.longest_pause_seconds),
                )
                is_over = time.monotonic() - began + pause_seconds > deadline_seconds
                if is_over or alike == fault.at_most:
                    raise StorageError(f"{what}: {fault}{_after(failures, began)}") from None
                if failures == _FAILURES_TO_TELL:
                    _log.warning("%s so far, going on: %s", what, fault)
                if part is not None:
                    part.attempts = failures
                pause_seconds = 0.0 if fault.at_once and alike == 1 else pause_seconds
            else:
                server.grow()
                return result
            pause(pause_seconds)

    def _ranges(self, url: str) -> Ranges:
        if not is_url(url):
            return self._local
        if self._options.direct and self.filesystems.is_direct(url):
            return self._http
        return self._general

    def _server(self, url: str) -> Concurrency:
        """The bounds of the server that a URL names: of the bucket, where it names that."""
        link = url.partition("::")[0] if is_url(url) else ""
        place = "://".join(urlsplit(link)[:2])
        server = self._servers.get(place)
        if server is None:
            server = self._servers.setdefault(place, Concurrency(self._options.max_requests))
        return server


def _parts(read: RangeRead) -> list[RangeRead]:
    """A read as parts, each a request and a cache block of its own."""
    if 0 < len(read.out) <= BLOCK_BYTES or read.crc32 is not None:
        return [read]
    pieces = split(read.offset, read.stop, BLOCK_BYTES)
    first = read.offset
    return [
        RangeRead(read.source, start, read.out[start - first : stop - first], keep=read.keep) for start, stop in pieces
    ]


def _pause(seconds: float) -> None:
    """Waits, while that is wanted."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        check_cancelled()
        time.sleep(min(left, POLL_SECONDS))


def _after(attempts: int, began: float) -> str:
    times = "1 attempt" if attempts == 1 else f"{attempts} attempts"
    return f"\n  gave up after {times} in {time.monotonic() - began:.1f} s"
