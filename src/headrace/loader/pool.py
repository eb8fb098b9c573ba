"""Batch memory that is used again: fresh pages cost several times the copy into them, page-locked ones still more.

Guarantees:
- Memory that anybody can still reach, through a tensor, an array or any view of one, is never lent again: the array
  that was lent is kept alive by all of them, and its memory returns only when it is gone.
- `lend` may be called from any thread; memory returns from whichever thread drops the last view.
- Neither takes a lock, so that memory may return in the middle of anything, garbage collection too.
"""

import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from headrace.formats import Array, Column
from headrace.loader.trees import map_tensors


class _Memory(np.ndarray[tuple[int], np.dtype[np.uint8]]):
    """Memory to be lent: an array of a class of its own, at which NumPy stops collapsing views."""


class Pool:
    """Arrays for the fixed columns of batches of up to a fixed number of rows."""

    def __init__(
        self,
        schema: Mapping[str, Column],
        rows: int,
        *,
        idle: int,
        allocate: Callable[[int], torch.Tensor] | None = None,
    ) -> None:
        """Prepares to lend; allocates nothing.

        Args:
            schema: The columns.
            rows: The most rows that a batch has.
            idle: How many batches' memory is kept while nobody uses it.
            allocate: Makes memory of so many bytes, a tensor of uint8; NumPy's own by default.
        """
        self._allocate = allocate
        self._columns = {
            name: (column.shape, column.dtype, rows * column.sample_bytes, deque[_Memory](maxlen=idle))
            for name, column in schema.items()
            if column.is_fixed
        }
        # by the id of the reference, since references to arrays can't be hashed
        self._lent: dict[int, tuple[weakref.ref[Array], deque[_Memory], _Memory]] = {}

    def lend(self, rows: int) -> dict[str, Array]:
        """Uninitialised arrays (rows, *shape), one a fixed column, for whoever keeps them."""
        arrays: dict[str, Array] = {}
        for name, (shape, dtype, capacity_bytes, idle) in self._columns.items():
            try:
                memory = idle.pop()
            except IndexError:
                memory = self._made(capacity_bytes)
            # NumPy collapses chains of views down to the array that owns the memory, but not past one of another class:
            # so every view of `array` keeps `array` itself alive
            array: Array = np.ndarray((rows, *shape), dtype, memory)
            assert array.base is memory
            reference = weakref.ref(array, self._returned)
            self._lent[id(reference)] = reference, idle, memory
            arrays[name] = array
        return arrays

    def _made(self, size_bytes: int) -> _Memory:
        if self._allocate is None:
            return _Memory(size_bytes, np.uint8)
        # twice, so that what lies next below it is of the class as well: NumPy looks one further down
        return self._allocate(size_bytes).numpy().view(_Memory).view(_Memory)

    def finished(self, lent: Mapping[str, Array], batches: list[Any]) -> list[Any]:  # noqa: ARG002 (others need it)
        """The batches that were made over lent arrays, to be handed on."""
        return batches

    def _returned(self, reference: "weakref.ref[Array]") -> None:
        _, idle, memory = self._lent.pop(id(reference))
        idle.append(memory)


class TrackedPool(Pool):
    """The same over memory of an allocator of torch's, which decides by itself when it may be used again.

    Page-locked memory, say, may still be copied from when the last tensor over it is gone: torch notes for a block of
    its allocator which streams have copied from it, and waits for them before it lends the block again. It finds the
    block by the tensor's storage. A tensor made of an array has a storage of its own, whose copies are only noted where
    it begins with the block; so `finished` makes all tensors over the storage that the allocator gave.
    """

    def __init__(self, schema: Mapping[str, Column], rows: int, *, allocate: Callable[[int], torch.Tensor]) -> None:
        """Prepares to lend; see `Pool`."""
        super().__init__(schema, rows, idle=0, allocate=allocate)

    def finished(self, lent: Mapping[str, Array], batches: list[Any]) -> list[Any]:
        """The batches with every tensor over a lent array made over the allocator's storage instead."""
        owners = [_owner(array) for array in lent.values() if array.nbytes]
        return [map_tensors(lambda tensor: _over_storage(tensor, owners), batch) for batch in batches]


def _owner(array: Array) -> torch.Tensor:
    """The tensor whose memory an array views."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    assert isinstance(owner, torch.Tensor)
    return owner


def _over_storage(tensor: torch.Tensor, owners: Sequence[torch.Tensor]) -> torch.Tensor:
    """The tensor over an owner's storage, itself where it lies in none; changes are counted for each by itself."""
    for owner in owners:
        offset_bytes = tensor.data_ptr() - owner.data_ptr()
        if tensor.device.type == "cpu" and 0 <= offset_bytes < owner.nbytes and tensor.numel():
            start, misfit = divmod(offset_bytes, tensor.itemsize)
            if misfit:
                return tensor.clone()
            made = torch.empty(0, dtype=tensor.dtype)
            return made.set_(owner.untyped_storage(), start, tensor.size(), tensor.stride())
    return tensor
