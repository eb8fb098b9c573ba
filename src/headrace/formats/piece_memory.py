"""Decoded pieces of row groups in memory: bounded in bytes, shared by all threads, each decoded by one of them.

The columns whose samples have one shape lie in arrays that all pieces share, so that one gather a column reads from any
number of pieces; the others stay in Arrow's memory. A piece that was announced goes when its last announced sample has
been read, unless all pieces fit; the others go when room is needed, those first that were used longest ago.

Guarantees:
    - Everything may be called from any number of threads. One lock guards the tables; it is never held while anything
      is decoded or gathered, or while anybody waits.
    - What a read holds (pieces that stay for its sake, room for those that it makes, the group that it decodes) is
      noted with the read, and counts while that is alive: whatever interrupts it, nothing stays behind.
    - A thread decodes one group at a time, for which it has reserved room, and waits for what others decode. It waits
      for room only while it holds nothing, so those that it waits for go on.
    - One piece always has room, however large it is.
    - An error while decoding is raised to the thread that met it; others try themselves.
"""

import contextlib
import weakref
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from threading import Condition, Lock
from typing import TYPE_CHECKING

import numpy as np

from headrace.errors import FormatError
from headrace.formats.piece_counts import PieceCounts
from headrace.formats.piece_reading import Decode, Need, Pieces, Reading, counted
from headrace.formats.room import NOTHING, Held, Making, Room
from headrace.formats.source import Array, Column, Ids
from headrace.metrics import stage
from headrace.storage import check_cancelled

if TYPE_CHECKING:
    import pyarrow as pa

# Groups that are remembered for threads that help; of more, those needed first are decoded by then
_MOST_COMING = 4096
# How often a wait for other threads looks whether it is still wanted
_LOOK_SECONDS = 0.1


