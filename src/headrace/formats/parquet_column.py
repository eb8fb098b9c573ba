"""The seam between Parquet's columns and ours: what becomes of one column's Arrow arrays."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.formats.source import Array, Column
from headrace.formats.values import Values


class ColumnRefused(ValueError):  # noqa: N818 - users never see it: who reads the file makes a FormatError of it
    """A column holds what it can't give; the text goes on after "file: row group 3: column 'x'"."""


def counted(count: int, noun: str) -> str:
    """How many there are of something, for error texts: "3 nulls"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


@dataclass(frozen=True, kw_only=True, eq=False)
class ParquetColumn:
    """One column of a batch, and the way to it from Arrow's arrays: stored as fixed rows, or kept by Arrow.

    Attributes:
        name: What batches call it.
        path: What to ask pyarrow for: a dotted path into structs.
        steps: The same path, name by name (names may hold dots).
        column: What samples are.
        stored: What a row is in memory between files and batches; None where Arrow's arrays are kept.
    """

    name: str
    path: str
    steps: tuple[str, ...]
    column: Column
    stored: Column | None = None

    def extract(self, batch: pa.RecordBatch) -> pa.Array:
        """The column's array, null where a struct around it is null."""
        array = batch.column(self.steps[0])
        for step in self.steps[1:]:
            if isinstance(array, pa.ExtensionArray):
                array = array.storage
            # `field` would give what lies below a null struct
            array = pc.struct_field(array, [array.type.get_field_index(step)])
        return array

    def view(self, array: pa.Array) -> Array | None:  # noqa: ARG002 (what it may take)
        """What `write` would fill an array with, where that is there already; to be read only."""
        return None

    def write(self, array: pa.Array, out: Array) -> None:
        """Fills `out` (len(array), *stored.shape), C-contiguous and of the stored dtype.

        Raises:
            ColumnRefused: Nulls without a fill value, values that don't fit, lists of another length.
        """
        raise NotImplementedError(f"{type(self).__name__} keeps Arrow's arrays: call keep")

    def keep(self, array: pa.Array) -> pa.Array:
        """What to keep of an array: checked, of one type whatever the file holds, and no small part of a large buffer.

        Raises:
            ColumnRefused: As for `write`.
        """
        raise NotImplementedError(f"{type(self).__name__} stores fixed rows: call write")

    def finish(self, array: pa.Array, out: Array | None) -> Values:
        """Makes a batch of rows that were kept.

        Args:
            array: Rows that `keep` gave, in any order; what comes out never shares memory with it, but for text.
            out: Where to write a column that is fixed (samples, *column.shape), C-contiguous; by default fresh memory.

        Raises:
            PayloadError: A row cannot be decoded or padded; `place` says which.
        """
        raise NotImplementedError(f"{type(self).__name__} stores fixed rows: gather them")


@dataclass(frozen=True, kw_only=True, eq=False)
class ValidityColumn(ParquetColumn):
    """Whether each row is there: False where it is null, or where a value in its list of numbers is.

    Attributes:
        inside: Whether lists are looked into.
    """

    inside: bool

    def write(self, array: pa.Array, out: Array) -> None:
        missing = _missing_rows(array, inside=self.inside)
        out[...] = True if missing is None else ~missing


def unwrapped(array: pa.Array) -> pa.Array:
    """The array without what stands around its values: extension types, dictionaries, views."""
    while True:
        kind = array.type
        if isinstance(kind, pa.BaseExtensionType):
            array = array.storage
        elif pa.types.is_dictionary(kind):
            array = array.dictionary_decode()
        elif pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
            array = _without_views(array)
        elif pa.types.is_string_view(kind):
            array = array.cast(pa.large_string())
        elif pa.types.is_binary_view(kind):
            array = array.cast(pa.large_binary())
        else:
            return array


def unwrapped_type(kind: pa.DataType) -> pa.DataType:
    """The type that `unwrapped` gives an array of a type."""
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind):
            kind = kind.value_type
        elif pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
            return pa.large_list(kind.value_field)
        elif pa.types.is_string_view(kind):
            return pa.large_string()
        else:
            return pa.large_binary() if pa.types.is_binary_view(kind) else kind


def _without_views(array: pa.Array) -> pa.Array:
    """A list view as large lists: Arrow 26 casts one that has nulls to lists with wrong offsets."""
    missing = nulls_of(array)
    lengths = array.sizes.to_numpy() if missing is None else np.where(missing, 0, array.sizes.to_numpy())
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    places = np.arange(offsets[-1]) + np.repeat(array.offsets.to_numpy() - offsets[:-1], lengths)
    mask = None if missing is None else pa.array(missing)
    kind = pa.large_list(array.type.value_field)
    return pa.LargeListArray.from_arrays(offsets, array.values.take(pa.array(places)), kind, mask=mask)


def is_list(kind: pa.DataType) -> bool:
    """Whether these are lists of any length, not views."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def nulls_of(array: pa.Array) -> Array | None:
    """Where rows are null, bool (rows,); None where none is, which costs next to nothing to learn."""
    return array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None


def either(first: Array | None, second: Array | None) -> Array | None:
    """Where one of two masks is True; None is all False."""
    if first is None or second is None:
        return second if first is None else first
    return np.asarray(first | second)


def inner_values(array: pa.Array) -> pa.Array:
    """The values of all lists, those of null ones as well. `values` alone would ignore that an array is a slice."""
    if pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        return array.values.slice(array.offset * size, len(array) * size)
    offsets = offsets_of(array)
    return array.values.slice(offsets[0], offsets[-1] - offsets[0])


def offsets_of(array: pa.Array) -> Array:
    """Where each list begins and ends in `array.values`, integers (rows + 1,)."""
    # an array without rows may lack the one offset that it should have
    return np.asarray(array.offsets.to_numpy()) if len(array) else np.zeros(1, np.int32)


def _missing_rows(array: pa.Array, *, inside: bool) -> Array | None:
    array = unwrapped(array)
    missing = nulls_of(array)
    if inside and pa.types.is_fixed_size_list(array.type):
        below = _missing_rows(inner_values(array), inside=True)
        return missing if below is None else either(missing, np.asarray(below.reshape(len(array), -1).any(axis=1)))
    if inside and is_list(array.type):
        below = _missing_rows(inner_values(array), inside=True)
        if below is not None:
            offsets = offsets_of(array)
            counts = np.concatenate([[0], np.cumsum(below)])[offsets - offsets[0]]
            return either(missing, np.asarray(np.diff(counts) > 0))
    return missing
