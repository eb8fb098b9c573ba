"""From columns to what a training loop gets: batches of tensors, and single samples out of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NoReturn, TypeAlias

import numpy as np
import torch

from headrace.errors import ArgumentError, SampleError
from headrace.formats import Array, Column, Ragged, Values

Batch: TypeAlias = dict[str, Any] | list[Any]
Sample: TypeAlias = dict[str, Any] | tuple[Any, ...]

VALID = "__valid__"

# What is no array and holds none: most of what lists and dicts of JSON hold, which are then left as they are
_ATOMS = {str, bytes, int, float, bool, type(None)}


@dataclass(frozen=True, slots=True)
class BatchForm:
    """How a dataset's columns are put together, in the manner of torch's default collation.

    Attributes:
        schema: The columns by name.
        as_tuple: Whether a sample is a tuple and a batch a list; else both are dicts.
    """

    schema: Mapping[str, Column]
    as_tuple: bool

    def batch(self, columns: Mapping[str, Values]) -> Batch:
        """What a loop gets of the columns: a dict, or a list in the order of the schema.

        Arrays (rows, *shape) become tensors, without a copy; ragged rows stay `Ragged`, or become a list of tensors
        where the column says so; Arrow arrays become lists of Python's own objects, arrays of objects lists of them, in
        which arrays are tensors.

        Raises:
            SampleError: Samples differ in shape, of a column whose batches are one array.
        """
        for name, column in self.schema.items():
            values = columns[name]
            if column.python_type is np.ndarray and isinstance(values, np.ndarray) and values.dtype.hasobject:
                _refuse_unlike(name, values)
        leaves = {name: as_leaf(columns[name], column) for name, column in self.schema.items()}
        return list(leaves.values()) if self.as_tuple else leaves

    def joined(self, parts: Sequence[Batch]) -> Batch:
        """The rows of several batches as one, in memory of its own; as `batch` gives it where they are read together.

        Raises:
            SampleError: Samples differ in shape, of a column whose batches are one array.
        """
        columns = [part if isinstance(part, list) else list(part.values()) for part in parts]
        leaves = {
            name: _joined(name, column, own)
            for (name, column), own in zip(self.schema.items(), zip(*columns, strict=True), strict=True)
        }
        return list(leaves.values()) if self.as_tuple else leaves

    def batches(self, columns: Mapping[str, Values], bounds: Sequence[int]) -> list[Batch]:
        """Several batches out of columns that hold one after the other: batch i is rows [bounds[i], bounds[i + 1]).

        Each tensor is made by itself over its own rows, so that changing one in place means nothing to the others.
        """
        if len(bounds) == 2:
            return [self.batch(columns)]
        return [
            self.batch({name: _sliced(column, start, stop) for name, column in columns.items()})
            for start, stop in pairwise(bounds)
        ]

    def row(self, batch: Batch, index: int) -> Sample:
        """One sample of a batch: a dict, or a tuple."""
        if isinstance(batch, list):
            return tuple(_row(column, index) for column in batch)
        return {name: _row(column, index) for name, column in batch.items()}

    def rows(self, batch: Batch) -> list[Sample]:
        """All samples of a batch."""
        columns = batch if isinstance(batch, list) else list(batch.values())
        split = [_unbind(column) for column in columns]
        if isinstance(batch, list):
            return list(zip(*split, strict=True))
        return [dict(zip(batch, values, strict=True)) for values in zip(*split, strict=True)]


def with_valid(batch: Any, valid: Array) -> Any:
    """The batch with one more column, `__valid__` (bool): which rows are real ones, not repeats that fill up a step.

    Raises:
        ArgumentError: The batch is neither a dict nor a list.
    """
    column = torch.from_numpy(valid.copy())
    if isinstance(batch, dict):
        return {**batch, VALID: column}
    if isinstance(batch, list):
        return [*batch, column]
    raise ArgumentError(
        f"pad_last: expected batches that are dicts or lists, to carry {VALID!r}, got {type(batch).__name__}"
    )


def as_leaf(values: Values, column: Column) -> Any:
    """A column of a batch: over an array's memory a tensor, or a dict of those of its fields; else Ragged or a list."""
    if not isinstance(values, np.ndarray):
        if not isinstance(values, Ragged):
            return values.to_pylist()
        return values.to_list() if column.as_list else values
    if values.dtype.hasobject:
        rows = values.tolist()
        return [_with_tensors(row) for row in rows] if column.python_type not in (str, bytes) else rows
    if values.dtype.names:
        return {field: _field_as_tensor(values[field]) for field in values.dtype.names}
    tensor = torch.from_numpy(values)
    return tensor if column.torch_dtype is None else tensor.view(column.torch_dtype)


