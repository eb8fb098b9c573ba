"""A row group that is being decoded: its file, and the batches that are left.

Guarantees: a reader belongs to one thread at a time. Nothing happens when it is merely dropped: who has it closes it.
"""

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.formats.fetch_ahead import FetchAhead
from headrace.formats.parquet_files import LocalPin
from headrace.formats.parquet_table import Table
from headrace.formats.stored_file import StoredFile
from headrace.storage.local import mappable_bytes

# Local files that stay open while nobody decodes from them: opening and unmapping one takes half a millisecond.
_MOST_IDLE_FILES = 32
# What Arrow asks for at once of a group that is too large to be fetched ahead
_STREAM_BYTES = 1 << 20


class GroupReader:
    """Decodes a group from its beginning.

    Args:
        piece: The number of its first piece.
        batches: Its rows.
        opened: Its file; None where nothing is read of it.

    Attributes:
        piece: The number of the piece that comes next.
        opened: As given.
    """

    def __init__(self, piece: int, batches: Iterator[pa.RecordBatch], opened: "OpenFile | None") -> None:
        self.piece, self.opened, self._batches = piece, opened, batches

    @property
    def held_bytes(self) -> int:
        """The memory that bytes of it take, fetched and not decoded yet."""
        return 0 if self.opened is None or self.opened.stored is None else self.opened.stored.held_bytes

    def next(self, rows: int) -> pa.RecordBatch:
        """The next so many rows; fewer where there are no more.

        Raises:
            OverflowError: They hold more text than one batch can.
            Exception: Whatever Arrow makes of damaged bytes.
        """
        batch = _joined(self._batches, rows)
        self.piece += 1
        return batch

    def close(self) -> None:
        """Lets go of the batches that are left, and of fetched bytes."""
        self._batches = iter(())
        if self.opened is not None and self.opened.stored is not None:
            self.opened.stored.close()


class OpenFile:
    """A file that one thread at a time decodes from.

    Attributes:
        number: Which of the table's files it is.
        file: What decodes.
        stored: Where its bytes come from, if it is no local one.
    """

    def __init__(self, number: int, file: pq.ParquetFile, stored: StoredFile | None = None) -> None:
        self.number, self.file, self.stored = number, file, stored


class GroupFiles:
    """Opens row groups; keeps local files open for the next ones.

    Args:
        table: What is read.
        ahead: The bytes of stored files.
    """

    def __init__(self, table: Table, ahead: FetchAhead | None) -> None:
        self._files, self._ahead = table.files, ahead
        self._idle: deque[OpenFile] = deque(maxlen=_MOST_IDLE_FILES)

    def open(
        self, group: int, piece: int, slice_rows: int, paths: Sequence[str], *, is_again: bool = False
    ) -> GroupReader:
        """Some columns of a group, in batches.

        Args:
            group: The group.
            piece: The number of its first piece.
            slice_rows: Rows of a batch.
            paths: The columns.
            is_again: Whether it was read before, and only a part of it is to be read now.
        """
        if not paths:
            return GroupReader(piece, _nothing(int(self._files.group_rows[group]), slice_rows), None)
        opened = self._opened(group, int(self._files.group_file[group]), is_again=is_again)
        batches = opened.file.iter_batches(
            batch_size=slice_rows,
            row_groups=[int(self._files.group_number[group])],
            columns=list(paths),
            use_threads=False,  # of no use for one heavy column: the callers are many
        )
        return GroupReader(piece, batches, opened)

    def keep_open(self, reader: GroupReader) -> None:
        """Takes back the file of a reader that met no damage, once it is closed."""
        if reader.opened is not None and reader.opened.stored is None:
            self._idle.append(reader.opened)

    def _opened(self, group: int, number: int, *, is_again: bool) -> OpenFile:
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
            "coerce_int96_timestamp_unit": "us",
        }
        if isinstance(source, LocalPin):
            memory_map = source.file_bytes <= mappable_bytes()
            return OpenFile(number, pq.ParquetFile(source.path, memory_map=memory_map, **options))
        assert self._ahead is not None
        stored = self._ahead.reopen(group) if is_again else self._ahead.open(group)
        if stored.is_streamed:
            options["buffer_size"] = _STREAM_BYTES
        try:
            return OpenFile(number, pq.ParquetFile(pa.PythonFile(stored, mode="r"), **options), stored)
        except BaseException:
            stored.close()
            raise


def _nothing(rows: int, slice_rows: int) -> Iterator[pa.RecordBatch]:
    """Batches of that many rows in all, for tables of partition columns only."""
    for start in range(0, rows, slice_rows):
        nothing = pa.array(np.empty(min(slice_rows, rows - start), np.bool_))
        yield pa.RecordBatch.from_arrays([nothing], names=[""])


def _joined(batches: Iterator[pa.RecordBatch], rows: int) -> pa.RecordBatch:
    """The next so many rows; Arrow cuts batches shorter where the text in them would be too long together."""
    parts = []
    while rows > 0 and (part := next(batches, None)) is not None:
        parts.append(part)
        rows -= len(part)
    if not parts:
        raise EOFError("it ends too early")
    if len(parts) == 1:
        return parts[0]
    joined = pa.Table.from_batches(parts).combine_chunks().to_batches()
    if len(joined) > 1:
        raise OverflowError(
            f"{sum(map(len, parts))} rows of it hold more than 2 GiB of text or bytes; "
            "give a smaller memory_bytes=, which makes for shorter slices, or write smaller row groups"
        )
    return joined[0]
