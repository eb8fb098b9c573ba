"""Columns whose rows all have one shape: numbers, fixed-size lists of them, tensors, codes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.formats.parquet_casts import converted
from headrace.formats.parquet_column import (
    ColumnRefused,
    ParquetColumn,
    counted,
    either,
    inner_values,
    is_list,
    nulls_of,
    offsets_of,
    unwrapped,
)
from headrace.formats.source import Array


@dataclass(frozen=True, kw_only=True, eq=False)
class FixedColumn(ParquetColumn):
    """Numbers, or lists of them that are equally long in all rows.

    Attributes:
        stored_shape: The lists' lengths, from the outside.
        order: Which of these each axis of a sample is.
        varying: The lengths at the levels where the type leaves them open.
        fill: Of the column's dtype, broadcast to its shape: what stands for nulls; None where they are refused.
    """

    stored_shape: tuple[int, ...]
    order: tuple[int, ...]
    varying: tuple[int, ...] = ()
    fill: Array | None = None

    def view(self, array: pa.Array) -> Array | None:
        assert self.stored is not None
        values, missing = flat_numbers(array, self.stored.dtype, self.varying)
        if missing is not None or self.order != tuple(range(len(self.stored_shape))):
            return None
        return values.reshape(len(array), *self.stored.shape)

    def write(self, array: pa.Array, out: Array) -> None:
        rows = len(array)
        values, missing = flat_numbers(array, out.dtype, self.varying)
        if missing is not None and self.fill is None:
            raise ColumnRefused(null_text(self.name, array.null_count, int(missing.sum())))
        # as stored (rows, *stored_shape) -> the axes in a sample's order -> written where these lie in `out`
        axes = (0, *(1 + axis for axis in self.order))
        shaped = values.reshape(rows, *self.stored_shape).transpose(axes)
        np.copyto(out.reshape(shaped.shape), shaped)
        if missing is not None and self.fill is not None:
            where = missing.reshape(rows, *self.stored_shape).transpose(axes).reshape(out.shape)
            np.copyto(out, self.fill, where=where)


@dataclass(frozen=True, kw_only=True, eq=False)
class CodesColumn(ParquetColumn):
    """The place of each value in a vocabulary, int64.

    Attributes:
        vocabulary: The values as an Arrow array of the column's type, without repeats; None while it isn't known.
        fill: The code of nulls; None where they are refused.
    """

    vocabulary: pa.Array | None
    fill: int | None = None

    def write(self, array: pa.Array, out: Array) -> None:
        assert self.vocabulary is not None, "the vocabulary must be found first"
        while isinstance(array.type, pa.BaseExtensionType):
            array = array.storage
        if pa.types.is_dictionary(array.type) and not array.dictionary.null_count:
            # each value is looked up once; those that no row has may be unknown
            codes = pc.index_in(array.dictionary, value_set=self.vocabulary).take(array.indices)
        else:
            array = unwrapped(array)
            codes = pc.index_in(array.cast(self.vocabulary.type), value_set=self.vocabulary)
        missing = nulls_of(array)
        unknown = nulls_of(codes)
        if unknown is not None and missing is not None:
            unknown &= ~missing
        if unknown is not None and unknown.any():
            example = _shown(array.slice(int(unknown.argmax()), 1))
            raise ColumnRefused(
                f"holds {counted(int(unknown.sum()), 'value')} without a place in codes, such as {example!r}: "
                f"add them to codes={{{self.name!r}: (...)}}"
            )
        if missing is not None and self.fill is None:
            raise ColumnRefused(null_text(self.name, int(missing.sum()), 0))
        out[...] = codes.fill_null(0).to_numpy()
        if missing is not None:
            out[missing] = self.fill


def flat_numbers(
    array: pa.Array, dtype: np.dtype[Any], varying: tuple[int, ...] = (), outer: Array | None = None
) -> tuple[Array, Array | None]:
    """All numbers of an array of numbers or lists, one after the other, without a copy where none is needed.

    Args:
        array: Of any nesting; all lists of one level are equally long.
        dtype: What the numbers become.
        varying: How long the lists must be where their type leaves it open, from the outside.
        outer: bool (len(array),), where a list around the value is null.

    Returns:
        The numbers (len(array) * product of all lengths,), and where they are null, bool of the same shape, or None
        where none is; they are anything there.

    Raises:
        ColumnRefused: A list has another length, or numbers don't fit the dtype.
    """
    array = unwrapped(array)
    missing = either(outer, nulls_of(array))
    if pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        below = None if missing is None else np.repeat(missing, size)
        return flat_numbers(inner_values(array), dtype, varying, below)
    if not is_list(array.type):
        return converted(array, dtype, missing), missing
    rows, present = len(array), array
    if missing is not None:
        # whatever lies below a null list goes, and its length may be any
        present = array.filter(pa.array(~missing))
    _check_lengths(present, varying[0])
    values, below = flat_numbers(inner_values(present), dtype, varying[1:])
    if missing is None:
        return values, below
    width = varying[0] * _width(array.type.value_type, varying[1:])
    spread, absent = np.zeros((rows, width), dtype), np.zeros((rows, width), np.bool_)
    spread[~missing] = values.reshape(len(present), width)
    absent[missing] = True
    if below is not None:
        absent[~missing] = below.reshape(len(present), width)
    return spread.ravel(), absent.ravel()


def _shown(array: pa.Array) -> object:
    """The one value of an array, as bytes where it should be text but isn't."""
    try:
        return array[0].as_py()
    except UnicodeDecodeError:
        return unwrapped(array).cast(pa.large_binary())[0].as_py()


def null_text(name: str, rows: int, values: int) -> str:
    """Says how many nulls there are and what to do: rows that are null, or else values within them."""
    nulls = counted(rows or values, "null")
    within = "" if rows else " within its lists"
    return (
        f"holds {nulls}{within}: give fill={{{name!r}: ...}} for a value in their place, or validity=[{name!r}] "
        "for a column that says where they are"
    )


def _check_lengths(array: pa.Array, size: int) -> None:
    lengths = np.diff(offsets_of(array))
    if (lengths != size).any():
        wrong = lengths[lengths != size]
        raise ColumnRefused(
            f"holds {counted(len(wrong), 'list')} not of length {size}, as shape says, such as one of {wrong[0]}: "
            "give another shape, or leave it out and get lists of any length"
        )


def _width(kind: pa.DataType, varying: tuple[int, ...]) -> int:
    """How many numbers one value of a type holds."""
    if isinstance(kind, pa.BaseExtensionType):
        return _width(kind.storage_type, varying)
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size) * _width(kind.value_type, varying)
    if pa.types.is_nested(kind):
        return varying[0] * _width(kind.value_type, varying[1:])
    return 1
