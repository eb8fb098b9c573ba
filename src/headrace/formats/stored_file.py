"""A stored object as a file for Arrow: what was fetched ahead is handed out as it is, the rest is fetched on demand.

Guarantees: one thread reads at a time. What has been handed out stays valid as long as anybody holds it.
"""

import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.storage import BLOCK_BYTES, RangeRead, Store, StoredObject, Transfer

# Memory for as many bytes comes from the system itself, and goes back to it at once when it is let go; what `malloc`
# gave to many threads may stay with the process long after.
_MAPPED_BYTES = 256 << 10


def fresh(length: int) -> npt.NDArray[np.uint8]:
    """Memory for bytes to be fetched into, uint8 (length,)."""
    if length < _MAPPED_BYTES:
        return np.empty(length, np.uint8)
    # private: the first touch of 1.2 GB took 0.65 s, of shared memory, which is Python's default, 0.95 s
    return np.frombuffer(mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A range on its way into memory, or there."""

    read: RangeRead
    transfer: Transfer


class StoredFile:
    """A file object, as `pyarrow.PythonFile` takes it.

    Args:
        store: What reads the object.
        source: The object.
        fetched: Ranges that have been asked for.
        streams: (start, stop) of the ranges that will be read from front to back, in small parts, and that were not
            asked for.
        part_bytes: How much of each of these is fetched at once, unless more is asked for.
        when_closed: Called when the file is closed.
    """

    def __init__(
        self,
        store: Store,
        source: StoredObject,
        fetched: Sequence[Fetched] = (),
        *,
        streams: Sequence[tuple[int, int]] = (),
        part_bytes: int = BLOCK_BYTES,
        when_closed: Callable[[], None] | None = None,
    ) -> None:
        self._store, self._source, self._fetched, self._streams = store, source, fetched, streams
        self._part_bytes, self._when_closed = part_bytes, when_closed
        self._streamed: dict[tuple[int, int], tuple[int, npt.NDArray[np.uint8]]] = {}
        self._position = 0
        self.closed = False

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def writable(self) -> bool:
        """No."""
        return False

    def tell(self) -> int:
        """The position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        """Moves to a position, counted from the beginning, from here or from the end."""
        self._position = offset + (0, self._position, self._source.object_bytes)[whence]
        return self._position

    @property
    def is_streamed(self) -> bool:
        """Whether it is read from front to back, in small parts."""
        return bool(self._streams)

    @property
    def held_bytes(self) -> int:
        """The memory that it takes, at most."""
        return sum(len(piece.read.out) for piece in self._fetched) + len(self._streams) * self._part_bytes

    def close(self) -> None:
        """Lets go of what was fetched, and gives up what is on its way."""
        if self.closed:
            return
        self.closed = True
        for piece in self._fetched:
            piece.transfer.cancel()  # nothing happens to those that are done
        self._fetched, self._streamed = (), {}
        if self._when_closed is not None:
            self._when_closed()

    def read(self, length: int = -1) -> memoryview:
        """The next bytes, up to the object's end.

        Raises:
            StorageError: They cannot be had.
            ReadCancelled: They are no longer wanted.
        """
        start = self._position
        end = self._source.object_bytes
        stop = end if length < 0 else min(end, start + length)
        stop = max(start, stop)
        self._position = stop
        for piece in self._fetched:
            if piece.read.offset <= start and stop <= piece.read.stop:
                piece.transfer.wait()
                return piece.read.out[start - piece.read.offset : stop - piece.read.offset].data
        for stream in self._streams:
            if stream[0] <= start and stop <= stream[1]:
                return self._from_stream(stream, start, stop)
        return self._fetch(start, stop).data

    def _from_stream(self, stream: tuple[int, int], start: int, stop: int) -> memoryview:
        first, there = self._streamed.get(stream, (0, np.empty(0, np.uint8)))
        if not (first <= start and stop <= first + len(there)):
            first, there = start, self._fetch(start, max(stop, min(start + self._part_bytes, stream[1])))
            self._streamed[stream] = first, there
        return there[start - first : stop - first].data

    def _fetch(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        out = fresh(stop - start)
        if len(out):
            self._store.read_ranges([RangeRead(self._source, start, out)])
        return out
