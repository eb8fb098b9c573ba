"""Compressed streams, undone piece by piece: gzip (RFC 1952) and zstd (RFC 8878), of several members or frames, too.

Memory is bounded whatever a stream claims: it is decompressed in slices, and a zstd window is at most 128 MiB.
"""

import os
import re
from collections import deque
from collections.abc import Generator, Iterator
from typing import NoReturn, cast

import numpy as np
import numpy.typing as npt

from headrace.errors import ArgumentError, ShardError, StorageError
from headrace.formats.local_pin import LocalPin
from headrace.formats.tar_table import ShardPlace
from headrace.storage import RangeRead, Store, StoredObject, Transfer, is_url, shown
from headrace.storage.urls import links_of

try:
    from zlib_ng import zlib_ng as zlib  # faster; the extra `s3` brings it
except ImportError:
    import zlib  # type: ignore[no-redef]

Bytes = npt.NDArray[np.uint8]

_INFLATE_ERROR = cast(type[Exception], zlib.error)

_CODECS = {".gz": "gz", ".tgz": "gz", ".zst": "zst", ".tzst": "zst"}
# What tars come in besides, and what it is called
_REFUSED = {
    ".bz2": "bzip2",
    ".tbz": "bzip2",
    ".tbz2": "bzip2",
    ".tb2": "bzip2",
    ".xz": "xz",
    ".txz": "xz",
    ".lzma": "LZMA",
    ".tlz": "LZMA",
    ".lz": "lzip",
    ".lz4": "LZ4",
    ".tlz4": "LZ4",
    ".lzo": "LZO",
    ".tzo": "LZO",
    ".br": "Brotli",
    ".sz": "Snappy",
    ".z": "compress",
    ".taz": "compress",
    ".zip": "a zip archive",
    ".7z": "a 7z archive",
    ".rar": "a RAR archive",
}
_GZIP = b"\x1f\x8b"  # what a member begins with
_READ_BYTES = 1 << 20  # of a local file, at once
_REQUEST_BYTES = 8 << 20
_REQUESTS_AHEAD = 3
# What a slice leaves over is copied for each piece that comes out of it.
_SLICE_BYTES = 256 << 10
_PIECE_BYTES = 1 << 20  # of what comes out


def codec_of(name: str) -> str | None:
    """How a shard of this name or URL is compressed: "gz", "zst", or None for a plain tar.

    Raises:
        ArgumentError: It is compressed, or archived, in a way that is not read here.

    >>> codec_of("train-000.tar"), codec_of("s3://bucket/train-000.tar.gz"), codec_of("TRAIN.TZST")
    (None, 'gz', 'zst')
    """
    path = links_of(name)[0] if is_url(name) else name
    if path.lower().startswith(("http://", "https://")):
        path = re.split(r"[?#]", path)[0]
    suffix = os.path.splitext(path.rpartition("/")[2])[1].lower()
    if suffix in _REFUSED:
        raise ArgumentError(
            f"{shown(name)}: expected a tar, .tar.gz, .tgz, .tar.zst or .tzst, got {_REFUSED[suffix]} ({suffix}): "
            "write the shard again, best without compression, which leaves every sample at hand"
        )
    return _CODECS.get(suffix)


def decompressed(place: ShardPlace, codec: str, store: Store, *, most_bytes: int | None) -> Iterator[Bytes]:
    """Yields what a shard decompresses to, from the beginning, in pieces of at most 1 MiB.

    Args:
        place: The shard.
        codec: "gz" or "zst".
        store: What reads a stored one.
        most_bytes: How much may come out; None for any amount.

    Yields:
        uint8 (bytes,), not empty; each in memory of its own, which is nobody else's to change.

    Raises:
        ShardError: The stream is damaged, cut, or no such stream.
        StorageError: More than `most_bytes` come out, the bytes can't be had, or the shard has changed.
    """
    total = 0
    pieces = _from_gzip(place, store) if codec == "gz" else _from_zstd(place, store)
    for piece in pieces:
        total += len(piece)
        if most_bytes is not None and total > most_bytes:
            raise StorageError(
                f"{place} doesn't fit: expected that at most {most_bytes} bytes come out of it, which is what the "
                'disk cache has room for, got more: give Store(cache_bytes=...) more, or compressed="stream" to read '
                "the shards in order without a cache"
            )
        yield piece


