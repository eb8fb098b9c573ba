"""What one process has of a Parquet source: decoded pieces, open readers, and stored bytes on their way."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from headrace.errors import StorageError
from headrace.formats.parquet_decoding import ParquetDecoder, Slices
from headrace.formats.parquet_filter import vocabulary
from headrace.formats.parquet_layout import slices_of
from headrace.formats.parquet_table import Table
from headrace.formats.piece_memory import Need, PieceMemory
from headrace.formats.piece_reading import Pieces
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
        self._chunks = table.files.chunks(table.paths)
        self._ahead = table.fetch_ahead(need.has_due, fetched_bytes)
        self._decoder = ParquetDecoder(table, slices, self._ahead)
        self._fixed = {column.name: column.stored for column in table.columns if column.stored is not None}
        self._others = [column.name for column in table.columns if column.stored is None]
        self.pieces = PieceMemory(
            pieces,
            self._fixed,
            self._others,
            memory_bytes - fetched_bytes,
            self._decoder.decode,
            need=need,
            name=str(table.files.files[0]),
        )

    def read(self, sample_ids: Ids, pieces_of_them: Ids | None, out: Mapping[str, Array]) -> dict[str, pa.Array]:
        """Fills the columns that are stored as rows, and returns those that are Arrow's; see `PieceMemory.read`."""
        if len(sample_ids) == 0 and self._others:  # Arrow's types are known from what is there
            first = np.zeros(1, np.int64)
            one = {name: np.empty((1, *out[name].shape[1:]), out[name].dtype) for name in self._fixed}
            return {name: array[:0] for name, array in self.pieces.read(first, None, one).items()}
        return self.pieces.read(sample_ids, pieces_of_them, out)

    def announce(self, sample_ids: Ids) -> None:
        """Keeps what these samples need until they are read, and begins to fetch it."""
        groups = self.pieces.announce(sample_ids)
        if self._ahead is not None:
            self._ahead.announce(groups)
        else:
            self._advise(groups)

    def forget_announced(self) -> None:
        """Nothing of what was announced will be read."""
        self.pieces.forget_announced()
        self._decoder.forget()
        if self._ahead is not None:
            self._ahead.forget()

    def _advise(self, groups: Sequence[int]) -> None:
        """Asks the kernel to read those chunks of local groups ahead of need that it doesn't hold yet."""
        files, chunks = self.table.files, self._chunks
        for group in groups:
            place = files.files[files.group_file[group]]
            with contextlib.suppress(StorageError):  # whoever reads it gets the error
                file = LocalFile(Path(str(place)))
                for offset, length in zip(
                    chunks.offsets[group].tolist(), chunks.compressed[group].tolist(), strict=True
                ):
                    if not (file.is_resident(offset) and file.is_resident(offset + length - 1)):
                        file.will_need(np.array([offset]), length)


def distinct_values(table: Table, memory_bytes: int) -> tuple[object, ...]:
    """The values of a table's one column, each once and in their order, but null: reads all of it."""
    [column] = table.columns
    slices = slices_of(table, memory_bytes)
    decoder = ParquetDecoder(table, slices, table.fetch_ahead(lambda _: True, memory_bytes))
    batches = (batch for group in range(len(table.files.group_rows)) for batch in decoder.batches(group))
    return vocabulary(column.extract(batch) for batch in batches)
