"""One column whose files lie in a store: whole blocks are kept in memory, single rows are fetched as they are.

What a read misses is fetched as whole blocks where all of the column fits into memory, where a disk cache keeps them,
and where a block's rows have been missed so often that fetching it would have cost no more. Else only the wanted rows
are fetched, neighbours together. What is announced is fetched ahead as whole blocks, as long as they all fit into
memory or are worth it (see `announcements`). So what is asked for costs at most about twice what the rows would alone.

Guarantees: any number of threads may read, and announce, at once. Each process has memory of its own: a forked child
begins without any, and touches no lock of its parent. What is counted about misses may lose an update.
"""

import logging
import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from headrace.formats.arena import Arena, Bytes
from headrace.formats.dtypes import native
from headrace.formats.npy import ArrayFile
from headrace.formats.source import Array, Column, Ids
from headrace.formats.steps import Steps, together
from headrace.formats.stored_rows import GAP_BYTES, RowRange, StoredRows
from headrace.storage import Store, is_consecutive

_log = logging.getLogger("headrace")

_VALUES_BLOCK_BYTES = 4 << 20
_VALUES_AT_ONCE = 1 << 20
# What single rows take in memory until they are copied to their places
_RANGES_AT_ONCE_BYTES = 64 << 20
# Misses of a block are remembered while no more than this many times the slots of blocks have been missed since.
_REMEMBERED_SLOTS = 4


