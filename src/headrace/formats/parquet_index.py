"""What the footers of many Parquet files said, kept in one small file, so that opening them again reads just one.

A file is a line of JSON (format, key, the arrays' shapes, a digest of the rest) and the arrays' memory, one after the
other, little-endian int64. It is made under another name and renamed, so it is whole or not there; one that is
damaged, or says what cannot be, counts as missing.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.formats.local_pin import LocalPin
from headrace.formats.parquet_footers import ParquetPlace
from headrace.formats.parquet_groups import GroupTable
from headrace.formats.pinning import place_bytes
from headrace.storage import shown

_log = logging.getLogger("headrace")

_FORMAT = "headrace parquet index 1"
_DTYPES = {"group_file": np.int32, "group_number": np.int32}


def index_path(index_dir: Path, files: Sequence[ParquetPlace], leaves: Sequence[str], first_crc32: int) -> Path | None:
    """Where the index is kept that belongs to just these versions of these files, and these columns.

    None where a store tells no versions: files may then change unnoticed.

    Args:
        index_dir: The folder.
        files: The files.
        leaves: The leaf columns that are kept.
        first_crc32: Of the first file's footer.
    """
    digest = hashlib.blake2b(f"{_FORMAT}\0{first_crc32}\0".encode(), digest_size=16)
    for place in files:
        if isinstance(place, LocalPin):
            name: tuple[object, ...] = (place.path, place.file_bytes, place.mtime_ns, place.inode)
        elif place.version:
            name = (shown(place.url), place.object_bytes, place.version)
        else:
            return None
        digest.update("".join(f"{part}\0" for part in name).encode("utf-8", "surrogateescape") + b"\0")
    digest.update(b"".join(leaf.encode("utf-8", "surrogateescape") + b"\0" for leaf in leaves))
    return index_dir / f"parquet-{digest.hexdigest()}.index"


def save_index(path: Path, table: GroupTable) -> None:
    """Keeps a table; where the disk won't have it, says so in the log and goes on."""
    save_arrays(path, {field.name: getattr(table, field.name) for field in fields(GroupTable)})


def load_index(path: Path, files: Sequence[ParquetPlace], leaves: int) -> GroupTable | None:
    """The table that was kept there; None where there is none, or none that makes sense.

    Args:
        path: As `index_path` gives it.
        files: The files that it must be of.
        leaves: How many leaf columns it must have.
    """
    arrays = load_arrays(path)
    if arrays is None or arrays.keys() != {field.name for field in fields(GroupTable)}:
        return None
    typed: dict[str, Any] = {name: array.astype(_DTYPES.get(name, np.int64)) for name, array in arrays.items()}
    table = GroupTable(**typed)
    return table if _makes_sense(table, np.array([place_bytes(place) for place in files], np.int64), leaves) else None


def save_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Keeps arrays of integers; where the disk won't have them, says so in the log and goes on."""
    body = b"".join(np.ascontiguousarray(array, "<i8").tobytes() for array in arrays.values())
    shapes = {name: array.shape for name, array in arrays.items()}
    head = {"format": _FORMAT, "key": path.name, "shapes": shapes, "digest": _digest(body)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=".parquet-")
        try:
            with open(fd, "wb") as file:
                file.write(json.dumps(head).encode() + b"\n" + body)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        _log.warning("cannot keep the index of Parquet files in %s: %s", path.parent, error.strerror)


def load_arrays(path: Path) -> dict[str, npt.NDArray[np.int64]] | None:
    """The arrays that were kept under this name; None where there are none, or damaged ones."""
    try:
        head, _, body = path.read_bytes().partition(b"\n")
        told = json.loads(head)
        if told["format"] != _FORMAT or told["key"] != path.name or told["digest"] != _digest(body):
            return None
        arrays, at = {}, 0
        for name, lengths in told["shapes"].items():
            shape = tuple(int(length) for length in lengths)
            if min(shape, default=0) < 0:
                return None
            arrays[str(name)] = np.frombuffer(body, "<i8", math.prod(shape), at).reshape(shape).astype(np.int64)
            at += arrays[name].nbytes
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError, AttributeError):
        return None
    return arrays if at == len(body) else None


def _makes_sense(table: GroupTable, bytes_of_files: npt.NDArray[np.int64], leaves: int) -> bool:
    groups, files = table.group_file.shape, bytes_of_files.shape
    of_groups = (table.group_number, table.group_rows, table.group_bytes)
    if len(groups) != 1 or table.chunks.shape != (3, *groups, leaves):
        return False
    if any(array.shape != groups for array in of_groups) or table.footer_length.shape != files:
        return False
    if table.footer_crc32.shape != files or any((array < 0).any() for array in (table.group_file, *of_groups)):
        return False
    in_order = (np.diff(table.group_file) > 0) | ((np.diff(table.group_file) == 0) & (np.diff(table.group_number) > 0))
    return bool(
        in_order.all()
        and (table.group_file < len(bytes_of_files)).all()
        and (table.group_rows > 0).all()
        and (table.footer_length > 0).all()
        and (table.footer_length <= bytes_of_files - 12).all()
        and table.first_lie(bytes_of_files) is None
    )


def _digest(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=16).hexdigest()
