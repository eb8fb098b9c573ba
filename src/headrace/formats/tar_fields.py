"""What a scan keeps of each field: its number, looked up for many members at once, and the first bytes of a payload."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from headrace.formats.source import Ids
from headrace.formats.tar_names import Bytes, Words
from headrace.formats.tar_table import HEAD_BYTES

# So many fields are compared with all members at once; members of more fields are looked up one by one.
_COMPARED = 32


class FieldIds:
    """Numbers of fields by their words, as `tar_names.Names` has them.

    Args:
        number_of: The number of a field, of which a payload begins at that byte.
    """

    def __init__(self, number_of: Callable[[str, int], int]) -> None:
        self._number_of = number_of
        self._known: dict[bytes, int] = {}
        self._compared: list[tuple[bytes, int]] = []

    def of(self, words: Words, offsets: Ids) -> Ids:
        """int64 (n,): the number of each row's field, whose payload begins at that offset."""
        out = np.full(len(words), -1, np.int64)
        for raw, number in self._compared:
            _fill(out, words, raw, number)
        while (rows := np.flatnonzero(out < 0)).size and len(self._compared) < _COMPARED:
            number = self._number(words[rows[0]], int(offsets[rows[0]]))
            self._compared.append((_raw(words[rows[0]]), number))
            _fill(out, words, *self._compared[-1])
        for row in rows.tolist():
            out[row] = self._number(words[row], int(offsets[row]))
        return out

    def _number(self, words: Words, offset: int) -> int:
        raw = _raw(words)
        number = self._known.get(raw)
        if number is None:
            number = self._known[raw] = self._number_of(raw.decode("ascii"), offset)
        return number


def _raw(words: Words) -> bytes:
    return words.tobytes().rstrip(b"\0")


def _fill(out: Ids, words: Words, raw: bytes, number: int) -> None:
    """Gives the rows with this field its number."""
    columns = words.shape[1]
    if len(raw) > 8 * columns:
        return
    field_words = np.frombuffer(raw.ljust(8 * columns, b"\0"), np.uint64)
    equal = words[:, 0] == field_words[0]
    for column in range(1, columns):
        equal &= words[:, column] == field_words[column]
    out[equal] = number


@dataclass(slots=True)
class _Head:
    offset: int
    size: int
    got: bytearray = field(default_factory=bytearray)


class Heads:
    """The first bytes of the first payload of each field, by the field's number."""

    def __init__(self) -> None:
        self._heads: dict[int, _Head] = {}
        self._wanted: set[int] = set()
        self._fresh: set[int] = set()

    def begin(self) -> None:
        """More bytes come: what was wanted before lies before all that will be wanted."""
        self._fresh.clear()

    def want(self, number: int, offset: int, size: int) -> None:
        """A payload of this field lies there."""
        head = self._heads.get(number)
        if head is None or (number in self._fresh and offset < head.offset):
            self._heads[number] = _Head(offset, min(size, HEAD_BYTES))
            self._wanted.add(number)
            self._fresh.add(number)

    def take(self, data: Bytes, start: int) -> None:
        """Keeps what `data`, which begins at byte `start` of the shard, has of the wanted bytes."""
        for number in list(self._wanted):
            head = self._heads[number]
            at = head.offset + len(head.got) - start
            if 0 <= at < len(data):
                head.got += data[at : at + head.size - len(head.got)].tobytes()
            if len(head.got) == head.size:
                self._wanted.discard(number)

    def read(self, read: Callable[[int, int], bytes]) -> None:
        """Fetches the bytes that weren't there: `read(size, offset)`."""
        for number in self._wanted:
            head = self._heads[number]
            head.got[:] = read(head.size, head.offset)
        self._wanted.clear()

    def taken(self) -> dict[int, bytes]:
        """The head of each field."""
        return {number: bytes(head.got) for number, head in self._heads.items()}
