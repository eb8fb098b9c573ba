"""The payloads of one column of a batch: bytes of different lengths, wherever they lie.

Many payloads lie in many pieces of memory: a map of each shard, or a block of each that was fetched. One gather reads
from all of them at once, since to it they are rows of one array: the address space of this process.

Guarantees:
    - No byte outside the given memories is read: every range is checked against the memory that it is said to lie in,
      and the memories stay in place as long as anybody holds the payloads or a view of them.
    - A gather runs in the caller's thread alone: none of torch's threads are woken.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch

from headrace.formats.decoding import Payload
from headrace.formats.source import Ids

Bytes: TypeAlias = npt.NDArray[np.uint8]
# (begin, end, out): see Payloads.prepare_rows
FillRows: TypeAlias = Callable[[int, int, Bytes], Bytes]

# User programs have the lower half of 48 bits; the first page is never theirs.
_FIRST_ADDRESS, _LAST_ADDRESS = 1 << 12, 1 << 47
_HAS_ADDRESSES = sys.maxsize > _LAST_ADDRESS
# Of more elements torch would share the work among its threads.
_FEW_ELEMENTS = 32_768
# By 2**shift bytes: what is copied is copied as it is, whatever its type, and as few elements as may be are fastest.
_ELEMENTS = {4: np.complex128, 3: np.int64, 0: np.uint8}
# Wider rows are copied one by one, which then costs nothing.
_WIDE_BYTES = _FEW_ELEMENTS


class Payloads:
    """n payloads, in the order of the batch.

    Attributes:
        sizes: int64 (n,), the bytes of each.
    """

    def __init__(self, payloads: Sequence[Payload]) -> None:
        self._views = [memoryview(payload).toreadonly() for payload in payloads]
        self.sizes: Ids = np.array([len(view) for view in self._views], np.int64)

    def __len__(self) -> int:
        return len(self.sizes)

    def are_all_of(self, size: int) -> bool:
        """Whether there are payloads, and each has that many bytes."""
        return len(self) > 0 and bool((self.sizes == size).all())

    def part(self, start: int, stop: int) -> "Payloads":
        """The payloads [start, stop)."""
        return Payloads(self._views[start:stop])

    def views(self) -> list[memoryview]:
        """Each payload's bytes, read-only; valid as long as anybody holds them."""
        return self._views

    def rows(self, start: int, out: Bytes) -> Bytes:
        """Fills `out`, uint8 (n, width), C-contiguous, with the bytes [start, start + width) of each; returns it.

        Every payload must have that many bytes.
        """
        for row, view in zip(out, self.views(), strict=True):
            row[:] = np.frombuffer(view[start : start + out.shape[1]], np.uint8)
        return out

    def prepare_rows(self, start: int, width: int) -> FillRows:  # noqa: ARG002 (as wide as `out` is)
        """What does the same for some of the payloads: of [begin, end) the function of (begin, end, out)."""
        return lambda begin, end, out: Payloads.rows(self.part(begin, end), start, out)

    def beginnings(self, width: int, after: int = 0) -> Bytes:
        """The first bytes of each, uint8 (n, width), in fresh memory; `after` follows where a payload ends before."""
        out = np.full((len(self), width), after, np.uint8)
        for row, view in zip(out, self.views(), strict=True):
            some = view[:width]
            row[: len(some)] = np.frombuffer(some, np.uint8)
        return out


class Memories:
    """Pieces of memory in which payloads lie, kept in place.

    Args:
        memories: uint8 (bytes,) each, C-contiguous; None for those in which none lies.
        starts: int64 (memories,): which byte of its shard each begins with.
        addresses: Where each begins, where that is known.
    """

    def __init__(self, memories: Sequence[Bytes | None], starts: Ids, addresses: Sequence[int] | None = None) -> None:
        self.memories, self.starts = memories, starts
        at: Ids = np.array([address_of(one) for one in memories] if addresses is None else addresses, np.int64)
        lengths: Ids = np.array([0 if one is None else len(one) for one in memories], np.int64)
        self.stops: Ids = starts + lengths
        self.start_at_zero = not starts.any()
        # where byte 0 of each shard would lie
        self.origins: Ids = at - starts
        self.are_addressable = _HAS_ADDRESSES and int((at + lengths).max(initial=0)) <= _LAST_ADDRESS


class Held:
    """What the payloads of n samples lie in, of all their columns.

    Args:
        memories: The pieces of memory.
        memory_of: int64 (n,), in which of them each sample lies.

    Attributes:
        memories: As given.
        memory_of: As given.
        origins: int64 (n,), where byte 0 of each one's shard would lie.
        stops: int64 (n,), with which byte of its shard each one's memory ends.
    """

    __slots__ = ("memories", "memory_of", "origins", "stops")

    def __init__(self, memories: Memories, memory_of: Ids) -> None:
        self.memories, self.memory_of = memories, memory_of
        self.origins, self.stops = memories.origins.take(memory_of), memories.stops.take(memory_of)


