"""The index of a set of tar shards as one file, which is mapped, and checked before it is believed.

    bytes  0 to  8   "HRTARIDX"
           8 to 12   uint32, the version, 1
          12 to 16   uint32, the CRC32 of the head
          16 to 24   uint64, the bytes of the head
          24 to      the head: JSON. Which shards, fields and patterns, and the shapes of the arrays
    then each array of `IndexArrays` and `part_crc32`, uint32 (S,), at the next multiple of 64 each, zeros between

All numbers are little-endian. First come the tables, all that is small, whose CRC32 the head has; then members, keys,
and what tells of each sample: of these every shard's part has a CRC32 of its own. Files below 64 MiB are checked when
they are loaded, in larger ones each shard's part when it is first used.

A file belongs to versions of shards: name, bytes, and modification time and inode, or ETag. One that is damaged, or
says what cannot be, counts as missing. It is made under another name and renamed: it is whole or not there.
"""

import base64
import contextlib
import json
import math
import mmap
import os
import struct
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from headrace.errors import ShardError, StorageError
from headrace.formats.local_pin import LocalPin
from headrace.formats.pinning import place_bytes
from headrace.formats.source import Array, Ids
from headrace.formats.tar_decompression import codec_of
from headrace.formats.tar_index import BadShard, IndexArrays, TarIndex, relative_names
from headrace.formats.tar_index_checks import crc32_of, parts_lie, tables_lie
from headrace.formats.tar_table import ALLOWED, FieldInfo, ShardPlace
from headrace.storage.checksum import crc32

Buffer: TypeAlias = bytes | mmap.mmap

_MAGIC, _VERSION = b"HRTARIDX", 1
_START = struct.Struct("<8sIIQ")
_ALIGNMENT = 64
_PARTS = ("members", "keys", "key_starts", "patterns", "first_members")
_PART_CRC32 = "part_crc32"
_DTYPES: dict[str, np.dtype[Any]] = {
    **{field.name: np.dtype("<i8") for field in fields(IndexArrays)},
    **{name: np.dtype("<u4") for name in ("block_crc32", "patterns", _PART_CRC32)},
    **{name: np.dtype("u1") for name in ("keys", "has_crc32")},
}
# In the order of the file
_TABLES = (*(field.name for field in fields(IndexArrays) if field.name not in _PARTS), _PART_CRC32)
# A file of 400 000 members has 9 MB, and its check takes 2 ms.
_CHECKED_AT_ONCE_BYTES = 64 << 20


class MappedIndex(TarIndex):
    """An index that is mapped from a file; pickles hold the file's path only.

    Attributes:
        path: Of the file.
    """

    path: Path
    _places: tuple[ShardPlace, ...]
    _part_crc32: npt.NDArray[np.uint32]
    _unchecked: npt.NDArray[np.uint8]

    def __reduce__(self) -> tuple[Any, ...]:
        return _map_again, (self.path, self._places, self._part_crc32.copy(), self.has_crc32.copy())

    def check(self, shards: Ids) -> None:
        """As `TarIndex.check` says: a large file's parts are checked when they are first used."""
        if not len(self._unchecked) or not self._unchecked[shards].any():
            return
        widths = _widths(self.patterns)
        for shard in np.unique(shards).tolist():
            if self._unchecked[shard]:
                lie = parts_lie(self.arrays, widths, shard, shard + 1, self._part_crc32)
                if lie is not None:
                    raise ShardError(f"the index {self.path} is damaged: {lie}; delete it, and it is built again")
                self._unchecked[shard] = 0


def version_of(place: ShardPlace) -> str:
    """What tells this content of a shard from other content of its name and size; "" where nothing does."""
    return f"{place.mtime_ns} ns, inode {place.inode}" if isinstance(place, LocalPin) else place.version


def _name(place: ShardPlace) -> str:
    return place.path if isinstance(place, LocalPin) else place.url


def save_index(path: Path, index: TarIndex) -> None:
    """Writes an index; the shards must have versions.

    Raises:
        OSError: The disk won't have it.
    """
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=".headrace-", suffix=".part")
    try:
        with open(fd, "wb") as file:
            os.fchmod(fd, _mode(index))
            file.writelines(_pieces(index))
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _mode(index: TarIndex) -> int:
    """Who may read an index: others who may read all its shards, whose keys and first bytes it holds."""
    mode = 0o644
    for place in index.shards:
        if isinstance(place, LocalPin):
            with contextlib.suppress(OSError):
                mode &= os.stat(place.path).st_mode | 0o600
    return mode


