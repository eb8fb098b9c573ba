"""The stored bytes of row groups, fetched before they are decoded.

Guarantees:
    - Everything may be called from any number of threads. The lock is never held while anybody waits for bytes.
    - No more than `most_bytes` are on their way or wait to be decoded, one group aside.
    - What was fetched goes when the file that was handed out over it is closed; what was not there yet is given up.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from headrace.formats.source import Ids
from headrace.formats.stored_file import Fetched, StoredFile, fresh
from headrace.storage import BLOCK_BYTES, RangeRead, Store, StoredObject, coalesce

# A request costs about as much as this many bytes more: 20 ms to the first one, at 100 Mbit/s or more a stream.
_GAP_BYTES = 256 << 10
# What lies between chunks and is fetched along with them, in shares of them, at most
_MOST_WASTE = 1
_LEAST_PART_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class GroupBytes:
    """Where the column chunks of a group lie.

    Attributes:
        source: Its file.
        starts: int64 (chunks,).
        stops: int64 (chunks,).
        crc32: Of the one chunk, where that is known.
    """

    source: StoredObject
    starts: Ids
    stops: Ids
    crc32: int | None = None

    def ranges(self, gap_bytes: int) -> list[tuple[int, int]]:
        """What to fetch, neighbours together: (start, stop) of each range."""
        chunk_bytes = int((self.stops - self.starts).sum())
        while True:
            starts, stops, _ = coalesce(self.starts, self.stops, gap_bytes)
            if gap_bytes == 0 or int((stops - starts).sum()) <= (1 + _MOST_WASTE) * chunk_bytes:
                return list(zip(starts.tolist(), stops.tolist(), strict=True))
            gap_bytes //= 4

    @property
    def chunks(self) -> list[tuple[int, int]]:
        """(start, stop) of each chunk."""
        return list(zip(self.starts.tolist(), self.stops.tolist(), strict=True))


Locate: TypeAlias = Callable[[int], GroupBytes]
# Whether a group is still to be decoded
IsDue: TypeAlias = Callable[[int], bool]


class FetchAhead:
    """Bytes of groups on their way.

    Args:
        store: What fetches them.
        locate: Says where a group's bytes lie.
        is_due: Says whether a group is still to be decoded.
        most_bytes: How many bytes are fetched ahead.
        memory: Makes memory for so many bytes.

    Attributes:
        most_bytes: As given.
    """

    def __init__(
        self,
        store: Store,
        locate: Locate,
        is_due: IsDue,
        most_bytes: int,
        *,
        memory: Callable[[int], npt.NDArray[np.uint8]] = fresh,
    ) -> None:
        self._store, self._locate, self._is_due, self.most_bytes = store, locate, is_due, most_bytes
        self._memory = memory
        self._waiting: deque[int] = deque()
        self._is_waiting: set[int] = set()
        self._fetched: dict[int, list[Fetched]] = {}
        self._open: Counter[int] = Counter()  # groups that are being decoded
        self._held_bytes = 0
        self._lock = Lock()

    @property
    def held_bytes(self) -> int:
        """The bytes of groups that were fetched, or are on their way, and that nobody decodes yet."""
        return self._held_bytes

    def announce(self, groups: Sequence[int]) -> None:
        """Fetches groups ahead, after those announced before."""
        with self._lock:
            for group in groups:
                if group not in self._is_waiting and group not in self._fetched and not self._open[group]:
                    self._is_waiting.add(group)
                    self._waiting.append(group)
            self._start_waiting()

    def open(self, group: int) -> StoredFile:
        """A group's file, for whoever decodes the group now; to be closed by the caller."""
        place = self._locate(group)
        with self._lock:
            fetched = self._taken(group)
            ranges = self._ranges(place)
            is_streamed = fetched is None and _total(ranges) > self.most_bytes
            if fetched is None and not is_streamed:
                fetched = self._start(place, ranges, urgent=True)
            self._open[group] += 1
            self._start_waiting()
        for piece in fetched or ():
            piece.transfer.hurry()
        return StoredFile(
            self._store,
            place.source,
            fetched or (),
            streams=place.chunks if is_streamed else (),
            part_bytes=self._part_bytes(place),
            when_closed=lambda: self._closed(group),
        )

    def reopen(self, group: int) -> StoredFile:
        """A group's file, of which nothing is fetched but what is read."""
        place = self._locate(group)
        return StoredFile(self._store, place.source, streams=place.chunks, part_bytes=self._part_bytes(place))

    def drop(self, group: int) -> None:
        """Gives up what was fetched of a group that won't be decoded."""
        with self._lock:
            for piece in self._taken(group) or ():
                piece.transfer.cancel()
            self._start_waiting()

    def forget(self) -> None:
        """Gives up what was announced."""
        with self._lock:
            self._waiting.clear()
            self._is_waiting.clear()
            for group in list(self._fetched):
                for piece in self._taken(group) or ():
                    piece.transfer.cancel()

    def _closed(self, group: int) -> None:
        with self._lock:
            self._open[group] -= 1
            if self._open[group] <= 0:
                del self._open[group]

    # The lock is held in all of the following, as far as it matters.

    def _taken(self, group: int) -> list[Fetched] | None:
        """What was fetched of a group, which is no longer counted then."""
        self._is_waiting.discard(group)
        fetched = self._fetched.pop(group, None)
        if fetched is not None:
            self._held_bytes -= sum(len(piece.read.out) for piece in fetched)
        return fetched

    def _start_waiting(self) -> None:
        """Starts fetching what waits, as far as there is room."""
        while self._waiting:
            group = self._waiting[0]
            if group in self._is_waiting and not self._open[group] and self._is_due(group):
                place = self._locate(group)
                ranges = self._ranges(place)
                if _total(ranges) <= self.most_bytes:
                    if self._held_bytes and self._held_bytes + _total(ranges) > self.most_bytes:
                        return
                    self._fetched[group] = self._start(place, ranges, urgent=False)
                    self._held_bytes += _total(ranges)
            self._waiting.popleft()
            self._is_waiting.discard(group)

    def _ranges(self, place: GroupBytes) -> list[tuple[int, int]]:
        # a disk cache keeps chunks one by one, whatever other columns are read with them
        return place.chunks if self._store.has_cache else place.ranges(_GAP_BYTES)

    def _part_bytes(self, place: GroupBytes) -> int:
        """What is read at once of each chunk of a group that is read from front to back."""
        return max(_LEAST_PART_BYTES, min(BLOCK_BYTES, self.most_bytes // max(1, len(place.starts))))

    def _start(self, place: GroupBytes, ranges: Sequence[tuple[int, int]], *, urgent: bool) -> list[Fetched]:
        reads = [
            RangeRead(place.source, start, self._memory(stop - start), keep=True, crc32=place.crc32)
            for start, stop in ranges
        ]
        transfers = self._store.start(reads, urgent=urgent)
        return [Fetched(read, transfer) for read, transfer in zip(reads, transfers, strict=True)]


def _total(ranges: Sequence[tuple[int, int]]) -> int:
    return sum(stop - start for start, stop in ranges)
