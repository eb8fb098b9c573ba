"""Where the rows of a stored column lie: its blocks, and the byte ranges of blocks and rows."""

import math
from collections.abc import Sequence
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt

from headrace.formats.npy import ArrayFile
from headrace.formats.source import Ids
from headrace.storage import RangeRead, Store, StoredObject, Transfer, coalesce

Bytes: TypeAlias = npt.NDArray[np.uint8]

# A request costs about as much as this many bytes more: 20 ms to the first one, at 100 Mbit/s or more a stream.
GAP_BYTES = 256 << 10


class StoredRows:
    """The rows of a column's files, end to end, cut into blocks that never cross a file.

    In Fortran order a row's values lie apart: then every value counts as a row, in the order in which they are stored
    (`by_value`), and `values_of` says which of them a sample is made of.

    Args:
        files: In the order of their rows; all of one dtype and row shape, each in a store.
        block_samples: Samples of a block, as far as they lie together.
        block_values: Values of a block where they don't.

    Attributes:
        row_bytes: The bytes of a row, or of a value.
        block_rows: Rows (or values) of a block, the last of each file aside.
    """

    def __init__(self, files: Sequence[ArrayFile], block_samples: int, block_values: int) -> None:
        self._files = files
        self.by_value = any(file.is_columnwise for file in files)
        self._values = math.prod(files[0].shape[1:]) if self.by_value else 1
        self.row_bytes = files[0].row_bytes // self._values
        rows = np.array([file.rows * self._values for file in files], np.int64)
        self.block_rows = min(block_values if self.by_value else block_samples, int(rows.max()))
        self._starts = np.concatenate(([0], np.cumsum(rows)))
        self._first_blocks = np.concatenate(([0], np.cumsum(-(-rows // self.block_rows))))
        if self.by_value:
            self._place_values()

    def __len__(self) -> int:
        """The number of blocks."""
        return int(self._first_blocks[-1])

    @property
    def block_bytes(self) -> int:
        """The bytes of a block."""
        return self.block_rows * self.row_bytes

    def locate(self, rows: Ids) -> tuple[Ids, Ids]:
        """The block of each row, and its place there, both int64 (n,)."""
        if len(self._files) == 1:
            blocks = rows // self.block_rows
            return blocks, rows - blocks * self.block_rows
        files = self._starts.searchsorted(rows, side="right") - 1
        rows = rows - self._starts[files]
        within = rows // self.block_rows
        return self._first_blocks[files] + within, rows - within * self.block_rows

    def run(self, rows: Ids) -> tuple[Ids, Ids, Ids]:
        """Of consecutive rows, the blocks, the first row in each, and how many rows of it, all int64 (n,)."""
        start, stop = int(rows[0]), int(rows[-1]) + 1
        (first, last), _ = self.locate(rows[[0, -1]])
        blocks = np.arange(first, last + 1)
        files = self._first_blocks.searchsorted(blocks, side="right") - 1
        begins = self._starts[files] + (blocks - self._first_blocks[files]) * self.block_rows
        cuts = np.append(begins, stop)
        cuts[0] = start
        return blocks, cuts[:-1] - begins, np.diff(cuts)

    def start_blocks(
        self, store: Store, blocks: Sequence[int], slots: Sequence[Bytes], *, urgent: bool
    ) -> list[Transfer]:
        """Begins to read whole blocks, each into the first bytes of its slot."""
        numbers = np.array(blocks, np.int64)
        files = self._first_blocks.searchsorted(numbers, side="right") - 1
        first = (numbers - self._first_blocks[files]) * self.block_rows
        rows = np.minimum(first + self.block_rows, self._rows_of(files)) - first
        reads = []
        for number, start, count, slot in zip(files.tolist(), first.tolist(), rows.tolist(), slots, strict=True):
            file = self._files[number]
            out = slot[: count * self.row_bytes]
            reads.append(RangeRead(_object(file), file.offset + start * self.row_bytes, out, keep=True))
        return store.start(reads, urgent=urgent)

    def ranges(self, rows: Ids) -> "list[RowRange]":
        """What to ask for where only these rows are wanted: neighbours together, in the order of the files."""
        files = self._starts.searchsorted(rows, side="right") - 1
        found = []
        for number in np.unique(files).tolist():
            places = np.flatnonzero(files == number)
            within = rows[places] - self._starts[number]
            offsets = self._files[number].offset + within * self.row_bytes
            starts, stops, owner = coalesce(offsets, offsets + self.row_bytes, GAP_BYTES)
            order = np.argsort(owner, kind="stable")
            bounds = np.searchsorted(owner[order], np.arange(len(starts) + 1)).tolist()
            for i, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
                mine = order[bounds[i] : bounds[i + 1]]
                inside = (offsets[mine] - start) // self.row_bytes
                found.append(RowRange(_object(self._files[number]), start, stop, places[mine], inside))
        return found

    def costs(self, rows: Ids) -> tuple[Ids, Ids]:
        """What rows would cost if they were fetched without the rest of their blocks, by block.

        Returns:
            The distinct blocks, int64 (m,), ascending, and the bytes for the rows of each, int64 (m,): their own, and
            those between them up to the gap, which is the price of a request.
        """
        wanted = np.sort(rows)
        of_wanted, _ = self.locate(wanted)
        first = np.flatnonzero(np.diff(of_wanted, prepend=-1))
        alone_bytes = GAP_BYTES + self.row_bytes
        steps = np.minimum(np.diff(wanted, prepend=wanted[:1]) * self.row_bytes, alone_bytes)
        steps[first] = alone_bytes
        return of_wanted[first], np.add.reduceat(steps, first)

    def values_of(self, samples: Ids) -> Ids:
        """The values of samples, int64 (n * values of a sample,), each sample's in C order."""
        files = self._sample_starts.searchsorted(samples, side="right") - 1
        rows = samples - self._sample_starts[files]
        first = self._starts[files] + rows * self._row_steps[files]
        values: Ids = first[:, None] + self._value_steps[files] * self._order[self._is_columnwise[files]]
        return values.reshape(-1)

    def _place_values(self) -> None:
        """Tables for `values_of`: a value lies at row * row step + its number in that order * value step."""
        files, values = self._files, self._values
        self._sample_starts = np.concatenate(([0], np.cumsum([file.rows for file in files], dtype=np.int64)))
        self._is_columnwise = np.array([file.is_columnwise for file in files], np.intp)
        self._row_steps = np.array([1 if file.is_columnwise else values for file in files], np.int64)
        self._value_steps = np.array([[file.rows if file.is_columnwise else 1] for file in files], np.int64)
        c_order = np.arange(values, dtype=np.int64)
        # which line of the file, in Fortran order, holds each value of a row in C order
        lines = c_order.reshape(files[0].shape[:0:-1]).T.reshape(-1)
        self._order = np.stack([c_order, lines])

    def _rows_of(self, files: Ids) -> Ids:
        return self._starts[files + 1] - self._starts[files]


class RowRange:
    """A range that holds some of the wanted rows.

    Attributes:
        places: int64 (n,), which of the wanted rows.
        rows: int64 (n,), where in the range each lies.
        range_bytes: Its length.
    """

    __slots__ = ("_place", "_start", "places", "range_bytes", "rows")

    def __init__(self, place: StoredObject, start: int, stop: int, places: Ids, rows: Ids) -> None:
        self._place, self._start, self.range_bytes = place, start, stop - start
        self.places, self.rows = places, rows

    def read(self) -> RangeRead:
        """A request for it, into memory of its own."""
        return RangeRead(self._place, self._start, np.empty(self.range_bytes, np.uint8))


def _object(file: ArrayFile) -> StoredObject:
    return cast(StoredObject, file.path)
