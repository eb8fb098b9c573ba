"""What a source gives for a column: an array, ragged rows, or Arrow's memory."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, Union, cast

import numpy as np
import torch

from headrace.formats.ragged import Ragged
from headrace.formats.source import Array

if TYPE_CHECKING:
    import pyarrow as pa

# Of a fixed column an array (rows, *shape); of a ragged one a Ragged; where `python_type` is set an Arrow array, or an
# array of objects (rows,), or, where what came can be one, an array of numbers.
Values: TypeAlias = Union[Array, Ragged, "pa.Array"]


def concatenate(parts: Sequence[Values]) -> Values:
    """The rows of several values of one column, one after the other, in memory of their own.

    Arrays that no array of numbers can hold together become an array of objects, of which each is a row.

    >>> concatenate([np.array([1, 2]), np.array([3])])
    array([1, 2, 3])
    >>> concatenate([np.zeros((2, 3)), np.zeros((1, 5))]).shape
    (3,)
    """
    first = parts[0]
    if isinstance(first, np.ndarray):
        arrays = cast(Sequence[Array], parts)
        if all(array.dtype == first.dtype and array.shape[1:] == first.shape[1:] for array in arrays):
            return np.concatenate(arrays)
        return stacked(as_objects(row for array in arrays for row in array))
    if isinstance(first, Ragged):
        return Ragged.concatenate(cast(Sequence[Ragged], parts))
    import pyarrow as pa

    return pa.concat_arrays(parts)


def as_objects(rows: Iterable[Any]) -> Array:
    """An array (rows,) of objects, each as it is."""
    listed = list(rows)
    objects = np.empty(len(listed), object)
    for place, row in enumerate(listed):
        objects[place] = row
    return objects


def stacked(rows: Array) -> Array:
    """Objects (rows,) as one array (rows, *shape) where all are arrays or tensors of one dtype and shape, or numbers.

    Where they aren't, the objects themselves.

    >>> stacked(as_objects([np.zeros(3), np.ones(3)])).shape
    (2, 3)
    >>> stacked(as_objects([2, 3])), stacked(as_objects("ab"))
    (array([2, 3]), array(['a', 'b'], dtype=object))
    """
    if not len(rows):
        return rows
    listed = list(rows)
    first = listed[0]
    if isinstance(first, torch.Tensor) and all(isinstance(row, torch.Tensor) for row in listed):
        if not all(row.dtype == first.dtype and row.shape == first.shape and _is_plain(row) for row in listed):
            return rows
        return torch.stack(listed).detach().numpy()
    if isinstance(first, np.ndarray) and all(isinstance(row, np.ndarray) for row in listed):
        alike = all(row.dtype == first.dtype and row.shape == first.shape for row in listed)
        return np.stack(listed) if alike and first.dtype.kind in "biufc" else rows
    kind = type(first)
    if kind in (bool, int, float) or isinstance(first, np.number | np.bool_):
        try:
            numbers = np.array(listed) if all(type(row) is kind for row in listed) else rows
        except OverflowError:
            return rows
        return numbers if numbers.dtype.kind in "bifc" or kind not in (bool, int, float) else rows
    return rows


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether NumPy can see it."""
    try:
        tensor.detach()[..., None][:0].numpy()
    except (TypeError, RuntimeError):  # no such dtype, or other memory
        return False
    return True
