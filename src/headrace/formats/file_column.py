"""One column that lies in files: several arrays of the same row shape, seen as one.

Guarantees: any number of threads may read at once; an array stays mapped while a gather runs, whoever else closes it.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from headrace.errors import FormatError
from headrace.formats.dtypes import native
from headrace.formats.gather import gather
from headrace.formats.npy import ArrayFile, check_file_bytes
from headrace.formats.source import Array, Column, Ids
from headrace.storage import LocalFile, OpenFiles

_PIECE_BYTES = 1 << 20

# Rows of one file: its number, where in the batch they belong (None: all of it), and their numbers within the file.
FileRows: TypeAlias = tuple[int, Ids | None, Ids]


def rows_by_file(starts: Ids, sample_ids: Ids) -> list[FileRows]:
    """Sorts a batch by file.

    Args:
        starts: int64 (files + 1,), the first sample of each file, then the number of samples.
        sample_ids: int64 (samples,), in any order.
    """
    if len(sample_ids) == 0:
        return []
    if len(starts) == 2:
        return [(0, None, sample_ids)]
    files = np.searchsorted(starts, sample_ids, side="right") - 1
    if (files == files[0]).all():
        return [(int(files[0]), None, sample_ids - starts[files[0]])]
    places = np.argsort(files, kind="stable")
    files = files[places]
    rows = sample_ids[places] - starts[files]
    firsts = np.flatnonzero(np.diff(files, prepend=-1)).tolist()
    stops = [*firsts[1:], len(files)]
    return [(int(files[a]), places[a:b], rows[a:b]) for a, b in zip(firsts, stops, strict=True)]


class FileColumn:
    """One column over its files.

    Args:
        files: In the order of their rows; all of one dtype and row shape.
        keep_open: How many of them stay open.

    Attributes:
        files: As given.
        column: What the schema says: the dtype is native, whatever the files hold.
        starts: int64 (files + 1,), the first sample of each file, then the number of samples.
    """

    def __init__(self, files: Sequence[ArrayFile], *, keep_open: int) -> None:
        self.files = files
        self.column = Column(native(files[0].dtype), files[0].shape[1:])
        self.starts: Ids = np.concatenate(([0], np.cumsum([file.rows for file in files], dtype=np.int64)))
        self._opened = OpenFiles(lambda number: _OpenArray(files[number]), limit=keep_open)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, rows: Sequence[FileRows], out: Array) -> None:
        """Fills `out` (samples, *shape) with the rows, as `rows_by_file` sorted them."""
        # The bytes are gathered as they are stored, and put into native order at the end, in place.
        stored = self.files[0].dtype
        raw = out if out.dtype == stored else out.view(stored)
        for number, places, file_rows in rows:
            opened = self._opened[number]
            if places is None:
                opened.gather(file_rows, raw)
            else:
                share = np.empty((len(file_rows), *raw.shape[1:]), stored)
                opened.gather(file_rows, share)
                raw[places] = share
        if raw is not out:
            out[...] = raw

    def whole(self) -> Callable[[Ids, Array], None] | None:
        """What gathers rows of the column's one file into `out`; None where there are more, or bytes to be swapped."""
        if len(self.files) == 1 and self.column.dtype == self.files[0].dtype:
            return self._opened[0].gather
        return None

    def ranges(self, rows: Sequence[FileRows]) -> Iterator[tuple[LocalFile, npt.NDArray[np.int64], int]]:
        """Yields file, offsets (int64) and bytes of the rows, where rows lie in one piece: not in Fortran order."""
        for number, _, file_rows in rows:
            file = self.files[number]
            if not file.is_columnwise:
                yield self._opened[number].file, file.offset + file_rows * file.row_bytes, file.row_bytes

    def where(self, sample_id: int) -> str:
        """Names a sample's file and row."""
        number = int(np.searchsorted(self.starts, sample_id, side="right")) - 1
        return f"row {sample_id - self.starts[number]} of {self.files[number].path}"


class _OpenArray:
    """One file's array, mapped or read at positions."""

    def __init__(self, array: ArrayFile) -> None:
        self.file = LocalFile(array.local_path)
        self._array = array
        self._is_columnwise, self._row_bytes = array.is_columnwise, array.row_bytes
        self._check_unchanged()
        self._rows: Array | None = None
        self._take: Callable[..., object] | None = None
        if self.file.mapped is not None:
            data = self.file.mapped[array.offset :]
            if self._is_columnwise:
                self._rows = np.ndarray(array.shape, array.dtype, buffer=data, order="F")
            else:
                # As bytes, so that no dtype, byte order or misaligned header makes NumPy copy the whole array first.
                self._rows = data.reshape(array.rows, self._row_bytes)
                self._take = self._rows.take

    def gather(self, rows: Ids, out: Array) -> None:
        """Fills `out` (len(rows), *shape), of the stored dtype."""
        self.file.check_size()
        if self._take is not None:
            # rows that are whole runs of bytes, the common case, in as few steps as there can be; see `gather`
            self._take(rows, 0, out.view(np.uint8).reshape(len(rows), self._row_bytes), "clip")
            return
        target = out if self._is_columnwise else out.view(np.uint8).reshape(len(rows), self._row_bytes)
        if self._rows is not None:
            gather(self._rows, rows, target)
        elif self._is_columnwise:
            self._read_columnwise(rows, target)
        else:
            self._read_runs(rows, target)

    def _read_runs(self, rows: Ids, out: npt.NDArray[np.uint8]) -> None:
        """Reads rows at positions, each run of consecutive ones at once."""
        if len(rows) == 0:
            return
        firsts = np.flatnonzero(np.diff(rows, prepend=rows[0] - 2) != 1).tolist()
        for first, stop in zip(firsts, [*firsts[1:], len(rows)], strict=True):
            offset = self._array.offset + int(rows[first]) * self._row_bytes
            self.file.read_into(out[first:stop].reshape(-1), offset)

    def _read_columnwise(self, rows: Ids, out: Array) -> None:
        """Reads rows in Fortran order: from each line of values, in pieces, those of the rows."""
        array, itemsize = self._array, self._array.dtype.itemsize
        lines = self._row_bytes // itemsize
        values = np.empty((lines, len(rows)), array.dtype)
        piece = np.empty(max(1, _PIECE_BYTES // itemsize), array.dtype)
        order = np.argsort(rows, kind="stable")
        bounds = range(0, array.rows + len(piece), len(piece))
        cuts = np.searchsorted(rows[order], bounds)
        for line in range(lines):
            for start, first, stop in zip(bounds, cuts[:-1], cuts[1:], strict=False):
                if first < stop:
                    length = min(len(piece), array.rows - start)
                    offset = array.offset + (line * array.rows + start) * itemsize
                    self.file.read_into(piece[:length].view(np.uint8), offset)
                    places = order[first:stop]
                    values[line, places] = piece[rows[places] - start]
        # (lines, rows) is the C order of the transposed rows.
        out[...] = values.reshape(*array.shape[:0:-1], len(rows)).T

    def _check_unchanged(self) -> None:
        """Raises FormatError where the file is not the one whose header was parsed."""
        array = self._array
        check_file_bytes(array, self.file.opened_bytes)
        header = np.empty(array.offset, np.uint8)
        self.file.read_into(header, 0)
        if zlib.crc32(header.data) != array.header_crc32:
            raise FormatError(f"{array.path} has another header than when the dataset was made: make the dataset again")
