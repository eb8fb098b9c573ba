"""What footers say of the values in row groups, as expressions that hold for every row.

pyarrow can do that, but ends the process where a flipped byte breaks a footer's statistics, and forgets that they say
nothing of NaN: pyarrow 26 passes over rows that `x != 1` or `is_nan(x)` means. So the bytes are read here
(`parquet_thrift`), for the types whose order the specification fixes, and NaN is a case of its own:
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift (Statistics, ColumnOrder)
"""

import itertools
import json
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headrace.formats.parquet_footers import Footer
from headrace.formats.parquet_thrift import Chunk, parse_groups

Case: TypeAlias = list[pc.Expression]

# Each more doubles the cases of a row group; of others nothing is said.
_MOST_FLOATS = 4
_UNITS = {"milliseconds": "ms", "microseconds": "us", "nanoseconds": "ns"}
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "FLOAT": 4, "DOUBLE": 8}


def group_cases(footer: Footer, numbers: Sequence[int], fields: Sequence[pa.Field]) -> list[list[Case]]:
    """For each row group the cases, one of which holds for any of its rows: expressions that are all true of it.

    Args:
        footer: A file's footer.
        numbers: The row groups' numbers.
        fields: The top-level columns that matter; nothing is said of those whose types have no order of use here.
    """
    schema, width = footer.metadata.schema, footer.metadata.num_columns
    # of a top-level column: a field "b" of a struct "a" has the same path as a column named "a.b"
    leaves = {
        schema.column(i).path: (i, schema.column(i))
        for i in range(width)
        if schema.column(i).name == schema.column(i).path
    }
    chosen = [(field, *leaves[field.name]) for field in fields if field.name in leaves]
    chosen = [(field, i, leaf) for field, i, leaf in chosen if leaf.max_repetition_level == 0]
    told = parse_groups(footer.raw, [i for _, i, _ in chosen], with_statistics=True)
    cases = []
    for number in numbers:
        always: Case = []
        either: list[tuple[Case, Case]] = []
        for field, i, leaf in chosen:
            group = told.groups[number]
            chunk = group.chunks[i] if told.has_orders else Chunk(nulls=group.chunks[i].nulls)
            known = _known(field, leaf, chunk, group.rows)
            if not pa.types.is_floating(field.type):
                always += known
            elif known and len(either) < _MOST_FLOATS:
                either.append((known, [equals(field.name, pa.scalar(np.nan, field.type))]))
        cases.append([[*always, *itertools.chain(*some)] for some in itertools.product(*either)])
    return cases


def equals(name: str, value: pa.Scalar) -> pc.Expression:
    """The expression that says that a column has this value, or is null as it is."""
    return pc.field(name) == value if value.is_valid else pc.field(name).is_null()


def _known(field: pa.Field, leaf: pq.ColumnSchema, chunk: Chunk, rows: int) -> Case:
    """What holds for each row's value, NaN aside."""
    column = pc.field(field.name)
    if chunk.nulls == rows:
        return [column.is_null()]
    smallest, largest = _scalar(field.type, leaf, chunk.smallest), _scalar(field.type, leaf, chunk.largest)
    if smallest is not None and largest is not None and not pc.less_equal(smallest, largest).as_py():
        smallest = largest = None  # a lie
    is_exact = not (pa.types.is_floating(field.type) or leaf.physical_type == "BYTE_ARRAY")
    if is_exact and chunk.nulls == 0 and smallest is not None and smallest == largest:
        return [column == smallest]
    bounds = []
    if smallest is not None:
        bounds.append(column >= smallest)
    if largest is not None:
        bounds.append(column <= largest)
    if chunk.nulls == 0:
        return bounds or ([] if pa.types.is_floating(field.type) else [column.is_valid()])
    return [bound | column.is_null() for bound in bounds]


def _scalar(kind: Any, leaf: pq.ColumnSchema, raw: bytes | None) -> pa.Scalar | None:
    """A value of a column's statistics; None where it is missing, makes no sense, or is of a type that isn't used."""
    if raw is None or len(raw) != _WIDTHS.get(leaf.physical_type, len(raw)):
        return None
    try:
        value = _decode(kind, leaf, raw)
    except (pa.ArrowException, ValueError, OverflowError, TypeError, NotImplementedError):
        return None
    is_nan = value is not None and pa.types.is_floating(kind) and np.isnan(value.as_py())
    return None if is_nan else value


def _decode(kind: Any, leaf: pq.ColumnSchema, raw: bytes) -> pa.Scalar | None:
    physical = leaf.physical_type
    types = pa.types
    if physical == "BYTE_ARRAY":
        if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
            return pa.scalar(raw.decode(), kind)  # where one is cut short within a character, that raises
        is_binary = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
        return pa.scalar(raw, kind) if is_binary else None
    if physical == "BOOLEAN":
        return pa.scalar(raw != b"\0", kind) if types.is_boolean(kind) else None
    if physical in {"FLOAT", "DOUBLE"}:
        return pa.scalar(np.frombuffer(raw, "<f4" if physical == "FLOAT" else "<f8")[0].item(), kind)
    if physical not in {"INT32", "INT64"} or types.is_decimal(kind):
        return None
    if types.is_integer(kind):
        return pa.scalar(int.from_bytes(raw, "little", signed=types.is_signed_integer(kind)), kind)
    number = pa.scalar(int.from_bytes(raw, "little", signed=True), pa.int32() if physical == "INT32" else pa.int64())
    if types.is_date(kind):
        return number.cast(pa.date32()).cast(kind)
    if types.is_timestamp(kind) or types.is_time(kind):
        unit = _UNITS.get(json.loads(leaf.logical_type.to_json()).get("timeUnit", ""))
        if types.is_timestamp(kind) and unit is not None:
            return number.cast(pa.timestamp(unit, kind.tz)).cast(kind)
        return number.cast(kind) if unit == kind.unit else None
    return None
