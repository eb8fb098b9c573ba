"""Slots: pieces of shared memory for a part of a message each, written by one process, viewed by another, used again.

Guarantees:
- A slot is written only while nobody views it: it is lent with the arrays of its message, and free again when the last
  view of them is gone, in whichever thread that is. What runs then takes no lock and touches no socket, since the
  collector may run it at any moment, inside of any call, or in a forked child.
- A forked child that has inherited arrays may view them for good: slots that are lent while a process forks are never
  written again.
- No descriptor is kept: a mapping is all that holds the memory. It goes with the last view, or with its owner.
- `SentSlots` belongs to whoever holds the channel's sending lock; `returned` and `retired` may be appended to by
  another thread. `LentSlots` belongs to the one thread that receives.
"""

import ctypes
import functools
import mmap
import os
import sys
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from headrace.formats import Array

# messages whose slots may be idle: a burst's go when it is over; a slot in turn used and idle is never among those
_IDLE_MESSAGES = 8
_LONG_MESSAGES = 100  # a slot that none of so many has taken goes: it has become too large
_LEAST_BYTES = 1 << 16
_MOST_TIMES = 8  # as large as needed, and no more, is a slot for a message
_MAP_FAILED = ctypes.c_void_p(-1).value
_POPULATE: Final = getattr(
    mmap, "MAP_POPULATE", 0x8000 if sys.platform == "linux" else 0
)  # faults happen here, at once


class _Owner:
    """What NumPy takes for the owner of memory: every array over it has this at the end of its chain of bases.

    Attributes:
        kept: What has to stay as long as this.
    """

    def __init__(self, address: int, nbytes: int, kept: Any = None) -> None:
        self.__array_interface__ = {"version": 3, "data": (address, False), "shape": (nbytes,), "typestr": "|u1"}
        self.kept = kept


class _Message:
    """What the owners of a message's memory have in common."""


def _forgotten(messages: dict[int, Any], key: int, _: Any) -> None:
    messages.pop(key, None)


def map_memory(fd: int, nbytes: int, *, shared: bool) -> Array:
    """The memory of `fd`, uint8 (nbytes,), writable; unmapped when the last view of it is gone.

    Args:
        fd: May be closed afterwards. (Python's `mmap` keeps a copy of it before 3.13.)
        nbytes: At least 1.
        shared: Whether others see what is written, or it stays here: copy-on-write.

    Raises:
        OSError: There is no room for it.
    """
    map_pages, unmap_pages = _libc()
    flags = mmap.MAP_SHARED | _POPULATE if shared else mmap.MAP_PRIVATE
    address = map_pages(None, nbytes, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, 0)
    if address == _MAP_FAILED:
        error = ctypes.get_errno()
        raise OSError(error, f"cannot map {nbytes} bytes of shared memory: {os.strerror(error)}")
    owner: Any = _Owner(address, nbytes)
    weakref.finalize(owner, unmap_pages, address, nbytes).atexit = False
    return np.asarray(owner)


@functools.cache
def _libc() -> tuple[Any, Any]:
    libc = ctypes.CDLL(None, use_errno=True)
    size = ctypes.c_size_t
    libc.mmap.restype, libc.munmap.restype = ctypes.c_void_p, ctypes.c_int
    libc.mmap.argtypes = [ctypes.c_void_p, size, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, size]
    return libc.mmap, libc.munmap


class Slot:
    """Shared memory that this process writes.

    Attributes:
        number: Its name in messages; never given again.
        memory: uint8 (bytes,).
        fd: Its descriptor until the other end has it, then None.
    """

    __slots__ = ("fd", "memory", "number")

    def __init__(self, number: int, nbytes: int) -> None:
        self.number = number
        self.fd: int | None = os.memfd_create("headrace", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, nbytes)
            self.memory = map_memory(self.fd, nbytes, shared=True)
        except BaseException:
            self.close_fd()
            raise

    def close_fd(self) -> None:
        """Closes the descriptor; may be called again."""
        fd, self.fd = self.fd, None
        if fd is not None:
            os.close(fd)


class SentSlots:
    """The slots that one end writes.

    Attributes:
        returned: The numbers of slots that the other end has given back.
        retired: Those that it will not give back.
    """

    def __init__(self) -> None:
        self.returned: deque[int] = deque()
        self.retired: deque[int] = deque()
        self._made = self._messages = 0
        self._slots: dict[int, Slot] = {}
        self._idle: dict[int, int] = {}  # numbers, the one that was used last at the end, and since which message
        self._dropped: list[int] = []
        self._most_idle = 0

    @property
    def nbytes(self) -> int:
        """The bytes of all slots."""
        return sum(slot.memory.nbytes for slot in list(self._slots.values()))

    def take(self, sizes: Sequence[int]) -> list[Slot]:
        """Slots for a message, one of at least each of these sizes: the smallest that is free, or a new one.

        A new one takes the place of the largest that is free and too small; smaller ones may fit other parts. One that
        is far too large isn't taken, since who keeps the message would keep all of it.
        """
        self._messages += 1
        self._most_idle = max(self._most_idle, _IDLE_MESSAGES * len(sizes))
        self._take_back()
        taken: list[Slot] = []
        try:
            taken.extend(map(self._take, sizes))
        except BaseException:
            self.put_back(taken)
            raise
        return taken

    def _take(self, nbytes: int) -> Slot:
        def size_of(number: int) -> int:
            return self._slots[number].memory.nbytes

        size = rounded_up(nbytes)
        fitting = [number for number in reversed(self._idle) if nbytes <= size_of(number) <= _MOST_TIMES * size]
        if fitting:
            number = min(fitting, key=size_of)
            del self._idle[number]
            return self._slots[number]
        outgrown = [number for number in self._idle if size_of(number) < nbytes]
        if outgrown:
            self._drop(max(outgrown, key=size_of))
        self._made += 1
        slot = self._slots[self._made] = Slot(self._made, size)
        return slot

    def put_back(self, slots: Sequence[Slot]) -> None:
        """Takes the slots of a message that was not sent."""
        for slot in slots:
            if slot.fd is None:
                self._idle[slot.number] = self._messages
            else:
                slot.close_fd()
                del self._slots[slot.number]  # the other end doesn't know it

    def dropped(self) -> list[int]:
        """The numbers of slots that are no more, and which the other end has not been told of."""
        dropped, self._dropped = self._dropped, []
        return dropped

    def _take_back(self) -> None:
        while self.returned:
            number = self.returned.popleft()
            if number in self._slots:
                self._idle[number] = self._messages
        while self.retired:
            self._slots.pop(self.retired.popleft(), None)
        for number, since in list(self._idle.items()):
            if len(self._idle) <= self._most_idle and self._messages - since <= _LONG_MESSAGES:
                break
            self._drop(number)

    def _drop(self, number: int) -> None:
        del self._idle[number], self._slots[number]
        self._dropped.append(number)

    def clear(self) -> None:
        """Lets all slots go."""
        for slot in list(self._slots.values()):
            slot.close_fd()
        self._slots.clear()
        self._idle.clear()


