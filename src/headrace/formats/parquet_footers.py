"""Footers of Parquet files, read and parsed without trusting them.

A file ends with its footer (a thrift struct), the footer's length (4 bytes little-endian) and `PAR1`. Specification:
https://github.com/apache/parquet-format. pyarrow parses the footer alone, as a file that holds nothing else: what it
says of the file is checked later, against the file's length (`parquet_groups`).
"""

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.errors import FormatError, StorageError
from headrace.formats.local_pin import LocalPin
from headrace.formats.pinning import Place, in_threads, place_bytes
from headrace.formats.progress import Progress
from headrace.storage import RangeRead, Store, StoredObject

ParquetPlace: TypeAlias = Place
Done = TypeVar("Done")

_MAGIC = b"PAR1"
_ENCRYPTED_MAGIC = b"PARE"
_END_BYTES = 8  # length and magic
# The footer of 100 row groups of 5 columns has about 40 KB: one read brings most.
_TAIL_BYTES = 64 << 10
# Their tails take 16 MiB.
_FILES_AT_ONCE = 256


@dataclass(frozen=True, slots=True, eq=False)
class Footer:
    """A parsed footer.

    Attributes:
        metadata: What pyarrow made of it.
        schema: The Arrow schema that it describes.
        raw: Its bytes, without length and magic.
    """

    metadata: pq.FileMetaData
    schema: pa.Schema
    raw: bytes

    @property
    def crc32(self) -> int:
        """To notice another footer in its place."""
        return zlib.crc32(self.raw)


def read_footers(
    places: Sequence[ParquetPlace], store: Store, use: Callable[[int, ParquetPlace, Footer], Done]
) -> list[Done]:
    """Reads the footers of files, and returns what `use` makes of each: its number, place and footer.

    Args:
        places: The files, all local or all stored.
        store: What reads those that are stored.
        use: May be called from several threads at once, and by the first file's error at the latest no more.

    Raises:
        FormatError: A file is no Parquet file, or is truncated, corrupt or encrypted.
        StorageError: Its bytes cannot be had, or it has changed.
    """

    def parsed(number: int) -> Done:
        place = places[number]
        assert isinstance(place, LocalPin)
        return use(number, place, parse(place, _read_local(place)))

    done: list[Done] = []
    with Progress(len(places), "reading footers") as progress:
        if isinstance(places[0], LocalPin):
            for one in in_threads(parsed, range(len(places))):
                done.append(one)
                progress.add(1)
            return done
        objects = [place for place in places if isinstance(place, StoredObject)]
        for first in range(0, len(objects), _FILES_AT_ONCE):
            for place, raw in _read_stored(objects[first : first + _FILES_AT_ONCE], store):
                done.append(use(len(done), place, parse(place, raw)))
                progress.add(1)
    return done


def read_known(places: Sequence[ParquetPlace], known: Sequence[tuple[int, int]], store: Store) -> Iterator[Footer]:
    """Reads the footers of files again, all of them at once.

    Args:
        places: The files, all local or all stored.
        known: For each the length of its footer and the CRC32.
        store: What reads those that are stored.

    Raises:
        StorageError: A file has changed, or its bytes cannot be had.
    """
    outs = [np.empty(length, np.uint8) for length, _ in known]
    reads = [
        RangeRead(place, place.object_bytes - _END_BYTES - len(out), out, crc32=crc32)
        for place, out, (_, crc32) in zip(places, outs, known, strict=True)
        if isinstance(place, StoredObject)
    ]
    if reads:
        store.read_ranges(reads)
    for place, out, (length, crc32) in zip(places, outs, known, strict=True):
        if isinstance(place, StoredObject):
            yield parse(place, out.tobytes())
            continue
        raw = _read_pinned(place, place.file_bytes - _END_BYTES - length, length)
        if zlib.crc32(raw) != crc32:
            raise StorageError(
                f"{place} was written to while it was being read: expected its footer as it was, got another"
            )
        yield parse(place, raw)


