"""What one process has of a Parquet source: decoded pieces, open readers, and stored bytes on their way."""

import contextlib
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.errors import ArgumentError, FormatError, StorageError
from headrace.formats.parquet_column import ColumnRefused
from headrace.formats.parquet_decoding import ParquetDecoder, Slices
from headrace.formats.parquet_filter import vocabulary
from headrace.formats.parquet_layout import slices_of
from headrace.formats.parquet_table import Table
from headrace.formats.piece_memory import PieceMemory
from headrace.formats.piece_reading import Need, Pieces
from headrace.formats.source import Array, Ids
from headrace.storage.local import LocalFile

# Of the memory, the share for stored bytes that are not decoded yet
_FETCHED_SHARE = 4


class ParquetMemory:
    """Reads samples of a table.

    Attributes:
        table: What is read.
        pieces: What is in memory.
    """

    def __init__(self, table: Table, slices: Slices, pieces: Pieces, memory_bytes: int) -> None:
        self.table = table
        fetched_bytes = memory_bytes // _FETCHED_SHARE if table.is_stored else 0
        need = Need(pieces)
        damaged: dict[int, str] = {}
        self._chunks = table.files.chunks(table.paths)
        self._ahead = table.fetch_ahead(lambda group: need.has_due(group) and group not in damaged, fetched_bytes)
        self._decoder = ParquetDecoder(table, slices, self._ahead, damaged)
        self._places = pieces
        self._bounds = pieces.starts[slices.first_pieces]  # the first sample of each group
        self._to_advise: deque[int] = deque()
        self._advised_samples = 0
        self._advised_ahead = memory_bytes // _FETCHED_SHARE * int(pieces.starts[-1]) // max(1, int(pieces.bytes.sum()))
        self._fixed = {column.name: column.stored for column in table.columns if column.stored is not None}
        self._others = [column.name for column in table.columns if column.stored is None]
        self.pieces = PieceMemory(
            pieces,
            self._fixed,
            self._others,
            memory_bytes - fetched_bytes,
            self._decoder.decode,
            need=need,
            helps=not table.is_stored,
            name=str(table.files.files[0]),
        )

    def read(self, sample_ids: Ids, pieces_of_them: Ids | None, out: Mapping[str, Array]) -> dict[str, pa.Array]:
        """Fills the columns that are stored as rows, and returns those that are Arrow's; see `PieceMemory.read`."""
        if len(sample_ids) == 0 and self._others:  # Arrow's types are known from what is there
            first = np.zeros(1, np.int64)
            one = {name: np.empty((1, *out[name].shape[1:]), out[name].dtype) for name in self._fixed}
            return {name: array[:0] for name, array in self.pieces.read(first, None, one).items()}
        try:
            return self.pieces.read(sample_ids, pieces_of_them, out)
        except FormatError:
            piece = int(self._places.of(sample_ids[:1])[0])
            if len(sample_ids) > 1 or not self._decoder.is_refused(piece):
                raise
        return self._read_alone(piece, int(sample_ids[0]), out)

    def _read_alone(self, piece: int, sample_id: int, out: Mapping[str, Array]) -> dict[str, pa.Array]:
        """Reads a sample of a piece in which another one is refused: slowly, but no sound one is lost."""
        place = sample_id - int(self._places.starts[piece])
        content = self._decoder.alone(int(self._places.groups[piece]), piece, place)
        content.write({name: out[name] for name in self._fixed})
        return dict(content.others())

    @property
    def held_ahead_bytes(self) -> int:
        """The bytes of row groups that were fetched and that nobody decodes yet."""
        return 0 if self._ahead is None else self._ahead.held_bytes

    def announce(self, sample_ids: Ids) -> None:
        """Keeps what these samples need until they are read, and begins to fetch it."""
        groups = self.pieces.announce(sample_ids)
        if self._ahead is not None:
            self._ahead.announce(groups)
            return
        self._to_advise.extend(groups)
        while self._to_advise and self._advised_samples - self.pieces.counts.decoded_samples < self._advised_ahead:
            self._advise(self._to_advise.popleft())

    def forget_announced(self) -> None:
        """Nothing of what was announced will be read."""
        self.pieces.forget_announced()
        self._to_advise.clear()
        self._advised_samples = self.pieces.counts.decoded_samples
        self._decoder.forget()
        if self._ahead is not None:
            self._ahead.forget()

    def _advise(self, group: int) -> None:
        """Asks the kernel to read those chunks of a local group ahead of need that it doesn't hold yet."""
        first, last = self._bounds[group : group + 2].tolist()
        self._advised_samples += last - first
        files, chunks = self.table.files, self._chunks
        with contextlib.suppress(StorageError):  # whoever reads it gets the error
            file = LocalFile(Path(str(files.files[files.group_file[group]])))
            for offset, length in zip(chunks.offsets[group].tolist(), chunks.compressed[group].tolist(), strict=True):
                if not (file.is_resident(offset) and file.is_resident(offset + length - 1)):
                    file.will_need(np.array([offset]), length)


def distinct_values(table: Table, memory_bytes: int) -> tuple[object, ...]:
    """The values of a table's one column, each once and in their order, but null: reads all of it.

    Raises:
        ArgumentError: There are only nulls.
        FormatError: A value is not what the column's type allows.
    """
    [column] = table.columns
    slices = slices_of(table, memory_bytes)
    decoder = ParquetDecoder(table, slices, table.fetch_ahead(lambda _: True, memory_bytes))
    found: set[Any] = set()
    for group in range(len(table.files.group_rows)):
        try:
            found.update(vocabulary(column.extract(batch) for batch in decoder.batches(group)))
        except ColumnRefused as refused:
            raise FormatError(f"{table.where(group)}: column {column.name!r} {refused}") from None
    if not found:
        raise ArgumentError(f"codes: column {column.name!r} holds only nulls, so there are no codes to find")
    return tuple(sorted(found))
