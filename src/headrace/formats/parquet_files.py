"""Parquet files, opened as far as their footers: which row groups there are, and where their columns lie."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.errors import ArgumentError
from headrace.formats.column_files import PathLike, names_below_root
from headrace.formats.hive import list_files, partition_values
from headrace.formats.local_pin import LocalPin
from headrace.formats.npy import ArrayFile
from headrace.formats.parquet_footers import Footer, ParquetPlace, read_footers, read_known
from headrace.formats.parquet_groups import GroupTable, join_tables, table_of
from headrace.formats.parquet_index import index_path, load_index, save_index
from headrace.formats.parquet_leaves import Leaves
from headrace.formats.pinning import pin_files, place_bytes
from headrace.formats.source import fingerprint
from headrace.storage import Store, StoredObject, is_url

__all__ = ["Chunks", "LocalPin", "ParquetFiles", "ParquetPlace", "open_parquet"]

Int64s: TypeAlias = npt.NDArray[np.int64]

# Footers that are kept parsed: those of the files that are being read, and then some.
_KEPT_BYTES = 16 << 20
_FOOTERS_AT_ONCE = 64


@dataclass(frozen=True, slots=True, eq=False)
class Chunks:
    """Where the column chunks of some leaf columns lie: [offset, offset + compressed) of each row group's file.

    Attributes:
        leaves: The leaf columns' paths, as the first file has them.
        offsets: int64 (groups, leaves), the byte at which each chunk begins.
        compressed: int64 (groups, leaves), its bytes in the file.
        decoded: int64 (groups, leaves), about the bytes of its values: of text exactly where the writer says so, else
            at least those of its pages before they were compressed.
    """

    leaves: tuple[str, ...]
    offsets: Int64s
    compressed: Int64s
    decoded: Int64s


class ParquetFiles:
    """Parquet files and their row groups, as `open_parquet` found them.

    Guarantees: may be used from any number of threads, without locks. Of parsed footers it keeps at most 16 MiB, or
    one; pickles hold none.

    Attributes:
        files: Each file, pinned when it was opened.
        schema: The first file's Arrow schema, and after it one field for each partition column.
        partitions: One value per file for each partition column: a key that names of folders hold, as in `year=2024`.
        group_file: int32 (groups,), the number of each row group's file; row groups without rows are left out.
        group_number: int32 (groups,), the row group's number within its file.
        group_rows: int64 (groups,), its rows.
        group_bytes: int64 (groups,), the bytes of all its columns before they were compressed.
        index: Where what was found of just these files, and columns, may be kept; None for nowhere.
    """

    def __init__(
        self,
        files: Sequence[ParquetPlace],
        schema: pa.Schema,
        *,
        partitions: dict[str, pa.Array],
        leaves: tuple[str, ...],
        table: GroupTable,
        store: Store,
        footers: Mapping[int, pq.FileMetaData],
        index: Path | None,
    ) -> None:
        self.files, self.schema, self.partitions = list(files), schema, partitions
        self.group_file, self.group_number = table.group_file, table.group_number
        self.group_rows, self.group_bytes = table.group_rows, table.group_bytes
        self._leaves, self._table, self._store, self.index = leaves, table, store, index
        self._kept = dict(footers)

    def __getstate__(self) -> dict[str, Any]:
        # a store may hold what lets one in: it travels only where it is needed
        store = self._store if isinstance(self.files[0], StoredObject) else None
        return {**self.__dict__, "_store": store, "_kept": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._store = state["_store"] or Store()

    def __len__(self) -> int:
        """The rows of all files."""
        return int(self.group_rows.sum())

    def groups_of(self, file: int) -> slice:
        """Which row groups are those of a file."""
        start, stop = np.searchsorted(self.group_file, [file, file + 1])
        return slice(int(start), int(stop))

    def chunks(self, paths: Sequence[str]) -> Chunks:
        """The column chunks of all row groups for the leaf columns at or below these paths.

        Args:
            paths: Columns' names, or dotted paths into structs, of those that were asked for at opening. Partition
                columns have no chunks.
        """
        chosen = [i for i, leaf in enumerate(self._leaves) if any(f"{leaf}.".startswith(f"{path}.") for path in paths)]
        offsets, compressed, decoded = self._table.chunks[:, :, chosen]
        return Chunks(tuple(self._leaves[i] for i in chosen), offsets, compressed, decoded)

    def metadata(self, file: int) -> pq.FileMetaData:
        """The parsed footer of a file, read again where it isn't kept.

        It is for pyarrow's readers: `row_group(i).column(j)` may end the process (see `parquet_thrift`).

        Raises:
            StorageError: The file has changed since it was opened, or its bytes cannot be had.
        """
        metadata = self._kept.get(file)
        if metadata is None:
            [footer] = self.footers([file])
            metadata = self._kept[file] = footer.metadata
            kept = list(self._kept.items())
            total = sum(one.serialized_size for _, one in kept)
            for number, one in kept[:-1]:
                if total <= _KEPT_BYTES:
                    break
                self._kept.pop(number, None)
                total -= one.serialized_size
        return metadata

    def footers(self, files: Sequence[int]) -> Iterator[Footer]:
        """Reads the footers of files again, many at once.

        Raises:
            StorageError: A file has changed since it was opened, or its bytes cannot be had.
        """
        for first in range(0, len(files), _FOOTERS_AT_ONCE):
            some = files[first : first + _FOOTERS_AT_ONCE]
            known = [(int(self._table.footer_length[file]), int(self._table.footer_crc32[file])) for file in some]
            yield from read_known([self.files[file] for file in some], known, self._store)

    def partition_row(self, file: int) -> dict[str, pa.Scalar]:
        """The values of the partition columns that hold for all rows of a file."""
        return {key: values[file] for key, values in self.partitions.items()}

    def fingerprint(self) -> str:
        """Of the files' names below their common folder, bytes and rows, in their order: the same for copies."""
        bounds = np.searchsorted(self.group_file, np.arange(len(self.files) + 1))
        sums = np.append(0, np.cumsum(self.group_rows))[bounds]
        rows = np.diff(sums).tolist()
        # named as NumPy files are
        named = [ArrayFile(_named(place), np.dtype(np.uint8), (1,)) for place in self.files]
        names = names_below_root(named)
        return fingerprint(
            (names[str(place)], place_bytes(place), count) for place, count in zip(self.files, rows, strict=True)
        )