def parse(place: ParquetPlace, raw: bytes) -> Footer:
    """Parses a footer.

    Raises:
        FormatError: It is corrupt.
    """
    alone = b"".join([_MAGIC, raw, len(raw).to_bytes(4, "little"), _MAGIC])
    try:
        file = pq.ParquetFile(pa.BufferReader(alone), coerce_int96_timestamp_unit="us")
        metadata, schema = file.metadata, file.schema_arrow
    except Exception as error:  # noqa: BLE001 (hostile bytes raise whatever they like)
        _refuse(place, f"its footer of {len(raw)} bytes is corrupt ({first_line(error)})")
    return Footer(metadata, schema, raw)


def _footer_length(place: ParquetPlace, end: bytes) -> int:
    """The length of the footer, from the file's last bytes."""
    total = place_bytes(place)
    if end[-4:] == _ENCRYPTED_MAGIC:
        refuse_encrypted(place)
    if end[-4:] != _MAGIC:
        _refuse(place, f"expected it to end with {_MAGIC!r}, got {end[-4:]!r} (is it truncated?)")
    length = int.from_bytes(end[-_END_BYTES:-4], "little")
    if not 0 < length <= total - len(_MAGIC) - _END_BYTES:
        _refuse(place, f"its footer claims {length} of the file's {total} bytes")
    return length


def _tail_bytes(place: ParquetPlace) -> int:
    total = place_bytes(place)
    if total < len(_MAGIC) + _END_BYTES:
        _refuse(place, f"expected 12 bytes or more, got {total} (is it truncated?)")
    return min(total, _TAIL_BYTES)


def _read_local(pin: LocalPin) -> bytes:
    tail_bytes = _tail_bytes(pin)
    tail = _read_pinned(pin, pin.file_bytes - tail_bytes, tail_bytes)
    length = _footer_length(pin, tail)
    if length + _END_BYTES > len(tail):
        return _read_pinned(pin, pin.file_bytes - _END_BYTES - length, length)
    return tail[-_END_BYTES - length : -_END_BYTES]


def _read_stored(objects: Sequence[StoredObject], store: Store) -> Iterator[tuple[StoredObject, bytes]]:
    """The footers of objects: the tails of all at once, then those that are longer, one by one."""
    tails = [np.empty(_tail_bytes(place), np.uint8) for place in objects]
    store.read_ranges(
        [RangeRead(place, place.object_bytes - len(out), out) for place, out in zip(objects, tails, strict=True)]
    )
    for place, out in zip(objects, tails, strict=True):
        length = _footer_length(place, out[-_END_BYTES:].tobytes())
        if length + _END_BYTES > len(out):
            rest = np.empty(length + _END_BYTES - len(out), np.uint8)
            store.read_ranges([RangeRead(place, place.object_bytes - _END_BYTES - length, rest)])
            yield place, rest.tobytes() + out[:-_END_BYTES].tobytes()
        else:
            yield place, out[-_END_BYTES - length : -_END_BYTES].tobytes()


def _read_pinned(pin: LocalPin, offset: int, length: int) -> bytes:
    try:
        with open(pin.path, "rb", buffering=0) as file:
            pin.check(os.fstat(file.fileno()))
            found = bytearray()
            while len(found) < length and (some := os.pread(file.fileno(), length - len(found), offset + len(found))):
                found += some
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"cannot read {pin}: {error.strerror}") from None
    if len(found) < length:
        raise StorageError(f"{pin}: expected {length} bytes at byte {offset}, got {len(found)}")
    return bytes(found)


def first_line(error: Exception) -> str:
    """What an error of somebody else's says, cut short."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _refuse(place: ParquetPlace, reason: str) -> NoReturn:
    raise FormatError(f"{place} is not a sound Parquet file: {reason}; write it again")


def refuse_encrypted(place: ParquetPlace) -> NoReturn:
    """Raises FormatError: nothing here has keys."""
    raise FormatError(f"{place} is encrypted, which headrace does not read: write it again without encryption")
