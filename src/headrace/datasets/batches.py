"""From columns to what a training loop gets: batches of tensors, and single samples out of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import torch

from headrace.errors import ArgumentError
from headrace.formats import Array, Column

Batch: TypeAlias = dict[str, Any] | list[Any]
Sample: TypeAlias = dict[str, Any] | tuple[Any, ...]

VALID = "__valid__"


@dataclass(frozen=True, slots=True)
class BatchForm:
    """How a dataset's columns are put together, in the manner of torch's default collation.

    Attributes:
        schema: The columns by name.
        as_tuple: Whether a sample is a tuple and a batch a list; else both are dicts.
    """

    schema: Mapping[str, Column]
    as_tuple: bool

    def batch(self, columns: Mapping[str, Array]) -> Batch:
        """The columns (rows, *shape) as tensors, without a copy: a dict, or a list in the order of the schema."""
        tensors = {name: as_tensor(columns[name], column) for name, column in self.schema.items()}
        return list(tensors.values()) if self.as_tuple else tensors

    def batches(self, columns: Mapping[str, Array], bounds: Sequence[int]) -> list[Batch]:
        """Several batches out of columns that hold one after the other: batch i is rows [bounds[i], bounds[i + 1]).

        Each tensor is made by itself over its own rows, so that changing one in place means nothing to the others.
        """
        if len(bounds) == 2:
            return [self.batch(columns)]
        return [
            self.batch({name: column[start:stop] for name, column in columns.items()})
            for start, stop in pairwise(bounds)
        ]

    def row(self, batch: Batch, index: int) -> Sample:
        """One sample of a batch: a dict, or a tuple."""
        return self._sample(_map_leaves(lambda leaf: leaf[index], batch))

    def rows(self, batch: Batch) -> list[Sample]:
        """All samples of a batch."""
        columns = batch if isinstance(batch, list) else list(batch.values())
        split = [_unbind(column) for column in columns]
        if isinstance(batch, list):
            return list(zip(*split, strict=True))
        return [dict(zip(batch, values, strict=True)) for values in zip(*split, strict=True)]

    def _sample(self, values: Any) -> Sample:
        return tuple(values) if self.as_tuple else values


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


def as_tensor(array: Array, column: Column) -> Any:
    """An array as a tensor over the same memory; a structured one as a dict of its fields."""
    if array.dtype.names:
        return {field: _field_as_tensor(array[field]) for field in array.dtype.names}
    tensor = torch.from_numpy(array)
    return tensor if column.torch_dtype is None else tensor.view(column.torch_dtype)


def _field_as_tensor(array: Array) -> Any:
    if array.dtype.names:
        return {field: _field_as_tensor(array[field]) for field in array.dtype.names}
    # torch wants aligned values and strides in whole ones, which packed fields of different sizes don't have
    if not array.flags.aligned or any(stride % array.itemsize for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array)


def _map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _map_leaves(function, value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_map_leaves(function, value) for value in tree]
    return function(tree)


def _unbind(column: Any) -> Sequence[Any]:
    """A column's rows."""
    if isinstance(column, dict):
        split = [_unbind(field) for field in column.values()]
        return [dict(zip(column, values, strict=True)) for values in zip(*split, strict=True)]
    rows: Sequence[Any] = column.unbind(0)
    return rows
