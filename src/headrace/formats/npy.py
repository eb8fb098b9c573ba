r"""The `.npy` format, versions 1.0 to 3.0, read without trusting it.

A file is `\x93NUMPY`, two version bytes, the header's length (2 bytes little-endian in 1.0, 4 from 2.0 on), the header
(a Python dict literal, latin-1 up to 2.0, UTF-8 in 3.0) and the array's memory. Specification:
https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

import ast
import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import numpy as np

from headrace.errors import FormatError
from headrace.formats.dtypes import why_refused
from headrace.storage import RangeRead, Store, StoredObject, read_bytes

FilePlace: TypeAlias = Path | StoredObject  # a local file, or an object in a store; `str` names either

_MAGIC = b"\x93NUMPY"
# A plain header has 118 bytes; one with 1000 named fields about 30 000. What is longer is not worth parsing.
_LONGEST_HEADER = 1 << 16
# One request brings any header but those of many fields.
_FIRST_BYTES = 4096
_FILES_AT_ONCE = 4096
# NumPy's arrays and torch's tensors have 64 at most, of which a batch needs one.
_MOST_AXES = 63
_TOO_LARGE = 1 << 48


@dataclass(frozen=True, slots=True)
class ArrayFile:
    """One array in one file, as its header describes it and its size confirms.

    Attributes:
        path: The file, local or in a store.
        dtype: As stored, so perhaps big-endian.
        shape: With the rows first.
        fortran_order: Whether the first axis varies fastest.
        offset: The byte at which the array begins.
        header_crc32: Of the bytes before `offset`, to notice another file in this one's place.
    """

    path: FilePlace
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran_order: bool = False
    offset: int = 0
    header_crc32: int = 0

    @property
    def local_path(self) -> Path:
        """The path of a local file."""
        assert isinstance(self.path, Path)
        return self.path

    @property
    def rows(self) -> int:
        """The length of the first axis."""
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        """The bytes of one row, which lie together in C order."""
        return self.dtype.itemsize * math.prod(self.shape[1:])

    @property
    def is_columnwise(self) -> bool:
        """Whether a row's values lie apart."""
        return self.fortran_order and len(self.shape) > 1

    @property
    def file_bytes(self) -> int:
        """What the file must have: header and data."""
        return self.offset + self.rows * self.row_bytes


def read_npy_header(path: Path) -> ArrayFile:
    """Returns what the header of a local `.npy` file says, once the file's size agrees.

    Raises:
        StorageError: The file cannot be opened.
        FormatError: It is not a `.npy` file of at least one row that a tensor can hold, or has another size than its
            header says.
    """
    start, file_bytes = read_bytes(path, 0, _FIRST_BYTES)
    offset = data_offset(path, start)
    if offset > len(start):
        start, _ = read_bytes(path, 0, offset)
    return _array_file(path, start[:offset], offset, file_bytes)


def read_stored_headers(store: Store, objects: Sequence[StoredObject]) -> list[ArrayFile]:
    """The same for many `.npy` files in a store, all at once.

    Raises:
        StorageError: Bytes cannot be had.
        FormatError: As `read_npy_header`.
    """
    arrays = []
    for first in range(0, len(objects), _FILES_AT_ONCE):
        some = objects[first : first + _FILES_AT_ONCE]
        starts = _read_starts(store, some, [_FIRST_BYTES] * len(some))
        offsets = [data_offset(place, start) for place, start in zip(some, starts, strict=True)]
        longer = [i for i, start in enumerate(starts) if offsets[i] > len(start)]
        rest = _read_starts(store, [some[i] for i in longer], [offsets[i] for i in longer])
        for i, start in zip(longer, rest, strict=True):
            starts[i] = start
        arrays += [
            _array_file(place, start[:offset], offset, place.object_bytes)
            for place, start, offset in zip(some, starts, offsets, strict=True)
        ]
    return arrays


def parse_header(name: str, start: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool, int]:
    """The dtype, shape and order of an array in memory, and the byte at which it begins; any dtype and shape.

    Args:
        name: What error texts call it.
        start: Its first bytes, the whole header among them.

    Raises:
        FormatError: They are no header, or end within it.
    """
    offset = data_offset(name, start)
    if len(start) < offset:
        _refuse(name, f"it ends within its header: expected {offset} bytes of it, got {len(start)}")
    return *_parse(name, start[:offset]), offset


def _read_starts(store: Store, objects: Sequence[StoredObject], lengths_bytes: Sequence[int]) -> list[bytes]:
    """The first bytes of each object, fewer where it ends before."""
    starts = [
        np.empty(min(length, place.object_bytes), np.uint8)
        for place, length in zip(objects, lengths_bytes, strict=True)
    ]
    reads = [RangeRead(place, 0, start) for place, start in zip(objects, starts, strict=True) if len(start)]
    if reads:
        store.read_ranges(reads)
    return [start.tobytes() for start in starts]


