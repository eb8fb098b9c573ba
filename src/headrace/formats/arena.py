"""Blocks of a column in memory: each in a slot of one array, so that one gather reads from any number of them.

A block is absent, on its way, or in memory. Those that `announce` names are fetched ahead, in the order in which they
will be needed, as far as slots are free of blocks that are still needed; what a read misses is fetched at once.

Guarantees:
    - Everything may be called from any number of threads. One lock guards the tables; it is never held while memory is
      gathered from, or while anybody waits. Under it transfers are started and given up, which doesn't wait either.
    - A slot is pinned, once for each thread, from when the thread finds or asks for a block until it has gathered from
      it. A slot gets another block only when it is not pinned and its last transfer has released the memory: what is
      gathered from is never being written, and what is being written is never taken for a block.
    - A thread waits for transfers with slots pinned, but never for a slot: it takes as many blocks as it can have,
      waits for those, gathers, unpins, and begins the next round. Who holds pins in two arenas has asked in both before
      waiting in either, and finishes in one order. So whoever waits for a slot waits for transfers only, which end.
    - A transfer that fails leaves its block absent: those who wait for it get the error, or, where nobody waits, the
      next read that needs it; the read after that tries again.
    - An arena belongs to the process that made it. Dropping it frees its memory when the last transfer has ended.
"""

import contextlib
from collections.abc import Callable, Sequence
from threading import Condition, Lock
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from headrace.formats.announcements import Announcements
from headrace.formats.source import Ids
from headrace.formats.steps import Steps
from headrace.storage import Transfer, available_bytes, check_cancelled

Bytes: TypeAlias = npt.NDArray[np.uint8]

# Looking for the slot that was used least recently takes 6 us among so many.
_MOST_SLOTS = 1 << 16
# Where there is less free memory than this, no more slots come into use. Looking takes 0.4 ms, so it is done rarely.
_SPARE_BYTES = 512 << 20
_BYTES_BETWEEN_LOOKS = 64 << 20
# How long a wait for a slot lasts before it is looked for again: a transfer that releases its memory tells nobody.
_SLOT_SECONDS = 0.01


# Starts to fill memory (uint8, a slot each) with blocks, perhaps before all others, and doesn't wait. Where it raises,
# nothing is written.
Start: TypeAlias = Callable[[Sequence[int], Sequence[Bytes], bool], Sequence[Transfer]]


class _Fill:
    """A slot that a transfer fills."""

    __slots__ = ("slot", "transfer", "urgent")

    def __init__(self, slot: int, transfer: Transfer, *, urgent: bool) -> None:
        self.slot, self.transfer, self.urgent = slot, transfer, urgent


