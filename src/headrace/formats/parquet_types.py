"""What a Parquet column's Arrow type is to us: lists of which sizes, around what."""

import math
from dataclasses import dataclass

import pyarrow as pa

from headrace.formats.parquet_casts import number_dtype


@dataclass(frozen=True, slots=True)
class Nesting:
    """A type seen as lists around something that is no list.

    Attributes:
        sizes: The length of the lists at each level, from the outside; None where it varies.
        order: Which of these levels each axis of a sample is: a tensor's axes may be stored in another order.
        leaf: What the innermost lists hold, or the type itself.
    """

    sizes: tuple[int | None, ...]
    order: tuple[int, ...]
    leaf: pa.DataType

    @property
    def is_number(self) -> bool:
        """Whether tensors can hold the innermost values, perhaps after a cast."""
        return bool(number_dtype(self.leaf) is not None or pa.types.is_decimal(self.leaf))

    @property
    def is_fixed(self) -> bool:
        """Whether all rows hold equally many numbers."""
        return self.is_number and None not in self.sizes

    @property
    def is_ragged(self) -> bool:
        """Whether rows hold a list of any length, of numbers or of arrays of one shape."""
        return self.is_number and self.sizes[:1] == (None,) and all(self.sizes[1:])

    def stored_shape(self, varying: tuple[int, ...] = ()) -> tuple[int, ...]:
        """The levels' lengths as they are stored, those that vary taken from `varying`."""
        lengths = iter(varying)
        return tuple(next(lengths) if size is None else size for size in self.sizes)


def nesting(kind: pa.DataType) -> Nesting:
    """Looks through lists, extension types and dictionaries.

    >>> nesting(pa.list_(pa.list_(pa.float32(), 3)))
    Nesting(sizes=(None, 3), order=(0, 1), leaf=DataType(float))
    """
    sizes: list[int | None] = []
    order: list[int] = []
    while True:
        if isinstance(kind, pa.FixedShapeTensorType):
            # The specification: axis i of the tensor is axis permutation[i] of what is stored.
            order += [len(sizes) + axis for axis in kind.permutation or range(len(kind.shape))]
            sizes += kind.shape
            kind = kind.value_type
        elif isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind):
            kind = kind.value_type
        elif pa.types.is_fixed_size_list(kind):
            order.append(len(sizes))
            sizes.append(kind.list_size)
            kind = kind.value_type
        elif _has_varying_lists(kind):
            order.append(len(sizes))
            sizes.append(None)
            kind = kind.value_type
        else:
            return Nesting(tuple(sizes), tuple(order), kind)


def varying_lengths(nest: Nesting, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """How long lists must be at the levels where that varies, so that rows have a shape; None where none does it."""
    if None not in nest.sizes:
        return () if math.prod(nest.stored_shape()) == math.prod(shape) else None
    if len(nest.sizes) == 1:
        return (math.prod(shape),)
    axes = [nest.order.index(level) for level in range(len(nest.sizes))]
    if len(shape) != len(nest.sizes):
        return None
    lengths = [shape[axis] for axis in axes]
    if any(size not in (None, length) for size, length in zip(nest.sizes, lengths, strict=True)):
        return None
    return tuple(length for size, length in zip(nest.sizes, lengths, strict=True) if size is None)


def is_text(kind: pa.DataType) -> bool:
    """Whether values are str."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Whether values are bytes."""
    types = pa.types
    tests = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return any(test(kind) for test in tests)


def holds_nanoseconds(kind: pa.DataType) -> bool:
    """Whether there are times in nanoseconds at any depth, which Python's own objects can't hold.

    >>> holds_nanoseconds(pa.map_(pa.string(), pa.struct({"at": pa.timestamp("ns")})))
    True
    """
    if isinstance(kind, pa.BaseExtensionType):
        return holds_nanoseconds(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return holds_nanoseconds(kind.value_type)
    fields = (kind.field(i) for i in range(kind.num_fields))
    return getattr(kind, "unit", None) == "ns" or any(holds_nanoseconds(field.type) for field in fields)


def _has_varying_lists(kind: pa.DataType) -> bool:
    types = pa.types
    tests = (types.is_list, types.is_large_list, types.is_list_view, types.is_large_list_view)
    return any(test(kind) for test in tests)


def without_views(schema: pa.Schema) -> pa.Schema:
    """The schema with plain text and bytes for views of them, which Arrow's filters and gathers don't take.

    >>> without_views(pa.schema({"x": pa.list_(pa.string_view())})).field("x").type
    ListType(list<item: large_string>)
    """
    return pa.schema([_plain_field(field) for field in schema])


def _plain_field(field: pa.Field) -> pa.Field:
    return field.with_type(_without_view(field.type))


def _without_view(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct([_plain_field(kind.field(i)) for i in range(kind.num_fields)])
    if pa.types.is_map(kind):
        return pa.map_(_plain_field(kind.key_field), _plain_field(kind.item_field))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_plain_field(kind.value_field), kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(_plain_field(kind.value_field))
    return pa.large_list(_plain_field(kind.value_field)) if pa.types.is_large_list(kind) else kind
