"""Thrift's compact protocol, read without trusting a byte: numbers, strings, and what is passed over.

Every value that is read or passed over takes a byte at least, so hostile lengths end with the bytes there are.
Specification: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

import re
from collections.abc import Iterator

# Types in the compact protocol
_BOOLS = (1, 2)
_BYTE, _DOUBLE, BINARY, LIST, _SET, _MAP, STRUCT = 3, 7, 8, 9, 10, 11, 12
INTS = (4, 5, 6)


def _heads(*kinds: int) -> bytes:
    """A class of the bytes that begin a field of these types, as far as its number follows from the last one's."""
    return b"[" + b"".join(b"\\x%02x" % (delta << 4 | kind) for kind in kinds for delta in range(1, 16)) + b"]"


def _any_of(*patterns: bytes) -> bytes:
    return b"(?:" + b"|".join(patterns) + b")"


def _counted(kind: int, pattern: bytes, most: int) -> bytes:
    """A list of 0 to `most` values of a type."""
    return _any_of(*(b"\\x%02x" % (count << 4 | kind) + pattern * count for count in range(most + 1)))


# The usual values as regular expressions: what Python need not look at is passed over in one step of C. None of them
# tries again (`*+`), so that time grows with length only.
INT = rb"[\x80-\xff]*+[\x00-\x7f]"
_SHORT_BINARY = _any_of(*(b"\\x%02x.{%d}" % (length, length) for length in range(33)))
INT_LIST = _counted(5, INT, 7)
_VALUES = _any_of(
    _heads(4, 5, 6) + INT,
    _heads(1, 2),
    _heads(BINARY) + _SHORT_BINARY,
    _heads(LIST) + _any_of(INT_LIST, _counted(6, INT, 7)),
)
_FLAT_STRUCT = _VALUES + rb"*+\x00"
RUN = re.compile(
    _any_of(_VALUES, _heads(STRUCT) + _FLAT_STRUCT, _heads(LIST) + _counted(STRUCT, _FLAT_STRUCT, 4)) + b"*+",
    re.DOTALL,
)
_ONE_INT = re.compile(INT, re.DOTALL)
_INT_RUNS = [re.compile(rb"(?:%b){%d}+" % (INT, count), re.DOTALL) for count in range(15)]


class CompactReader:
    """Reads a struct from its beginning.

    What it reads beyond the end, or nested too deep, is an IndexError or a RecursionError; what can be no value a
    ValueError.

    Attributes:
        raw: The bytes.
        at: The place of the next.
    """

    __slots__ = ("at", "raw")

    def __init__(self, raw: bytes) -> None:
        self.raw, self.at = raw, 0

    def fields(self) -> Iterator[tuple[int, int]]:
        """Number and type of each field of a struct; its value is to be read, or skipped, before the next."""
        name = 0
        while head := self.raw[self.at]:
            self.at += 1
            delta = head >> 4
            name = name + delta if delta else self.integer()
            yield name, head & 15
        self.at += 1

    def structs(self) -> range:
        """The numbers of a list's structs, which are to be read."""
        count, kind = self.list_head()
        if count and kind != STRUCT:
            raise ValueError(f"expected a list of structs, got one of type {kind}")
        return range(count)

    def integer(self) -> int:
        """A number, zigzag-encoded."""
        value = self.varint()
        return value >> 1 ^ -(value & 1)

    def varint(self) -> int:
        found = _ONE_INT.match(self.raw, self.at)
        if found is None:
            raise IndexError
        self.at = found.end()
        return _varint(found[0])

    def binary(self) -> bytes:
        length = self.varint()
        start = self.at
        self.at = start + length
        return self.raw[start : self.at]

    def list_head(self) -> tuple[int, int]:
        head = self.raw[self.at]
        self.at += 1
        return (head >> 4 if head < 0xF0 else self.varint()), head & 15

    def rest(self) -> None:
        """Skips what is left of a struct."""
        raw = self.raw
        while True:
            found = RUN.match(raw, self.at)
            assert found is not None
            at = found.end()
            head = raw[at]
            self.at = at + 1
            if head == 0:
                return
            if head < 16:
                self.varint()
            if head & 15 == BINARY and raw[self.at] < 128:
                self.at += 1 + raw[self.at]
            else:
                self.skip(head & 15)

    def skip(self, kind: int) -> None:
        """Skips the value of a field."""
        if kind in _BOOLS:
            return
        if kind == STRUCT:
            self.rest()
        elif kind == BINARY:
            length = self.varint()
            self.at += length
        elif kind in {LIST, _SET}:
            self.skip_many(*self.list_head())
        elif kind == _MAP:
            count = self.varint()
            if count:
                kinds = self.raw[self.at]
                self.at += 1
                for _ in range(count):
                    self.skip_many(1, kinds >> 4)
                    self.skip_many(1, kinds & 15)
        elif kind in INTS:
            self.varint()
        elif kind == _BYTE:
            self.at += 1
        elif kind == _DOUBLE:
            self.at += 8
        else:
            raise ValueError(f"there is no type {kind}")
        if self.at > len(self.raw):
            raise IndexError

    def skip_many(self, count: int, kind: int) -> None:
        """Skips the values of a list, where a bool has a byte."""
        if kind in INTS and count < len(_INT_RUNS):
            found = _INT_RUNS[count].match(self.raw, self.at)
            if found is None:
                raise IndexError
            self.at = found.end()
            return
        kind = _BYTE if kind in _BOOLS else kind
        for _ in range(count):
            self.skip(kind)


def _varint(raw: bytes) -> int:
    if len(raw) > 10:
        raise ValueError("a number has more than 64 bits")
    value = 0
    for byte in reversed(raw):
        value = value << 7 | byte & 127
    return value


def zigzag(raw: bytes) -> int:
    """A number, zigzag-encoded."""
    value = _varint(raw)
    return value >> 1 ^ -(value & 1)
