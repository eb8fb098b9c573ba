"""What is to come: which of a column's blocks the rows that were announced need, how long, and which to fetch ahead.

A block is open while rows of it are announced. Where all open blocks have slots, each is worth fetching. Where they
have not, a block that is fetched takes a slot from others until its last row is read: it is worth that only if its
announced rows would cost about as much one by one.

Guarantees: nothing here takes a lock; the arena that an instance belongs to holds its own around every call.
"""

from collections import deque

import numpy as np

from headrace.formats.source import Ids

# A block is fetched for rows that would cost this share of it: half, so that at most twice is paid.
_WORTH_SHARE = 2


class Announcements:
    """The rows to come.

    Args:
        blocks: How many blocks the column has.
        slots: For how many blocks there is memory.
        block_bytes: What fetching a block costs.

    Attributes:
        clock: How many rows were read so far.
        needed: int64 (blocks + 1,), until when on the clock each block is needed: what was read last was needed until
            then, what is announced will be needed until later. The last entry, -1, stands for "no block".
        is_waiting: bool (blocks,), which blocks `next_waiting` may give.
    """

    def __init__(self, blocks: int, slots: int, block_bytes: int) -> None:
        self._slots, self._block_bytes = slots, block_bytes
        self.clock = self._end = 0
        self.needed: Ids = np.zeros(blocks + 1, np.int64)
        self.needed[-1] = -1
        self.is_waiting = np.zeros(blocks, np.bool_)
        self._waiting: deque[int] = deque()
        self._costs: Ids = np.zeros(blocks, np.int64)  # of the open blocks' announced rows, one by one
        self._open_blocks = 0
        self._unread: deque[tuple[int, Ids, Ids]] = deque()  # until when, blocks, costs: by announcement

    def __bool__(self) -> bool:
        """Whether blocks are waiting to be fetched."""
        return bool(self._waiting)

    @property
    def open_blocks(self) -> int:
        """How many blocks are open, as far as costs were told."""
        return self._open_blocks

    @property
    def is_crowded(self) -> bool:
        """Whether more blocks are open than there are slots."""
        return self._open_blocks > self._slots

    def add(self, blocks: Ids, counts: Ids | None, costs: tuple[Ids, Ids] | None) -> None:
        """Rows that come after those that were announced before; the arguments are those of `Arena.announce`."""
        ends = np.arange(1, len(blocks) + 1) if counts is None else np.cumsum(counts)
        begin = max(self._end, self.clock)
        self._end = begin + int(ends[-1])
        # of a block that occurs twice, the later need stays
        self.needed[blocks] = begin + ends
        if costs is not None:
            distinct, bytes_ = costs
            self._open_blocks += int(np.count_nonzero(self._costs[distinct] == 0))
            self._costs[distinct] += bytes_
            self._unread.append((self._end, distinct, bytes_))

    def enqueue(self, blocks: Ids) -> None:
        """Lets those of the blocks wait that are worth it, in this order; none of them must be waiting."""
        worth = blocks[self._are_worth_it(blocks)]
        self._waiting.extend(worth.tolist())
        self.is_waiting[worth] = True

    def put_back(self, blocks: list[int]) -> None:
        """Lets blocks that were taken wait again, before all others."""
        self._waiting.extendleft(reversed(blocks))
        self.is_waiting[blocks] = True

    def next_waiting(self) -> int | None:
        """Takes the block that is needed first of those that are still needed and worth it; None where none waits."""
        while self._waiting:
            block = self._waiting.popleft()
            was_waiting, self.is_waiting[block] = self.is_waiting[block], False
            if was_waiting and self._are_worth_it(np.array([block]))[0]:
                return block
        return None

    def read(self, blocks: Ids, rows: int) -> None:
        """So many rows of these blocks, int64 (n,), were read."""
        self.clock += rows
        needed = self.needed[blocks]
        self.needed[blocks] = np.maximum(needed, self.clock, out=needed)
        while self._unread and self._unread[0][0] <= self.clock:
            _, distinct, bytes_ = self._unread.popleft()
            self._costs[distinct] -= bytes_
            self._open_blocks -= int(np.count_nonzero(self._costs[distinct] == 0))

    def forget(self) -> None:
        """Nothing of what was announced will be read."""
        self._waiting.clear()
        self._unread.clear()
        self.is_waiting[:] = False
        self._costs[:] = 0
        self._open_blocks = 0
        np.minimum(self.needed, self.clock, out=self.needed)
        self._end = self.clock

    def _are_worth_it(self, blocks: Ids) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        worth: np.ndarray[tuple[int], np.dtype[np.bool_]] = self.needed[blocks] > self.clock
        if self.is_crowded:
            worth &= self._costs[blocks] * _WORTH_SHARE >= self._block_bytes
        return worth
