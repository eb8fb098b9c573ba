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
import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Condition, Lock
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np

from headrace.errors import FormatError
from headrace.formats.piece_reading import Need, Pieces, Reading, counted
from headrace.formats.room import Room
from headrace.formats.source import Array, Column, Ids
from headrace.storage import check_cancelled

if TYPE_CHECKING:
    import pyarrow as pa

_log = logging.getLogger("headrace")

# How often a wait for other threads looks whether it is still wanted
_LOOK_SECONDS = 0.1
# Samples decoded for each one that is read: where there are more, decoding is what takes the time
_THRASHING = 4


class Content(Protocol):
    """A piece as it was decoded."""

    def write(self, out: Mapping[str, Array]) -> None:
        """Fills arrays (samples, *shape), one for each fixed column."""

    def others(self) -> "Mapping[str, pa.Array]":
        """The other columns, in memory of their own."""


# Decodes pieces of a group, from the first to the last that are given, in this order, and perhaps some before them.
Decode: TypeAlias = Callable[[int, int, int], Generator[tuple[int, Content], None, None]]


@dataclass(slots=True)
class _Held:
    """A piece in memory, or the room for it."""

    rows: int
    held_bytes: int
    first_row: int = 0
    others: "Mapping[str, pa.Array]" = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Making:
    """A group that a read decodes, and the room for its pieces that are not there yet."""

    group: int
    reading: "weakref.ref[Reading]"
    room: dict[int, _Held]


