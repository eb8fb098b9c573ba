"""Row groups, decoded piece by piece.

A large group is decoded in slices, one after the other, since Arrow can't begin in its middle. Where somebody needs
only the first slices, the reader stays open for the next ones.

Guarantees:
    - `decode` may be called from any number of threads, but for one group by one thread at a time.
    - A local file is the one that was opened, before and after each piece; a stored one is read by version.
    - Page checksums are verified where the file has them, and every piece has the rows that the footer promised.
"""

import contextlib
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.errors import ArgumentError, FormatError, HeadraceError
from headrace.formats.fetch_ahead import FetchAhead
from headrace.formats.parquet_columns import ColumnRefused, ParquetColumn
from headrace.formats.parquet_files import LocalPin
from headrace.formats.parquet_table import Table
from headrace.formats.piece_memory import Content
from headrace.formats.source import Array, Ids
from headrace.storage.local import mappable_bytes

# Readers of large groups that stay open: each holds a page or two a column.
_MOST_READERS = 32
# Local files that stay open while nobody decodes from them: opening and unmapping one takes half a millisecond.
_MOST_IDLE_FILES = 32
# What Arrow asks for at once of a group that is too large to be fetched ahead
_STREAM_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Slices:
    """How the groups are cut into pieces.

    Attributes:
        first_pieces: int64 (groups + 1,), the first piece of each group, then the number of pieces.
        slice_rows: int64 (groups,), the rows of a group's pieces, the last one aside.
    """

    first_pieces: Ids
    slice_rows: Ids

    @classmethod
    def cut(cls, group_rows: Ids, row_bytes: Ids, slice_bytes: int) -> "Slices":
        """Cuts each group into slices of equal length, of up to so many bytes.

        Args:
            group_rows: int64 (groups,), 1 or more each.
            row_bytes: int64 (groups,), what a row of each takes in memory.
            slice_bytes: The most that a slice takes, unless a single row takes more.

        >>> Slices.cut(np.array([5, 4]), np.array([1, 2]), 4).slice_rows.tolist()
        [3, 2]
        """
        counts = np.minimum(-(-group_rows * np.maximum(row_bytes, 1) // slice_bytes), group_rows)
        slice_rows = -(-group_rows // counts)
        counts = -(-group_rows // slice_rows)
        return cls(np.concatenate(([0], np.cumsum(counts))), slice_rows)

    def rows(self, group_rows: Ids) -> Ids:
        """The rows of each piece, int64 (pieces,)."""
        counts = np.diff(self.first_pieces)
        rows = np.repeat(self.slice_rows, counts)
        rows[self.first_pieces[1:] - 1] = group_rows - self.slice_rows * (counts - 1)
        return rows


class _Reader:
    """A group that is being decoded: the next piece, and the batches that are left."""

    def __init__(self, piece: int, batches: Iterator[pa.RecordBatch]) -> None:
        self.piece, self.batches = piece, batches


class _OpenFile:
    """A file that one thread at a time decodes from."""

    def __init__(self, number: int, file: pq.ParquetFile) -> None:
        self.number, self.file = number, file


class ParquetDecoder:
    """Decodes the pieces of a table.

    Args:
        table: What is read.
        slices: How its groups are cut.
        ahead: The bytes of stored files.
    """

    def __init__(self, table: Table, slices: Slices, ahead: FetchAhead | None) -> None:
        self._table, self._slices, self._ahead = table, slices, ahead
        self._files, self._paths = table.files, table.paths
        self._rows = slices.rows(table.files.group_rows)
        self._readers: OrderedDict[int, _Reader] = OrderedDict()
        self._idle: deque[_OpenFile] = deque(maxlen=_MOST_IDLE_FILES)
        self._damaged: dict[int, str] = {}
        self._lock = Lock()

    def decode(self, group: int, first: int, last: int) -> Iterator[tuple[int, Content]]:
        """The pieces of a group up to `last`, in order, beginning with `first` or before it.

        Raises:
            FormatError: The group is damaged, or holds what its columns don't allow; the text names file, row group and
                column.
            StorageError: Its bytes cannot be had, or the file was replaced.
        """
        if group in self._damaged:  # not decoded again for each of its samples
            raise FormatError(self._damaged[group])
        with self._lock:
            reader = self._readers.pop(group, None)
        try:
            if reader is None or reader.piece > first:
                reader = _Reader(int(self._slices.first_pieces[group]), self._batches(group))
            while reader.piece <= last:
                batch = self._next(group, reader)
                reader.piece += 1
                yield reader.piece - 1, _Batch(batch, self._table.columns, self._table.where(group))
        except FormatError as error:
            self._damaged[group] = str(error)
            raise
        if reader.piece < self._slices.first_pieces[group + 1]:
            with self._lock:
                self._readers[group] = reader
                if len(self._readers) > _MOST_READERS:
                    self._readers.popitem(last=False)

    def batches(self, group: int) -> Iterator[pa.RecordBatch]:
        """The pieces of a group as Arrow decoded them, each in one batch."""
        reader = _Reader(int(self._slices.first_pieces[group]), self._batches(group))
        while reader.piece < self._slices.first_pieces[group + 1]:
            yield self._next(group, reader)
            reader.piece += 1

    def forget(self) -> None:
        """Drops the groups that are half decoded; files stay open for the next pass."""
        with self._lock:
            self._readers.clear()

    def _next(self, group: int, reader: _Reader) -> pa.RecordBatch:
        """The rows of the reader's next piece."""
        expected = int(self._rows[reader.piece])
        try:
            batch = _joined(reader.batches, expected)
        except HeadraceError:
            raise
        except Exception as error:  # whatever Arrow makes of damaged bytes
            raise FormatError(self._why(group, error)) from error
        if len(batch) != expected:
            raise FormatError(
                f"{self._table.where(group)}: expected {expected} rows more, as its footer says, got {len(batch)}; "
                "the file is damaged"
            )
        source = self._files.files[self._files.group_file[group]]
        if isinstance(source, LocalPin):
            source.check()
        for name, values in self._files.partitions.items():
            value = values[int(self._files.group_file[group])]
            batch = batch.append_column(pa.field(name, values.type), pa.repeat(value, len(batch)))
        if self._table.row_filter is not None:
            try:
                batch = batch.filter(pa.array(self._table.row_filter.mask(batch)))
            except ArgumentError as error:
                error.add_note(f"in {self._table.where(group)}")
                raise
        return batch

    def _batches(self, group: int, paths: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows of a group, in batches of a piece each."""
        paths = self._paths if paths is None else paths
        slice_rows = int(self._slices.slice_rows[group])
        if not paths:
            rows = int(self._files.group_rows[group])
            for start in range(0, rows, slice_rows):
                nothing = pa.array(np.empty(min(slice_rows, rows - start), np.bool_))
                yield pa.RecordBatch.from_arrays([nothing], names=[""])
            return
        number = int(self._files.group_file[group])
        opened = self._opened(group, number)
        # left behind when all rows are there: no more is asked for
        with contextlib.suppress(GeneratorExit):
            yield from opened.file.iter_batches(
                batch_size=slice_rows,
                row_groups=[int(self._files.group_number[group])],
                columns=list(paths),
                use_threads=False,  # of no use for one heavy column: the callers are many
            )
        if self._ahead is None:
            self._idle.append(opened)

    def _opened(self, group: int, number: int) -> "_OpenFile":
        """A group's file, open for the caller alone: Arrow's readers are not for several threads at once."""
        source = self._files.files[number]
        if isinstance(source, LocalPin):
            source.check()
            for idle in list(self._idle):
                if idle.number == number:
                    with contextlib.suppress(ValueError):  # another thread was faster
                        self._idle.remove(idle)
                        return idle
        options: dict[str, Any] = {
            "metadata": self._files.metadata(number),
            "pre_buffer": False,  # fetching in Arrow's own threads has crashed and hung where many read
            "page_checksum_verification": True,
        }
        if isinstance(source, LocalPin):
            memory_map = source.file_bytes <= mappable_bytes()
            return _OpenFile(number, pq.ParquetFile(source.path, memory_map=memory_map, **options))
        assert self._ahead is not None
        if self._ahead.is_streamed(group):
            options["buffer_size"] = _STREAM_BYTES
        file = pa.PythonFile(self._ahead.open(group), mode="r")
        return _OpenFile(number, pq.ParquetFile(file, **options))

    def _why(self, group: int, error: Exception) -> str:
        """Which column of a group it is that cannot be decoded."""
        for path in self._paths if len(self._paths) > 1 else ():
            try:
                for _ in self._batches(group, [path]):
                    pass
            except HeadraceError:
                raise
            except Exception as own:  # noqa: BLE001 (whatever Arrow makes of damaged bytes)
                return _cannot(f"{self._table.where(group)}: column {path!r}", own)
        named = f": column {self._paths[0]!r}" if len(self._paths) == 1 else ""
        return _cannot(f"{self._table.where(group)}{named}", error)


class _Batch:
    """A piece as Arrow decoded it."""

    def __init__(self, batch: pa.RecordBatch, columns: Sequence[ParquetColumn], where: str) -> None:
        self._batch, self._columns, self._where = batch, columns, where

    def write(self, out: Mapping[str, Array]) -> None:
        for column in self._columns:
            if column.stored is not None:
                with _naming(self._where, column):
                    column.write(column.extract(self._batch), out[column.name])

    def others(self) -> dict[str, pa.Array]:
        kept = {}
        for column in self._columns:
            if column.stored is None:
                with _naming(self._where, column):
                    kept[column.name] = column.keep(column.extract(self._batch))
        return kept


@contextlib.contextmanager
def _naming(where: str, column: ParquetColumn) -> Iterator[None]:
    """Names the place of what a column refuses."""
    try:
        yield
    except ColumnRefused as error:
        raise FormatError(f"{where}: column {column.name!r} {error}") from None


def _joined(batches: Iterator[pa.RecordBatch], rows: int) -> pa.RecordBatch:
    """The next so many rows; Arrow cuts batches shorter where the strings in them would be too long together."""
    parts = []
    while rows > 0 and (part := next(batches, None)) is not None:
        parts.append(part)
        rows -= len(part)
    if len(parts) == 1:
        return parts[0]
    if not parts:
        raise ValueError("it ends too early")
    [joined] = pa.Table.from_batches(parts).combine_chunks().to_batches()
    return joined


def _cannot(where: str, error: Exception) -> str:
    said = " ".join(str(error).split())[:400]
    return (
        f"{where}: cannot be decoded: {said}; the file is damaged, or its encoding or codec is unknown to this pyarrow"
    )
