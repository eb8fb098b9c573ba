"""Headers of plain members in columns: found, summed up and parsed all at once.

What is plain: a POSIX or GNU header of a regular file with a size in eleven octal digits and a name that
the columns hold, and a pax header that holds nothing but an mtime, as tarfile (hence webdataset) writes before
every member when the time has a fraction. Everything else is left to `tar_headers`, one at a time.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.formats.source import Ids
from headrace.formats.tar_headers import BLOCK
from headrace.formats.tar_names import Names, Words, split_names

Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

# Summing up needs two passes more over headers that the second-level cache should still have.
_SUMMED_AT_ONCE = 512

_U8 = np.uint64
_LOW_BYTES, _LOW_SHORTS, _LOW_WORD = _U8(0x00FF00FF00FF00FF), _U8(0x0000FFFF0000FFFF), _U8(0xFFFFFFFF)
_DIGIT_BITS, _ZERO_DIGITS, _VALUES = _U8(0xF8F8F8F8F8F8F8F8), _U8(0x3030303030303030), _U8(0x0707070707070707)
_FIRST_SIX = _U8(0x0000FFFFFFFFFFFF)
_EACH_BYTE = _U8(0x0101010101010101)
_MTIME = _U8(int.from_bytes(b"\0\0 mtime", "little"))


@dataclass(slots=True)
class Rows:
    """What look like headers in a run of blocks; r rows, in file order.

    Attributes:
        places: int64 (r,), the block of each.
        nexts: int64 (r,), the block after each one's payload, where `is_plain`.
        is_plain: bool (r,).
        breaks: int64, the plain rows after which the next row isn't the next header, and all that aren't plain.
        member_rows: int64 (k,), the rows with the type flag of a regular file.
        sizes: int64 (k,), the bytes of their payloads.
        names: Of these.
    """

    places: Ids
    nexts: Ids
    is_plain: Bools
    breaks: Ids
    member_rows: Ids
    sizes: Ids
    names: Names

    def row_at(self, place: int) -> int | None:
        """The row of this block, if it looks like a header."""
        row = int(self.places.searchsorted(place))
        return row if row < len(self.places) and self.places[row] == place else None

    def plain_until(self, row: int) -> int:
        """The end of the plain rows from this one on of which each is the next header after the one before."""
        last = int(self.breaks[self.breaks.searchsorted(row)])
        return last + 1 if self.is_plain[last] else last


def find_places(blocks: Bytes) -> Ids:
    """int64: which of these blocks, uint8 (n, 512), say that they are POSIX or GNU headers."""
    places = np.flatnonzero(blocks[:, 257] == ord("u"))
    magic = blocks[places, 258:262]
    is_magic = (magic == np.frombuffer(b"star", np.uint8)).all(axis=1)
    return places if is_magic.all() else places[is_magic]


def parse_rows(blocks: Bytes, places: Ids) -> Rows:
    """What headers at these places say."""
    headers = np.take(blocks, places, axis=0)
    expected, is_plain = _expected_sums(headers)
    is_plain &= expected == _sums(headers)
    sizes, has_size = _sizes(headers)
    is_plain &= has_size
    kinds = headers[:, 156]
    nexts = places + 1 + (sizes + (BLOCK - 1)) // BLOCK

    is_regular = kinds == ord("0")
    member_rows = np.flatnonzero(is_regular)
    extension_rows = np.flatnonzero((kinds == ord("x")) & is_plain & (places + 1 < len(blocks)))
    members = headers[member_rows]
    names = split_names(members)
    members_plain = is_plain[member_rows] & names.is_plain & (members[:, 345] == 0)
    is_plain = np.zeros(len(places), np.bool_)
    is_plain[member_rows] = members_plain
    is_plain[extension_rows] = _is_mtime(blocks, places[extension_rows] + 1, sizes[extension_rows])
    is_break = ~is_plain
    is_break[:-1] |= nexts[:-1] != places[1:]
    is_break[-1:] = True
    return Rows(places, nexts, is_plain, np.flatnonzero(is_break), member_rows, sizes[member_rows], names)


def _sums(headers: Bytes) -> Words:
    """The sum of each header's bytes."""
    words = headers.view(np.uint64)
    sums = np.empty(len(words), np.uint64)
    for start in range(0, len(words), _SUMMED_AT_ONCE):
        some = words[start : start + _SUMMED_AT_ONCE]
        # four sums of 16 bits, of 64 words with two bytes of at most 255 each
        pairs = some & _LOW_BYTES
        odd = some >> _U8(8)
        odd &= _LOW_BYTES
        pairs += odd
        np.add.reduce(pairs, axis=1, out=sums[start : start + _SUMMED_AT_ONCE])
    sums = (sums & _LOW_SHORTS) + (sums >> _U8(16) & _LOW_SHORTS)
    return (sums + (sums >> _U8(32))) & _LOW_WORD


