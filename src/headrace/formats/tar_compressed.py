"""Blocks of compressed shards. A compressed stream (`tar_decompression`) has no random access.

So a shard is decompressed once, while it is scanned, and its blocks are kept in the store's disk cache; or, where the
user says so, the streams stay open and only go forward.

Guarantees:
    - `CompressedShards` may be used from any thread: each shard has a lock, held while that shard is decompressed. A
      forked child begins with streams of its own.
    - Of what has been decompressed, 16 MiB a stream are held, and eight streams are open at most.
    - Every block has the CRC32 that it had when the shard was scanned.
"""

import functools
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from headrace.errors import ArgumentError, ShardError, StorageError
from headrace.formats.local_pin import LocalPin
from headrace.formats.source import Ids
from headrace.formats.tar_decompression import Bytes, codec_of, decompressed
from headrace.formats.tar_table import BLOCK_BYTES, ShardPlace
from headrace.metrics import stage
from headrace.storage import Store, check_cancelled
from headrace.storage.cache import kept_bytes
from headrace.storage.checksum import crc32 as crc32_of

__all__ = ["CompressedShards", "check_room", "codec_of", "decompressed", "keep_block", "room_of"]

_MODES = ("cache", "stream")
# What has gone by and stays: threads that read ahead ask for neighbouring blocks in any order.
_BEHIND_BYTES = 4 * BLOCK_BYTES
# One, or two where one shard ends and the next begins; more for lanes
_OPEN_STREAMS = 8
# As often a stored stream is read before what comes out altered is an error
_ATTEMPTS = 3
_NOTHING: Bytes = np.empty(0, np.uint8)


def keep_block(store: Store, place: ShardPlace, codec: str, *, start: int, data: Bytes, crc32: int) -> None:
    """Keeps a block of a shard that has been decompressed in the store's disk cache, where `read_block` finds it.

    Args:
        store: Has a cache.
        place: The shard.
        codec: "gz" or "zst".
        start: The block's first byte, in the tar that comes out.
        data: uint8 (bytes,), the block.
        crc32: Its CRC32.
    """
    out = np.empty_like(data)

    def fetch() -> None:
        out[:] = data

    store.read_through(_key(place, codec, start, start + len(data), crc32), out, fetch)


def room_of(starts: Ids, stops: Ids) -> int:
    """The bytes of the disk cache that blocks take, each with bytes [start, stop) of a tar."""
    return sum(map(kept_bytes, (stops - starts).tolist()))


def check_room(store: Store, needed_bytes: int) -> None:
    """Refuses shards whose blocks don't fit into the store's disk cache together: each pass would decompress all anew.

    Raises:
        StorageError: They don't.
    """
    budget = store.cache_budget_bytes
    if needed_bytes > budget:
        raise StorageError(
            f"expected a disk cache with room for {needed_bytes} bytes or more, which the compressed shards take when "
            f"they are decompressed, got {budget} in {store.cache_dir}: give Store(cache_bytes=...) more, write the "
            'shards without compression, or give compressed="stream" to read them in order'
        )


class CompressedShards:
    """Blocks of compressed shards.

    Args:
        store: What reads stored shards, and keeps blocks.
        places: The shards.
        codecs: How each is compressed; None for those that are not, and are not asked for here.
        mode: "cache": a block comes from the store's disk cache. One that has left it is decompressed again, from the
            beginning of its shard, or from where the last such block ended. "stream": blocks are decompressed when they
            are asked for, which is fast in the order of the file only.

    Raises:
        ArgumentError: There is no such mode, or no cache.
    """

    def __init__(
        self, store: Store, places: Sequence[ShardPlace], codecs: Sequence[str | None], *, mode: str = "cache"
    ) -> None:
        if mode not in _MODES:
            raise ArgumentError(f'compressed: expected "cache" or "stream", got {mode!r}')
        if mode == "cache" and not store.has_cache:
            compressed = next((place for place, codec in zip(places, codecs, strict=True) if codec is not None), None)
            if compressed is not None:
                raise ArgumentError(
                    f"{compressed} is compressed and has no random access: expected a store with a disk cache, into "
                    "which it is decompressed once, got none: give store=Store(cache_dir=...), or "
                    'compressed="stream" to read the shards in order'
                )
        self._store, self._places, self._codecs, self.mode = store, tuple(places), tuple(codecs), mode
        self._of_process: dict[int, _Streams] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_of_process": {}}

    def read_block(self, shard: int, start: int, stop: int, crc32: int) -> Bytes:
        """Returns the bytes [start, stop) of the tar that comes out of a shard, uint8 (stop - start,).

        Args:
            shard: Its number.
            start: The first byte.
            stop: The byte after the last.
            crc32: The CRC32 that they had when the shard was scanned.

        Raises:
            ShardError: The stream is damaged or cut.
            StorageError: The bytes can't be had, are others than those that were scanned, or the shard has changed.
        """
        place, codec = self._places[shard], self._codecs[shard]
        assert codec is not None
        out = np.empty(stop - start, np.uint8)

        def fetch() -> None:
            # It was sound when it was indexed: what a link or a server alters comes right from the beginning.
            for more in reversed(range(1 if isinstance(place, LocalPin) else _ATTEMPTS)):
                try:
                    self._streams().fill(shard, start, out)
                except ShardError:
                    if not more:
                        raise
                    continue
                found = crc32_of(out)
                if found == crc32:
                    return
                self._streams().end(shard)
            raise StorageError(
                f"{place}: expected the CRC32 {crc32:08x} of the decompressed bytes [{start}, {stop}), as when the "
                f"shard was indexed, got {found:08x}: the shard has changed, or the index is another shard's: delete "
                "the index"
            )

        if self.mode == "stream":
            fetch()
        else:
            self._store.read_through(_key(place, codec, start, stop, crc32), out, fetch)
        return out

    def close(self) -> None:
        """Ends all streams of this process; they begin again when they are needed."""
        streams = self._of_process.pop(os.getpid(), None)
        if streams is not None:
            streams.close()

    def _streams(self) -> "_Streams":
        pid = os.getpid()
        streams = self._of_process.get(pid)
        # Atomic: of two threads that come first at once, both get the same. A parent's is never touched.
        return streams if streams is not None else self._of_process.setdefault(pid, _Streams(self._open))

    def _open(self, shard: int) -> "_Stream":
        place, codec = self._places[shard], self._codecs[shard]
        assert codec is not None
        return _Stream(place, functools.partial(decompressed, place, codec, self._store, most_bytes=None))