class StoredColumn:
    """One column over its files in a store.

    Args:
        files: In the order of their rows; all of one dtype and row shape.
        store: What reads them.
        block_samples: Samples of a block; blocks don't cross files.

    Attributes:
        files: As given.
        column: What the schema says: the dtype is native, whatever the files hold.
        starts: int64 (files + 1,), the first sample of each file, then the number of samples.
        rows: Where the rows lie.
        slots: How many blocks are kept in memory: to be set before the first read.
    """

    def __init__(self, files: Sequence[ArrayFile], store: Store, *, block_samples: int) -> None:
        self.files = files
        self.column = Column(native(files[0].dtype), files[0].shape[1:])
        self.starts: Ids = np.concatenate(([0], np.cumsum([file.rows for file in files], dtype=np.int64)))
        self.rows = StoredRows(files, block_samples, _VALUES_BLOCK_BYTES // files[0].dtype.itemsize)
        self.slots = len(self.rows)
        self._store = store
        self._memories: dict[int, _Memory] = {}

    def __len__(self) -> int:
        return int(self.starts[-1])

    def gather(self, sample_ids: Ids, out: Array) -> bool:
        """Fills `out` (samples, *shape) where all that is needed is in memory; else returns False.

        What it may have written into `out` then means nothing.
        """
        if self.rows.by_value:
            return False
        raw, target = self._raw(out)
        arena = self._memory().arena
        if is_consecutive(sample_ids):
            there = arena.copy_run(*self.rows.run(sample_ids), target)
        else:
            there = arena.gather(*self.rows.locate(sample_ids), target)
        if not there:
            return False
        if raw is not out:
            out[...] = raw
        return True

    def reading(self, sample_ids: Ids, out: Array) -> Steps:
        """Fills `out` (samples, *shape); an iterator that asks for bytes at its first step, and waits in the others."""
        raw, target = self._raw(out)
        if self.rows.by_value:
            samples = max(1, _VALUES_AT_ONCE * self.rows.row_bytes // max(1, self.column.sample_bytes))
            values = len(target) // max(1, len(sample_ids))
            for first in range(0, len(sample_ids), samples):
                some = self.rows.values_of(sample_ids[first : first + samples])
                yield from self._reading_rows(some, target[first * values :])
        else:
            yield from self._reading_rows(sample_ids, target)
        if raw is not out:
            out[...] = raw

    def read(self, sample_ids: Ids, out: Array) -> None:
        """Fills `out` (samples, *shape)."""
        if not self.gather(sample_ids, out):
            for _ in self.reading(sample_ids, out):
                pass

    def prefetch(self, sample_ids: Ids) -> None:
        """Begins to fetch the blocks of these samples, in their order, and doesn't wait."""
        if self.rows.by_value or len(sample_ids) == 0:
            return
        memory = self._memory()
        if is_consecutive(sample_ids):  # what `costs` would say, at no cost a row
            blocks, _, counts = self.rows.run(sample_ids)
            costs = None if memory.keeps_all else (blocks, GAP_BYTES + counts * self.rows.row_bytes)
            memory.arena.announce(blocks, counts, costs)
        else:
            costs = None if memory.keeps_all else self.rows.costs(sample_ids)
            memory.arena.announce(self.rows.locate(sample_ids)[0], None, costs)

    def end_prefetch(self) -> None:
        """Gives up what `prefetch` has begun and nobody waits for."""
        memory = self._memories.get(os.getpid())
        if memory is not None:
            memory.arena.end_announcements()

    @property
    def held_bytes(self) -> int:
        """The memory that its blocks take in this process."""
        memory = self._memories.get(os.getpid())
        return 0 if memory is None else memory.arena.held_bytes

    def where(self, sample_id: int) -> str:
        """Names a sample's file and row."""
        number = int(np.searchsorted(self.starts, sample_id, side="right")) - 1
        return f"row {sample_id - self.starts[number]} of {self.files[number].path}"

    def _raw(self, out: Array) -> tuple[Array, Bytes]:
        """`out` as the files store it, which is put into native order at the end; and its rows as bytes."""
        stored = self.files[0].dtype
        raw = out if out.dtype == stored else out.view(stored)
        return raw, raw.view(np.uint8).reshape(raw.nbytes // self.rows.row_bytes, self.rows.row_bytes)

    def _memory(self) -> "_Memory":
        memory = self._memories.get(os.getpid())
        if memory is None:
            if self._memories and os.getpid() not in self._memories:
                self._memories = {}  # a child's own: its parent's are of no use to it
            made = _Memory(str(self.files[0].path), self.rows, self._store, self.slots)
            memory = self._memories.setdefault(os.getpid(), made)
        return memory

    def _reading_rows(self, rows: Ids, out: Bytes) -> Steps:
        memory = self._memory()
        blocks, within = self.rows.locate(rows)
        alone = memory.alone(rows, blocks)
        places = np.flatnonzero(~alone)
        readings = [memory.arena.reading(blocks[places], within[places], places, out)]
        if len(places) < len(rows):
            places = np.flatnonzero(alone)
            memory.arena.note_read(blocks[places])
            readings.append(self._reading_ranges(self.rows.ranges(rows[places]), places, out))
        return together(readings)

    def _reading_ranges(self, ranges: list[RowRange], places: Ids, out: Bytes) -> Steps:
        while ranges:
            count, total_bytes = 1, ranges[0].range_bytes
            while count < len(ranges) and total_bytes + ranges[count].range_bytes <= _RANGES_AT_ONCE_BYTES:
                total_bytes += ranges[count].range_bytes
                count += 1
            now, ranges = ranges[:count], ranges[count:]
            reads = [piece.read() for piece in now]
            transfers = self._store.start(reads, urgent=True)
            try:
                yield
                for piece, read, transfer in zip(now, reads, transfers, strict=True):
                    transfer.wait()
                    out[places[piece.places]] = read.out.reshape(-1, self.rows.row_bytes)[piece.rows]
            finally:
                for transfer in transfers:
                    transfer.cancel()  # nothing happens to those that are done


class _Memory:
    """A column's blocks in one process, and what is known of misses."""

    def __init__(self, name: str, rows: StoredRows, store: Store, slots: int) -> None:
        # `start` must not refer to the arena: its memory shall go with the last reference, not some time later
        self.arena = Arena(
            len(rows),
            rows.block_rows,
            rows.row_bytes,
            slots,
            lambda blocks, memory, urgent: rows.start_blocks(store, blocks, memory, urgent=urgent),
        )
        self.keeps_all = store.has_cache or self.arena.slots == len(rows)
        self._name, self._rows = name, rows
        self._missed_bytes = np.zeros(len(rows), np.int64)
        self._missed_at = np.zeros(len(rows), np.int64)
        self._misses = 0
        self._crowded_bytes, self._warned = 0, False

    def alone(self, rows: Ids, blocks: Ids) -> npt.NDArray[np.bool_]:
        """Which of the rows are to be fetched without the rest of their blocks, bool (n,)."""
        if self.keeps_all:
            return np.zeros(len(rows), np.bool_)
        absent = self.arena.absent(blocks)
        if not absent.any():
            return absent
        missed, cost = self._rows.costs(rows[absent])
        if self.arena.open_blocks > self.arena.slots:
            # All slots hold blocks that are announced: a block that took the place of one would be paid for in vain.
            self._count_crowded(int(cost.sum()))
            return absent
        self._crowded_bytes = 0
        # As when to buy what one keeps renting: fetched by the row until that has cost as much as the block.
        forgotten = self._misses - self._missed_at[missed] > _REMEMBERED_SLOTS * self.arena.slots
        cost += np.where(forgotten, 0, self._missed_bytes[missed])
        whole = cost >= self._rows.block_bytes
        self._missed_bytes[missed] = np.where(whole, 0, cost)
        self._misses += len(missed)
        self._missed_at[missed] = self._misses
        absent[absent] = ~np.isin(blocks[absent], missed[whole])
        return absent

    def _count_crowded(self, cost_bytes: int) -> None:
        """Warns, once, where rows fetched by the row have cost as much as filling all of the memory."""
        self._crowded_bytes += cost_bytes
        slots, open_blocks, block_bytes = self.arena.slots, self.arena.open_blocks, self._rows.block_bytes
        if self._warned or self._crowded_bytes < slots * block_bytes:
            return
        self._warned = True
        _log.warning(
            "%s: the samples to come lie in %d blocks of %d bytes, and there is memory for %d of them: the rows of the "
            "others are fetched one by one, which is slow; give the loader a smaller shuffle_window=, or the dataset "
            "a memory_bytes= about %d times as large",
            self._name,
            open_blocks,
            block_bytes,
            slots,
            -(-open_blocks // slots),
        )