def data_offset(path: FilePlace | str, start: bytes) -> int:
    """Where the array begins: the length of magic, version and header, as the first bytes (12 or more) say.

    Raises:
        FormatError: They begin no array of a known version, or its header would be longer than any is.
    """
    if not start:
        raise FormatError(f"{path} is empty (0 bytes): write it again")
    if start[:6] != _MAGIC or len(start) < 10:
        raise FormatError(f"{path} is not a .npy file: expected it to begin with {_MAGIC!r}, got {start[:6]!r}")
    version = (start[6], start[7])
    if version not in {(1, 0), (2, 0), (3, 0)}:
        raise FormatError(f"{path}: expected .npy version 1.0, 2.0 or 3.0, got {version[0]}.{version[1]}")
    length_bytes = 2 if version == (1, 0) else 4
    header_bytes = int.from_bytes(start[8 : 8 + length_bytes], "little")
    if header_bytes > _LONGEST_HEADER:
        _refuse(path, f"the header claims {header_bytes} bytes, more than the {_LONGEST_HEADER} that a header may have")
    return 8 + length_bytes + header_bytes


def _array_file(path: FilePlace, header: bytes, offset: int, file_bytes: int) -> ArrayFile:
    """What the bytes before the array say."""
    if len(header) < offset:
        _refuse(path, f"the file ends within its header: expected {offset} bytes of it, got {len(header)}")
    dtype, shape, fortran_order = _parse(path, header)
    if refused := why_refused(dtype):
        raise FormatError(f"{path}: {refused}")
    if not shape:
        raise FormatError(f"{path}: expected one row per sample, got a single value (a 0-d array)")
    array = ArrayFile(path, dtype, shape, fortran_order, offset, zlib.crc32(header))
    check_file_bytes(array, file_bytes)
    return array


def check_file_bytes(array: ArrayFile, file_bytes: int) -> None:
    """Raises FormatError unless the array has values and the file has the bytes that they take."""
    if array.rows * array.row_bytes == 0:
        raise FormatError(f"{array.path}: expected at least one row, got an empty array of shape {array.shape}")
    if file_bytes != array.file_bytes:
        wrong = "is truncated" if file_bytes < array.file_bytes else "goes on after its data"
        raise FormatError(
            f"{array.path} {wrong}: shape {array.shape} of {array.dtype} needs {array.file_bytes} bytes "
            f"({array.offset} of them header), got {file_bytes}: write the file again"
        )


def _parse(path: FilePlace | str, start: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    """The dtype, shape and order that the bytes before an array say."""
    length_bytes = 2 if start[6] == 1 else 4
    text = start[8 + length_bytes :].decode("utf-8" if start[6] == 3 else "latin-1", "replace")
    try:
        header = _literal(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        _refuse(path, f"its header is not a dict literal: {text[:80]!r}")
    if not isinstance(header, dict) or header.keys() != {"descr", "fortran_order", "shape"}:
        _refuse(path, f"its header must have the keys descr, fortran_order and shape: {text[:80]!r}")
    descr, fortran_order, shape = header["descr"], header["fortran_order"], header["shape"]
    if not isinstance(shape, tuple) or not all(type(length) is int and length >= 0 for length in shape):
        _refuse(path, f"expected a shape of whole numbers, got {str(shape)[:80]}")
    if len(shape) > _MOST_AXES:
        _refuse(path, f"expected a shape of at most {_MOST_AXES} lengths, got {len(shape)}")
    if not isinstance(fortran_order, bool):
        _refuse(path, f"expected fortran_order True or False, got {str(fortran_order)[:80]}")
    try:
        dtype = np.lib.format.descr_to_dtype(descr)
    except (ValueError, TypeError, KeyError, IndexError, SyntaxError, RecursionError):
        _refuse(path, f"its dtype makes no sense: {str(descr)[:80]!r}")
    # of no bytes, so that no size tells how large it claims to be
    if 0 in shape and math.prod(max(1, length) for length in shape) * max(1, dtype.itemsize) >= _TOO_LARGE:
        _refuse(path, f"expected a shape that an array can have, got {str(shape)[:80]}")
    return dtype, shape, fortran_order


def _literal(text: str) -> object:
    """The header's literal; never code. Python 2 wrote its long integers as `10L`."""
    try:
        return ast.literal_eval(text)
    except SyntaxError:
        return ast.literal_eval(re.sub(r"\b(\d+)L\b", r"\1", text))


def _refuse(path: FilePlace | str, reason: str) -> NoReturn:
    raise FormatError(f"{path} is not a sound .npy file: {reason}; write it again with np.save")