def rounded_up(nbytes: int) -> int:
    """The size of a slot for so many bytes: the next eighth of a power of two, so that near sizes share slots."""
    nbytes = max(nbytes, _LEAST_BYTES)
    step = 1 << ((nbytes - 1).bit_length() - 4)
    return -(-nbytes // step) * step


class LentSlots:
    """The other end's slots, as they are viewed here.

    Attributes:
        returned: The numbers of slots that nobody views any more, and which the other end has not been told of.
        retired: Those that a forked child may still view.
    """

    def __init__(self, most_lent: int) -> None:
        """Lends the slots of at most `most_lent` messages at once; what comes beyond is copied."""
        self.returned: deque[int] = deque()
        self.retired: deque[int] = deque()
        self._most_lent = most_lent
        self._mapped: dict[int, Array] = {}
        # by the id of the reference, since references to arrays can't be hashed
        self._lent: dict[int, tuple[weakref.ref[_Owner], int]] = {}
        self._messages: dict[int, weakref.ref[_Message]] = {}  # those of which anything is lent
        self._inherited: set[int] = set()  # numbers of those that were lent while this process forked
        _watch_forks()
        key = id(self)
        _watched[key] = weakref.ref(self, lambda _: _watched.pop(key, None))

    @property
    def nbytes(self) -> int:
        """The bytes of all slots that are mapped here, except those that only views keep."""
        return sum(memory.nbytes for memory in list(self._mapped.values()))

    def add(self, number: int, fd: int, nbytes: int) -> None:
        """Maps a slot that the other end has made.

        Raises:
            ValueError: The memory is smaller than that, or the slot is known.
            OSError: There is no room for it.
        """
        if number in self._mapped or not 0 < nbytes <= os.fstat(fd).st_size:
            raise ValueError(f"expected {nbytes} bytes for a new slot {number}, got {os.fstat(fd).st_size}")
        self._mapped[number] = map_memory(fd, nbytes, shared=True)

    def forget(self, number: int) -> None:
        """Lets a slot go that the other end has dropped."""
        self._mapped.pop(number, None)

    def lend(self, held: Sequence[tuple[int, int]]) -> list[memoryview]:
        """The memory of one message: the first bytes of some slots, each given back when its last view is gone.

        Args:
            held: The numbers of the slots, and how many bytes of each.

        Raises:
            ValueError: There is no such slot, or it is smaller.
        """
        if not held:
            return []
        message: Any = _Message()
        # the message is gone with the last of its owners
        self._messages[id(message)] = weakref.ref(message, functools.partial(_forgotten, self._messages, id(message)))
        is_copied = len(self._messages) > self._most_lent
        lent: list[memoryview] = []
        for number, nbytes in held:
            memory = self._mapped.get(number)
            if memory is None or nbytes > memory.nbytes:
                got = 0 if memory is None else memory.nbytes
                raise ValueError(f"expected {nbytes} bytes in slot {number}, got {got}")
            if is_copied:
                lent.append(np.array(memory[:nbytes]).data)
                self.returned.append(number)
                continue
            owner: Any = _Owner(memory.__array_interface__["data"][0], nbytes, (memory, message))
            reference = weakref.ref(owner, self._returned)
            self._lent[id(reference)] = reference, number
            array: Array = np.asarray(owner)
            lent.append(array.data)
        return lent

    def _returned(self, reference: "weakref.ref[_Owner]") -> None:
        _, number = self._lent.pop(id(reference))
        if number in self._inherited:
            self._inherited.discard(number)
            self._mapped.pop(number, None)
            self.retired.append(number)
        else:
            self.returned.append(number)

    def retire(self) -> None:
        """Keeps the slots that are lent now from being written again."""
        self._inherited.update(number for _, number in list(self._lent.values()))

    def clear(self) -> None:
        """Lets all mappings go that nobody views."""
        self._mapped.clear()


_watched: dict[int, "weakref.ref[LentSlots]"] = {}


@functools.cache
def _watch_forks() -> None:
    # after as well, since another thread may receive in between
    os.register_at_fork(before=_retire_lent, after_in_parent=_retire_lent)


def _retire_lent() -> None:
    for reference in list(_watched.values()):
        slots = reference()
        if slots is not None:
            slots.retire()
