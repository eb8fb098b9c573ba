"""Memory for blocks, used again: the first touch of fresh pages costs more than filling them.

Guarantees:
    - Everything may be called from any number of threads; there are no locks, so a forked child has none to inherit.
    - Memory is given out again only when the last array that views it is gone, whoever holds that: a request that was
      given up holds what it may still write into.
    - What lies idle is the system's to take back whenever memory is short, and has an end.
"""

import mmap
import weakref
from collections import deque

import numpy as np
import numpy.typing as npt

from headrace.formats.stored_file import fresh

_UNIT_BYTES = 1 << 20
_MOST_BYTES = 8 << 20
# Nearly all blocks have 3 to 4 MiB. Idle are 2 GiB of those at most, and of each other size a few.
_USUAL_BYTES, _MOST_USUAL, _MOST_OTHERS = 4 << 20, 512, 8
_idle: dict[int, deque[mmap.mmap]] = {
    size: deque(maxlen=_MOST_USUAL if size == _USUAL_BYTES else _MOST_OTHERS)
    for size in range(_UNIT_BYTES, _MOST_BYTES + 1, _UNIT_BYTES)
}


def recycled(length: int) -> npt.NDArray[np.uint8]:
    """Memory for a block, uint8 (length,), that holds anything."""
    size = -(-length // _UNIT_BYTES) * _UNIT_BYTES
    if size not in _idle:
        return fresh(length)
    try:
        memory = _idle[size].pop()
    except IndexError:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    owner = _Owner(memory, length)
    weakref.finalize(owner, _take_back, memory, size).atexit = False
    return np.asarray(owner)


def _take_back(memory: mmap.mmap, size: int) -> None:
    if hasattr(mmap, "MADV_FREE"):
        memory.madvise(mmap.MADV_FREE)
        _idle[size].append(memory)  # of too many the oldest goes, and with it its map


class _Owner:
    """What NumPy takes for the owner of the memory: every array over it has this at the end of its chain of bases."""

    def __init__(self, memory: mmap.mmap, length: int) -> None:
        address = np.frombuffer(memory, np.uint8).__array_interface__["data"][0]
        self.__array_interface__ = {"version": 3, "data": (address, False), "shape": (length,), "typestr": "|u1"}
