"""What becomes of one field of a Parquet file: the kind of column for its type and what is asked of it."""

from typing import Any

import numpy as np
import pyarrow as pa

from headrace.formats.parquet_casts import fitted, number_dtype
from headrace.formats.parquet_column import ColumnRefused, ParquetColumn, ValidityColumn, unwrapped_type
from headrace.formats.parquet_fixed import CodesColumn, FixedColumn
from headrace.formats.parquet_kept import DecodedColumn, ObjectColumn, RaggedColumn
from headrace.formats.parquet_options import ColumnOptions, Leaf
from headrace.formats.parquet_types import Nesting, holds_nanoseconds, is_bytes, is_text, nesting, varying_lengths
from headrace.formats.ragged import Pad
from headrace.formats.source import Array, Column

_DTYPES = (
    "bool",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    "float16",
    "float32",
    "float64",
)


def planned_column(leaf: Leaf, options: ColumnOptions) -> ParquetColumn:
    """The column for a field; ColumnRefused says why there is none."""
    name, nest = leaf.name, nesting(leaf.kind)
    if pa.types.is_null(nest.leaf) and not nest.sizes:
        raise ColumnRefused("its type is null, so it holds nothing: leave it out of columns")
    if name in options.decode:
        return _decoded(leaf, nest, options)
    if name in options.codes:
        return _codes(leaf, nest, options)
    if nest.is_number and (nest.is_fixed or name in options.shape):
        return _fixed(leaf, nest, options)
    if nest.is_ragged:
        return _ragged(leaf, nest, options)
    return _object(leaf, nest, options)


def _place(leaf: Leaf) -> dict[str, Any]:
    return {"name": leaf.name, "path": ".".join(leaf.steps), "steps": leaf.steps}


def validity_column(leaf: Leaf) -> ParquetColumn:
    """The column that says where that of a field is not null."""
    flag = Column(np.dtype(np.bool_))
    name, inside = f"{leaf.name}.__valid__", nesting(leaf.kind).is_number
    return ValidityColumn(**_place(leaf) | {"name": name}, column=flag, stored=flag, inside=inside)


def _fixed(leaf: Leaf, nest: Nesting, options: ColumnOptions) -> ParquetColumn:
    name = leaf.name
    _refuse_options(leaf, options, "pad_to", "lists")
    dtype = _dtype(leaf, nest, options)
    varying: tuple[int, ...] = ()
    if name in options.shape:
        shape = _checked_shape(options.shape[name])
        lengths = varying_lengths(nest, shape)
        if lengths is None:
            raise ColumnRefused(
                f"shape={shape} does not fit {leaf.kind}: give one of as many numbers, and as many axes"
            )
        stored_shape, varying = nest.stored_shape(lengths), lengths
    else:
        stored_shape = nest.stored_shape()
        shape = tuple(stored_shape[axis] for axis in nest.order)
    column = Column(dtype, shape)
    fill = _number_fill(leaf, options, dtype, shape)
    return FixedColumn(
        **_place(leaf),
        column=column,
        stored=column,
        stored_shape=stored_shape,
        order=nest.order,
        varying=varying,
        fill=fill,
    )


def _ragged(leaf: Leaf, nest: Nesting, options: ColumnOptions) -> ParquetColumn:
    name = leaf.name
    dtype, stored_shape = _dtype(leaf, nest, options), Nesting(nest.sizes[1:], (), nest.leaf).stored_shape()
    order = tuple(axis - 1 for axis in nest.order[1:])
    shape = tuple(stored_shape[axis] for axis in order)
    pad = options.pad_to.get(name)
    if pad is None:
        column = Column(dtype, shape, ragged=True, as_list=name in options.lists)
    elif isinstance(pad, Pad):
        _refuse_options(leaf, options, "lists")
        column = Column(dtype, (pad.length, *shape))
        _as_fill("pad_to", pad.value, dtype, ())
    else:
        raise ColumnRefused(f"pad_to: expected hr.Pad(length), got {pad!r}")
    fill, fill_row = None, None
    rows = options.fill.get(name)
    if isinstance(rows, list | tuple) or (isinstance(rows, np.ndarray) and rows.ndim):
        whole = (len(rows), *shape)
        fill_row = np.broadcast_to(_as_fill("fill", rows, dtype, whole), whole).tolist() if len(rows) else []
        fill = np.zeros((), dtype) if name in options.validity else None
    elif name in options.fill or name in options.validity:
        fill, fill_row = _number_fill(leaf, options, dtype, shape), []
    return RaggedColumn(
        **_place(leaf),
        column=column,
        dtype=dtype,
        stored_shape=stored_shape,
        order=order,
        pad=pad,
        fill=fill,
        fill_row=fill_row,
    )


def _object(leaf: Leaf, nest: Nesting, options: ColumnOptions) -> ParquetColumn:
    name = leaf.name
    _refuse_options(leaf, options, "cast", "pad_to", "lists", "shape")
    if holds_nanoseconds(leaf.kind):
        raise ColumnRefused(
            f"it comes as Python objects, which can't hold the nanoseconds of {leaf.kind}: leave it out of columns"
        )
    text, octets = not nest.sizes and is_text(nest.leaf), not nest.sizes and is_bytes(nest.leaf)
    kind = unwrapped_type(leaf.kind)
    if pa.types.is_fixed_size_binary(kind) or pa.types.is_binary(kind):
        kind = pa.large_binary()
    elif pa.types.is_string(kind):
        kind = pa.large_string()
    is_list = bool(nest.sizes) or pa.types.is_map(kind)
    value: Any = options.fill.get(name, "" if text else b"" if octets else [] if is_list else None)
    filler = None
    if value is not None and (name in options.fill or name in options.validity):
        try:
            filler = pa.array([value], kind)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, TypeError, ValueError):
            if name in options.fill:
                raise ColumnRefused(f"fill: expected a value of type {kind}, got {value!r}") from None
    elif name in options.fill:
        raise ColumnRefused(f"fill: expected a value of type {kind}, got None: ask for validity to tell nulls apart")
    return ObjectColumn(
        **_place(leaf),
        column=Column(np.dtype("O"), python_type=str if text else bytes if octets else object),
        kind=kind,
        filler=filler,
        leaves_nulls=filler is None and name in options.validity,
    )