def _refuse_unlike(name: str, rows: Iterable[Any]) -> NoReturn:
    """Refuses arrays or tensors that make no array together."""
    shapes = list(dict.fromkeys(tuple(np.shape(row)) for row in rows))
    raise SampleError(
        f"{name}: expected arrays of one shape in a batch, got {' and '.join(map(str, shapes[:2]))}: "
        f"images are made as large as each other by decode={{{name!r}: headrace.image(224)}}"
    )


def _joined(name: str, column: Column, leaves: Sequence[Any]) -> Any:
    """A column of several batches as one."""
    first = leaves[0]
    if all(isinstance(leaf, Ragged) for leaf in leaves):
        return Ragged.concatenate(leaves)
    if isinstance(first, dict):
        return {field: _joined(name, column, [leaf[field] for leaf in leaves]) for field in first}
    if isinstance(first, torch.Tensor) and all(
        isinstance(leaf, torch.Tensor) and leaf.dtype == first.dtype and leaf.shape[1:] == first.shape[1:]
        for leaf in leaves
    ):
        return torch.cat(list(leaves))
    rows = [row for leaf in leaves for row in _unbind(leaf)]
    if column.python_type is np.ndarray:
        _refuse_unlike(name, rows)
    return rows


def _field_as_tensor(array: Array) -> Any:
    if array.dtype.names:
        return {field: _field_as_tensor(array[field]) for field in array.dtype.names}
    # torch wants aligned values and strides in whole ones, which packed fields of different sizes don't have
    if not array.flags.aligned or any(stride % array.itemsize for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array)


def _with_tensors(tree: Any) -> Any:
    """The same dicts, lists and tuples with tensors for the arrays in them; of text, say, there are none."""
    if isinstance(tree, np.ndarray):
        return _array_as_tensor(tree)
    if isinstance(tree, dict):
        if _ATOMS.issuperset(map(type, tree.values())):
            return tree
        return {name: _with_tensors(value) for name, value in tree.items()}
    if type(tree) not in (list, tuple) or _ATOMS.issuperset(map(type, tree)):
        return tree
    return type(tree)(map(_with_tensors, tree))


def _array_as_tensor(array: Array) -> Any:
    """The array as a tensor over its memory, or a copy where torch wants it otherwise; itself where none holds it."""
    if array.dtype.names:
        return {field: _array_as_tensor(array[field]) for field in array.dtype.names}
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    is_plain = array.flags.writeable and array.flags.aligned and all(stride >= 0 for stride in array.strides)
    try:
        return _field_as_tensor(array if is_plain else array.copy())
    except TypeError:  # of a dtype that torch hasn't
        return array


def _sliced(values: Values, start: int, stop: int) -> Values:
    """Rows [start, stop) over the same memory."""
    part = values[start:stop]
    # a view of a tensor would count changes together with the tensor's other views
    return part.map_tensors(lambda tensor: tensor.data) if isinstance(part, Ragged) else part


def _row(column: Any, index: int) -> Any:
    if isinstance(column, dict):
        return {name: _row(field, index) for name, field in column.items()}
    return column[index]


def _unbind(column: Any) -> Sequence[Any]:
    """A column's rows."""
    if isinstance(column, torch.Tensor):
        return column.unbind(0)
    if isinstance(column, dict):
        split = [_unbind(field) for field in column.values()]
        return [dict(zip(column, values, strict=True)) for values in zip(*split, strict=True)]
    return column.to_list() if isinstance(column, Ragged) else column
