"""Row groups, decoded piece by piece.

A large group is decoded in slices, one after the other, since Arrow can't begin in its middle. Where somebody needs
only the first slices, the reader stays open for the next ones.

Guarantees:
    - `decode` may be called from any number of threads, but for one group by one thread at a time.
    - A local file is the one that was opened, before and after each piece; a stored one is read by version.
    - Page checksums are verified where the file has them, and every piece has the rows that the footer promised.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from threading import Lock

import numpy as np
import pyarrow as pa

from headrace.errors import ArgumentError, FormatError, HeadraceError, StorageError
from headrace.formats.fetch_ahead import FetchAhead
from headrace.formats.parquet_columns import ColumnRefused, ParquetColumn
from headrace.formats.parquet_files import LocalPin
from headrace.formats.parquet_reader import GroupFiles, GroupReader
from headrace.formats.parquet_table import Table
from headrace.formats.parquet_types import without_views
from headrace.formats.piece_reading import Content
from headrace.formats.source import Array, Ids
from headrace.metrics import stage

# Of one group: more would only come of a footer that lies
_MOST_SLICES = 1 << 20
# Readers of large groups that stay open: each holds a page or two a column, beside the bytes that were fetched.
_MOST_READERS = 32


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
    def cut(cls, group_rows: Ids, row_bytes: Ids, slice_bytes: int, *, most_rows: int = 1 << 40) -> "Slices":
        """Cuts each group into slices of equal length, of up to so many bytes.

        Args:
            group_rows: int64 (groups,), 1 or more each.
            row_bytes: int64 (groups,), what a row of each takes in memory.
            slice_bytes: The most that a slice takes, unless a single row takes more.
            most_rows: The most rows that a slice has.

        >>> Slices.cut(np.array([5, 4]), np.array([1, 2]), 4).slice_rows.tolist()
        [3, 2]
        """
        counts = -(-group_rows * np.maximum(row_bytes, 1) // slice_bytes)
        counts = np.maximum(counts, -(-group_rows // most_rows))
        counts = np.minimum(counts, np.minimum(group_rows, _MOST_SLICES))
        slice_rows = -(-group_rows // counts)
        counts = -(-group_rows // slice_rows)
        return cls(np.concatenate(([0], np.cumsum(counts))), slice_rows)

    def rows(self, group_rows: Ids) -> Ids:
        """The rows of each piece, int64 (pieces,)."""
        counts = np.diff(self.first_pieces)
        rows = np.repeat(self.slice_rows, counts)
        rows[self.first_pieces[1:] - 1] = group_rows - self.slice_rows * (counts - 1)
        return rows


class ParquetDecoder:
    """Decodes the pieces of a table.

    Args:
        table: What is read.
        slices: How its groups are cut.
        ahead: The bytes of stored files.
        damaged: Where it notes which groups cannot be decoded, and why.
    """

    def __init__(
        self, table: Table, slices: Slices, ahead: FetchAhead | None, damaged: dict[int, str] | None = None
    ) -> None:
        self._table, self._slices, self._ahead = table, slices, ahead
        self._files, self._paths = GroupFiles(table, ahead), table.paths
        self._rows = slices.rows(table.files.group_rows)
        self._readers: OrderedDict[int, GroupReader] = OrderedDict()
        self._damaged = {} if damaged is None else damaged
        self._refused: dict[int, str] = {}
        self._schemas: tuple[pa.Schema, pa.Schema] | None = None  # of the files, and without views
        self._lock = Lock()

    def decode(self, group: int, first: int, last: int) -> Generator[tuple[int, Content], None, None]:
        """The pieces of a group up to `last`, in order, beginning with `first` or before it.

        Raises:
            FormatError: The group is damaged, or holds what its columns don't allow; the text names file, row group and
                column.
            StorageError: Its bytes cannot be had, or the file was replaced.
        """
        # what is known isn't decoded again for each of its samples
        known = self._damaged.get(group) or self._refused.get(first) or self._refused.get(last)
        if known is not None:
            if self._ahead is not None:
                self._ahead.drop(group)
            raise FormatError(known)
        with self._lock:
            reader = self._readers.pop(group, None)
        try:
            if reader is not None and reader.piece > first:
                self._close(reader)
                reader = None
            reader = self._opened(group) if reader is None else reader
            while reader.piece <= last:
                batch = self._next(group, reader)
                yield reader.piece - 1, _Batch(batch, self._table, group, reader.piece - 1, self._refused)
        except BaseException as error:
            if reader is not None:
                reader.close()
            if isinstance(error, FormatError):
                self._damaged[group] = str(error)
            raise
        if reader.piece < self._slices.first_pieces[group + 1]:
            self._keep(group, reader)
        else:
            self._close(reader)

    def alone(self, group: int, piece: int, place: int) -> Content:
        """One row of a piece of which others are refused: the `place`-th."""
        with contextlib.closing(self.batches(group)) as batches:
            for number, batch in enumerate(batches, int(self._slices.first_pieces[group])):
                if number == piece:
                    return _Batch(batch.slice(place, 1), self._table, group, piece, {})
        raise AssertionError(piece)

    def batches(self, group: int) -> Generator[pa.RecordBatch, None, None]:
        """The pieces of a group as Arrow decoded them, each in one batch."""
        reader = self._opened(group)
        try:
            while reader.piece < self._slices.first_pieces[group + 1]:
                yield self._next(group, reader)
        finally:
            reader.close()

    def is_refused(self, piece: int) -> bool:
        """Whether something in a piece is not what its columns allow."""
        return piece in self._refused

    def forget(self) -> None:
        """Drops the groups that are half decoded; files stay open for the next pass."""
        with self._lock:
            readers, self._readers = self._readers, OrderedDict()
        for reader in readers.values():
            self._close(reader)

    def _keep(self, group: int, reader: GroupReader) -> None:
        """Keeps a reader open for the group's next pieces; closes others for it, if need be."""
        closed = []
        most_bytes = 0 if self._ahead is None else self._ahead.most_bytes
        with self._lock:
            self._readers[group] = reader
            held_bytes = sum(one.held_bytes for one in self._readers.values())
            while len(self._readers) > _MOST_READERS or (held_bytes > most_bytes and len(self._readers) > 1):
                closed.append(self._readers.popitem(last=False)[1])
                held_bytes -= closed[-1].held_bytes
        for one in closed:
            self._close(one)

    def _close(self, reader: GroupReader) -> None:
        reader.close()
        self._files.keep_open(reader)

    def _opened(self, group: int) -> GroupReader:
        with self._telling(group):
            first, rows = int(self._slices.first_pieces[group]), int(self._slices.slice_rows[group])
            return self._files.open(group, first, rows, self._paths)

    def _next(self, group: int, reader: GroupReader) -> pa.RecordBatch:
        """The rows of the reader's next piece."""
        table, expected = self._table, int(self._rows[reader.piece])
        with self._telling(group), stage("decode"):
            batch = reader.next(expected)
        if len(batch) != expected:
            raise FormatError(
                f"{table.where(group)}: expected {expected} rows more, as its footer says, got {len(batch)}; "
                "the file is damaged"
            )
        number = int(table.files.group_file[group])
        source = table.files.files[number]
        if isinstance(source, LocalPin):
            source.check()
        schemas = self._schemas
        if schemas is None or not schemas[0].equals(batch.schema):
            schemas = self._schemas = batch.schema, without_views(batch.schema)
        if not schemas[1].equals(schemas[0]):
            batch = batch.cast(schemas[1])
        for name, values in table.files.partitions.items():
            batch = batch.append_column(pa.field(name, values.type), pa.repeat(values[number], len(batch)))
        if table.row_filter is not None:
            try:
                batch = batch.filter(pa.array(table.row_filter.mask(batch)))
            except ArgumentError as error:
                error.add_note(f"in {table.where(group)}")
                raise
        return batch

    @contextlib.contextmanager
    def _telling(self, group: int) -> Iterator[None]:
        """Says what is wrong with a group, and where."""
        try:
            yield
        except (HeadraceError, MemoryError):
            raise
        except OverflowError as error:
            raise FormatError(f"{self._table.where(group)}: {error}") from None
        except Exception as error:  # whatever Arrow makes of damaged bytes
            if isinstance(error, OSError) and error.errno is not None:  # the system's fault, not the file's
                raise StorageError(f"{self._table.where(group)}: cannot be read: {error}") from error
            raise FormatError(self._why(group, error)) from error

    def _why(self, group: int, error: Exception) -> str:
        """Which column of a group it is that cannot be decoded."""
        where, rows = self._table.where(group), int(self._slices.slice_rows[group])
        for path in self._paths if len(self._paths) > 1 else ():
            reader = None
            try:
                reader = self._files.open(group, 0, rows, [path], is_again=True)
                while len(reader.next(rows)) == rows:
                    pass
            except (HeadraceError, MemoryError):
                raise
            except Exception as own:  # noqa: BLE001 (whatever Arrow makes of damaged bytes)
                if not isinstance(own, EOFError):
                    return _cannot(f"{where}: column {path!r}", own)
            finally:
                if reader is not None:
                    reader.close()
        named = f": column {self._paths[0]!r}" if len(self._paths) == 1 else ""
        return _cannot(f"{where}{named}", error)


