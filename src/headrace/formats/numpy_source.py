"""NumPy files as a source: `.npy` and raw binary, each column in one file or in many."""

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from headrace.errors import ArgumentError, FormatError
from headrace.formats.dtypes import why_refused
from headrace.formats.file_column import FileColumn, rows_by_file
from headrace.formats.memory import same_length
from headrace.formats.npy import ArrayFile, check_file_bytes, read_npy_header
from headrace.formats.source import (
    Array,
    Blocks,
    Column,
    Ids,
    ReadPart,
    Source,
    check_ids,
    check_out,
    fingerprint,
    uniform_blocks,
)
from headrace.storage import LocalFile, Residency, open_limit, read_bytes

PathLike: TypeAlias = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Raw:
    """Raw binary files: nothing but the array's memory in C order, so its dtype and shape must be told.

    Attributes:
        paths: A path, a glob, or a list of paths; each file holds a run of rows.
        dtype: As stored: `">f4"` is big-endian.
        shape: With the rows first; -1 rows are counted from the file's size.

    >>> Raw("tokens.bin", dtype="uint16", shape=(-1, 1025)).shape
    (-1, 1025)
    """

    paths: PathLike | Sequence[PathLike]
    dtype: npt.DTypeLike
    shape: Sequence[int] = (-1,)


ColumnFiles: TypeAlias = PathLike | Sequence[PathLike] | Raw


