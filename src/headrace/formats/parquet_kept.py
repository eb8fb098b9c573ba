"""Columns that stay in Arrow's memory until a batch is made: lists of any length, text, objects, images."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.formats.decoding import Decoder, PayloadError
from headrace.formats.parquet_casts import numbers
from headrace.formats.parquet_column import (
    ColumnRefused,
    ParquetColumn,
    inner_values,
    nulls_of,
    offsets_of,
    unwrapped,
)
from headrace.formats.parquet_fixed import flat_numbers, null_text
from headrace.formats.ragged import Pad, Ragged
from headrace.formats.source import Array
from headrace.formats.values import Values


@dataclass(frozen=True, kw_only=True, eq=False)
class RaggedColumn(ParquetColumn):
    """Lists of any length, of numbers or of arrays of one shape. Kept as lists of the column's dtype without nulls.

    Attributes:
        dtype: Of the numbers.
        stored_shape: The shape of each of a list's values, as it is stored.
        order: Which of these axes each axis of a value is.
        pad: How rows are made as long as each other; None leaves them as they are.
        fill: What stands for nulls within lists, of the dtype; None where they are refused.
        fill_row: The list that stands for a null one; None where they are refused.
    """

    dtype: np.dtype[Any]
    stored_shape: tuple[int, ...]
    order: tuple[int, ...]
    pad: Pad | None = None
    fill: Array | None = None
    fill_row: list[Any] | None = None

    def keep(self, array: pa.Array) -> pa.Array:
        array = compact(unwrapped(array))
        missing = nulls_of(array)
        if missing is None:
            kept = self._plain_lists(array)
        elif self.fill_row is None:
            raise ColumnRefused(null_text(self.name, array.null_count, 0))
        else:
            kept = self._plain_lists(array.filter(pa.array(~missing)))
            places = np.where(missing, len(kept), np.cumsum(~missing) - 1)
            kept = pa.concat_arrays([kept, pa.array([self.fill_row], kept.type)]).take(pa.array(places))
        return kept

    def finish(self, array: pa.Array, out: Array | None) -> Values:
        values = inner_values(array)
        count = len(values)
        while pa.types.is_fixed_size_list(values.type):
            values = inner_values(values)
        shape = tuple(self.stored_shape[axis] for axis in self.order)
        offsets = offsets_of(array)
        # `numbers` gives memory that isn't to be written into, so `Ragged` copies it: rows may still be in a cache
        ragged = Ragged.from_arrays(numbers(values).reshape(count, *shape), offsets - offsets[0])
        if self.pad is None:
            return ragged
        if out is None:
            out = np.empty((len(array), *self.column.shape), self.dtype)
        return self.pad.write(ragged, out)

    def _plain_lists(self, array: pa.Array) -> pa.Array:
        """The same lists, none of them null, as lists of the column's dtype."""
        inner = inner_values(array)
        values, missing = flat_numbers(inner, self.dtype)
        if missing is not None and self.fill is None:
            text = null_text(self.name, 0, int(missing.sum()))
            only = " (the list that is given stands for null rows only)" if self.fill_row else ""
            raise ColumnRefused(f"{text}{only}")
        axes = (0, *(1 + axis for axis in self.order))
        shaped = values.reshape(len(inner), *self.stored_shape).transpose(axes)
        if missing is not None and self.fill is not None:
            shaped = np.where(missing.reshape(len(inner), *self.stored_shape).transpose(axes), self.fill, shaped)
        plain = pa.array(np.ascontiguousarray(shaped).ravel())
        for length in reversed(shaped.shape[1:]):
            plain = pa.FixedSizeListArray.from_arrays(plain, length)
        offsets = offsets_of(array)
        lists = pa.LargeListArray if pa.types.is_large_list(array.type) else pa.ListArray
        return lists.from_arrays(pa.array(offsets - offsets[0]), plain)


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjectColumn(ParquetColumn):
    """Text, bytes and whatever no tensor holds: batches hold Python lists. Nulls within lists and structs are None.

    Attributes:
        kind: The type of the kept arrays.
        filler: What stands for a null row, as an Arrow array of one value; None where they are refused.
        leaves_nulls: Whether null rows come as None.
    """

    kind: pa.DataType
    filler: pa.Array | None = None
    leaves_nulls: bool = False

    def keep(self, array: pa.Array) -> pa.Array:
        array = compact(plain_bytes(unwrapped(array)))
        if array.type != self.kind:
            array = array.cast(self.kind)
        try:
            array.validate(full=True)  # 6 ms a million short texts
        except pa.ArrowInvalid as error:
            raise ColumnRefused(f"holds what its type {self.kind} doesn't allow: {error}") from None
        missing = nulls_of(array)
        if missing is None or self.leaves_nulls:
            return array
        if self.filler is None:
            raise ColumnRefused(null_text(self.name, array.null_count, 0))
        places = np.where(missing, len(array), np.arange(len(array)))
        return pa.concat_arrays([array, self.filler]).take(pa.array(places))

    def finish(self, array: pa.Array, out: Array | None) -> Values:  # noqa: ARG002 - no array holds these
        return array


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodedColumn(ParquetColumn):
    """Payloads (the bytes of images) that are decoded when a batch is made.

    Attributes:
        decoder: Makes rows of payloads.
        fill: Of the decoder's dtype, broadcast to its shape: what stands for nulls; None where they are refused.
    """

    decoder: Decoder
    fill: Array | None = None

    def keep(self, array: pa.Array) -> pa.Array:
        array = compact(plain_bytes(unwrapped(array)))
        if array.null_count and self.fill is None:
            raise ColumnRefused(null_text(self.name, array.null_count, 0))
        return array

    @property
    def uses_keys(self) -> bool:
        """Whether the decoder draws at random, by a key for each sample."""
        return bool(getattr(self.decoder, "uses_keys", False))

    def finish(self, array: pa.Array, out: Array | None) -> Values:
        return self.decoded(array, out, None)

    def decoded(self, array: pa.Array, out: Array | None, keys: npt.NDArray[np.uint64] | None) -> Array:
        """As `finish`, with the keys, uint64 (len(array),), by which random decoding draws."""
        if out is None:
            out = np.empty((len(array), *self.column.shape), self.column.dtype)
        missing = nulls_of(array)
        if missing is None:
            self._decode(array, out, keys)
            return out
        present = np.flatnonzero(~missing)
        decoded = np.empty((len(present), *self.column.shape), self.column.dtype)
        try:
            self._decode(array.take(pa.array(present)), decoded, None if keys is None else keys[present])
        except PayloadError as error:
            error.place = int(present[error.place])
            raise
        out[missing] = self.fill
        out[present] = decoded
        return out

    def _decode(self, array: pa.Array, out: Array, keys: npt.NDArray[np.uint64] | None) -> None:
        if self.uses_keys:
            cast(Any, self.decoder).decode(_payloads(array), out, keys)
        else:
            self.decoder.decode(_payloads(array), out)


