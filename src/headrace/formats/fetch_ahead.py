"""The stored bytes of row groups, fetched before they are decoded.

Guarantees:
    - Everything may be called from any number of threads. The lock is never held while anybody waits for bytes.
    - No more than `most_bytes` are on their way or wait to be decoded, one group aside.
    - What was fetched goes with the last file that was handed out over it.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TypeAlias

import numpy as np

from headrace.formats.source import Ids
from headrace.formats.stored_file import Fetched, StoredFile
from headrace.storage import RangeRead, Store, StoredObject, coalesce

# A request costs about as much as this many bytes more: 20 ms to the first one, at 100 Mbit/s or more a stream.
_GAP_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class GroupBytes:
    """Where the column chunks of a group lie.

    Attributes:
        source: Its file.
        starts: int64 (chunks,).
        stops: int64 (chunks,).
    """

    source: StoredObject
    starts: Ids
    stops: Ids

    @property
    def total_bytes(self) -> int:
        """The bytes of all chunks."""
        return int((self.stops - self.starts).sum())


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
    """

    def __init__(self, store: Store, locate: Locate, is_due: IsDue, most_bytes: int) -> None:
        self._store, self._locate, self._is_due, self._most_bytes = store, locate, is_due, most_bytes
        self._waiting: deque[int] = deque()
        self._is_waiting: set[int] = set()
        self._fetched: dict[int, list[Fetched]] = {}
        self._held_bytes = 0
        self._lock = Lock()

    def announce(self, groups: Sequence[int]) -> None:
        """Fetches groups ahead, after those announced before."""
        with self._lock:
            for group in groups:
                if group not in self._is_waiting and group not in self._fetched:
                    self._is_waiting.add(group)
                    self._waiting.append(group)
            self._start_waiting()

    def open(self, group: int) -> StoredFile:
        """A group's file, for whoever decodes the group now; its bytes are then no longer held here."""
        place = self._locate(group)
        with self._lock:
            fetched = self._fetched.pop(group, None)
            if fetched is not None:
                self._held_bytes -= sum(len(piece.read.out) for piece in fetched)
            self._is_waiting.discard(group)
            if fetched is None and place.total_bytes > self._most_bytes:
                streams = list(zip(place.starts.tolist(), place.stops.tolist(), strict=True))
                return StoredFile(self._store, place.source, streams=streams)
            if fetched is None:
                fetched = self._start(place, urgent=True)
            self._start_waiting()
        for piece in fetched:
            piece.transfer.hurry()
        return StoredFile(self._store, place.source, fetched)

    def is_streamed(self, group: int) -> bool:
        """Whether a group's bytes are too many to be fetched at once."""
        return self._locate(group).total_bytes > self._most_bytes

    def forget(self) -> None:
        """Gives up what was announced."""
        with self._lock:
            self._waiting.clear()
            self._is_waiting.clear()
            for fetched in self._fetched.values():
                for piece in fetched:
                    piece.transfer.cancel()
            self._fetched.clear()
            self._held_bytes = 0

    def _start_waiting(self) -> None:
        """Starts fetching what waits, as far as there is room; the lock is held."""
        while self._waiting:
            group = self._waiting[0]
            if group in self._is_waiting and self._is_due(group):
                place = self._locate(group)
                if place.total_bytes <= self._most_bytes:
                    if self._held_bytes and self._held_bytes + place.total_bytes > self._most_bytes:
                        return
                    fetched = self._fetched[group] = self._start(place, urgent=False)
                    self._held_bytes += sum(len(piece.read.out) for piece in fetched)
            self._waiting.popleft()
            self._is_waiting.discard(group)

    def _start(self, place: GroupBytes, *, urgent: bool) -> list[Fetched]:
        starts, stops = place.starts, place.stops
        if not self._store.has_cache:  # which keeps chunks one by one, whatever other columns are read with them
            starts, stops, _ = coalesce(starts, stops, _GAP_BYTES)
        reads = [
            RangeRead(place.source, start, np.empty(stop - start, np.uint8), keep=True)
            for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
        ]
        transfers = self._store.start(reads, urgent=urgent)
        return [Fetched(read, transfer) for read, transfer in zip(reads, transfers, strict=True)]