class PieceMemory:
    """Memory for some of the pieces.

    Args:
        pieces: All of them.
        columns: The fixed columns by name.
        others: The names of the columns that stay in Arrow's memory.
        memory_bytes: The most that pieces take together.
        decode: Makes pieces.
        need: Where it notes what is there, for others to look at.
        name: Names the data, for what the user is told.

    Attributes:
        keeps_all: Whether all pieces fit, as far as is known, so that each is decoded once.
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
        name: str = "",
    ) -> None:
        self._pieces, self._others, self._memory_bytes = pieces, others, memory_bytes
        self._decode, self._name = decode, name
        self._total_bytes = int(pieces.bytes.sum())
        self.keeps_all = self._total_bytes <= memory_bytes
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
        self._held: OrderedDict[int, _Held] = OrderedDict()  # those that are there; used longest ago comes first
        self._held_bytes = 0  # of these
        self._readings: weakref.WeakSet[Reading] = weakref.WeakSet()
        self._making: list[_Making] = []
        self._others_bytes = self._others_expected = 1  # of Arrow's columns: what they took, and were thought to take
        self._read_samples = self._decoded_samples = self._decoded_pieces = self._decoded_bytes = 0
        self._advised = self._was_announced = False
        self._lock = Lock()
        self._changed = Condition(self._lock)

    @property
    def decoded_samples(self) -> int:
        """How many samples were decoded so far, those that were decoded again each time."""
        return self._decoded_samples

    def counts(self) -> dict[str, int]:
        """What was read and decoded so far, and what is held."""
        with self._lock:
            return {
                "read_samples": self._read_samples,
                "decoded_samples": self._decoded_samples,
                "decoded_pieces": self._decoded_pieces,
                "decoded_bytes": self._decoded_bytes,
                "held_pieces": len(self._held),
                "held_bytes": self._held_bytes,
            }

    def read(self, sample_ids: Ids, pieces_of_them: Ids | None, out: Mapping[str, Array]) -> "dict[str, pa.Array]":
        """Gathers samples: the fixed columns into `out`, arrays (samples, *shape); the others are returned.

        Args:
            sample_ids: int64 (samples,).
            pieces_of_them: What `Pieces.locate` says of them.
            out: The arrays.
        """
        reading = Reading(self._pieces, sample_ids, self._arrays, out, self._others, pieces_of_them=pieces_of_them)
        try:
            while reading.left.any():
                while self._bring(reading):
                    pass
                reading.gather(self._first_rows, self._others_of(reading))
                self._note_read(reading)
        finally:
            self._end(reading)
        return reading.others()

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
        return list(dict.fromkeys(self._pieces.groups[news].tolist()))

    def forget_announced(self) -> None:
        """Nothing of what was announced will be read."""
        with self._lock:
            self._was_announced = False
            due = np.flatnonzero(self._due)
            self._due[due] = 0
            self._let_go(due.tolist())

    def _others_of(self, reading: Reading) -> "list[Mapping[str, pa.Array]]":
        if not self._others:
            return []
        with self._lock:
            return [
                self._held[piece].others if is_here else {}
                for piece, is_here in zip(reading.pieces.tolist(), reading.here.tolist(), strict=True)
            ]

    def _bring(self, reading: Reading) -> bool:
        """Holds what is in memory, and decodes one group or waits for others; False where that is all for now."""
        with self._lock:
            self._readings.add(reading)  # before anything is held
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
                making = _Making(group, weakref.ref(reading), {})
                self._making.append(making)
                for piece in absent[groups == group].tolist():
                    if not self._reserve(making, piece, at_any_cost=True):
                        break
                if not making.room:
                    self._making.remove(making)
                    if reading.here.any():
                        return False  # what is gathered now makes room
                    group = None
            if group is None:
                self._changed.wait(_LOOK_SECONDS)
        if group is None:
            check_cancelled()
        else:
            self._make(making, reading)
        return True

    def _make(self, making: _Making, reading: Reading) -> None:
        """Decodes the pieces that room is reserved for."""
        wanted = list(making.room)
        pieces = self._decode(making.group, wanted[0], wanted[-1])
        try:
            for piece, content in pieces:
                is_wanted = piece in making.room
                if is_wanted or self._reserve_in_passing(making, piece):
                    # what is refused of a piece that nobody asked for yet will be said to whoever asks
                    with contextlib.nullcontext() if is_wanted else contextlib.suppress(FormatError):
                        held = making.room[piece]
                        rows = slice(held.first_row, held.first_row + held.rows)
                        content.write({name: array[rows] for name, array in self._arrays.items()})
                        held.others = content.others()
                        self._publish(making, piece, reading if is_wanted else None)
                self._note_decoded(piece)
            assert not any(piece in making.room for piece in wanted)
        finally:
            pieces.close()
            with self._lock:
                self._give_up(making)
                self._changed.notify_all()

    def _reserve_in_passing(self, making: _Making, piece: int) -> bool:
        """Reserves room for a piece that had to be decoded on the way to another, if it will be needed."""
        with self._lock:
            is_needed = not self._is_there[piece] and (self.keeps_all or bool(self._due[piece] > 0))
            return is_needed and self._reserve(making, piece, at_any_cost=False)

    def _publish(self, making: _Making, piece: int, reading: Reading | None) -> None:
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
            self._decoded_pieces += 1
            self._decoded_samples += int(self._pieces.starts[piece + 1] - self._pieces.starts[piece])
            self._decoded_bytes += int(self._pieces.bytes[piece])

    def _note_read(self, reading: Reading) -> None:
        """Samples of the pieces that are here were gathered."""
        with self._lock:
            here, reading.left = reading.here, reading.left & ~reading.here
            pieces = reading.pieces if here.all() else reading.pieces[here]
            counts = reading.counts if here.all() else reading.counts[here]
            reading.here = np.zeros(len(here), np.bool_)
            due = self._due[pieces]
            self._due[pieces] = np.maximum(due - counts, 0)
            self._read_samples += int(counts.sum())
            if not self.keeps_all:
                for piece in pieces.tolist():
                    self._held.move_to_end(piece)
                self._let_go(pieces[(due > 0) & (due <= counts)].tolist())
                self._advise()

    def _end(self, reading: Reading) -> None:
        with self._lock:
            self._readings.discard(reading)
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

    def _reserve(self, making: _Making, piece: int, *, at_any_cost: bool) -> bool:
        """Reserves room for a piece, in place of others that are not due, or that are, if it must be."""
        rows = int(self._pieces.starts[piece + 1] - self._pieces.starts[piece])
        fixed_bytes = rows * self._row_bytes
        others_bytes = (int(self._pieces.bytes[piece]) - fixed_bytes) * self._others_bytes // self._others_expected
        held = _Held(rows, fixed_bytes + max(0, others_bytes))
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

    def _free(self, held: _Held) -> None:
        if self._row_bytes and held.rows:
            self._room.give_back(held.first_row, held.rows)

    def _give_up(self, making: _Making) -> None:
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

    def _advise(self) -> None:
        """Says, once, that nearly everything is decoded again and again."""
        if (
            self._advised
            or self._decoded_bytes < 2 * self._memory_bytes
            or self._decoded_samples < _THRASHING * self._read_samples
        ):
            return
        self._advised = True
        window = max(1, self._memory_bytes * int(self._pieces.starts[-1]) // max(1, self._total_bytes) // 2)
        _log.warning(
            "%s: for each sample that was read, %d were decoded: the decoded columns take %s, and there is memory "
            "for %s; %s, or give the dataset fewer columns or a larger memory_bytes=",
            self._name,
            self._decoded_samples // max(1, self._read_samples),
            _megabytes(self._total_bytes),
            _megabytes(self._memory_bytes),
            f"give the loader a smaller shuffle_window= (about {window} samples)"
            if self._was_announced
            else 'shuffle them by shuffle="window", in headrace.DataLoader or to_iterable_dataset()',
        )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count < 10**8 else f"{count // 10**6:,} MB"
