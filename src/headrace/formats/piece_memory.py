"""Decoded pieces of row groups in memory: bounded in bytes, shared by all threads, each decoded by one of them.

The columns whose samples have one shape lie in arrays that all pieces share, so that one gather a column reads from any
number of pieces; the others stay in Arrow's memory. A piece that was announced goes when its last announced sample has
been read, unless all pieces fit; the others go when room is needed, those first that were used longest ago.

Guarantees:
    - Everything may be called from any number of threads. One lock guards the tables; it is never held while anything
      is decoded or gathered, or while anybody waits.
    - A piece is pinned from when a thread finds or makes it until that thread has gathered from it; its memory is used
      again only when nobody has it pinned.
    - A thread decodes one group at a time, for which it has reserved memory, and waits for what others decode. It waits
      for memory only with nothing pinned and nothing reserved, so those that it waits for go on.
    - One piece always has room, however large it is.
    - An error while decoding is raised to the thread that met it; others try themselves.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Condition, Lock
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np

from headrace.formats.piece_reading import Mask, Pieces, Reading, counted
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
Decode: TypeAlias = Callable[[int, int, int], Iterator[tuple[int, Content]]]


class Need:
    """Which pieces are in memory, and what was announced of each.

    Attributes:
        is_there: bool (pieces,).
        due: int64 (pieces,), samples that were announced and not read yet.
    """

    def __init__(self, pieces: Pieces) -> None:
        self._groups = pieces.groups
        self.is_there = np.zeros(len(pieces), np.bool_)
        self.due: Ids = np.zeros(len(pieces), np.int64)

    def has_due(self, group: int) -> bool:
        """Whether samples of a group were announced that are not in memory."""
        first, last = np.searchsorted(self._groups, [group, group + 1]).tolist()
        return bool((~self.is_there[first:last] & (self.due[first:last] > 0)).any())


@dataclass(slots=True)
class _Held:
    """A piece in memory, or the room for it."""

    first_row: int
    rows: int
    held_bytes: int
    others: "Mapping[str, pa.Array]" = field(default_factory=dict)


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
        keeps_all: Whether all pieces fit, so that each is decoded once.
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
        self._pins = np.zeros(len(pieces), np.int32)
        self._held: dict[int, _Held] = {}  # those that are there; what was used longest ago comes first
        self._held_bytes = 0  # of these, and of what room was reserved for
        self._busy: set[int] = set()  # groups that some thread decodes
        self._read_samples = self._decoded_samples = self._decoded_pieces = self._decoded_bytes = 0
        self._advised = False
        self._lock = Lock()
        self._changed = Condition(self._lock)

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
        if self._pin_all(reading.pieces):
            try:
                reading.gather(None, self._first_rows, self._others_of(reading.pieces, None))
            finally:
                self._unpin(reading.pieces, reading.counts)
            return reading.others()
        left = np.ones(len(reading.pieces), np.bool_)
        while left.any():
            here = np.zeros(len(left), np.bool_)
            try:
                while self._bring(reading.pieces, left, here):
                    pass
                reading.gather(here, self._first_rows, self._others_of(reading.pieces, here))
            finally:
                self._unpin(reading.pieces[here], reading.counts[here])
            left &= ~here
        return reading.others()

    def announce(self, sample_ids: Ids) -> list[int]:
        """Says that these samples will be read, after those announced before.

        Returns:
            The groups of which samples are absent that nobody had announced, those needed first in front.
        """
        located = self._pieces.locate(sample_ids)
        pieces, counts = self._pieces.run(sample_ids) if located is None else counted(located)
        with self._lock:
            news = pieces[(self._due[pieces] == 0) & ~self._is_there[pieces]]
            self._due[pieces] += counts
        if located is not None and len(news) > 1:
            needed = located[np.isin(located, news)]
            news = needed[np.sort(np.unique(needed, return_index=True)[1])]
        return list(dict.fromkeys(self._pieces.groups[news].tolist()))

    def forget_announced(self) -> None:
        """Nothing of what was announced will be read."""
        with self._lock:
            due = np.flatnonzero(self._due)
            self._due[due] = 0
            self._let_go(due.tolist())

    def _others_of(self, pieces: Ids, here: Mask | None) -> "list[Mapping[str, pa.Array]]":
        if not self._others:
            return []
        mine = [True] * len(pieces) if here is None else here.tolist()
        with self._lock:
            return [
                self._held[piece].others if is_here else {}
                for piece, is_here in zip(pieces.tolist(), mine, strict=True)
            ]

    def _pin_all(self, pieces: Ids) -> bool:
        """Pins the pieces where all of them are in memory; else does nothing and returns False."""
        with self._lock:
            if not self._is_there[pieces].all():
                return False
            self._pins[pieces] += 1
        return True

    def _bring(self, pieces: Ids, left: Mask, here: Mask) -> bool:
        """Pins what is in memory, and decodes one group or waits for others; False where that is all for now.

        Args:
            pieces: int64 (distinct,), ascending.
            left: bool (distinct,), which of them are needed.
            here: bool (distinct,), which of them are pinned: set for more of them.
        """
        with self._lock:
            found = left & ~here & self._is_there[pieces]
            here |= found
            self._pins[pieces[found]] += 1
            absent = pieces[left & ~here]
            if len(absent) == 0:
                return False
            groups = self._pieces.groups[absent]
            group = next((group for group in dict.fromkeys(groups.tolist()) if group not in self._busy), None)
            reserved = {} if group is None else self._reserve(absent[groups == group].tolist())
            if group is None or not reserved:
                if group is not None and here.any():
                    return False  # what is gathered now makes room
                self._changed.wait(_LOOK_SECONDS)
            else:
                self._busy.add(group)
        if group is None or not reserved:
            check_cancelled()
        else:
            for piece in self._make(group, reserved):
                here[np.searchsorted(pieces, piece)] = True
        return True

    def _make(self, group: int, reserved: dict[int, _Held]) -> Iterator[int]:
        """Decodes the pieces that room is reserved for; gives each when it is there, and pinned."""
        unused = dict(reserved)
        try:
            for piece, content in self._decode(group, min(reserved), max(reserved)):
                held = reserved.get(piece) or self._reserve_in_passing(piece)
                if held is not None:
                    unused[piece] = held
                    rows = slice(held.first_row, held.first_row + held.rows)
                    content.write({name: array[rows] for name, array in self._arrays.items()})
                    held.others = content.others()
                    del unused[piece]
                self._note_decoded(piece, held, pins=int(piece in reserved))
                if piece in reserved:
                    yield piece
            assert not unused
        finally:
            with self._lock:
                self._busy.discard(group)
                for held in unused.values():
                    self._free(held)
                self._changed.notify_all()

    def _note_decoded(self, piece: int, held: _Held | None, *, pins: int) -> None:
        with self._lock:
            self._decoded_pieces += 1
            self._decoded_samples += int(self._pieces.starts[piece + 1] - self._pieces.starts[piece])
            self._decoded_bytes += int(self._pieces.bytes[piece])
            if held is not None:
                # what Arrow's columns take was an estimate
                held_bytes = held.rows * self._row_bytes + sum(array.nbytes for array in held.others.values())
                self._held_bytes += held_bytes - held.held_bytes
                held.held_bytes = held_bytes
                self._held[piece] = held
                self._first_rows[piece] = held.first_row
                self._is_there[piece] = True
                self._pins[piece] += pins
                self._changed.notify_all()

    def _unpin(self, pieces: Ids, counts: Ids) -> None:
        """Samples of pieces were gathered, so many of each."""
        with self._lock:
            self._pins[pieces] -= 1
            due = self._due[pieces]
            left = self._due[pieces] = np.maximum(due - counts, 0)
            self._read_samples += int(counts.sum())
            if not self.keeps_all:
                for piece in pieces.tolist():
                    self._held[piece] = self._held.pop(piece)
                self._let_go(pieces[(due > 0) & (left == 0)].tolist())
                self._advise()
            self._changed.notify_all()

    # The lock is held in all of the following.

    def _let_go(self, pieces: list[int]) -> None:
        """Gives up pieces of which nothing is due any more, unless somebody is reading them."""
        if not self.keeps_all:
            for piece in pieces:
                if piece in self._held and self._pins[piece] == 0:
                    self._drop(piece)

    def _reserve(self, pieces: list[int]) -> dict[int, _Held]:
        """Room for as many of the pieces as may be, the first ones."""
        reserved: dict[int, _Held] = {}
        for piece in pieces:
            held = self._reserved(piece, at_any_cost=True)
            if held is None:
                break
            reserved[piece] = held
        return reserved

    def _reserve_in_passing(self, piece: int) -> _Held | None:
        """Room for a piece that had to be decoded on the way to another, if it will be needed; takes the lock."""
        with self._lock:
            if self._is_there[piece] or not (self.keeps_all or self._due[piece] > 0):
                return None
            return self._reserved(piece, at_any_cost=False)

    def _reserved(self, piece: int, *, at_any_cost: bool) -> _Held | None:
        """Room for a piece, in place of others that are not due, or that are, if it must be."""
        rows = int(self._pieces.starts[piece + 1] - self._pieces.starts[piece])
        held_bytes = int(self._pieces.bytes[piece])
        while True:
            if self._held_bytes + held_bytes <= self._memory_bytes or self._held_bytes == 0:
                first_row = self._room.take(rows) if self._row_bytes else 0
                if first_row is not None:
                    self._held_bytes += held_bytes
                    return _Held(first_row, rows, held_bytes)
            unread = (other for other in self._held if self._pins[other] == 0)
            least = next((other for other in self._held if self._pins[other] == 0 and self._due[other] == 0), None)
            least = next(unread, None) if least is None and at_any_cost else least
            if least is None:
                return None
            self._drop(least)

    def _drop(self, piece: int) -> None:
        self._is_there[piece] = False
        self._free(self._held.pop(piece))

    def _free(self, held: _Held) -> None:
        self._held_bytes -= held.held_bytes
        if self._row_bytes:
            self._room.give_back(held.first_row, held.rows)

    def _advise(self) -> None:
        """Says, once, that nearly everything is decoded again and again."""
        if (
            self._advised
            or self._decoded_bytes < 2 * self._memory_bytes
            or self._decoded_samples < _THRASHING * self._read_samples
        ):
            return
        self._advised = True
        _log.warning(
            "%s: for each sample that was read, %d were decoded: the decoded columns take %d MB, and there is memory "
            'for %d MB; shuffle them by shuffle="window", in headrace.DataLoader or to_iterable_dataset(), with a '
            "shuffle_window= that fits, or give the dataset fewer columns or a larger memory_bytes=",
            self._name,
            self._decoded_samples // max(1, self._read_samples),
            self._total_bytes // 10**6,
            self._memory_bytes // 10**6,
        )