def load_index(path: Path, places: Sequence[ShardPlace]) -> TarIndex | None:
    """The index of just these versions of these shards; None where there is none that is sound.

    Args:
        path: As `save_index` was told.
        places: All shards, those that are bad too, in the order that was indexed.
    """
    found = load_known(path, places)
    return None if found is None or not all(found[1]) else found[0]


def load_known(path: Path, places: Sequence[ShardPlace]) -> tuple[TarIndex, list[bool]] | None:
    """The index of these shards, or of other versions of some, and for each place whether it is that version.

    None where there is none that is sound.
    """
    try:
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # ValueError: it is empty
        return None
    return parse_index(mapped, places, path)


def parse_index(
    data: Buffer, places: Sequence[ShardPlace], path: Path | None = None
) -> tuple[TarIndex, list[bool]] | None:
    """As `load_known`, of bytes that were read or mapped.

    Args:
        data: The file's bytes; they must stay as they are.
        places: All shards.
        path: Where they are mapped from; None where they are in memory.
    """
    try:
        return _parse(data, places, path)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError, struct.error):
        return None


def _pieces(index: TarIndex) -> list[bytes | memoryview]:
    """The file, in pieces."""
    arrays: dict[str, Array] = {name: getattr(index.arrays, name) for name in _DTYPES if name != _PART_CRC32}
    parts = [crc32_of(index.arrays.part(shard)) for shard in range(len(index.shards))]
    arrays[_PART_CRC32] = np.array(parts, np.uint32)
    arrays = {name: np.ascontiguousarray(arrays[name], _DTYPES[name]) for name in (*_TABLES, *_PARTS)}
    tables = [arrays[name] for name in _TABLES]
    text = json.dumps({**_told(index), "arrays": {name: one.shape for name, one in arrays.items()}})
    head = text.removesuffix("}") + f', "tables_crc32": {crc32_of(tables)}}}'
    raw = head.encode()
    pieces: list[bytes | memoryview] = [_START.pack(_MAGIC, _VERSION, crc32(raw), len(raw)), raw]
    at = _START.size + len(raw)
    for one in arrays.values():
        pieces += [b"\0" * (-at % _ALIGNMENT), one.reshape(-1).view(np.uint8).data]
        at += -at % _ALIGNMENT + one.nbytes
    return pieces


def _told(index: TarIndex) -> dict[str, Any]:
    """What the head says."""
    places: list[ShardPlace] = list(index.shards)
    for one in index.bad:  # ascending
        places.insert(one.position, one.place)
    infos = zip(index.infos.values(), index.head_shards, strict=True)
    return {
        "places": [
            [name, place_bytes(place), version_of(place)]
            for name, place in zip(relative_names(places), places, strict=True)
        ],
        "bad": [[one.position, one.why] for one in index.bad],
        "codecs": index.codecs,
        "allowed": sorted(index.allowed),
        "fields": [
            [one.name, one.count, one.least_bytes, one.most_bytes, one.total_bytes, _base64(one.head), shard]
            for one, shard in infos
        ],
        "patterns": index.patterns,
        "reasons": index.reasons,
    }