def open_parquet(
    paths: PathLike | Sequence[PathLike],
    store: Store,
    *,
    paths_of: Callable[[pa.Schema], Sequence[str]],
    index_dir: Path | None = None,
) -> ParquetFiles:
    """Reads the footers of Parquet files, and checks what they say against each other and the files' lengths.

    Args:
        paths: Files, patterns, and folders (URLs that end with "/"), whose files are those named "*.parquet". Where
            folders below it, or below the fixed part of a pattern, are named `key=value`, the keys are columns, too,
            unless the files hold such a column.
        store: What expands patterns and opens URLs.
        paths_of: Says which columns are read, by name or dotted path, of the first file's schema and the partition
            columns. Only their types must agree over the files, and only their chunks are kept.
        index_dir: Where the row groups found are kept, for opening the same files faster. None: nowhere.

    Raises:
        ArgumentError: A pattern stands for no file, the files hold no rows, or `paths_of` raises it.
        DependencyError: A store needs a package that is missing.
        FormatError: A file is truncated, corrupt, encrypted or no Parquet file, or lacks a column that is read or holds
            it in another type than the first file.
        StorageError: A file cannot be read.
    """
    listing = list_files(paths, store, ".parquet")
    stored = is_url(listing.places[0])
    files = pin_files(listing.places, store, stored=stored)
    [first] = read_footers(files[:1], store, lambda _number, _place, footer: footer)
    partitions = partition_values(listing.folders, listing.places)
    partitions = {key: values for key, values in partitions.items() if key not in first.schema.names}
    schema = first.schema
    for key, values in partitions.items():
        schema = schema.append(pa.field(key, values.type))
    leaves = Leaves(files[0], first, [path for path in paths_of(schema) if path not in partitions])
    index = None if index_dir is None else index_path(index_dir, files, leaves.names, first.crc32)
    table = None if index is None else load_index(index, files, len(leaves.names))
    footers = {0: first.metadata}
    if table is None:
        table = _read_tables(files, store, first, leaves, footers)
        if index is not None:
            save_index(index, table)
    if not len(table.group_rows):
        raise ArgumentError(f"expected at least one row, got none in {len(files)} files: {files[0]}, ...")
    return ParquetFiles(
        files,
        schema,
        partitions=partitions,
        leaves=leaves.names,
        table=table,
        store=store,
        footers=footers,
        index=index,
    )


def _read_tables(
    files: Sequence[ParquetPlace], store: Store, first: Footer, leaves: Leaves, footers: dict[int, pq.FileMetaData]
) -> GroupTable:
    """Reads the footers of all files but the first, and adds as many to `footers` as may be kept."""
    room = _KEPT_BYTES - first.metadata.serialized_size

    def table(number: int, place: ParquetPlace, footer: Footer) -> GroupTable:
        nonlocal room
        room -= footer.metadata.serialized_size
        if room >= 0:
            footers[number + 1] = footer.metadata
        return table_of(place, footer, leaves.columns_in(place, footer))

    rest = read_footers(files[1:], store, table) if len(files) > 1 else []
    return join_tables([table_of(files[0], first, leaves.columns), *rest])


def _named(place: ParquetPlace) -> Path | StoredObject:
    return Path(place.path) if isinstance(place, LocalPin) else place