class _Batch:
    """A piece as Arrow decoded it."""

    def __init__(self, batch: pa.RecordBatch, table: Table, group: int, piece: int, refused: dict[int, str]) -> None:
        self._batch, self._table, self._group = batch, table, group
        self._piece, self._refused = piece, refused

    def views(self) -> dict[str, Array]:
        views = {}
        for column in self._table.columns:
            if column.stored is not None:
                with self._naming(column):
                    view = column.view(column.extract(self._batch))
                if view is not None:
                    views[column.name] = view
        return views

    def write(self, out: Mapping[str, Array]) -> None:
        for column in self._table.columns:
            if column.name in out:
                with self._naming(column):
                    column.write(column.extract(self._batch), out[column.name])

    def others(self) -> dict[str, pa.Array]:
        kept = {}
        for column in self._table.columns:
            if column.stored is None:
                with self._naming(column):
                    kept[column.name] = column.keep(column.extract(self._batch))
        return kept

    @contextlib.contextmanager
    def _naming(self, column: ParquetColumn) -> Iterator[None]:
        """Names the place of what a column refuses, or Arrow can't do, and notes it."""
        try:
            with stage("decode"):
                yield
        except (ColumnRefused, pa.ArrowException) as error:
            said = str(error) if isinstance(error, ColumnRefused) else f"cannot be converted: {error}"
            text = self._refused[self._piece] = f"{self._table.where(self._group)}: column {column.name!r} {said}"
            raise FormatError(text) from None


def _cannot(where: str, error: Exception) -> str:
    said = " ".join(str(error).split())[:400]
    return (
        f"{where}: cannot be decoded: {said}; the file is damaged, or its encoding or codec is unknown to this pyarrow"
    )