def _parse(data: Buffer, places: Sequence[ShardPlace], path: Path | None) -> tuple[TarIndex, list[bool]] | None:
    magic, version, head_crc32, head_bytes = _START.unpack_from(data)
    if (magic, version) != (_MAGIC, _VERSION) or head_bytes > len(data) - _START.size:
        return None
    raw = data[_START.size : _START.size + head_bytes]
    if crc32(raw) != head_crc32:
        return None
    told = json.loads(raw)
    names = relative_names(places)
    if [str(one[0]) for one in told["places"]] != names:
        return None
    same = [
        (size, version) == (place_bytes(place), version_of(place)) and bool(version)
        for (_, size, version), place in zip(told["places"], places, strict=True)
    ]
    bad = [BadShard(int(position), places[int(position)], str(why)) for position, why in told["bad"]]
    left_out = {one.position for one in bad}
    if len(left_out) < len(bad) or sorted(left_out) != [one.position for one in bad] or min(left_out, default=0) < 0:
        return None
    arrays = _arrays(data, told["arrays"], _START.size + head_bytes)
    if arrays is None or crc32_of([arrays[name] for name in _TABLES]) != told["tables_crc32"]:
        return None
    part_crc32 = arrays.pop(_PART_CRC32)
    good = [position for position in range(len(places)) if position not in left_out]
    # Shards that have changed since have other sizes now: what was written is compared with those that they had.
    codecs = [codec_of(_name(places[position])) for position in good]
    if told["codecs"] != codecs:
        return None
    sizes = [int(told["places"][position][1]) for position in good]
    plain = [size if codec is None else None for size, codec in zip(sizes, codecs, strict=True)]
    patterns = [tuple(int(number) for number in one) for one in told["patterns"]]
    infos = [_info(one, len(good)) for one in told["fields"]]
    reasons = [str(reason) for reason in told["reasons"]]
    columns = IndexArrays(**arrays)
    if tables_lie(columns, patterns, len(infos), plain) is not None or columns.ignored.shape[1] != len(reasons):
        return None
    if part_crc32.shape != (len(good),) or len({one.name for one in infos}) < len(infos):
        return None
    if not ALLOWED.keys() >= set(told["allowed"]):
        return None
    is_checked = path is None or len(data) < _CHECKED_AT_ONCE_BYTES
    if is_checked and parts_lie(columns, _widths(patterns), 0, len(good), part_crc32) is not None:
        return None
    index = (TarIndex if path is None else MappedIndex)(
        [places[position] for position in good],
        codecs,
        columns,
        infos=infos,
        patterns=patterns,
        reasons=reasons,
        bad=bad,
        allowed=told["allowed"],
        head_shards=[int(one[-1]) for one in told["fields"]],
    )
    if isinstance(index, MappedIndex) and path is not None:
        index.path, index._places, index._part_crc32 = path, tuple(places), part_crc32  # noqa: SLF001 (this module's)
        index._unchecked = np.ones(0 if is_checked else len(good), np.uint8)  # noqa: SLF001
    return index, same


def _arrays(data: Buffer, shapes: dict[str, Any], at: int) -> dict[str, Array] | None:
    """The arrays of a file, as they lie there; None where it has other ones, or more or fewer bytes."""
    if list(shapes) != [*_TABLES, *_PARTS]:
        return None
    found: dict[str, Array] = {}
    for name, lengths in shapes.items():
        shape = tuple(int(length) for length in lengths)
        dimensions = 2 if name in ("members", "ignored") else 1
        if len(shape) != dimensions or min(shape) < 0 or (name == "members" and shape[1] != 2):
            return None
        before, at = at, at + -at % _ALIGNMENT
        if any(data[before:at]):
            return None
        array_bytes = math.prod(shape) * _DTYPES[name].itemsize
        if array_bytes > len(data) - at:
            return None
        found[name] = np.ndarray(shape, _DTYPES[name], data, at)
        at += array_bytes
    return found if at == len(data) else None


def _info(told: Sequence[Any], shards: int) -> FieldInfo:
    name, *numbers, head, shard = told
    count, least, most, total = (int(number) for number in numbers)
    if not 0 <= int(shard) < shards or min(count, least, most, total) < 0:
        raise ValueError
    return FieldInfo(str(name), count, least, most, total, base64.b64decode(head, validate=True))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _widths(patterns: Collection[Sequence[int]]) -> Ids:
    return np.array([len(one) for one in patterns], np.int64)


def _map_again(
    path: Path,
    places: Sequence[ShardPlace],
    part_crc32: npt.NDArray[np.uint32],
    has_crc32: npt.NDArray[np.bool_],
) -> TarIndex:
    """The same index in another process, or one of the same samples that has all its checksums and perhaps more."""
    index = load_index(path, places)
    if (
        not isinstance(index, MappedIndex)
        or not np.array_equal(index._part_crc32, part_crc32)  # noqa: SLF001 (this module's)
        or (has_crc32 & ~index.has_crc32).any()
    ):
        raise StorageError(
            f"the index {path} has gone or was replaced since the dataset was opened, and this process needs it: "
            "open the dataset again, and leave its index alone while it is in use"
        )
    return index
