"""Parquet files as a source: row groups are its blocks, and only the columns that are asked for are read."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from headrace.errors import ArgumentError, SampleError
from headrace.formats.column_files import PathLike
from headrace.formats.decoding import PayloadError
from headrace.formats.hive import listed_paths
from headrace.formats.nearest import listed
from headrace.formats.parquet_columns import ColumnOptions, ParquetColumn, plan_columns
from headrace.formats.parquet_decoding import Slices
from headrace.formats.parquet_files import open_parquet
from headrace.formats.parquet_filter import RowFilter
from headrace.formats.parquet_kept import DecodedColumn
from headrace.formats.parquet_layout import count_kept, pieces_of, slices_of
from headrace.formats.parquet_memory import ParquetMemory, distinct_values
from headrace.formats.parquet_table import Table
from headrace.formats.parquet_types import without_views
from headrace.formats.piece_counts import NOTHING_COUNTED
from headrace.formats.piece_reading import Pieces
from headrace.formats.source import (
    Array,
    Blocks,
    Column,
    Ids,
    KeysOf,
    ReadPart,
    Source,
    check_ids,
    check_out,
    fingerprint,
)
from headrace.formats.stored_memory import checked_store, default_memory_bytes
from headrace.formats.values import Values
from headrace.metrics import stage
from headrace.storage import Store, shown

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.compute as pc

_MOST_MEMORY_BYTES = 8 << 30
# Of the memory, the share that is announced ahead: windows of that size are known in time from their first sample to
# their last, so that no piece goes too early
_AHEAD_SHARE = 2


class ParquetSource(Source):
    """Columns of Parquet files; row i of all row groups, end to end, is sample i.

    Row groups are decoded when they are first needed, and kept in memory up to a budget (see `piece_memory`). Local
    files are memory-mapped; of stored ones just the bytes of the columns are fetched, ahead of need. Pickles hold what
    the footers say of the columns and the store's options, never data.

    Args:
        paths: A file, a pattern, a list of them, or a folder (a URL that ends in "/"), whose folders named `key=value`
            give columns.
        columns: Names, dotted for fields of structs; None for all columns.
        store: What reads URLs; by default a `Store` without options.
        memory_bytes: The most memory that row groups take, decoded or not, in each process; by default 8 GiB, or a
            quarter of what is free.
        row_filter: Keeps the rows for which it is true.
        options: How columns become tensors.
        index_dir: Where what the footers say is kept for the next time; by default in the store's cache, if it has one.

    Raises:
        ArgumentError: No file, no row, no such column, or an option that doesn't fit.
        FormatError: A file is damaged, or its columns differ from the first file's.
        StorageError: A file cannot be opened.
    """

    random_access = False
    splits_by_block = True

    def __init__(
        self,
        paths: PathLike | Sequence[PathLike],
        columns: Sequence[str] | None = None,
        store: Store | None = None,
        *,
        memory_bytes: int | None = None,
        row_filter: "pc.Expression | None" = None,
        options: ColumnOptions | None = None,
        index_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        store = checked_store(store, memory_bytes)
        options = ColumnOptions() if options is None else options
        paths = listed_paths(paths)
        planned: list[ParquetColumn] = []
        filters: list[RowFilter] = []

        def paths_of(schema: "pa.Schema") -> list[str]:
            schema = without_views(schema)
            planned[:] = plan_columns(schema, columns, options, where=_shown(paths))
            filters[:] = [] if row_filter is None else [RowFilter(row_filter, schema)]
            return [column.path for column in planned] + [path for used in filters for path in used.referenced]

        if index_dir is not None:
            if not isinstance(index_dir, str | os.PathLike) or not isinstance(os.fspath(index_dir), str):
                raise ArgumentError(f"index_dir: expected a folder's path, got {index_dir!r}")
            index_dir = Path(index_dir).expanduser()
        elif store.cache_dir is not None:
            index_dir = store.cache_dir / "indexes"
        files = open_parquet(paths, store, paths_of=paths_of, index_dir=index_dir)
        table = Table(files, planned, filters[0] if filters else None, store)
        self._attach(table, options, None, memory_bytes)

    def _attach(
        self,
        table: Table,
        options: ColumnOptions,
        counted: Ids | None,
        memory_bytes: int | None,
        keys_of: KeysOf | None = None,
    ) -> None:
        self._keys_of = keys_of
        self._table, self._options, self._counted = table, options, counted
        self._given_memory_bytes = memory_bytes
        self._memory_bytes = default_memory_bytes(_MOST_MEMORY_BYTES) if memory_bytes is None else memory_bytes
        self.schema: dict[str, Column] = {column.name: self._measured(column) for column in table.columns}
        sample_bytes = sum(column.sample_bytes for column in self.schema.values())
        self.read_ahead_bytes = max(sample_bytes, self._memory_bytes // _AHEAD_SHARE)
        self._memories: dict[int, ParquetMemory] = {}

    def __getstate__(self) -> tuple[Table, ColumnOptions, Ids | None, int | None, KeysOf | None]:
        # a store may hold what lets one in: it travels only where it is needed
        table = self._table if self._table.is_stored else replace(self._table, store=Store())
        return table, self._options, self._counted, self._given_memory_bytes, self._keys_of

    def __setstate__(self, state: tuple[Table, ColumnOptions, Ids | None, int | None, KeysOf | None]) -> None:
        self._attach(*state)

    def __len__(self) -> int:
        return int(self._pieces.starts[-1])

    @cached_property
    def blocks(self) -> Blocks:
        """The row groups that hold samples."""
        lengths = np.diff(self._pieces.starts[self._slices.first_pieces])
        files = self._table.files
        block_bytes = files.group_bytes
        if self._table.row_filter is not None:
            block_bytes = (block_bytes * (lengths / files.group_rows)).astype(np.int64)
        return Blocks(lengths[lengths > 0], block_bytes[lengths > 0])

    @cached_property
    def fingerprint(self) -> str:
        """Of the files' names below their common folder, bytes and rows, and of the filter: not of data or columns.

        The same for copies of the files, on local disk or in a store.
        """
        own, row_filter = self._table.files.fingerprint(), self._table.row_filter
        if row_filter is None:
            return own
        return fingerprint([(own, row_filter.identity), tuple(self.blocks.lengths.tolist())])

    def read(self, sample_ids: npt.ArrayLike, out: Mapping[str, Array] | None = None) -> Mapping[str, Values]:
        ids = check_ids(sample_ids, len(self))
        return self._fill(ids, self._pieces.locate(ids), check_out(out, self.schema, len(ids)))

    def prepare(self, sample_ids: npt.ArrayLike) -> ReadPart:
        ids = check_ids(sample_ids, len(self))
        pieces = self._pieces.locate(ids)
        if pieces is None:
            return lambda start, stop, out: self._fill(ids[start:stop], None, out)
        return lambda start, stop, out: self._fill(ids[start:stop], pieces[start:stop], out)

    def _fill(self, ids: Ids, pieces_of_them: Ids | None, out: Mapping[str, Array]) -> Mapping[str, Values]:
        """Reads samples into `out`, which has an array for each fixed column."""
        memory = self._memory()
        others = memory.read(ids, pieces_of_them, out)
        if not others:
            return out
        read: dict[str, Values] = {}
        for column in memory.table.columns:
            if column.stored is not None:
                read[column.name] = out[column.name]
                continue
            try:
                with stage("decode"):
                    if isinstance(column, DecodedColumn) and column.uses_keys:
                        keys = None if self._keys_of is None else self._keys_of(ids)
                        read[column.name] = column.decoded(others[column.name], out.get(column.name), keys)
                    else:
                        read[column.name] = column.finish(others[column.name], out.get(column.name))
            except PayloadError as error:
                wrong = int(ids[error.place])
                raise SampleError(f"column {column.name!r}: {error}\n  sample {wrong}: {self.where(wrong)}") from error
        return read

    def prefetch(self, sample_ids: npt.ArrayLike) -> None:
        """Keeps what these samples need until they are read, and begins to fetch it."""
        ids = check_ids(sample_ids, len(self))
        if len(ids):
            self._memory().announce(ids)

    def end_prefetch(self) -> None:
        memory = self._memories.get(os.getpid())
        if memory is not None:
            memory.forget_announced()

    def where(self, sample_id: int) -> str:
        group = int(self._pieces.groups[self._pieces.of(np.array([sample_id]))[0]])
        row = sample_id - int(self._pieces.starts[self._slices.first_pieces[group]])
        kept = "" if self._table.row_filter is None else " of those that row_filter keeps"
        return f"row {row}{kept} in {self._table.where(group)}"

    def narrowed(self, columns: Collection[str]) -> "ParquetSource":
        kept = [column for column in self._table.columns if column.name in columns]
        if len(kept) == len(self._table.columns):
            return self
        narrowed = object.__new__(type(self))
        table = replace(self._table, columns=kept)
        narrowed._attach(table, self._options, self._kept_rows, self._given_memory_bytes, self._keys_of)
        return narrowed

    def keyed(self, keys_of: KeysOf) -> "ParquetSource":
        if not any(isinstance(column, DecodedColumn) and column.uses_keys for column in self._table.columns):
            return self
        keyed = object.__new__(type(self))
        keyed.__dict__.update(self.__dict__, _keys_of=keys_of)
        return keyed

    def counts(self) -> dict[str, int]:
        """What this process has read and decoded, and what it holds in memory, by name."""
        memory = self._memories.get(os.getpid())
        stored = self._table.store.counts() if self._table.is_stored else {}
        if memory is None:
            return {**stored, **NOTHING_COUNTED, "held_ahead_bytes": 0}
        return {**stored, **memory.pieces.as_dict(), "held_ahead_bytes": memory.held_ahead_bytes}

    def categories(self, name: str) -> tuple[object, ...]:
        """What the codes of a column stand for: code i for the i-th.

        Raises:
            ArgumentError: The column doesn't come as codes.
        """
        if name not in self._options.codes:
            raise ArgumentError(f"categories: expected a column that comes as codes, got {name!r}; give codes=")
        if self._options.codes[name] is None:
            self._find_categories()
        found = self._options.codes[name]
        assert found is not None
        return found

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.describe(len(self) if self.is_counted else None)})"

    def describe(self, rows: int | None) -> str:
        """So many rows, the columns and the first file, as text; None for rows that were not counted yet."""
        table = self._table
        files = table.files.files
        many = f"some of {len(table.files)} rows" if rows is None else f"{rows} rows"
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        return f"{many} of {listed([column.name for column in table.columns])} in {files[0]}{more}"

    @property
    def is_counted(self) -> bool:
        """Whether its length is known without reading data."""
        return self._table.row_filter is None or self._counted is not None

    def _measured(self, column: ParquetColumn) -> Column:
        """The column with the bytes of a sample, on average, where they differ."""
        files = self._table.files
        if column.column.is_fixed or column.path in files.partitions:
            return column.column
        value_bytes = int(files.chunks([column.path]).decoded.sum())
        return replace(column.column, mean_bytes=max(1, value_bytes // int(files.group_rows.sum())))

    @cached_property
    def _slices(self) -> Slices:
        return slices_of(self._table, self._memory_bytes)

    @cached_property
    def _pieces(self) -> Pieces:
        return pieces_of(self._table, self._slices, self._kept_rows)

    @cached_property
    def _kept_rows(self) -> Ids | None:
        """The rows of each piece that the filter keeps: counted when they are first asked for."""
        if self._table.row_filter is not None and self._counted is None:
            self._counted = count_kept(self._table, self._slices, self._memory_bytes)
        return self._counted

    def _memory(self) -> ParquetMemory:
        memory = self._memories.get(os.getpid())
        if memory is None:
            if None in self._options.codes.values():
                self._find_categories()
            if self._memories and os.getpid() not in self._memories:
                self._memories.clear()  # a forked child's own: its parent's are of no use to it
            made = ParquetMemory(self._table, self._slices, self._pieces, self._memory_bytes)
            memory = self._memories.setdefault(os.getpid(), made)
        return memory

    def _find_categories(self) -> None:
        """Reads the columns whose codes are to be found, and gives each value its code, in the order of the values."""
        table = self._table
        own = {column.name: column for column in table.columns}
        found = {
            name: distinct_values(replace(table, columns=[own[name]]), self._memory_bytes) if values is None else values
            for name, values in self._options.codes.items()
            if name in own
        }
        options = replace(self._options, codes=found)
        coded = {
            name: column
            for name in found
            for column in plan_columns(without_views(table.files.schema), [name], _only(options, name), where="")
        }
        self._table = replace(table, columns=[coded.get(column.name, column) for column in table.columns])
        self._options = options


def _only(options: ColumnOptions, name: str) -> ColumnOptions:
    """The options of one column."""
    own: dict[str, Any] = {field.name: getattr(options, field.name) for field in fields(options)}
    for option, given in own.items():
        is_set = isinstance(given, frozenset)
        own[option] = given & {name} if is_set else {key: value for key, value in given.items() if key == name}
    return ColumnOptions(**own)


def _shown(paths: Sequence[str]) -> str:
    """The first of the paths as text."""
    return shown(paths[0])
