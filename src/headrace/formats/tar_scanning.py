"""Scans shards, many at once, wherever they lie: local files, objects, and streams that are compressed.

Of what streams through anyway, stored or compressed, each block's CRC32 is computed on the way, and the block is kept
in the store's disk cache, where the first epoch finds it.

Guarantees:
    - When `scan_shards` has returned or raised, no thread of it is left and nobody writes into its memory.
    - Memory is bounded: 8 shards at once, or 4 that stream, with at most 5 requests of 8 MiB and 128 MiB of a block
      each. A block that is larger is read twice.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from headrace.errors import ShardError, StorageError
from headrace.formats.local_pin import LocalPin
from headrace.formats.progress import Progress
from headrace.formats.stored_file import fresh
from headrace.formats.tar_compressed import check_room, decompressed, keep_block, room_of
from headrace.formats.tar_scan import ShardScanner, scan_file
from headrace.formats.tar_table import ShardPlace, ShardScan
from headrace.storage import BLOCK_BYTES, RangeRead, Store, StoredObject, Transfer
from headrace.storage.cancellation import POLL_SECONDS, cancellable, check_cancelled
from headrace.storage.checksum import crc32
from headrace.storage.ranges import split

Bytes = npt.NDArray[np.uint8]
CRC32s = npt.NDArray[np.uint32]

_LOCAL_AT_ONCE = 8
_STREAMS_AT_ONCE = 4
_REQUESTS_AHEAD = 4
_MOST_HELD_BYTES = 128 << 20
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Scanning:
    """How shards are scanned.

    Attributes:
        store: What reads stored ones, and keeps blocks where it has a cache.
        allow: What is accepted of their bytes.
        verify: Whether the CRC32 of the blocks of local ones are computed, which reads all of them.
        keeps_decompressed: Whether blocks of compressed shards are put into the cache.
    """

    store: Store
    allow: Collection[str] = ()
    verify: bool = False
    keeps_decompressed: bool = False

    def scan(self, place: ShardPlace, codec: str | None) -> ShardScan:
        """What one shard holds.

        Raises:
            ShardError: It is damaged, or its members do not make samples.
            StorageError: Its bytes can't be had, or it has changed since it was pinned.
        """
        if codec is not None:
            return self._scan_compressed(place, codec)
        if isinstance(place, StoredObject):
            return self._scan_stored(place)
        scan = scan_file(place, self.allow)
        if self.verify:
            scan = replace(scan, block_crc32=_read_crc32(place, scan))
        place.check()
        return scan

    def _scan_stored(self, source: StoredObject) -> ShardScan:
        def keep(start: int, data: Bytes, crc: int) -> None:
            # as it will be asked for: a larger block in several requests, whose checksums aren't known
            known = crc if len(data) <= BLOCK_BYTES else None
            self.store.keep(RangeRead(source, start, data, keep=True, crc32=known))

        def pieces(start: int, stop: int) -> Iterator[Bytes]:
            return _stored_pieces(source, self.store, start, stop)

        keeps = keep if self.store.has_cache and source.version else None
        return _scan_stream(str(source), self.allow, pieces(0, source.object_bytes), pieces, keeps)

    def _scan_compressed(self, place: ShardPlace, codec: str) -> ShardScan:
        def keep(start: int, data: Bytes, crc: int) -> None:
            keep_block(self.store, place, codec, start=start, data=data, crc32=crc)

        def pieces(start: int, stop: int) -> Iterator[Bytes]:
            at = 0
            for piece in decompressed(place, codec, self.store, most_bytes=None):
                if at + len(piece) > start:
                    yield piece[max(0, start - at) : stop - at]
                at += len(piece)
                if at >= stop:
                    return

        keeps, most_bytes = None, None
        if self.keeps_decompressed:
            keeps, most_bytes = keep, self.store.cache_budget_bytes
        scan = _scan_stream(
            str(place), self.allow, decompressed(place, codec, self.store, most_bytes=most_bytes), pieces, keeps
        )
        if isinstance(place, LocalPin):
            place.check()
        return scan


def scan_shards(
    places: Sequence[ShardPlace], codecs: Sequence[str | None], scanning: Scanning, *, leave_out: bool
) -> list[ShardScan | ShardError]:
    """Scans shards, many at once.

    Args:
        places: The shards.
        codecs: How each is compressed; None where it isn't.
        scanning: How.
        leave_out: Whether the error of one that is damaged is returned in its place, and not raised.

    Raises:
        ShardError: A shard is damaged: of several the first.
        StorageError: The bytes of one can't be had, or it has changed since it was pinned; or those that are compressed
            don't fit the cache.
    """
    is_over = threading.Event()

    def scan(place: ShardPlace, codec: str | None) -> ShardScan | ShardError:
        with cancellable(is_over.is_set):
            check_cancelled()
            try:
                return scanning.scan(place, codec)
            except ShardError as error:
                return error

    found: list[ShardScan | ShardError] = []
    needed_bytes = 0
    streams = any(isinstance(place, StoredObject) for place in places) or any(codec is not None for codec in codecs)
    pool = ThreadPoolExecutor(_STREAMS_AT_ONCE if streams else _LOCAL_AT_ONCE, thread_name_prefix="headrace-scan")
    with Progress(len(places), "scanning shards") as progress:
        try:
            futures = [pool.submit(scan, *one) for one in zip(places, codecs, strict=True)]
            for future, codec in zip(futures, codecs, strict=True):
                one = _result(future)
                if isinstance(one, ShardError) and not leave_out:
                    one.add_note('allow=["bad_shards"] leaves damaged shards out')
                    raise one
                if codec is not None and scanning.keeps_decompressed and isinstance(one, ShardScan):
                    # now: all of them may take hours
                    needed_bytes += room_of(one.block_starts, one.block_stops)
                    check_room(scanning.store, needed_bytes)
                found.append(one)
                progress.add(1)
        finally:
            is_over.set()
            pool.shutdown(wait=True, cancel_futures=True)
    return found


def _result(future: Future[ShardScan | ShardError]) -> ShardScan | ShardError:
    while not future.done():
        wait([future], POLL_SECONDS)
        check_cancelled()
    return future.result()


class _Held:
    """What has gone by of a stream and may belong to a block that hasn't ended: up to 128 MiB."""

    def __init__(self) -> None:
        self._pieces: deque[Bytes] = deque()
        self._start = self._stop = 0

    def add(self, piece: Bytes) -> None:
        self._pieces.append(piece)
        self._stop += len(piece)
        self.forget(self._stop - _MOST_HELD_BYTES)

    def forget(self, stop: int) -> None:
        """Lets go of the pieces that end at or before byte `stop`."""
        while self._pieces and self._start + len(self._pieces[0]) <= stop:
            self._start += len(self._pieces.popleft())

    def of(self, start: int, stop: int) -> list[Bytes] | None:
        """The bytes [start, stop), in pieces; None where they are held no more."""
        if start < self._start:
            return None
        found, at = [], self._start
        for piece in self._pieces:
            if at + len(piece) > start and at < stop:
                found.append(piece[max(0, start - at) : stop - at])
            at += len(piece)
        return found


