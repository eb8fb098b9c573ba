"""Which columns of a Parquet file are read, and what each becomes.

| Arrow type                                        | in batches                                                       |
|---------------------------------------------------|------------------------------------------------------------------|
| bool, int8..int64, uint8..uint32, float16..64     | a tensor of that dtype                                           |
| uint64, decimals                                  | refused without `cast`: `"int64"`, `"float64"`, ...              |
| timestamp, duration, time64                       | int64 in the column's own unit                                   |
| date32, time32; date64                            | int32 (days; the column's unit); int64 (ms)                      |
| fixed-size lists of these, nested too             | a tensor (rows, *lengths)                                        |
| `arrow.fixed_shape_tensor`                        | a tensor (rows, *shape), its axes in their logical order         |
| lists of these, or of fixed-size lists of these   | `Ragged`; with `pad_to` a tensor, with `lists` a list of tensors |
| lists that are equally long, with `shape`         | a tensor (rows, *shape)                                          |
| string; binary, fixed-size binary                 | list[str]; list[bytes]                                           |
| binary, or a struct {bytes, ...}, with `decode`   | what the decoder gives                                           |
| dictionary                                        | as what it holds                                                 |
| text, bytes, integers, booleans, with `codes`     | int64, the value's place among the codes                         |
| struct                                            | its fields, as columns named "struct.field"                      |
| other lists, maps, unions                         | a list of what Python makes of them, with None for nulls inside; |
|                                                   | refused where they hold times in nanoseconds                     |
| other extension types                             | as what they are stored as                                       |
| null                                              | refused                                                          |

Casts are checked. What becomes an integer or a boolean, and an integer that becomes a float, must be the same number
after the cast. Floats and decimals are rounded to the nearest float, but don't become infinite.

Nulls are refused, with their count, unless there is a `fill` for the column or it is among `validity`. The second gives
a column "x.__valid__" besides: False where the row is null or, in lists of numbers, a value in it is. Nulls are then
zeros, "", empty lists, where no `fill` says otherwise. Of lists of any length, a `fill` that is a list stands for null
rows, and one that is a number for null values; a null row is then an empty list. NaN is no null.
"""

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from headrace.errors import ArgumentError
from headrace.formats.decoding import Decoder
from headrace.formats.nearest import listed, nearest
from headrace.formats.parquet_column import ColumnRefused, ParquetColumn
from headrace.formats.parquet_kinds import planned_column, validity_column
from headrace.formats.parquet_options import ColumnOptions, Leaf

__all__ = ["ColumnOptions", "ColumnRefused", "ParquetColumn", "plan_columns"]


def plan_columns(
    schema: pa.Schema, names: Sequence[str] | None, options: ColumnOptions, *, where: str
) -> list[ParquetColumn]:
    """The columns to read, in the order of `names` or of the file.

    Args:
        schema: The file's, with columns from partitions.
        names: Columns, dotted paths into structs, or structs for all of their fields; None for every column.
        options: What is asked of them.
        where: The file, for error texts.

    Raises:
        ArgumentError: No such column, an option that names another column or doesn't fit the type, a type that no
            tensor holds without a cast.

    >>> schema = pa.schema([("at", pa.timestamp("us")), ("x", pa.list_(pa.float32(), 3)), ("s", pa.string())])
    >>> for column in plan_columns(schema, None, ColumnOptions(), where="a.parquet"):
    ...     print(column.name, column.column.dtype, column.column.shape, column.column.python_type)
    at int64 () None
    x float32 (3,) None
    s object () <class 'str'>
    """
    leaves = [leaf for top in schema for leaf in _leaves((top.name,), top.type, options.decode)]
    chosen = _chosen(leaves, names, where)
    _check_options(options, leaves, {leaf.name for leaf in chosen}, where)
    planned = []
    for leaf in chosen:
        try:
            planned.append(planned_column(leaf, options))
        except ColumnRefused as refused:
            raise ArgumentError(f"column {leaf.name!r} of {where}: {refused}") from None
        if leaf.name in options.validity:
            planned.append(validity_column(leaf))
    _check_names([column.name for column in planned], where)
    return planned


def _leaves(steps: tuple[str, ...], kind: pa.DataType, decode: Mapping[str, Decoder]) -> Iterator[Leaf]:
    """The fields below a field, or itself."""
    name = ".".join(steps)
    inner = kind
    while isinstance(inner, pa.BaseExtensionType):
        inner = inner.storage_type
    if not pa.types.is_struct(inner) or inner.num_fields == 0:
        yield Leaf(name, steps, kind)
        return
    # Hugging Face writes images as {bytes, path}
    is_decoded = name in decode and inner.get_field_index("bytes") >= 0
    if is_decoded:
        yield Leaf(name, (*steps, "bytes"), inner.field("bytes").type)
    for child in inner:
        for leaf in _leaves((*steps, child.name), child.type, decode):
            yield Leaf(leaf.name, leaf.steps, leaf.kind, leaf.is_default and not is_decoded)


def _chosen(leaves: list[Leaf], names: Sequence[str] | None, where: str) -> list[Leaf]:
    if names is None:
        return [leaf for leaf in leaves if leaf.is_default]
    is_many = isinstance(names, Sequence) and not isinstance(names, str)  # an iterator ends, a set has no order
    if not is_many or not all(isinstance(name, str) for name in names):
        raise ArgumentError(f"columns: expected a list of names, got {names!r}")
    if not names:
        raise ArgumentError(f"columns: expected at least one name of a column of {where}, got none")
    chosen = []
    for name in names:
        found = [leaf for leaf in leaves if leaf.name == name]
        found = found or [leaf for leaf in leaves if leaf.name.startswith(f"{name}.") and leaf.is_default]
        if not found:
            raise ArgumentError(f"columns: no column {name!r} in {where}{_nearest(name, leaves)}")
        chosen += found
    return chosen


def _check_names(names: list[str], where: str) -> None:
    """Refuses two columns of one name."""
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise ArgumentError(f"columns: {twice!r} comes twice, asked for twice or so named in {where}: leave one out")


def _check_options(options: ColumnOptions, leaves: list[Leaf], read: set[str], where: str) -> None:
    """Refuses options that name something else than a column that is read."""
    known = {leaf.name for leaf in leaves}
    for option, name in options.named():
        if name in read:
            continue
        fields = [leaf.name for leaf in leaves if leaf.name.startswith(f"{name}.")]
        if name in known:
            raise ArgumentError(f"{option}: column {name!r} is not read: add it to columns, or leave the option out")
        if fields and option == "decode":
            raise ArgumentError(f"decode: {name!r} is a struct without a field 'bytes': name one of {listed(fields)}")
        if fields:
            raise ArgumentError(f"{option}: {name!r} is a struct: name its fields, {listed(fields)}")
        raise ArgumentError(f"{option}: no column {name!r} in {where}{_nearest(name, leaves)}")


def _nearest(name: str, leaves: list[Leaf]) -> str:
    """The end of an error text: names like this one, or else some of those that there are."""
    paths = dict.fromkeys(".".join(leaf.steps[: depth + 1]) for leaf in leaves for depth in range(len(leaf.steps)))
    return nearest(name, paths, [leaf.name for leaf in leaves])