class NumpySource(Source):
    """Columns that are NumPy files; row i of each is sample i.

    Files are memory-mapped when first read, and data is read a batch at a time: one gather per file and column. Rows
    that are not in memory are asked for ahead of reading them (see `headrace.storage`). Pickles hold paths and parsed
    headers, never data.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/x-0.npy", np.array([[0, 1], [2, 3]]))
    ...     np.save(f"{folder}/x-1.npy", np.array([[4, 5]]))
    ...     NumpySource({"x": f"{folder}/x-*.npy"}).read([2, 0])
    {'x': array([[4, 5],
           [0, 1]])}
    """

    random_access = True

    def __init__(self, columns: Mapping[str, ColumnFiles]) -> None:
        """Reads the headers of all files, and no data.

        Args:
            columns: For each column a path, a glob (its files sorted by code point), a list of paths (in its order),
                or a `Raw`. `~` is the user's home. Several files are seen as one array.

        Raises:
            ArgumentError: No columns, a glob without files, or columns of different lengths.
            FormatError: A file is not a sound array file, or differs from its neighbours in dtype or row shape.
            StorageError: A file cannot be opened.
        """
        if not columns:
            raise ArgumentError("expected at least one column, got none")
        self._attach({name: _array_files(name, spec) for name, spec in columns.items()})

    def _attach(self, files: Mapping[str, Sequence[ArrayFile]]) -> None:
        keep_open = max(1, open_limit() // len(files))
        self._columns = {name: FileColumn(of_column, keep_open=keep_open) for name, of_column in files.items()}
        self.schema: dict[str, Column] = {name: column.column for name, column in self._columns.items()}
        self._samples = same_length({name: len(column) for name, column in self._columns.items()})
        # Columns that are cut into files alike are sorted by file once a batch.
        self._cuts: list[tuple[Ids, dict[str, FileColumn]]] = []
        for name, column in self._columns.items():
            for starts, alike in self._cuts:
                if np.array_equal(starts, column.starts):
                    alike[name] = column
                    break
            else:
                self._cuts.append((column.starts, {name: column}))
        self._residency = Residency({file.path: file.file_bytes for file in self._files()}, self._samples)

    def __getstate__(self) -> dict[str, Sequence[ArrayFile]]:
        return {name: column.files for name, column in self._columns.items()}

    def __setstate__(self, state: dict[str, Sequence[ArrayFile]]) -> None:
        self._attach(state)

    def __len__(self) -> int:
        return self._samples

    @cached_property
    def blocks(self) -> Blocks:
        return uniform_blocks(self._samples, sum(column.sample_bytes for column in self.schema.values()))

    @cached_property
    def fingerprint(self) -> str:
        """Of the files' names below their common folder, bytes and rows: not of data, or columns' names or order."""
        root = os.path.commonpath([file.path.parent for file in self._files()])

        def parts(files: Sequence[ArrayFile]) -> list[tuple[str, int, int]]:
            return [(file.path.relative_to(root).as_posix(), file.file_bytes, file.rows) for file in files]

        return fingerprint(
            part for of_column in sorted(parts(c.files) for c in self._columns.values()) for part in of_column
        )

    def read(self, sample_ids: npt.ArrayLike, out: Mapping[str, Array] | None = None) -> dict[str, Array]:
        ids = check_ids(sample_ids, self._samples)
        filled = check_out(out, self.schema, len(ids))
        self._residency.expect(ids, self._ranges)
        self._fill(ids, filled)
        return filled

    def prepare(self, sample_ids: npt.ArrayLike) -> ReadPart:
        ids = check_ids(sample_ids, self._samples)
        self._residency.expect(ids, self._ranges)
        whole = [(name, column.whole()) for name, column in self._columns.items()]
        gathers = [(name, gather) for name, gather in whole if gather is not None]
        if len(gathers) < len(whole):
            return lambda start, stop, out: self._fill(ids[start:stop], out)

        def part(start: int, stop: int, out: Mapping[str, Array]) -> Mapping[str, Array]:
            for name, gather in gathers:
                gather(ids[start:stop], out[name])
            return out

        return part

    def _fill(self, ids: Ids, out: Mapping[str, Array]) -> Mapping[str, Array]:
        for starts, columns in self._cuts:
            rows = rows_by_file(starts, ids)
            for name, column in columns.items():
                column.read(rows, out[name])
        return out

    def prefetch(self, sample_ids: npt.ArrayLike) -> None:
        """Asks for those samples that are not in memory, and doesn't wait for them."""
        self._residency.expect(np.asarray(sample_ids), self._ranges)

    def where(self, sample_id: int) -> str:
        return ", ".join(column.where(sample_id) for column in self._columns.values())

    def _files(self) -> Iterator[ArrayFile]:
        for column in self._columns.values():
            yield from column.files

    def _ranges(self, sample_ids: Ids) -> Iterator[tuple[LocalFile, npt.NDArray[np.int64], int]]:
        """Where the samples lie: file, offsets and bytes of each row."""
        for starts, columns in self._cuts:
            rows = rows_by_file(starts, check_ids(sample_ids, self._samples))
            for column in columns.values():
                yield from column.ranges(rows)


def _array_files(name: str, spec: ColumnFiles) -> list[ArrayFile]:
    """The files of one column, which must be alike."""
    if isinstance(spec, Raw):
        files = [_raw_file(path, spec) for path in _expand(name, spec.paths)]
    else:
        files = [read_npy_header(path) for path in _expand(name, spec)]
    first = files[0]
    for file in files[1:]:
        if file.dtype != first.dtype or file.shape[1:] != first.shape[1:]:
            raise FormatError(
                f"the files of column {name!r} must hold rows of one dtype and shape\n"
                f"  {first.path}: {first.dtype} rows of shape {first.shape[1:]}\n"
                f"  {file.path}: {file.dtype} rows of shape {file.shape[1:]}"
            )
    return files


def _expand(name: str, paths: PathLike | Sequence[PathLike]) -> list[Path]:
    """The files that a path, a glob or a list of them names."""
    if not isinstance(paths, str | os.PathLike):
        found = [file for path in paths for file in _expand(name, path)]
        if not found:
            raise ArgumentError(f"column {name!r}: expected at least one path, got an empty list")
        return found
    pattern = os.path.expanduser(os.fspath(paths))
    if not glob.has_magic(pattern) or os.path.exists(pattern):
        return [Path(pattern).absolute()]
    found = [Path(file).absolute() for file in sorted(glob.glob(pattern, recursive=True))]
    if not found:
        raise ArgumentError(f"column {name!r}: no file matches {pattern!r} in {os.getcwd()}")
    return found


def _raw_file(path: Path, raw: Raw) -> ArrayFile:
    """A raw file, its rows counted from its size where they are not given."""
    dtype, shape = np.dtype(raw.dtype), tuple(raw.shape)
    if refused := why_refused(dtype):
        raise ArgumentError(f"Raw: {refused}")
    if not shape or min(shape[1:], default=1) < 1 or shape[0] < -1 or shape[0] == 0 or dtype.itemsize == 0:
        raise ArgumentError(f"Raw: expected a shape of positive lengths, the first perhaps -1, got {shape} of {dtype}")
    _, file_bytes = read_bytes(path, 0, 0)
    row = ArrayFile(path, dtype, (1, *shape[1:]))
    if shape[0] == -1:
        if file_bytes == 0 or file_bytes % row.row_bytes:
            raise FormatError(
                f"{path}: expected a multiple of {row.row_bytes} bytes (rows of shape {shape[1:]} of {dtype}), "
                f"got {file_bytes}: check dtype and shape, or write the file again"
            )
        shape = (file_bytes // row.row_bytes, *shape[1:])
    array = ArrayFile(path, dtype, shape)
    check_file_bytes(array, file_bytes)
    return array