class _Streams:
    """The open streams of one process, a bounded number: the one that was not used for longest is closed."""

    def __init__(self, open_shard: Callable[[int], "_Stream"]) -> None:
        self._open_shard = open_shard
        self._opened: OrderedDict[int, _Stream] = OrderedDict()
        self._lock = threading.Lock()

    def fill(self, shard: int, start: int, out: Bytes) -> None:
        """Fills `out` with the bytes [start, start + len(out))."""
        with self._lock:
            stream = self._opened.get(shard)
            if stream is None:
                stream = self._opened[shard] = self._open_shard(shard)
            self._opened.move_to_end(shard)
            surplus = [self._opened.popitem(last=False)[1] for _ in range(len(self._opened) - _OPEN_STREAMS)]
        for one in surplus:
            one.close()
        stream.fill(start, out)

    def end(self, shard: int) -> None:
        """Ends a shard's stream, of which nothing that is held will be used."""
        with self._lock:
            stream = self._opened.pop(shard, None)
        if stream is not None:
            stream.close()

    def close(self) -> None:
        with self._lock:
            streams = list(self._opened.values())
            self._opened.clear()
        for stream in streams:
            stream.close()


class _Stream:
    """A stream that goes forward, and begins again for what has gone by too long ago."""

    def __init__(self, place: ShardPlace, begin: Callable[[], Iterator[Bytes]]) -> None:
        self._place, self._begin = place, begin
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._pieces: Iterator[Bytes] | None = None
        self._held: deque[Bytes] = deque()
        self._held_start = self._held_stop = 0

    def fill(self, start: int, out: Bytes) -> None:
        """Fills `out` with the bytes [start, start + len(out))."""
        with self._lock, stage("decode"):
            try:
                if self._pieces is None or start < self._held_start:
                    self._end()
                    self._pieces = self._begin()
                self._go_to(self._pieces, start, out)
            except BaseException:
                self._end()  # an iterator that has raised yields no more
                raise

    def _go_to(self, pieces: Iterator[Bytes], start: int, out: Bytes) -> None:
        stop, done, at = start + len(out), start, self._held_start
        for piece in self._held:
            done = _copy(piece, at, start, done, out)
            at += len(piece)
        while done < stop:
            check_cancelled()
            piece = next(pieces, _NOTHING)
            if not len(piece):
                raise StorageError(
                    f"{self._place}: expected {stop} decompressed bytes or more, as when the shard was indexed, got "
                    f"{self._held_stop}: the index is another shard's: delete it"
                )
            done = _copy(piece, self._held_stop, start, done, out)
            self._held.append(piece)
            self._held_stop += len(piece)
            while self._held_stop - self._held_start - len(self._held[0]) >= _BEHIND_BYTES:
                self._held_start += len(self._held.popleft())

    def close(self) -> None:
        """Ends it, as soon as nobody reads."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        pieces = self._pieces
        self._forget()
        close = getattr(pieces, "close", None)
        if close is not None:
            close()


def _copy(piece: Bytes, at: int, start: int, done: int, out: Bytes) -> int:
    """Copies what `out` needs next of a piece that begins at byte `at`; returns up to which byte it is filled."""
    stop = min(at + len(piece), start + len(out))
    if stop <= done:
        return done
    out[done - start : stop - start] = piece[done - at : stop - at]
    return stop


def _key(place: ShardPlace, codec: str, start: int, stop: int, crc32: int) -> str:
    """Names a block in the cache. The CRC32 tells it from that of another shard in the same place."""
    if isinstance(place, LocalPin):
        identity = f"{place.path}\n{place.file_bytes}\n{place.mtime_ns}\n{place.inode}"
    else:
        identity = f"{place.url}\n{place.object_bytes}\n{place.version}"
    return f"decompressed\n{identity}\n{codec}\n{start}\n{stop}\n{crc32}"
