"""What the user asks of Parquet columns, and the fields of a schema that it is asked of."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from headrace.formats.decoding import Decoder
from headrace.formats.ragged import Pad


@dataclass(frozen=True, slots=True)
class ColumnOptions:
    """What the user asks of columns, by their names.

    Attributes:
        cast: The dtype that numbers become: "int64".
        fill: What stands for nulls.
        validity: The columns that come with another one that says where they are not null.
        decode: What makes arrays of a column's bytes.
        pad_to: How lists of any length are made equally long.
        lists: The columns of lists that come as a list of tensors.
        shape: The shape of rows that are stored as lists.
        codes: The values of a column in the order of their codes; None while they are not known, to plan only.
    """

    cast: Mapping[str, str] = field(default_factory=dict)
    fill: Mapping[str, object] = field(default_factory=dict)
    validity: frozenset[str] = frozenset()
    decode: Mapping[str, Decoder] = field(default_factory=dict)
    pad_to: Mapping[str, Pad] = field(default_factory=dict)
    lists: frozenset[str] = frozenset()
    shape: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    codes: Mapping[str, tuple[Any, ...] | None] = field(default_factory=dict)

    def named(self) -> Iterator[tuple[str, str]]:
        """Each option with each column that it names."""
        for option in ("cast", "fill", "validity", "decode", "pad_to", "lists", "shape", "codes"):
            yield from ((option, name) for name in getattr(self, option))


@dataclass(frozen=True, slots=True)
class Leaf:
    """A field that is no struct, or one that a decoder takes as one.

    Attributes:
        name: What it is called.
        steps: The names on the way to it.
        kind: Its type.
        is_default: Whether it is read where its struct, or every column, is asked for.
    """

    name: str
    steps: tuple[str, ...]
    kind: pa.DataType
    is_default: bool = True