def _expected_sums(headers: Bytes) -> tuple[Words, Bools]:
    """What each header's bytes must sum up to, and whether the checksum is six octal digits, a NUL and a space."""
    field = _word(headers, 148)
    digits, is_octal = _octal(field & _FIRST_SIX | _U8(0x3030 << 48))
    is_octal &= field >> _U8(48) == _U8(0x2000)  # a NUL, a space
    # the checksum counts eight spaces in place of its own bytes
    own = ((field & _VALUES & _FIRST_SIX) * _EACH_BYTE >> _U8(56)) + _U8(6 * 0x30 + 0x20)
    return (digits >> _U8(6)) + own - _U8(8 * 0x20), is_octal


def _sizes(headers: Bytes) -> tuple[Ids, Bools]:
    """The size of each payload, 0 where it isn't eleven octal digits and a NUL or space; and where it is."""
    low, is_octal = _octal(_word(headers, 127))
    # the three digits before, below five that are 0
    high, high_is_octal = _octal(_word(headers, 119) >> _U8(40) << _U8(40) | _ZERO_DIGITS >> _U8(24))
    is_octal &= high_is_octal
    is_octal &= (headers[:, 135] == 0) | (headers[:, 135] == ord(" "))
    sizes = ((high << _U8(24)) + low).view(np.int64)
    sizes[~is_octal] = 0
    return sizes, is_octal


def _word(headers: Bytes, start: int) -> Words:
    """Eight bytes of each header."""
    return np.ascontiguousarray(headers[:, start : start + 8]).view(np.uint64)[:, 0]


def _octal(words: Words) -> tuple[Words, Bools]:
    """The number in each word of eight octal digits, the first byte's the highest; and whether they are such."""
    is_octal = (words & _DIGIT_BITS) == _ZERO_DIGITS
    values = words & _VALUES
    values = ((values << _U8(3)) + (values >> _U8(8))) & _LOW_BYTES
    values = ((values << _U8(6)) + (values >> _U8(16))) & _LOW_SHORTS
    return ((values << _U8(12)) + (values >> _U8(32))) & _LOW_WORD, is_octal


def _is_mtime(blocks: Bytes, places: Ids, sizes: Ids) -> Bools:
    r"""Whether these payloads are one record `length mtime=...\n` of two digits' length."""
    starts = blocks[places, :16]
    words = starts.view(np.uint64)[:, 0]
    tens, ones = words & _U8(0xFF), words >> _U8(8) & _U8(0xFF)
    is_mtime: Bools = words >> _U8(16) << _U8(16) == _MTIME
    is_mtime &= (tens - _U8(0x30) <= _U8(9)) & (ones - _U8(0x30) <= _U8(9)) & (starts[:, 8] == ord("="))
    is_mtime &= (tens * _U8(10) + ones - _U8(11 * 0x30)).view(np.int64) == sizes
    is_mtime &= (sizes >= 10) & (sizes <= 99)
    is_mtime &= blocks[places, np.clip(sizes - 1, 0, BLOCK - 1)] == ord("\n")
    return is_mtime