class PlacedPayloads(Payloads):
    """Payloads where they lie.

    Args:
        held: What they lie in.
        offsets: int64 (n,), with which byte of its shard each begins.
        sizes: int64 (n,), the bytes of each.

    Attributes:
        least_bytes: Of the smallest payload; 0 without any.
        most_bytes: Of the largest.
    """

    # Each operation on many numbers lets another thread go first, so there are as few as may be.
    def __init__(self, held: Held, offsets: Ids, sizes: Ids) -> None:
        self._held, self._offsets, self.sizes = held, offsets, sizes
        self.least_bytes = self.most_bytes = self._least_room = 0
        if len(sizes) == 0:
            return
        self.least_bytes, self.most_bytes = int(np.minimum.reduce(sizes)), int(np.maximum.reduce(sizes))
        room = held.stops - offsets  # from each one's first byte on
        self._least_room = int(np.minimum.reduce(room))
        end_within = self._least_room >= self.most_bytes or bool((sizes <= room).all())
        if held.memories.start_at_zero:
            begin_within = int(np.minimum.reduce(offsets)) >= 0
        else:
            begin_within = bool((offsets >= held.memories.starts.take(held.memory_of)).all())
        if self.least_bytes < 0 or not (begin_within and end_within):
            raise ValueError("a payload does not lie within its memory")

    def are_all_of(self, size: int) -> bool:
        return len(self) > 0 and self.least_bytes == self.most_bytes == size

    def part(self, start: int, stop: int) -> Payloads:
        return Payloads(self._views_of(start, stop))

    def views(self) -> list[memoryview]:
        return self._views_of(0, len(self))

    def _views_of(self, start: int, stop: int) -> list[memoryview]:
        memories = self._held.memories
        places = self._held.memory_of[start:stop]
        starts = self._offsets[start:stop] - memories.starts.take(places)
        stops = starts + self.sizes[start:stop]
        views = [None if memory is None else memory.data.toreadonly() for memory in memories.memories]
        return [
            cast(memoryview, views[place])[begin:end]
            for place, begin, end in zip(places.tolist(), starts.tolist(), stops.tolist(), strict=True)
        ]

    def rows(self, start: int, out: Bytes) -> Bytes:
        return self.prepare_rows(start, out.shape[1])(0, len(self), out)

    def prepare_rows(self, start: int, width: int) -> FillRows:
        if start < 0 or (len(self) and start + width > self.least_bytes):
            raise ValueError(f"a payload does not have the bytes [{start}, {start + width})")
        return self._gathering(start, width)

    def beginnings(self, width: int, after: int = 0) -> Bytes:
        # In a tar payloads are padded, so that their first bytes can nearly always be gathered as if they had so many.
        if len(self) == 0 or self._least_room < width:
            return super().beginnings(width, after)
        out = np.empty((len(self), width), np.uint8)
        self._gathering(0, width)(0, len(self), out)
        for place in range(self.least_bytes, width):
            np.copyto(out[:, place], np.uint8(after), where=self.sizes <= place)
        return out

    @cached_property
    def _addresses(self) -> tuple[int, Ids]:
        """How many times 2 divides each payload's address, up to 4, and the addresses divided by that."""
        addresses = self._held.origins + self._offsets
        addresses -= _FIRST_ADDRESS
        shift = _shift_of(int(np.bitwise_or.reduce(addresses)))
        if shift:
            addresses >>= shift
        return shift, addresses

    def _gathering(self, start: int, width: int) -> FillRows:
        """What fills rows with the bytes [start, start + width), all of which lie within the memories."""
        if not 0 < width < _WIDE_BYTES or len(self) == 0 or not self._held.memories.are_addressable:
            return super().prepare_rows(start, width)
        most, first = self._addresses
        shift = min(most, _shift_of(start | width))
        if shift < most:
            first = first << (most - shift)
        if start:
            first = first + (start >> shift)
        everything, element = _address_space(width, shift), _ELEMENTS[shift]
        at_once = _FEW_ELEMENTS // (width >> shift)

        def fill(begin: int, end: int, out: Bytes) -> Bytes:
            if not out.flags.c_contiguous or address_of(out) % (1 << shift):
                return super(PlacedPayloads, self).prepare_rows(start, width)(begin, end, out)
            # NumPy does the slicing: each of torch's operations would let another thread go first
            rows: npt.NDArray[Any] = out.view(element)
            for row in range(0, end - begin, at_once):
                index = first[begin + row : min(begin + row + at_once, end)]
                some = torch.from_numpy(rows[row : row + at_once])
                torch.index_select(everything, 0, torch.from_numpy(index), out=some)
            return out

        return fill


def address_of(memory: Bytes | None) -> int:
    """Where it begins."""
    return 0 if memory is None else int(memory.__array_interface__["data"][0])


def _shift_of(number: int) -> int:
    """How many times 2 divides it, as far as there are elements of that many bytes."""
    return next(shift for shift in _ELEMENTS if number % (1 << shift) == 0)


@functools.lru_cache(maxsize=64)
def _address_space(width: int, shift: int) -> torch.Tensor:
    """Rows of `width` bytes, one for each address that is a multiple of 2**shift, in elements of that many bytes.

    Nothing is read or reserved by it: only rows that are known to be memory may be looked at.
    """

    class Everything:
        __array_interface__ = {  # noqa: RUF012 (NumPy's protocol)
            "data": (_FIRST_ADDRESS, False),
            "shape": (_LAST_ADDRESS - _FIRST_ADDRESS,),
            "typestr": "|u1",
            "version": 3,
        }

    elements = torch.from_numpy(np.asarray(Everything()).view(_ELEMENTS[shift]))
    return elements.as_strided((len(elements) - (width >> shift), width >> shift), (1, 1))