class Arena:
    """Memory for some of a column's blocks.

    Args:
        blocks: How many blocks the column has.
        block_rows: Rows of a block; the last of a file may have fewer.
        row_bytes: The bytes of a row.
        slots: How many blocks are kept at most.
        start: Begins to fetch blocks.
        available: Counts the bytes of memory that are free.

    Attributes:
        slots: As given, but no more than there are blocks.
    """

    def __init__(
        self,
        blocks: int,
        block_rows: int,
        row_bytes: int,
        slots: int,
        start: Start,
        *,
        available: Callable[[], int] = available_bytes,
    ) -> None:
        self.slots = max(1, min(slots, blocks, _MOST_SLOTS))
        # Half of them, so that a read always finds one for what it misses; it misses nothing where all have room.
        self._most_ahead = self.slots if self.slots == blocks else max(1, self.slots // 2)
        self._start, self._available = start, available
        self._block_rows = np.int64(block_rows)
        # Untouched memory takes no room.
        self._memory: Bytes = np.empty((self.slots, block_rows * row_bytes), np.uint8)
        self._rows = self._memory.reshape(self.slots * block_rows, row_bytes)
        self._take = self._rows.take
        self._slot_of = np.full(blocks, -1, np.int64)
        self._coming = Announcements(blocks, self.slots, block_rows * row_bytes)
        self._block_of = np.full(self.slots, -1, np.int64)
        self._pins = np.zeros(self.slots, np.int32)
        self._is_busy = np.zeros(self.slots, np.bool_)
        self._in_use = 0  # slots that ever were
        self._in_use_at_next_look = 0
        self._fills: dict[int, _Fill] = {}  # by block: on their way
        self._failed: dict[int, Transfer] = {}  # by block: fetched ahead in vain, and not needed yet
        self._ending: list[_Fill] = []  # filled, failed or given up, but the memory is not released yet
        self._next_look_ahead = 0
        self._lock = Lock()
        self._slot_came_free = Condition(self._lock)

    def gather(self, blocks: Ids, rows: Ids, out: Bytes) -> bool:
        """Fills `out` where all blocks are in memory; else does nothing and returns False.

        Args:
            blocks: int64 (n,).
            rows: int64 (n,), each within its block.
            out: uint8 (n, row_bytes).
        """
        with self._lock:
            slots = self._slot_of[blocks]
            if np.minimum.reduce(slots, initial=0) < 0:
                return False
            # A slot that occurs twice is counted once, here as in `_unpin`.
            self._pins[slots] += 1
            self._touch(blocks, len(blocks))
        try:
            self._take(slots * self._block_rows + rows, 0, out, "clip")
        finally:
            self._unpin(slots)
        return True

    def copy_run(self, blocks: Ids, rows: Ids, counts: Ids, out: Bytes) -> bool:
        """As `gather`, for consecutive rows: of each block `counts` from `rows` on, one copy a block.

        Args:
            blocks: int64 (n,), distinct.
            rows: int64 (n,), within each block the first one.
            counts: int64 (n,).
            out: uint8 (counts.sum(), row_bytes).
        """
        with self._lock:
            slots = self._slot_of[blocks]
            if slots.min() < 0:
                return False
            self._pins[slots] += 1
            self._touch(blocks, len(out))
        try:
            stop = 0
            for slot, row, count in zip(slots.tolist(), rows.tolist(), counts.tolist(), strict=True):
                start, stop = stop, stop + count
                first = slot * int(self._block_rows) + row
                out[start:stop] = self._rows[first : first + count]
        finally:
            self._unpin(slots)
        return True

    def reading(self, blocks: Ids, rows: Ids, places: Ids, out: Bytes) -> Steps:
        """Fills `out[places]`, in as many rounds as the slots make necessary.

        Args:
            blocks: int64 (n,).
            rows: int64 (n,), each within its block.
            places: int64 (n,), where in `out` each row belongs.
            out: uint8 (m, row_bytes).
        """
        while len(blocks):
            wanted, which = np.unique(blocks, return_inverse=True)
            slots = np.full(len(wanted), -1, np.int64)
            fills: list[_Fill] = []
            try:
                self._begin_round(wanted, slots, fills)
                yield
                for fill in fills:
                    fill.transfer.wait()
                here = slots[which]
                mine = here >= 0
                if fills:
                    with self._lock:
                        self._settle()
                if mine.any():
                    row_numbers = here[mine] * self._block_rows + rows[mine]
                    if len(row_numbers) == len(out) and is_in_order(places):
                        self._take(row_numbers, 0, out, "clip")
                    else:
                        out[places[mine]] = self._take(row_numbers, 0, None, "clip")
                    with self._lock:
                        self._touch(blocks[mine], len(row_numbers))
            finally:
                self._unpin(slots[slots >= 0])
            if not mine.any():
                with self._lock:
                    self._slot_came_free.wait(_SLOT_SECONDS)
                check_cancelled()
            blocks, rows, places = blocks[~mine], rows[~mine], places[~mine]

    @property
    def held_bytes(self) -> int:
        """The memory of all slots that were ever in use."""
        return self._in_use * int(self._memory.shape[1])

    @property
    def open_blocks(self) -> int:
        """How many blocks have rows that are announced; see `Announcements`."""
        return self._coming.open_blocks

    def absent(self, blocks: Ids) -> npt.NDArray[np.bool_]:
        """Which of the blocks are neither in memory nor on their way.

        Those that wait to be fetched ahead are fetched now, as far as slots are free of blocks that are still needed.
        """
        with self._lock:
            self._settle()
            absent = self._slot_of[blocks] < 0
            if absent.any():
                waiting = np.unique(blocks[absent & self._coming.is_waiting[blocks]])
                self._fetch_ahead(waiting.tolist())
                absent &= ~np.isin(blocks, np.fromiter(self._fills, np.int64, len(self._fills)))
        return absent

    def announce(self, blocks: Ids, counts: Ids | None = None, costs: tuple[Ids, Ids] | None = None) -> None:
        """Says which block each of the coming rows needs, after those that were announced before.

        Args:
            blocks: int64 (n,), in the order of need.
            counts: int64 (n,), for how many rows each; None for one.
            costs: Of the distinct blocks, int64 (m,), what their rows would cost one by one, int64 (m,), bytes; None
                where each block is to be fetched whatever it costs.
        """
        with self._lock:
            self._coming.add(blocks, counts, costs)
            absent = blocks[(self._slot_of[blocks] < 0) & ~self._coming.is_waiting[blocks]]
            if len(absent):
                distinct, first = np.unique(absent, return_index=True)
                on_their_way = np.isin(distinct, np.fromiter(self._fills, np.int64, len(self._fills)))
                self._coming.enqueue(absent[np.sort(first[~on_their_way])])
            self._fetch_waiting()

    def end_announcements(self) -> None:
        """Forgets what was announced, and gives up the transfers that nobody waits for."""
        with self._lock:
            self._settle()
            self._coming.forget()
            self._failed.clear()
            for block, fill in list(self._fills.items()):
                if self._pins[fill.slot] == 0:
                    fill.transfer.cancel()
                    self._end(block, fill)

    def note_read(self, blocks: Ids) -> None:
        """Counts rows, one of each of these blocks, that were read past the arena."""
        with self._lock:
            self._touch(blocks, len(blocks))

    def _touch(self, blocks: Ids, rows: int) -> None:
        """Notes that so many rows of these blocks were read. The lock is held, as in everything below but `_unpin`."""
        self._coming.read(blocks, rows)
        if self._coming and self._coming.clock >= self._next_look_ahead:
            self._fetch_waiting()

    def _unpin(self, slots: Ids) -> None:
        with self._lock:
            self._pins[slots] -= 1
            self._slot_came_free.notify(len(slots))

    def _begin_round(self, wanted: Ids, slots: Ids, fills: list[_Fill]) -> None:
        """Pins as many of the wanted blocks as there are slots for, fetching what is absent; takes the lock itself.

        Args:
            wanted: int64 (n,), distinct blocks.
            slots: int64 (n,), filled with the slots of those that are pinned; the others stay -1.
            fills: Filled with what must be waited for.
        """
        with self._lock:
            self._settle()
            found = self._slot_of[wanted]
            self._pins[found[found >= 0]] += 1
            slots[:] = found
            missing = np.flatnonzero(found < 0)
            absent = []
            for i, block in zip(missing.tolist(), wanted[missing].tolist(), strict=True):
                fill = self._fills.get(block)
                if fill is None:
                    absent.append(i)
                else:
                    self._pin_fill(i, fill, slots, fills)
            failed = [self._failed.pop(block) for block in wanted[absent].tolist() if block in self._failed]
            for transfer in failed:
                transfer.wait()  # raises what fetching it ahead met
            started = self._fetch(wanted[absent].tolist(), urgent=True)
            for i, fill in zip(absent, started, strict=False):
                self._pin_fill(i, fill, slots, fills)
            for fill in fills:
                if not fill.urgent:
                    fill.urgent = True
                    fill.transfer.hurry()

    def _pin_fill(self, i: int, fill: _Fill, slots: Ids, fills: list[_Fill]) -> None:
        self._pins[fill.slot] += 1
        slots[i] = fill.slot
        fills.append(fill)

    def _fetch(self, blocks: list[int], *, urgent: bool) -> list[_Fill]:
        """Starts to fetch as many of these blocks as there are slots for, the first ones."""
        slots = self._claim(len(blocks), urgent=urgent) if blocks else []
        blocks = blocks[: len(slots)]
        if not blocks:
            return []
        # Before the start: should that be interrupted, the slots stay busy for ever, since bytes may yet come.
        self._is_busy[slots] = True
        try:
            transfers = self._start(blocks, [self._memory[slot] for slot in slots], urgent)
        except Exception:
            self._is_busy[slots] = False
            raise
        fills = [_Fill(slot, transfer, urgent=urgent) for slot, transfer in zip(slots, transfers, strict=True)]
        self._block_of[slots] = blocks
        self._fills.update(zip(blocks, fills, strict=True))
        return fills

    def _fetch_waiting(self) -> None:
        """Starts to fetch announced blocks, as many at once as may be."""
        self._next_look_ahead = self._coming.clock + int(self._block_rows) // 8 + 1
        self._settle()
        blocks: list[int] = []
        room = self._most_ahead - len(self._fills)
        while len(blocks) < room and (block := self._coming.next_waiting()) is not None:
            if self._slot_of[block] < 0 and block not in self._fills:
                blocks.append(block)
        self._coming.put_back(self._fetch_ahead(blocks))

    def _fetch_ahead(self, blocks: list[int]) -> list[int]:
        """Starts to fetch blocks where slots are free of blocks that are still needed; returns those that wait on."""
        with contextlib.suppress(Exception):  # whoever needs these blocks fetches them, and gets the error
            return blocks[len(self._fetch(blocks, urgent=False)) :]
        return []

    def _claim(self, count: int, *, urgent: bool) -> list[int]:
        """Up to `count` slots that hold no block any more: empty ones, new ones, then those needed longest ago.

        Only what is urgent takes the place of blocks that are announced: of those that are needed last.
        """
        used = self._in_use
        idle = np.flatnonzero((self._pins[:used] == 0) & ~self._is_busy[:used])
        needed = self._coming.needed[self._block_of[idle]]
        claimed: list[int] = idle[needed < 0][:count].tolist()
        claimed += self._new_slots(count - len(claimed), at_least=1 if len(idle) == 0 else 0)
        if len(claimed) < count:
            past = (needed >= 0) & (needed <= self._coming.clock)
            claimed += _smallest(idle[past], needed[past], count - len(claimed))
        if len(claimed) < count and urgent:
            coming = needed > self._coming.clock
            claimed += _smallest(idle[coming], -needed[coming], count - len(claimed))
        evicted = self._block_of[claimed]
        self._slot_of[evicted[evicted >= 0]] = -1
        self._block_of[claimed] = -1
        return claimed

    def _new_slots(self, count: int, *, at_least: int) -> list[int]:
        """Slots that were never in use, as long as there is memory for them."""
        first = self._in_use
        last = min(self.slots, first + count)
        if last > self._in_use_at_next_look:
            if self._available() < _SPARE_BYTES:
                last = min(last, first + at_least)
            else:
                self._in_use_at_next_look = last + _BYTES_BETWEEN_LOOKS // self._memory.shape[1]
        self._in_use = last
        return list(range(first, last))

    def _settle(self) -> None:
        """Takes note of transfers that have ended."""
        for block, fill in list(self._fills.items()):
            if fill.transfer.done:
                if not fill.transfer.failed:
                    self._slot_of[block] = fill.slot
                elif not fill.urgent:
                    self._failed[block] = fill.transfer
                self._end(block, fill)
        if self._ending:
            released = [fill.slot for fill in self._ending if fill.transfer.released]
            self._is_busy[released] = False
            self._ending = [fill for fill in self._ending if self._is_busy[fill.slot]]

    def _end(self, block: int, fill: _Fill) -> None:
        """A block is no longer on its way: it is in memory, or else absent."""
        del self._fills[block]
        self._ending.append(fill)
        if self._slot_of[block] != fill.slot:
            self._block_of[fill.slot] = -1


def _smallest(slots: Ids, keys: Ids, count: int) -> list[int]:
    """The slots with the smallest keys, `count` of them or all."""
    if count < len(slots):
        slots = slots[np.argpartition(keys, count - 1)[:count]] if count else slots[:0]
    chosen: list[int] = slots.tolist()
    return chosen


def is_in_order(places: Ids) -> bool:
    """Whether these are the places 0, 1, 2 and so on."""
    return bool((places == np.arange(len(places))).all())
