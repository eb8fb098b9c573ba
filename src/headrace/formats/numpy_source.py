"""NumPy files as a source: `.npy` and raw binary, each column in one file or in many, on local disk or in a store."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.errors import ArgumentError
from headrace.formats.column_files import ColumnFiles, Raw, names_below_root, open_columns
from headrace.formats.file_column import FileColumn, rows_by_file
from headrace.formats.memory import same_length
from headrace.formats.npy import ArrayFile
from headrace.formats.source import (
    Array,
    Blocks,
    Column,
    Ids,
    ReadPart,
    Source,
    block_length,
    blocks_within,
    check_ids,
    check_out,
    fingerprint,
)
from headrace.formats.steps import together
from headrace.formats.stored_column import StoredColumn
from headrace.formats.stored_memory import checked_store, default_memory_bytes, store_columns
from headrace.storage import LocalFile, Residency, Store, StoredObject, open_limit

__all__ = ["ColumnFiles", "NumpySource", "Raw"]

_MOST_MEMORY_BYTES = 2 << 30
# Of the memory for stored blocks, the share that is announced ahead: what a window and its successor leave free.
_AHEAD_SHARE = 4
# Of local files beside stored ones, the samples that are asked for at once: each may take a system call.
_LOCAL_SAMPLES_AHEAD = 4096


class NumpySource(Source):
    """Columns that are NumPy files; row i of each is sample i.

    Local files are memory-mapped when first read, and data is read a batch at a time: one gather per file and column.
    Rows that are not in memory are asked for ahead of reading them (see `headrace.storage`). Of files in a store,
    blocks are fetched and kept in memory, so that one gather a column reads a batch (see `stored_column`). Pickles hold
    paths, parsed headers and the store's options, never data.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/x-0.npy", np.array([[0, 1], [2, 3]]))
    ...     np.save(f"{folder}/x-1.npy", np.array([[4, 5]]))
    ...     NumpySource({"x": f"{folder}/x-*.npy"}).read([2, 0])
    {'x': array([[4, 5],
           [0, 1]])}
    """

    def __init__(
        self, columns: Mapping[str, ColumnFiles], store: Store | None = None, *, memory_bytes: int | None = None
    ) -> None:
        """Reads the headers, which must agree with each other and with the files' sizes.

        Args:
            columns: For each column a `.npy` file, a pattern, a list of them that are seen as one array, or `Raw`:
                local paths, or URLs.
            store: What reads URLs; by default a `Store` without options.
            memory_bytes: The most memory that blocks read from the store take, in each process; by default 2 GiB, or a
                quarter of what is free. At least two blocks of a column are kept.

        Raises:
            ArgumentError: No column, no file, columns of different lengths, or a column of local files and URLs.
            FormatError: A file is not a sound array file, or differs from its neighbours in dtype or row shape.
            StorageError: A file cannot be opened.
        """
        if not columns:
            raise ArgumentError("expected at least one column, got none")
        store = checked_store(store, memory_bytes)
        self._attach(open_columns(columns, store), store, memory_bytes)

    def _attach(self, files: Mapping[str, Sequence[ArrayFile]], store: Store, memory_bytes: int | None) -> None:
        self._files, self._store, self._memory_bytes = dict(files), store, memory_bytes
        self._samples = same_length({name: sum(file.rows for file in of_column) for name, of_column in files.items()})
        is_stored = {name: isinstance(of_column[0].path, StoredObject) for name, of_column in files.items()}
        keep_open = max(1, open_limit() // len(files))
        local = {name: FileColumn(files[name], keep_open=keep_open) for name in files if not is_stored[name]}
        self._stored: dict[str, StoredColumn] = {}
        self.random_access = len(local) == len(files)
        if not self.random_access:
            memory_bytes = default_memory_bytes(_MOST_MEMORY_BYTES) if memory_bytes is None else memory_bytes
            stored = {name: of_column for name, of_column in files.items() if is_stored[name]}
            self._stored = store_columns(stored, store, self._block_samples, self._cut_files, memory_bytes)
            # local columns count: where they are large, what is announced of them is no more than can be read ahead
            self.read_ahead_bytes = max(self._sample_bytes, memory_bytes // _AHEAD_SHARE)
        self._columns: dict[str, FileColumn | StoredColumn] = {
            name: self._stored[name] if is_stored[name] else local[name] for name in files
        }
        self.schema: dict[str, Column] = {name: column.column for name, column in self._columns.items()}
        # Columns that are cut into files alike are sorted by file once a batch.
        self._cuts: list[tuple[Ids, dict[str, FileColumn]]] = []
        for name, column in local.items():
            for starts, alike in self._cuts:
                if np.array_equal(starts, column.starts):
                    alike[name] = column
                    break
            else:
                self._cuts.append((column.starts, {name: column}))
        self._residency = Residency(
            {file.local_path: file.file_bytes for column in local.values() for file in column.files}, self._samples
        )

    def narrowed(self, columns: Collection[str]) -> "NumpySource":
        kept = [name for name in self.schema if name in columns]
        if len(kept) == len(self.schema):
            return self
        source = NumpySource.__new__(type(self))
        # all files are known still: the fingerprint stays what it is, and so do the blocks, all but their bytes
        source.__dict__.update({name: value for name, value in self.__dict__.items() if name != "blocks"})
        source._keep(kept)  # noqa: SLF001 (one of us)
        return source

    def _keep(self, names: Collection[str]) -> None:
        """Reads only these columns from now on."""
        self.schema = {name: self.schema[name] for name in names}
        self._columns = {name: self._columns[name] for name in names}
        self._stored = {name: column for name, column in self._stored.items() if name in names}
        cuts = [(starts, {name: columns[name] for name in columns if name in names}) for starts, columns in self._cuts]
        self._cuts = [(starts, columns) for starts, columns in cuts if columns]

    def __getstate__(self) -> dict[str, Any]:
        # a store may hold what lets one in: it travels only where it is needed
        store = self._store if any(isinstance(files[0].path, StoredObject) for files in self._files.values()) else None
        kept = list(self.schema)
        return {"files": self._files, "kept": kept, "store": store, "memory_bytes": self._memory_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._attach(state["files"], state["store"] or Store(), state["memory_bytes"])
        self._keep(state["kept"])

    def __len__(self) -> int:
        return self._samples

    @cached_property
    def blocks(self) -> Blocks:
        """Within the files of the column that has the most bytes: no block is in two of them, so each is read once."""
        runs = np.array([file.rows for file in self._cut_files], np.int64)
        return blocks_within(runs, self._block_samples, sum(column.sample_bytes for column in self.schema.values()))

    @cached_property
    def fingerprint(self) -> str:
        """Of the files' names below their common folder, bytes and rows: not of data, or columns' names or order.

        The same for copies of the files, on local disk or in a store.
        """
        names = names_below_root(file for of_column in self._files.values() for file in of_column)

        def parts(files: Sequence[ArrayFile]) -> list[tuple[str, int, int]]:
            return [(names[str(file.path)], file.file_bytes, file.rows) for file in files]

        return fingerprint(part for of_column in sorted(map(parts, self._files.values())) for part in of_column)

    def read(self, sample_ids: npt.ArrayLike, out: Mapping[str, Array] | None = None) -> dict[str, Array]:
        ids = check_ids(sample_ids, self._samples)
        filled = check_out(out, self.schema, len(ids))
        self._residency.expect(ids, self._ranges)
        self._fill(ids, filled)
        return filled

    def prepare(self, sample_ids: npt.ArrayLike) -> ReadPart:
        ids = check_ids(sample_ids, self._samples)
        self._residency.expect(ids, self._ranges)
        whole = [(name, column.whole()) for _, columns in self._cuts for name, column in columns.items()]
        gathers = [(name, gather) for name, gather in whole if gather is not None]
        if len(gathers) < len(self._columns):
            return lambda start, stop, out: self._fill(ids[start:stop], out)

        def part(start: int, stop: int, out: Mapping[str, Array]) -> Mapping[str, Array]:
            for name, gather in gathers:
                gather(ids[start:stop], out[name])
            return out

        return part

    def _fill(self, ids: Ids, out: Mapping[str, Array]) -> Mapping[str, Array]:
        if self._stored:
            self._fill_stored(ids, out)
        else:
            self._fill_local(ids, out)
        return out

    def _fill_local(self, ids: Ids, out: Mapping[str, Array]) -> None:
        for starts, columns in self._cuts:
            rows = rows_by_file(starts, ids)
            for name, column in columns.items():
                column.read(rows, out[name])

    def _fill_stored(self, ids: Ids, out: Mapping[str, Array]) -> None:
        """Fills stored columns and local ones: those are read while bytes are on their way."""
        missing = []
        for name, stored in self._stored.items():
            if not stored.gather(ids, out[name]):
                missing.append(stored.reading(ids, out[name]))
        reading = together(missing)
        next(reading)
        try:
            self._fill_local(ids, out)
            for _ in reading:
                pass
        finally:
            reading.close()

    def prefetch(self, sample_ids: npt.ArrayLike) -> None:
        """Asks for those samples that are not in memory, and doesn't wait for them."""
        if not self._stored:
            self._residency.expect(np.asarray(sample_ids), self._ranges)
            return
        ids = check_ids(sample_ids, self._samples)
        if self._cuts:
            self._residency.expect(ids[:_LOCAL_SAMPLES_AHEAD], self._ranges)
        for column in self._stored.values():
            column.prefetch(ids)

    def end_prefetch(self) -> None:
        for column in self._stored.values():
            column.end_prefetch()

    def counts(self) -> dict[str, int]:
        """What this process has read of stored files, and what it holds of them in memory, by name."""
        if not self._stored:
            return {}
        return {**self._store.counts(), "held_bytes": sum(column.held_bytes for column in self._stored.values())}

    def where(self, sample_id: int) -> str:
        return ", ".join(column.where(sample_id) for column in self._columns.values())

    @cached_property
    def _sample_bytes(self) -> int:
        return sum(of_column[0].row_bytes for of_column in self._files.values())

    @cached_property
    def _block_samples(self) -> int:
        return block_length(self._samples, self._sample_bytes)

    @cached_property
    def _cut_files(self) -> Sequence[ArrayFile]:
        """The files of the column that has the most bytes; of several such, whatever their order, the first by cuts."""
        return min(
            self._files.values(), key=lambda files: (-files[0].row_bytes, len(files), [file.rows for file in files])
        )

    def _ranges(self, sample_ids: Ids) -> Iterator[tuple[LocalFile, npt.NDArray[np.int64], int]]:
        """Where the samples lie in local files: file, offsets and bytes of each row."""
        for starts, columns in self._cuts:
            rows = rows_by_file(starts, check_ids(sample_ids, self._samples))
            for column in columns.values():
                yield from column.ranges(rows)
