r"""Keys and fields of members' names, by the WebDataset rule: one at a time, and many in columns.

The key is the name up to the first dot of its last part, the field what follows it, in lower case. It is the rule of
webdataset's `^((?:.*/|)[^.]+)[.]([^/]*)$`, except that a last part that begins with a dot makes no sample: with
webdataset `dir/._a.jpg` is field `_a.jpg` of a sample `dir/`.
"""

import hashlib
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.formats.source import Ids

Words = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]

# Names in columns are shorter than this, and their fields not longer: what is longer is parsed one at a time.
NAME_BYTES = 96
FIELD_WORDS = 3
# Keys longer than this stand in columns as their hash.
LONGEST_WORDED_KEY = 247

_META = re.compile(rb"__[^/]*__(?:/|$)")

_DOT, _SLASH, _UNDERSCORES = ord("."), ord("/"), int.from_bytes(b"__", "little")
_HIGH = np.uint64(0x8080808080808080)
# Row n keeps the first n bytes of a name's words.
_KEEP: Words = np.zeros((NAME_BYTES + 1, NAME_BYTES // 8), np.uint64)
_KEEP.view(np.uint8)[:] = np.where(np.arange(NAME_BYTES) < np.arange(NAME_BYTES + 1)[:, None], 0xFF, 0)
# Row n keeps the first n bytes of one word.
_KEEP_WORD: Words = _KEEP[:9, 0].copy()


def split_name(name: bytes) -> tuple[bytes, str] | str:
    """The key and the field of a member, or why no sample has it.

    >>> split_name(b"dir/a.seg.PNG"), split_name(b"dir/a"), split_name(b"__info__/a.json")
    ((b'dir/a', 'seg.png'), 'no_field', 'meta')
    """
    if name.startswith(b"__") and _META.match(name):
        return "meta"
    base = name.rfind(b"/") + 1
    dot = name.find(b".", base)
    if dot <= base:
        return "no_field"
    return name[:dot], name[dot + 1 :].decode("utf-8", "surrogateescape").lower()


@dataclass(slots=True)
class Names:
    """Many members' names; n rows.

    Attributes:
        is_plain: bool (n,), whether the rest of a row holds; the others are for `split_name`.
        key_bytes: int64 (n,), the length of each key.
        key_words: uint64 (n, w), the bytes of each key, then zeros, at least one.
        field_words: uint64 (n, 1 to 3), the bytes of each field in lower case, then zeros.
    """

    is_plain: npt.NDArray[np.bool_]
    key_bytes: Ids
    key_words: Words
    field_words: Words


def split_names(headers: Bytes) -> Names:
    """Splits the names of headers, uint8 (n, 512), C-contiguous."""
    count = len(headers)
    memory = np.zeros(count * NAME_BYTES + 8 * FIELD_WORDS, np.uint8)  # fields of the last row may be read beyond it
    names = memory[: count * NAME_BYTES].reshape(count, NAME_BYTES)
    names[:] = headers[:, :NAME_BYTES]
    words = names.view(np.uint64)
    width = 8 * (int(np.flatnonzero(np.bitwise_or.reduce(words, axis=0, initial=0))[-1:].sum()) + 1)
    some = names[:, :width]
    rows = np.arange(count)
    # where each name ends; 0 where it fills the columns, which is not plain
    ends = (some == 0).argmax(axis=1)
    ends[some[rows, ends] != 0] = 0 if width == NAME_BYTES else width
    is_dot = some == _DOT
    is_slash = some == _SLASH
    bases = np.zeros(count, np.int64)
    if is_slash.any():
        from_end = is_slash[:, ::-1].argmax(axis=1)
        bases = width - from_end
        bases[(from_end == 0) & (some[:, -1] != _SLASH)] = 0
        is_dot &= np.arange(width) >= bases[:, None]
    dots = is_dot.argmax(axis=1)
    field_bytes = ends - dots - 1
    is_plain = (
        (dots > bases)
        & (field_bytes >= 0)
        & (field_bytes <= 8 * FIELD_WORDS)
        & (headers[:, :2].view(np.uint16)[:, 0] != _UNDERSCORES)
    )
    field_bytes[~is_plain] = 0
    key_columns = int(dots.max(initial=0)) // 8 + 1
    key_words = words[:, :key_columns] & _KEEP[dots, :key_columns]
    field_words = _field_words(memory, rows * NAME_BYTES + dots + 1, field_bytes)
    is_plain &= (np.bitwise_or.reduce(field_words, axis=1) & _HIGH) == 0
    return Names(is_plain, dots, key_words, _lower(field_words))


def _field_words(memory: Bytes, starts: Ids, lengths: Ids) -> Words:
    """The words from each of these bytes on, zeros after `lengths`."""
    anywhere = np.ndarray((len(memory) - 7,), np.uint64, memory, strides=(1,))
    columns = max(-(-int(lengths.max(initial=0)) // 8), 1)
    out = np.empty((len(starts), columns), np.uint64)
    for column in range(columns):
        kept = np.clip(lengths - 8 * column, 0, 8)
        out[:, column] = anywhere[starts + 8 * column] & _KEEP_WORD[kept]
    return out


def _lower(words: Words) -> Words:
    """ASCII letters in lower case, eight bytes at a time, none of which is above 127."""
    is_upper = (words + np.uint64(0x3F3F3F3F3F3F3F3F)) & ~(words + np.uint64(0x2525252525252525)) & _HIGH
    return words | is_upper >> np.uint64(2)


def word_keys(keys: list[bytes], long_keys: dict[bytes, bytes]) -> tuple[Ids, Words]:
    """The length of each key, int64 (n,), and its words, as `Names` has them.

    A long key's are those of its hash; `long_keys` then has it by the hash.
    """
    lengths = np.fromiter(map(len, keys), np.int64, len(keys))
    worded = [key if len(key) <= LONGEST_WORDED_KEY else _hashed(key, long_keys) for key in keys]
    width = 8 * (max(map(len, worded), default=0) // 8 + 1)
    words = np.frombuffer(b"".join(key.ljust(width, b"\0") for key in worded), np.uint64)
    return lengths, words.reshape(len(keys), width // 8)


def _hashed(key: bytes, long_keys: dict[bytes, bytes]) -> bytes:
    hashed = hashlib.blake2b(key, digest_size=32).digest()
    long_keys[hashed] = key
    return hashed
