"""What a Parquet footer says of its row groups, read here.

pyarrow parses footers, too, and its readers turn what is wrong in one into exceptions. But the one way from Python to
the places of column chunks, `RowGroupMetaData.column`, ends the process where a flipped byte breaks a histogram, or
where a column is encrypted (seen with pyarrow 26). So these few numbers are read here.

Specification: https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, field

from headrace.formats.thrift import BINARY, INT, INT_LIST, INTS, LIST, RUN, STRUCT, CompactReader, zigzag

# A column chunk as most programs write it: file_offset, meta_data {type, encodings, path_in_schema ...
_CHUNK_HEAD = re.compile(
    rb"\x26%b\x1c\x15%b\x19%b\x19([\x18\x28\x38\x48\x58\x68\x78\x88])" % (INT, INT, INT_LIST), re.DOTALL
)
# ... codec, values, bytes uncompressed and compressed, offsets of the first data page and perhaps of the dictionary
_CHUNK_NUMBERS = re.compile(rb"\x15(%b)\x16(%b)\x16(%b)\x16(%b)\x26(%b)(?:\x26(%b))?+" % ((INT,) * 6), re.DOTALL)


@dataclass(slots=True)
class Chunk:
    """One column's chunk in a row group, as the footer has it; -1 where it says nothing.

    Its statistics (`nulls`, and the smallest and largest value, perhaps cut short) and `unencoded` are read where they
    are asked for.
    """

    file_path: bytes = b""
    codec: int = -1
    values: int = -1
    uncompressed: int = -1
    compressed: int = -1
    data_page_offset: int = -1
    dictionary_page_offset: int = -1
    is_encrypted: bool = False
    nulls: int = -1
    smallest: bytes | None = None
    largest: bytes | None = None
    unencoded: int = -1  # bytes of all values


@dataclass(slots=True)
class Group:
    """One row group; -1 where the footer says nothing."""

    rows: int = -1
    total_bytes: int = -1
    chunks: list[Chunk] = field(default_factory=list)


@dataclass(slots=True)
class FooterGroups:
    """What a footer says of its row groups.

    Attributes:
        rows: Of all row groups together.
        groups: Each with all its columns.
        created_by: The program that wrote it.
        has_orders: Whether it says by which order of values the smallest and largest were found.
        is_encrypted: Whether it names an encryption algorithm, or a column has a key.
    """

    rows: int = -1
    groups: list[Group] = field(default_factory=list)
    created_by: str = ""
    has_orders: bool = False
    is_encrypted: bool = False


def parse_groups(
    raw: bytes, columns: Collection[int] | None = None, *, with_statistics: bool = False, sized: Collection[int] = ()
) -> FooterGroups:
    """Reads the row groups of a footer.

    Args:
        raw: The footer, without its length and magic.
        columns: The numbers of the leaf columns whose chunks are wanted; those of others are only told to be there.
        with_statistics: Whether to read statistics, too.
        sized: Of which columns to read what their values take unencoded.

    Raises:
        ValueError: It is no footer.
    """
    wanted = None if columns is None else frozenset(columns)
    reader = _Reader(raw, wanted, frozenset(sized), with_statistics=with_statistics)
    try:
        found = reader.footer()
    except (IndexError, RecursionError):
        raise ValueError("it ends too early, or nests too deep") from None
    found.is_encrypted |= any(chunk.is_encrypted for group in found.groups for chunk in group.chunks)
    return found


class _Reader(CompactReader):
    __slots__ = ("sized", "wanted", "with_statistics")

    def __init__(
        self, raw: bytes, wanted: frozenset[int] | None, sized: frozenset[int], *, with_statistics: bool
    ) -> None:
        super().__init__(raw)
        self.wanted, self.sized, self.with_statistics = wanted, sized, with_statistics

    def footer(self) -> FooterGroups:
        found = FooterGroups()
        for name, kind in self.fields():
            if name == 3 and kind in INTS:
                found.rows = self.integer()
            elif name == 4 and kind == LIST:
                found.groups = [self.group() for _ in self.structs()]
            elif name == 6 and kind == BINARY:
                found.created_by = self.binary().decode("utf-8", "replace")
            else:
                found.has_orders |= name == 7 and kind == LIST
                found.is_encrypted |= name in {8, 9}
                self.skip(kind)
        return found

    def group(self) -> Group:
        found = Group()
        for name, kind in self.fields():
            if name == 1 and kind == LIST:
                found.chunks = [self.usual_chunk(number) or self.chunk() for number in self.structs()]
            elif name == 2 and kind in INTS:
                found.total_bytes = self.integer()
            elif name == 3 and kind in INTS:
                found.rows = self.integer()
            else:
                self.skip(kind)
        return found

    def usual_chunk(self, number: int) -> Chunk | None:
        """A chunk of the usual form, in a third of the time; None, and nothing is read, where it has another."""
        is_wanted = self.wanted is None or number in self.wanted
        if is_wanted and (self.with_statistics or number in self.sized):
            return None
        raw, start = self.raw, self.at
        head = _CHUNK_HEAD.match(raw, start)
        if head is None:
            return None
        self.at = head.end()
        self.skip_many(head[1][0] >> 4, BINARY)
        numbers = _CHUNK_NUMBERS.match(raw, self.at)
        if numbers is not None:
            self.at = numbers.end()
            self.rest()
            more = RUN.match(raw, self.at)
            if more is not None and raw[more.end()] == 0:
                self.at = more.end() + 1
                if not is_wanted:
                    return _NOT_WANTED
                codec, values, uncompressed, compressed, page, dictionary = numbers.groups()
                return Chunk(
                    b"",
                    zigzag(codec),
                    zigzag(values),
                    zigzag(uncompressed),
                    zigzag(compressed),
                    zigzag(page),
                    -1 if dictionary is None else zigzag(dictionary),
                )
        self.at = start
        return None

    def chunk(self) -> Chunk:
        found = Chunk()
        for name, kind in self.fields():
            if name == 1 and kind == BINARY:
                found.file_path = self.binary()
            elif name == 3 and kind == STRUCT:
                self.chunk_metadata(found)
            else:
                found.is_encrypted |= name in {8, 9}
                self.skip(kind)
        return found

    def chunk_metadata(self, found: Chunk) -> None:
        for name, kind in self.fields():
            if name in _CHUNK_FIELDS and kind in INTS:
                setattr(found, _CHUNK_FIELDS[name], self.integer())
            elif name == 12 and kind == STRUCT and self.with_statistics:
                self.statistics(found)
            elif name == 16 and kind == STRUCT:
                self.size_statistics(found)
            else:
                self.skip(kind)

    def statistics(self, found: Chunk) -> None:
        for name, kind in self.fields():
            if name == 3 and kind in INTS:
                found.nulls = self.integer()
            elif name == 5 and kind == BINARY:
                found.largest = self.binary()
            elif name == 6 and kind == BINARY:
                found.smallest = self.binary()
            else:
                self.skip(kind)

    def size_statistics(self, found: Chunk) -> None:
        for name, kind in self.fields():
            if name == 1 and kind in INTS:
                found.unencoded = self.integer()
            else:
                self.skip(kind)


_NOT_WANTED = Chunk()
_CHUNK_FIELDS = {
    4: "codec",
    5: "values",
    6: "uncompressed",
    7: "compressed",
    9: "data_page_offset",
    11: "dictionary_page_offset",
}