class PieceMemory:
    """Memory for some of the pieces.

    Args:
        pieces: All of them.
        columns: The fixed columns by name.
        others: The names of the columns that stay in Arrow's memory.
        memory_bytes: The most that pieces take together.
        decode: Makes pieces.
        need: Where it notes what is there, for others to look at.
        helps: Whether a thread decodes what is announced where it would wait for another thread: right where decoding
            waits for nothing.
        name: Names the data, for what the user is told.

    Attributes:
        keeps_all: Whether all pieces fit, as far as is known, so that each is decoded once.
        counts: What was read and decoded.
    """

    def __init__(
        self,
        pieces: Pieces,
        columns: Mapping[str, Column],
        others: Sequence[str],
        memory_bytes: int,
        decode: Decode,
        *,
        need: Need | None = None,
        helps: bool = False,
        name: str = "",
    ) -> None:
        self._pieces, self._others, self._memory_bytes = pieces, others, memory_bytes
        self._decode = decode
        total_bytes = int(pieces.bytes.sum())
        self.keeps_all = total_bytes <= memory_bytes
        self.counts = PieceCounts(name, int(pieces.starts[-1]), total_bytes, memory_bytes)
        self._row_bytes = sum(column.sample_bytes for column in columns.values())
        rows = int(pieces.starts[-1])
        if self._row_bytes:
            # those of a piece more, since what is free may lie scattered
            rows = min(rows, memory_bytes // self._row_bytes + int(np.diff(pieces.starts).max()))
        # Untouched memory takes no room.
        self._arrays = {name: np.empty((rows, *column.shape), column.dtype) for name, column in columns.items()}
        self._room = Room(rows)
        self._first_rows: Ids = np.zeros(len(pieces), np.int64)
        need = Need(pieces) if need is None else need
        self._is_there, self._due = need.is_there, need.due
        self._held: OrderedDict[int, Held] = OrderedDict()  # those that are there; used longest ago comes first
        self._held_bytes = 0  # of these
        self._readings: weakref.WeakSet[Reading] = weakref.WeakSet()
        self._making: list[Making] = []
        self._helps = helps
        self._coming: deque[int] = deque(maxlen=_MOST_COMING)  # groups that were announced, for whoever helps
        self._others_bytes = self._others_expected = 1  # of Arrow's columns: what they took, and were thought to take
        self._was_announced = self._reads_runs = self._has_views = False
        self._lock = Lock()
        self._changed = Condition(self._lock)

    def as_dict(self) -> dict[str, int]:
        """What was read and decoded so far, and what is held."""
        with self._lock:
            return {**self.counts.as_dict(), "held_pieces": len(self._held), "held_bytes": self._held_bytes}

    def read(self, sample_ids: Ids, pieces_of_them: Ids | None, out: Mapping[str, Array]) -> "dict[str, pa.Array]":
        """Gathers samples: the fixed columns into `out`, arrays (samples, *shape); the others are returned.

        Args:
            sample_ids: int64 (samples,).
            pieces_of_them: What `Pieces.locate` says of them.
            out: The arrays.
        """
        reading = Reading(self._pieces, sample_ids, self._arrays, out, self._others, pieces_of_them=pieces_of_them)
        self.serve(reading)
        return reading.others()

    def serve(self, reading: Reading) -> None:
        """Brings the pieces that a read needs into memory, and lets it gather from each of them once."""
        self._reads_runs = reading.is_run
        try:
            is_ready = self._hold_all(reading)
            while True:
                while not is_ready and self._bring(reading):
                    pass
                held = self._held_for(reading)
                reading.gather(self._first_rows, [one.views for one in held], [one.others for one in held])
                self._note_read(reading)
                if is_ready or not reading.left.any():
                    return
        finally:
            self._end(reading)

    def _hold_all(self, reading: Reading) -> bool:
        """Holds the pieces of a read where all of them are in memory; else does nothing and returns False."""
        with self._lock:
            self._readings.add(reading)  # before anything is held
            if not self._is_there[reading.pieces].all():
                return False
            reading.here[:] = True
        return True

    def announce(self, sample_ids: Ids) -> list[int]:
        """Says that these samples will be read, after those announced before.

        Returns:
            The groups of which samples are absent that nobody had announced, those needed first in front.
        """
        located = self._pieces.locate(sample_ids)
        pieces, counts = self._pieces.run(sample_ids) if located is None else counted(located)
        with self._lock:
            self._was_announced = True
            news = pieces[(self._due[pieces] == 0) & ~self._is_there[pieces]]
            self._due[pieces] += counts
        if located is not None and len(news) > 1:
            needed = located[np.isin(located, news)]
            news = needed[np.sort(np.unique(needed, return_index=True)[1])]
        groups = list(dict.fromkeys(self._pieces.groups[news].tolist()))
        if self._helps:
            self._coming.extend(groups)
        return groups

    def forget_announced(self) -> None:
        """Nothing of what was announced will be read."""
        with self._lock:
            self._was_announced = False
            self._coming.clear()
            due = np.flatnonzero(self._due)
            self._due[due] = 0
            self._let_go(due.tolist())

    def _held_for(self, reading: Reading) -> list[Held]:
        """What is held of the pieces of a read, of those that are not here something empty."""
        if not (self._others or reading.is_run or self._has_views):
            return []
        with self._lock:
            held = [
                self._held[piece] if is_here else NOTHING
                for piece, is_here in zip(reading.pieces.tolist(), reading.here.tolist(), strict=True)
            ]
        if self._arrays and not reading.is_run:
            for one in held:
                # by whoever needs it first; should two do it at once, they write the same
                for name, rows in self._rows_of(one):
                    if (view := one.views.get(name)) is not None:
                        rows[...] = view
                one.views = {}
        return held

    def _rows_of(self, held: Held) -> list[tuple[str, Array]]:
        """The rows of the arrays for a piece, by column."""
        rows = slice(held.first_row, held.first_row + held.rows)
        return [(name, array[rows]) for name, array in self._arrays.items()]

    def _bring(self, reading: Reading) -> bool:
        """Holds what is in memory, and decodes one group or waits for others; False where that is all for now."""
        with self._lock:
            found = reading.left & ~reading.here & self._is_there[reading.pieces]
            reading.here |= found
            absent = reading.pieces[reading.left & ~reading.here]
            if len(absent) == 0:
                return False
            self._sweep()
            groups = self._pieces.groups[absent]
            busy = {making.group for making in self._making}
            group = next((group for group in dict.fromkeys(groups.tolist()) if group not in busy), None)
            if group is not None:
                making = self._begin(reading, group, absent[groups == group].tolist(), at_any_cost=True)
                if making is None and reading.here.any():
                    return False  # what is gathered now makes room
            else:
                making = self._help(reading, busy)
            if making is None:
                with stage("turn"):
                    self._changed.wait(_LOOK_SECONDS)
        if making is None:
            check_cancelled()
        elif group is not None:
            self._make(making, reading)
        else:
            with contextlib.suppress(Exception):  # whoever needs it meets it again
                self._make(making, None)
        return True

    def _make(self, making: Making, reading: Reading | None) -> None:
        """Decodes the pieces that room is reserved for, for a read or for others."""
        wanted = list(making.room)
        pieces = self._decode(making.group, wanted[0], wanted[-1])
        try:
            for piece, content in pieces:
                is_wanted = piece in making.room
                if is_wanted or self._reserve_in_passing(making, piece):
                    # what is refused of a piece that nobody asked for yet will be said to whoever asks
                    with contextlib.nullcontext() if is_wanted else contextlib.suppress(FormatError):
                        held = making.room[piece]
                        # a run is copied from where Arrow decoded it: of use once, so not copied twice
                        held.views = content.views() if self._reads_runs else {}
                        self._has_views |= bool(held.views)
                        content.write({name: rows for name, rows in self._rows_of(held) if name not in held.views})
                        held.others = content.others()
                        self._publish(making, piece, reading if is_wanted else None)
                self._note_decoded(piece)
            assert not any(piece in making.room for piece in wanted)
        finally:
            pieces.close()
            with self._lock:
                self._give_up(making)
                self._changed.notify_all()

    def _reserve_in_passing(self, making: Making, piece: int) -> bool:
        """Reserves room for a piece that had to be decoded on the way to another, if it will be needed."""
        with self._lock:
            is_needed = not self._is_there[piece] and (self.keeps_all or bool(self._due[piece] > 0))
            return is_needed and self._reserve(making, piece, at_any_cost=False)

    def _publish(self, making: Making, piece: int, reading: Reading | None) -> None:
        """A piece is in memory now, and stays there for a read, if one is given."""
        with self._lock:
            held = making.room[piece]
            if self._others:
                others_bytes = sum(array.nbytes for array in held.others.values())
                self._others_bytes += others_bytes
                self._others_expected += int(self._pieces.bytes[piece]) - held.rows * self._row_bytes
                held.held_bytes = held.rows * self._row_bytes + others_bytes
            self._held[piece] = making.room.pop(piece)
            self._held_bytes += held.held_bytes
            self._first_rows[piece] = held.first_row
            self._is_there[piece] = True
            if reading is not None:
                reading.here[reading.pieces.searchsorted(piece)] = True
            self._changed.notify_all()

    def _note_decoded(self, piece: int) -> None:
        with self._lock:
            self.counts.decoded_pieces += 1
            self.counts.decoded_samples += int(self._pieces.starts[piece + 1] - self._pieces.starts[piece])
            self.counts.decoded_bytes += int(self._pieces.bytes[piece])

    def _note_read(self, reading: Reading) -> None:
        """Samples of the pieces that are here were gathered."""
        with self._lock:
            here, pieces, counts = reading.here, reading.pieces, reading.counts
            if not here.all():
                pieces, counts = pieces[here], counts[here]
                reading.left &= ~here
            else:
                reading.left[:] = False
            here[:] = False
            left = self._due[pieces]
            was_due = left > 0
            left -= counts
            self._due[pieces] = np.maximum(left, 0)
            self.counts.read_samples += int(counts.sum())
            if not self.keeps_all:
                for piece in pieces.tolist():
                    self._held.move_to_end(piece)
                self._let_go(pieces[was_due & (left <= 0)].tolist())
                self.counts.advise(was_announced=self._was_announced)

    def _end(self, reading: Reading) -> None:
        with self._lock:
            self._readings.discard(reading)
            if self._making:
                self._sweep()
            self._changed.notify_all()

    # The lock is held in all of the following.

    def _let_go(self, pieces: list[int]) -> None:
        """Gives up pieces of which nothing is due any more, unless somebody is reading them."""
        if pieces and not self.keeps_all:
            pinned = self._pinned()
            for piece in pieces:
                if piece in self._held and piece not in pinned:
                    self._drop(piece)

    def _pinned(self) -> set[int]:
        """The pieces that reads hold."""
        return {piece for reading in self._readings for piece in reading.pieces[reading.here].tolist()}

    def _help(self, reading: Reading, busy: set[int]) -> Making | None:
        """A group to decode that is due and that nobody decodes, where there is room for all that is due of it."""
        while self._coming:
            group = self._coming[0]
            first, last = self._pieces.groups.searchsorted([group, group + 1]).tolist()
            is_due = ~self._is_there[first:last] & (self._due[first:last] > 0)
            if group not in busy and is_due.any():
                making = self._begin(reading, group, (first + np.flatnonzero(is_due)).tolist(), at_any_cost=False)
                if making is None:
                    return None
                self._coming.popleft()
                return making
            self._coming.popleft()
        return None

    def _begin(self, reading: Reading, group: int, pieces: list[int], *, at_any_cost: bool) -> Making | None:
        """Begins to decode pieces of a group: at any cost as many as there is room for, else all of them; or none."""
        making = Making(group, weakref.ref(reading), {})
        self._making.append(making)
        for piece in pieces:
            if not self._reserve(making, piece, at_any_cost=at_any_cost):
                break
        if making.room and (at_any_cost or len(making.room) == len(pieces)):
            return making
        self._give_up(making)
        return None

    def _reserve(self, making: Making, piece: int, *, at_any_cost: bool) -> bool:
        """Reserves room for a piece, in place of others that are not due, or that are, if it must be."""
        rows = int(self._pieces.starts[piece + 1] - self._pieces.starts[piece])
        fixed_bytes = rows * self._row_bytes
        others_bytes = (int(self._pieces.bytes[piece]) - fixed_bytes) * self._others_bytes // self._others_expected
        held = Held(rows, fixed_bytes + max(0, others_bytes))
        pinned: set[int] | None = None
        while True:
            held_bytes = self._held_bytes + sum(
                room.held_bytes for other in self._making for room in other.room.values()
            )
            if held_bytes + held.held_bytes <= self._memory_bytes or held_bytes == 0:
                first_row = self._room.take(rows) if self._row_bytes and rows else 0
                if first_row is not None:
                    held.first_row = first_row
                    making.room[piece] = held
                    return True
            self.keeps_all = False  # more was needed than was thought
            pinned = self._pinned() if pinned is None else pinned
            idle = [other for other in self._held if other not in pinned]
            victim = next((other for other in idle if self._due[other] == 0), idle[0] if idle and at_any_cost else None)
            if victim is None:
                return False
            self._drop(victim)

    def _drop(self, piece: int) -> None:
        self._is_there[piece] = False
        held = self._held.pop(piece)
        self._held_bytes -= held.held_bytes
        self._free(held)

    def _free(self, held: Held) -> None:
        if self._row_bytes and held.rows:
            self._room.give_back(held.first_row, held.rows)

    def _give_up(self, making: Making) -> None:
        """A group is no longer being decoded; room that it didn't need is free again."""
        if making in self._making:
            self._making.remove(making)
            while making.room:
                self._free(making.room.popitem()[1])

    def _sweep(self) -> None:
        """Frees what reads have left behind that ended in the middle of something."""
        for making in list(self._making):
            reading = making.reading()
            if reading is None or reading not in self._readings:
                self._give_up(making)
