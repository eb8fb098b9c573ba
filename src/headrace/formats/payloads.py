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
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from headrace.formats.decoding import Payload
from headrace.formats.source import Ids

Bytes = npt.NDArray[np.uint8]

# User programs have the lower half of 48 bits; the first page is never theirs.
_FIRST_ADDRESS, _LAST_ADDRESS = 1 << 12, 1 << 47
_HAS_ADDRESSES = sys.maxsize > _LAST_ADDRESS
# Of so many elements torch begins to share the work among its threads.
_FEW_ELEMENTS = 32_768
# Wider rows are copied one by one, which then costs nothing.
_WIDE_BYTES = 32_768


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

    def beginnings(self, width: int) -> Bytes:
        """The first bytes of each, uint8 (n, width), in fresh memory; zeros follow where a payload ends before."""
        out = np.zeros((len(self), width), np.uint8)
        for row, view in zip(out, self.views(), strict=True):
            some = view[:width]
            row[: len(some)] = np.frombuffer(some, np.uint8)
        return out


class Memories:
    """Pieces of memory in which payloads lie, kept in place.

    Args:
        memories: uint8 (bytes,) each, C-contiguous.
        starts: int64 (memories,): which byte of its shard each begins with.
    """

    def __init__(self, memories: Sequence[Bytes], starts: Ids) -> None:
        self.memories, self.starts = memories, starts
        self.lengths: Ids = np.array([len(memory) for memory in memories], np.int64)
        self.addresses: Ids = np.array([memory.ctypes.data for memory in memories], np.int64)
        self.are_addressable = _HAS_ADDRESSES and bool((self.addresses + self.lengths <= _LAST_ADDRESS).all())


class PlacedPayloads(Payloads):
    """Payloads where they lie.

    Args:
        memories: What they lie in.
        memory_of: int64 (n,), in which of them each lies.
        offsets: int64 (n,), with which byte of its shard each begins.
        sizes: int64 (n,), the bytes of each.
    """

    def __init__(self, memories: Memories, memory_of: Ids, offsets: Ids, sizes: Ids) -> None:
        self._memories, self._memory_of, self.sizes = memories, memory_of, sizes
        self._offsets = offsets - memories.starts.take(memory_of)
        room = memories.lengths.take(memory_of)
        room -= self._offsets
        self._least_room = int(np.minimum.reduce(room)) if len(room) else 0  # from each one's first byte on
        if len(sizes) and not (
            np.minimum.reduce(self._offsets) >= 0 and np.minimum.reduce(sizes) >= 0 and (sizes <= room).all()
        ):
            raise ValueError("a payload does not lie within its memory")
        self._addresses = memories.addresses.take(memory_of)
        self._addresses += self._offsets

    def part(self, start: int, stop: int) -> "PlacedPayloads":
        part = object.__new__(PlacedPayloads)
        part._memories, part._least_room = self._memories, self._least_room
        part._memory_of, part._offsets = self._memory_of[start:stop], self._offsets[start:stop]
        part._addresses, part.sizes = self._addresses[start:stop], self.sizes[start:stop]
        return part

    def views(self) -> list[memoryview]:
        views = [memory.data.toreadonly() for memory in self._memories.memories]
        return [
            views[memory][offset : offset + size]
            for memory, offset, size in zip(
                self._memory_of.tolist(), self._offsets.tolist(), self.sizes.tolist(), strict=True
            )
        ]

    def rows(self, start: int, out: Bytes) -> Bytes:
        assert start >= 0
        assert len(out) == 0 or start + out.shape[1] <= np.minimum.reduce(self.sizes)
        return self._gather(start, out)

    def beginnings(self, width: int) -> Bytes:
        # In a tar payloads are padded, so that their first bytes can nearly always be gathered as if they had so many.
        if len(self) == 0 or self._least_room < width:
            return super().beginnings(width)
        out = self._gather(0, np.empty((len(self), width), np.uint8))
        if np.minimum.reduce(self.sizes) < width:
            out *= np.arange(width) < self.sizes[:, None]
        return out

    def _gather(self, start: int, out: Bytes) -> Bytes:
        """Fills `out` with the bytes [start, start + width), all of which lie within the memories."""
        count, width = out.shape
        if count == 0 or width == 0:
            return out
        if width >= _WIDE_BYTES or not (self._memories.are_addressable and out.flags.c_contiguous):
            return super().rows(start, out)
        first = self._addresses + (start - _FIRST_ADDRESS)
        is_aligned = (int(np.bitwise_or.reduce(first)) | width | out.ctypes.data) % 8 == 0
        if is_aligned:
            first >>= 3
        everything = _address_space(width, is_aligned=is_aligned)
        index, filled = torch.from_numpy(first), torch.from_numpy(out)
        if is_aligned:
            filled = filled.view(torch.int64)
        at_once = max(1, _FEW_ELEMENTS // filled.shape[1] - 1)
        if at_once >= count:
            torch.index_select(everything, 0, index, out=filled)
            return out
        for some, rows in zip(index.split(at_once), filled.split(at_once), strict=True):
            torch.index_select(everything, 0, some, out=rows)
        return out


@functools.lru_cache(maxsize=64)
def _address_space(width: int, *, is_aligned: bool) -> torch.Tensor:
    """Rows of `width` bytes, one for each address, or each that is a multiple of 8.

    Nothing is read or reserved by it: only rows that are known to be memory may be looked at.
    """

    class Everything:
        __array_interface__ = {  # noqa: RUF012 (NumPy's protocol)
            "data": (_FIRST_ADDRESS, False),
            "shape": (_LAST_ADDRESS - _FIRST_ADDRESS,),
            "typestr": "|u1",
            "version": 3,
        }

    elements = torch.from_numpy(np.asarray(Everything()))
    if is_aligned:
        elements, width = elements.view(torch.int64), width // 8
    return elements.as_strided((len(elements) - width, width), (1, 1))