def compact(array: pa.Array) -> pa.Array:
    """The array itself, or a copy where it is a small part of the memory that it would hold on to."""
    # half: at worst, what is kept holds twice its own bytes
    if array.nbytes * 2 >= array.get_total_buffer_size():
        return array
    return array.take(pa.array(np.arange(len(array))))


def plain_bytes(array: pa.Array) -> pa.Array:
    """Text and bytes with offsets of 64 bits: those of a batch may take more than 2 GiB together."""
    kind = array.type
    if pa.types.is_string(kind):
        return array.cast(pa.large_string())
    if pa.types.is_fixed_size_binary(kind):
        array = array.cast(pa.binary())
    return array.cast(pa.large_binary()) if pa.types.is_binary(array.type) else array


def _payloads(array: pa.Array) -> list[memoryview]:
    """The bytes of each row where they lie, none of which is null."""
    wide = pa.types.is_large_binary(array.type) or pa.types.is_large_string(array.type)
    _, offsets, data = array.buffers()
    if len(array) == 0 or data is None:
        return [memoryview(b"")] * len(array)
    dtype = np.dtype(np.int64 if wide else np.int32)
    ends = np.frombuffer(offsets, dtype, len(array) + 1, array.offset * dtype.itemsize).tolist()
    octets = memoryview(data)
    return [octets[start:stop] for start, stop in pairwise(ends)]