def _scan_stream(
    name: str,
    allow: Collection[str],
    stream: Iterable[Bytes],
    again: Callable[[int, int], Iterable[Bytes]],
    keep: Callable[[int, Bytes, int], None] | None,
) -> ShardScan:
    """Scans bytes that go by once.

    Args:
        name: Of the shard.
        allow: What is accepted of it.
        stream: All its bytes, each piece in memory of its own.
        again: Gives the bytes [start, stop) once more.
        keep: Takes each block's start, bytes and CRC32.
    """
    scanner, held = ShardScanner(name, allow), _Held()
    found: list[int] = []

    def take_blocks() -> None:
        for start, stop in scanner.closed_blocks():
            pieces = held.of(start, stop)
            crc = 0
            for piece in again(start, stop) if pieces is None else pieces:
                crc = crc32(piece, crc)
            found.append(crc)
            if keep is not None and pieces is not None:
                keep(start, pieces[0] if len(pieces) == 1 else np.concatenate(pieces), crc)
            held.forget(stop)

    for piece in stream:
        check_cancelled()
        held.add(piece)
        scanner.feed(piece)
        take_blocks()
    scan = scanner.finish()
    take_blocks()
    assert len(found) == len(scan.block_starts)
    return replace(scan, block_crc32=np.array(found, np.uint32))


def _stored_pieces(source: StoredObject, store: Store, start: int, stop: int) -> Generator[Bytes, None, None]:
    """The bytes [start, stop) of an object, each piece in memory of its own; a few are asked for ahead."""
    under_way: deque[tuple[RangeRead, Transfer]] = deque()
    try:
        for first, end in split(start, stop, BLOCK_BYTES):
            read = RangeRead(source, first, fresh(end - first))
            [transfer] = store.start([read])
            under_way.append((read, transfer))
            if len(under_way) > _REQUESTS_AHEAD:
                yield _arrived(under_way)
        while under_way:
            yield _arrived(under_way)
    finally:
        for _, transfer in under_way:
            transfer.cancel()
        for _, transfer in under_way:
            transfer.wait_released()


def _arrived(under_way: deque[tuple[RangeRead, Transfer]]) -> Bytes:
    read, transfer = under_way[0]
    transfer.wait()
    transfer.wait_released()
    under_way.popleft()
    return read.out


def _read_crc32(pin: LocalPin, scan: ShardScan) -> CRC32s:
    """The CRC32 of each block of a local shard."""
    blocks = zip(scan.block_starts.tolist(), scan.block_stops.tolist(), strict=True)
    memory = np.empty(_READ_BYTES, np.uint8)
    try:
        with open(pin.path, "rb", buffering=0) as file:
            pin.check(os.fstat(file.fileno()))
            found = [_crc32_between(file.fileno(), start, stop, memory) for start, stop in blocks]
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"cannot read {pin}: {error.strerror}") from None
    return np.array(found, np.uint32)


def _crc32_between(fd: int, start: int, stop: int, memory: Bytes) -> int:
    """The CRC32 of a file's bytes [start, stop), or of fewer where it has been cut meanwhile."""
    check_cancelled()
    crc, at = 0, start
    while at < stop and (count := os.preadv(fd, [memory[: stop - at].data], at)):
        crc, at = crc32(memory[:count], crc), at + count
    return crc
