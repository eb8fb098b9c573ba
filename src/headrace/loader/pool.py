"""Batch memory that is used again: fresh pages cost several times the copy into them.

Guarantees:
- Memory that anybody can still reach, through a tensor, an array or any view of one, is never lent again: the array
  that was lent is kept alive by all of them, and its memory returns only when it is gone.
- `lend` may be called from any thread; memory returns from whichever thread drops the last view.
"""

import weakref
from collections import deque
from collections.abc import Mapping

import numpy as np

from headrace.formats import Array, Column


class _Memory(np.ndarray[tuple[int], np.dtype[np.uint8]]):
    """Memory to be lent: an array of a class of its own, at which NumPy stops collapsing views."""


class Pool:
    """Arrays for the fixed columns of batches of up to a fixed number of rows."""

    def __init__(self, schema: Mapping[str, Column], rows: int, *, idle: int) -> None:
        """Prepares to lend; allocates nothing.

        Args:
            schema: The columns.
            rows: The most rows that a batch has.
            idle: How many batches' memory is kept while nobody uses it.
        """
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
                memory = _Memory(capacity_bytes, np.uint8)
            # NumPy collapses chains of views down to the array that owns the memory, but not past one of another class:
            # so every view of `array` keeps `array` itself alive
            array: Array = np.ndarray((rows, *shape), dtype, memory)
            reference = weakref.ref(array, self._returned)
            self._lent[id(reference)] = reference, idle, memory
            arrays[name] = array
        return arrays

    def _returned(self, reference: "weakref.ref[Array]") -> None:
        _, idle, memory = self._lent.pop(id(reference))
        idle.append(memory)
