"""Which leaf columns of Parquet files are read, and whether the files agree about them.

A path is a column's name or a dotted path into structs, as pyarrow takes them. Each leaf column below it has chunks of
its own. Writers name the inner levels of lists differently ("x.list.element", "x.bag.array_element"), so leaves of
different files belong together by their place below the path that is read.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from headrace.errors import FormatError
from headrace.formats.parquet_footers import Footer, ParquetPlace
from headrace.formats.parquet_types import is_bytes, is_text


class Leaves:
    """The leaf columns below some paths, in the first file and in any other.

    Attributes:
        names: Their paths in the first file, in its order.
    """

    def __init__(self, place: ParquetPlace, footer: Footer, paths: Sequence[str]) -> None:
        """Finds the leaves in the first file.

        Raises:
            FormatError: The file has two columns of one name, of which one is to be read, or a type that cannot be.
        """
        try:
            for field in footer.schema:
                pa.nulls(0, field.type).validate()
        except pa.ArrowException as error:
            raise FormatError(f"{place} is not a sound Parquet file: its schema is corrupt ({error})") from None
        self._place, self._footer = place, footer
        self._paths = list(dict.fromkeys(paths))
        _check_single(place, footer.schema, self._paths)
        self._below = _below(footer.metadata, self._paths)
        self.columns = sorted({leaf for below in self._below.values() for leaf in below})
        self.names = tuple(footer.metadata.schema.column(leaf).path for leaf in self.columns)

    def columns_in(self, place: ParquetPlace, footer: Footer) -> list[int]:
        """The numbers of these leaves among another file's columns.

        Raises:
            FormatError: It lacks a column that is read, or holds another type.
        """
        if self._is_alike(footer):
            return self.columns
        _check_single(place, footer.schema, self._paths)
        below = _below(footer.metadata, self._paths)
        place_of = {leaf: i for i, leaf in enumerate(self.columns)}
        columns = [-1] * len(self.columns)
        for path in self._paths:
            expected, found = type_at(self._footer.schema, path), type_at(footer.schema, path)
            if not below[path] or (expected is not None and found is None):
                self._refuse(place, path, expected, "no such column")
            same = len(below[path]) == len(self._below[path])
            if not same or not (expected == found or _are_alike(expected, found)):
                self._refuse(place, path, expected, str(found))
            for ours, theirs in zip(self._below[path], below[path], strict=True):
                columns[place_of[ours]] = theirs
        return columns

    def _is_alike(self, footer: Footer) -> bool:
        """Whether the schemas are the same to the last detail, as those that one program wrote are."""
        first, other = self._footer.metadata, footer.metadata
        return bool(first.schema.equals(other.schema)) and _arrow_schema(first) == _arrow_schema(other)

    def _refuse(self, place: ParquetPlace, path: str, expected: object, found: str) -> None:
        raise FormatError(
            f"column {path!r} must be of one type in all files\n  {self._place}: {expected}\n  {place}: {found}"
        )


def type_at(schema: pa.Schema, path: str) -> Any:
    """The Arrow type at a dotted path into structs; None where there is none."""
    return _type_among({field.name: field.type for field in schema}, path)


def _type_among(types: dict[str, Any], path: str) -> Any:
    if path in types:
        return types[path]
    # names may hold dots
    for i, char in enumerate(path):
        outer = types.get(path[:i]) if char == "." else None
        if outer is not None and pa.types.is_struct(outer):
            fields = [outer.field(number) for number in range(outer.num_fields)]
            inner = _type_among({field.name: field.type for field in fields}, path[i + 1 :])
            if inner is not None:
                return inner
    return None


def _below(metadata: pq.FileMetaData, paths: Sequence[str]) -> dict[str, list[int]]:
    """The numbers of the leaf columns at or below each path."""
    below: dict[str, list[int]] = {path: [] for path in paths}
    schema = metadata.schema
    for leaf in range(metadata.num_columns):
        path, name = schema.column(leaf).path, schema.column(leaf).name
        if path in below:
            below[path].append(leaf)
        end = len(path) - len(name) - 1  # names may hold dots: a column "a.b" isn't below a column "a"
        while end > 0:
            if (found := below.get(path[:end])) is not None:
                found.append(leaf)
            end = path.rfind(".", 0, end)
    return below


def _check_single(place: ParquetPlace, schema: pa.Schema, paths: Sequence[str]) -> None:
    names = schema.names
    if len(set(names)) == len(names):
        return
    for name in names:
        if names.count(name) > 1 and any(path == name or path.startswith(f"{name}.") for path in paths):
            raise FormatError(f"{place}: expected one column {name!r}, got {names.count(name)}: write it again")


def _arrow_schema(metadata: pq.FileMetaData) -> bytes | None:
    found: bytes | None = (metadata.metadata or {}).get(b"ARROW:schema")
    return found


def _is_binary(kind: pa.DataType) -> bool:
    return is_bytes(kind) and not pa.types.is_fixed_size_binary(kind)


def _are_alike(one: Any, other: Any) -> bool:
    """Whether two types are the same but for the names of lists' fields, what may be null, and dictionaries' codes."""
    if one is None or other is None:
        return False
    if pa.types.is_dictionary(one) != pa.types.is_dictionary(other):
        one, other = (kind.value_type if pa.types.is_dictionary(kind) else kind for kind in (one, other))
    if (is_text(one) and is_text(other)) or (_is_binary(one) and _is_binary(other)):
        return True
    if one.id != other.id:
        return False
    if pa.types.is_struct(one):
        fields = [(one.field(i), other.field(i)) for i in range(min(one.num_fields, other.num_fields))]
        return one.num_fields == other.num_fields and all(
            a.name == b.name and _are_alike(a.type, b.type) for a, b in fields
        )
    if pa.types.is_map(one):
        return _are_alike(one.key_type, other.key_type) and _are_alike(one.item_type, other.item_type)
    if pa.types.is_fixed_size_list(one):
        return one.list_size == other.list_size and _are_alike(one.value_type, other.value_type)
    if pa.types.is_dictionary(one) or hasattr(one, "value_field"):
        return _are_alike(one.value_type, other.value_type)
    return bool(one == other)