def _from_gzip(place: ShardPlace, store: Store) -> Iterator[Bytes]:
    inflate, members, given, at = None, 0, 0, 0
    for some in _slices(_raw(place, store)):
        given += len(some)
        rest = some
        while rest:
            if inflate is None:
                # zeros may follow a member: tapes and disks are read in blocks
                rest = rest.lstrip(b"\0") if members else rest
                if not rest:
                    break
                at = given - len(rest)
                if members and rest[:2] not in (_GZIP, _GZIP[:1]):
                    _refuse(place, f"expected its end or another gzip member at byte {at}, got {rest[:8]!r}")
                inflate = zlib.decompressobj(wbits=31)
            has_more = True
            while has_more:
                try:
                    piece = inflate.decompress(rest, _PIECE_BYTES)
                except _INFLATE_ERROR as failure:
                    _refuse(place, f"expected a gzip stream, got one whose member at byte {at} is damaged: {failure}")
                if piece:
                    yield np.frombuffer(piece, np.uint8)
                rest = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
                # a full piece may leave something within, though all was taken
                has_more = not inflate.eof and (len(rest) > 0 or len(piece) == _PIECE_BYTES)
            if inflate.eof:
                inflate, members = None, members + 1
    if inflate is not None or not members:
        _refuse(place, f"expected a whole gzip stream, got one that is cut after {given} bytes")


def _from_zstd(place: ShardPlace, store: Store) -> Iterator[Bytes]:
    import pyarrow as pa

    raw = _raw(place, store)
    feed = _Feed(_slices(raw))
    stream = pa.CompressedInputStream(pa.PythonFile(feed, mode="r"), "zstd")
    try:
        while True:
            try:
                piece = stream.read_buffer(_PIECE_BYTES)
            except StorageError:
                raise
            except OSError as failure:
                said = str(failure).partition("\n")[0]
                _refuse(place, f"expected a whole zstd stream, got one that fails after {feed.given} bytes: {said}")
            if not piece.size:
                break
            yield np.frombuffer(piece, np.uint8)
    finally:
        raw.close()
    if not feed.given:
        _refuse(place, "expected a zstd stream, got no bytes")


class _Feed:
    """A file for Arrow to read, forward only."""

    closed = False

    def __init__(self, slices: Iterator[bytes]) -> None:
        self._slices = slices
        self._rest = b""
        self.given = 0

    def readable(self) -> bool:
        return True

    def read(self, most: int) -> bytes:
        some = self._rest or next(self._slices, b"")
        some, self._rest = some[:most], some[most:]
        self.given += len(some)
        return some

    def close(self) -> None:
        self.closed = True


def _slices(raw: Iterator[Bytes]) -> Iterator[bytes]:
    for some in raw:
        for start in range(0, len(some), _SLICE_BYTES):
            yield some[start : start + _SLICE_BYTES].tobytes()


def _raw(place: ShardPlace, store: Store) -> Generator[Bytes, None, None]:
    """A shard's bytes, in order."""
    return _raw_local(place) if isinstance(place, LocalPin) else _raw_stored(place, store)


def _raw_local(pin: LocalPin) -> Generator[Bytes, None, None]:
    memory = np.empty(min(_READ_BYTES, pin.file_bytes), np.uint8)
    try:
        with open(pin.path, "rb", buffering=0) as file:
            position = 0
            pin.check(os.fstat(file.fileno()))
            while count := os.preadv(file.fileno(), [memory.data], position):
                # after each read: a file that is written to meanwhile is not what was pinned
                pin.check(os.fstat(file.fileno()))
                yield memory[:count]
                position += count
    except StorageError:
        raise
    except OSError as failure:
        raise StorageError(f"cannot read {pin}: {failure.strerror}") from None


def _raw_stored(place: StoredObject, store: Store) -> Generator[Bytes, None, None]:
    under_way: deque[Transfer] = deque()
    starts = iter(range(0, place.object_bytes, _REQUEST_BYTES))
    try:
        while True:
            while len(under_way) < _REQUESTS_AHEAD and (start := next(starts, None)) is not None:
                out = np.empty(min(_REQUEST_BYTES, place.object_bytes - start), np.uint8)
                under_way += store.start([RangeRead(place, start, out)])
            if not under_way:
                return
            under_way[0].wait()
            yield under_way.popleft().read.out
    finally:
        for transfer in under_way:
            transfer.cancel()


def _refuse(place: ShardPlace, reason: str) -> NoReturn:
    raise ShardError(f"{place} cannot be decompressed: {reason}: write or copy the shard again")