def _codes(leaf: Leaf, nest: Nesting, options: ColumnOptions) -> ParquetColumn:
    values = options.codes[leaf.name]
    _refuse_options(leaf, options, "cast", "pad_to", "lists", "shape")
    kind = nest.leaf
    has_values = is_text(kind) or is_bytes(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    if nest.sizes or not has_values:
        raise ColumnRefused(f"codes: expected a column of text, bytes, integers or booleans, got {leaf.kind}")
    if isinstance(values, str | bytes):
        raise ColumnRefused(f"codes: expected a tuple of values, got {values!r}")
    vocabulary = None
    if values is not None:
        try:
            listed = pa.array([*values], unwrapped_type(kind))
        except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, ValueError, OverflowError) as error:
            raise ColumnRefused(f"codes: expected values of type {kind}: {error}") from None
        if listed.null_count or len(listed.unique()) < len(listed) or not len(listed):
            raise ColumnRefused("codes: expected values, each once and none of them None: use fill for nulls")
        vocabulary = listed
    column = Column(np.dtype(np.int64))
    fill = _number_fill(leaf, options, column.dtype, ())
    return CodesColumn(
        **_place(leaf), column=column, stored=column, vocabulary=vocabulary, fill=None if fill is None else int(fill)
    )


def _decoded(leaf: Leaf, nest: Nesting, options: ColumnOptions) -> ParquetColumn:
    decoder = options.decode[leaf.name]
    _refuse_options(leaf, options, "cast", "pad_to", "lists", "shape", "codes")
    if nest.sizes or not is_bytes(nest.leaf):
        raise ColumnRefused(f"decode: expected binary, or a struct with binary 'bytes', got {leaf.kind}")
    if not (hasattr(decoder, "column") and hasattr(decoder, "decode")):
        raise ColumnRefused(f"decode: expected a decoder such as hr.image(224), got {decoder!r}")
    column = decoder.column
    if not column.is_fixed:
        raise ColumnRefused(f"decode: expected a decoder to samples of one shape, hr.image(224), got {decoder!r}")
    fill = _number_fill(leaf, options, column.dtype, column.shape)
    return DecodedColumn(**_place(leaf), column=column, decoder=decoder, fill=fill)


def _refuse_options(leaf: Leaf, options: ColumnOptions, *refused: str) -> None:
    """Refuses options that make no sense for a column."""
    for option in refused:
        if leaf.name in getattr(options, option):
            others = [other for other in ("decode", "codes", "shape", "pad_to") if leaf.name in getattr(options, other)]
            beside = [other for other in others if other != option]
            what = f"together with {beside[0]}" if beside else f"for {leaf.kind}"
            raise ColumnRefused(f"{option} makes no sense {what}: leave it out")


def _dtype(leaf: Leaf, nest: Nesting, options: ColumnOptions) -> np.dtype[Any]:
    """What numbers become."""
    name, cast = leaf.name, options.cast.get(leaf.name)
    if cast is not None:
        if not isinstance(cast, str | np.dtype | type) or cast not in _DTYPES:
            raise ColumnRefused(f"cast: expected one of {', '.join(_DTYPES)}, got {cast!r}")
        return np.dtype(cast)
    if pa.types.is_decimal(nest.leaf):
        raise ColumnRefused(
            f"no tensor holds {nest.leaf}: ask for cast={{{name!r}: 'float64'}} to round, or 'int64' for whole numbers"
        )
    if pa.types.is_uint64(nest.leaf):
        raise ColumnRefused(
            f"few operations of torch take uint64: ask for cast={{{name!r}: 'int64'}}, which checks that values fit, "
            "or 'uint64'"
        )
    dtype = number_dtype(nest.leaf)
    assert dtype is not None
    return dtype


def _number_fill(leaf: Leaf, options: ColumnOptions, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array | None:
    """What stands for nulls in a column of numbers, 0 by default; None where they are refused."""
    if leaf.name not in options.fill and leaf.name not in options.validity:
        return None
    return _as_fill("fill", options.fill.get(leaf.name, 0), dtype, shape)


def _as_fill(option: str, value: object, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """A value of a dtype that can be broadcast to a shape."""
    try:
        given = np.asarray(value)
        filled = fitted(given.ravel(), dtype).reshape(given.shape) if given.dtype.kind in "biuf" else None
        np.broadcast_to(given, shape)
    except (ColumnRefused, ValueError):
        filled = None
    if filled is None:
        shaped = f" of shape {shape}" if shape else ""
        raise ColumnRefused(f"{option}: expected a value that {dtype}{shaped} can hold, got {value!r}")
    return filled


def _checked_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    lengths = tuple(shape) if isinstance(shape, tuple | list) else ()
    if not lengths or not all(isinstance(length, int | np.integer) and length > 0 for length in lengths):
        raise ColumnRefused(f"shape: expected a tuple of lengths above 0, got {shape!r}")
    return tuple(int(length) for length in lengths)
