"""Numbers out of Arrow's memory, and from one dtype to another without a loss that nobody asked for."""

from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.formats.parquet_column import ColumnRefused, counted
from headrace.formats.source import Array

# 10**22 is the largest power of ten that a float64 holds exactly, and 15 digits are the most that it always does: the
# quotient of two such numbers is the float64 next to the decimal.
_EXACT_DIGITS, _EXACT_SCALE = 15, 22


def number_dtype(kind: pa.DataType) -> np.dtype[Any] | None:
    """The dtype of a type of numbers as it lies in memory; None of other types and of decimals.

    Times are integers in their own unit: those of 32 bits int32, the others int64.
    """
    if pa.types.is_boolean(kind):
        return np.dtype(np.bool_)
    if pa.types.is_floating(kind):
        return np.dtype(f"float{kind.bit_width}")
    if pa.types.is_unsigned_integer(kind):
        return np.dtype(f"uint{kind.bit_width}")
    if pa.types.is_integer(kind) or (pa.types.is_temporal(kind) and not pa.types.is_interval(kind)):
        return np.dtype(f"int{kind.bit_width}")
    return None


def numbers(array: pa.Array) -> Array:
    """The numbers of an array, (len(array),), where they lie in Arrow's memory: not to be written into."""
    dtype = number_dtype(array.type)
    assert dtype is not None
    data = array.buffers()[1]
    if len(array) == 0 or data is None:
        return np.zeros(len(array), dtype)
    if dtype == np.bool_:
        start, stop = array.offset, array.offset + len(array)
        octets = np.frombuffer(data, np.uint8)[start // 8 : -(-stop // 8)]
        bits = np.unpackbits(octets, bitorder="little")[start % 8 :]
        return bits[: len(array)].view(np.bool_)
    values = np.frombuffer(data, dtype, len(array), array.offset * dtype.itemsize)
    values.flags.writeable = False
    return values


def converted(array: pa.Array, dtype: np.dtype[Any], missing: Array | None) -> Array:
    """The numbers of an array in another dtype, (len(array),).

    Integers and booleans come out exactly or not at all, and so do those that become floats. Floats and decimals are
    rounded to the nearest float (decimals to a float64 first), but no finite one becomes infinite.

    Args:
        array: Numbers or decimals.
        dtype: What they become.
        missing: bool (len(array),), where the values mean nothing; they come as 0 where dtypes differ.

    Raises:
        ColumnRefused: Values don't fit.
    """
    values = _decimals(array, dtype, missing) if pa.types.is_decimal(array.type) else numbers(array)
    if values.dtype == dtype:
        return values
    return fitted(values if missing is None else np.where(missing, values.dtype.type(0), values), dtype)


def fitted(values: Array, dtype: np.dtype[Any]) -> Array:
    """The same numbers in another dtype, see `converted`."""
    # NumPy calls int64 to float64 safe
    if np.can_cast(values.dtype, dtype, "safe") and (values.dtype.kind not in "iu" or dtype.kind not in "fc"):
        return values.astype(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        cast = values.astype(dtype)
    if dtype.kind == "b":
        lost = (values != 0) & (values != 1)
    elif dtype.kind in "iu":
        lost = _outside(values, dtype)
        if values.dtype.kind == "f":
            lost |= np.trunc(values) != values
    elif values.dtype.kind == "f":
        lost = np.isinf(cast) & np.isfinite(values)
    else:
        lost = _inexact(values, cast)
    if lost.any():
        raise ColumnRefused(_refusal(values[lost], values.dtype, dtype))
    return cast


def _outside(values: Array, dtype: np.dtype[Any]) -> Array:
    """Where numbers lie outside an integer dtype's range; NaN does."""
    info = np.iinfo(dtype)
    if values.dtype.kind == "f":
        # max + 1 is a power of two, which a float64 holds; max itself may not be one of its values
        wide = values.astype(np.float64, copy=False)
        return np.asarray(~((wide >= float(info.min)) & (wide < float(info.max + 1))))
    return np.asarray((values < info.min) | (values > info.max))


def _inexact(values: Array, cast: Array) -> Array:
    """Where integers differ from the floats that they became."""
    wide = cast.astype(np.float64, copy=False)
    outside = _outside(wide, values.dtype)
    return np.asarray(outside | (np.where(outside, 0.0, wide).astype(values.dtype) != values))


def _refusal(lost: Array, source: np.dtype[Any], dtype: np.dtype[Any]) -> str:
    if dtype.kind == "f":
        wider = "float64" if dtype.itemsize < 8 else ""
    else:
        wider = "float64" if source.kind == "f" else "int64" if dtype != np.int64 else "uint64"
    instead = f'cast to "{wider}", or leave the cast out' if wider else "leave the cast out"
    return _text(len(lost), dtype, lost[0].item(), instead)


def _text(count: int, dtype: np.dtype[Any], example: object, instead: str) -> str:
    return f"holds {counted(count, 'value')} not to be had as {dtype} without loss, such as {example}: {instead}"


def _decimals(array: pa.Array, dtype: np.dtype[Any], missing: Array | None) -> Array:
    """Decimals as int64 or uint64 where an integer is asked for, else as float64."""
    if missing is not None:
        array = pc.if_else(pa.array(missing), pa.scalar(None, array.type), array)
    if array.type.bit_width < 128:
        # Arrow 26 finds that no decimal32 fits an int64
        array = array.cast(pa.decimal128(38, array.type.scale))
    kind = array.type
    if dtype.kind in "biu":
        target = pa.uint64() if dtype == np.uint64 else pa.int64()
        try:
            return numbers(array.cast(target))
        except pa.ArrowInvalid:
            info = np.iinfo(np.uint64 if dtype == np.uint64 else np.int64)
            lost = [value for value in array.to_pylist() if value is not None and not _is_whole(value, info)]
            raise ColumnRefused(_text(len(lost), dtype, lost[0], 'cast to "float64"')) from None
    if kind.bit_width == 128 and kind.precision <= _EXACT_DIGITS and 0 <= kind.scale <= _EXACT_SCALE:
        # (rows, 2) words: a decimal of few digits fits the lower one
        words = np.frombuffer(array.buffers()[1] or b"", np.int64).reshape(-1, 2)
        return np.asarray(words[array.offset : array.offset + len(array), 0] / 10.0**kind.scale)
    # Arrow's own cast is off by one in the last place for a third of all values; by way of text it rounds correctly.
    return numbers(array.cast(pa.string()).cast(pa.float64()))


def _is_whole(value: Decimal, info: Any) -> bool:
    return value == value.to_integral_value() and info.min <= value <= info.max
