"""Room for pieces: runs of rows in arrays of fixed length, given out and taken back, and what lies in them."""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headrace.formats.source import Array

if TYPE_CHECKING:
    import weakref

    import pyarrow as pa

    from headrace.formats.piece_reading import Reading


class Room:
    """The free rows of an array, as runs; what is taken is the first run that is long enough, or its beginning.

    >>> room = Room(10)
    >>> room.take(4), room.take(4), room.take(4)
    (0, 4, None)
    >>> room.give_back(0, 4)
    >>> room.take(3), room.take(2), room.take(1)
    (0, 8, 3)
    """

    def __init__(self, rows: int) -> None:
        self._starts, self._ends = ([0], [rows]) if rows else ([], [])

    def take(self, rows: int) -> int | None:
        """The first of so many free rows, 1 or more, that lie together; None where there are none such."""
        assert rows > 0
        for i, (start, end) in enumerate(zip(self._starts, self._ends, strict=True)):
            if end - start >= rows:
                if end - start == rows:
                    del self._starts[i], self._ends[i]
                else:
                    self._starts[i] = start + rows
                return start
        return None

    def give_back(self, start: int, rows: int) -> None:
        """Makes rows free again that `take` gave."""
        assert rows > 0
        end = start + rows
        i = bisect_left(self._starts, start)
        joins_left = i > 0 and self._ends[i - 1] == start
        joins_right = i < len(self._starts) and self._starts[i] == end
        if joins_left and joins_right:
            self._ends[i - 1] = self._ends[i]
            del self._starts[i], self._ends[i]
        elif joins_left:
            self._ends[i - 1] = end
        elif joins_right:
            self._starts[i] = start
        else:
            self._starts.insert(i, start)
            self._ends.insert(i, end)


@dataclass(slots=True)
class Held:
    """A piece in memory, or the room for it."""

    rows: int
    held_bytes: int
    first_row: int = 0
    others: "Mapping[str, pa.Array]" = field(default_factory=dict)
    views: Mapping[str, Array] = field(default_factory=dict)  # columns that nobody needed among the rows so far


@dataclass(slots=True, eq=False)
class Making:
    """A group that a read decodes, and the room for its pieces that are not there yet."""

    group: int
    reading: "weakref.ref[Reading]"
    room: dict[int, Held]


NOTHING = Held(0, 0)
