"""Byte ranges as numbers: which ranges to ask a store for.

All ranges are half-open, and none of this overflows while offsets and units stay below 2**62.
"""

import numpy as np
import numpy.typing as npt

# The most that one request asks for, and the unit of the disk cache
BLOCK_BYTES = 8 << 20

_Offsets = npt.NDArray[np.int64]


def coalesce(starts: _Offsets, stops: _Offsets, gap_bytes: int) -> tuple[_Offsets, _Offsets, _Offsets]:
    """The fewest ranges that hold all of these and, between them, no hole of more than `gap_bytes` that is in none.

    Args:
        starts: int64 (n,), where each range begins, in any order; ranges may overlap.
        stops: int64 (n,), where each ends. A range that ends where it begins has no bytes, and counts for nothing.
        gap_bytes: The widest hole between neighbours that is read along with them, 0 or more.

    Returns:
        starts: int64 (m,), ascending.
        stops: int64 (m,).
        owner: int64 (n,), in which of the m ranges each of the n lies; -1 for those without bytes.

    >>> starts, stops, owner = coalesce(np.array([40, 0, 12]), np.array([50, 10, 20]), 2)
    >>> starts.tolist(), stops.tolist(), owner.tolist()
    ([0, 40], [20, 50], [1, 0, 0])
    """
    order = np.argsort(starts, kind="stable")
    order = order[starts[order] < stops[order]]
    begins, ends = starts[order], np.maximum.accumulate(stops[order])
    is_first = np.ones(len(order), np.bool_)
    np.greater(begins[1:] - ends[:-1], gap_bytes, out=is_first[1:])
    first = np.flatnonzero(is_first)
    owner = np.full(len(starts), -1, np.int64)
    owner[order] = np.cumsum(is_first) - 1
    return begins[first], ends[np.append(first, len(order))[1:] - 1], owner


def split(start: int, stop: int, part_bytes: int) -> list[tuple[int, int]]:
    """A range in parts of at most `part_bytes`, cut at `start + k * part_bytes`; none where it has no bytes.

    >>> split(5, 30, 10)
    [(5, 15), (15, 25), (25, 30)]
    """
    return [(cut, min(cut + part_bytes, stop)) for cut in range(start, stop, part_bytes)]


def align(starts: _Offsets, stops: _Offsets, unit_bytes: int, end: int | _Offsets) -> tuple[_Offsets, _Offsets]:
    """The ranges, grown to whole units; those without bytes stay so.

    Args:
        starts: int64 (n,).
        stops: int64 (n,), none beyond `end`.
        unit_bytes: What offsets become multiples of.
        end: Where the last unit ends, whole or not: the object's size, or int64 (n,), each one's.

    Returns:
        starts: int64 (n,).
        stops: int64 (n,), none beyond `end`.

    >>> starts, stops = align(np.array([5, 20]), np.array([6, 29]), 10, 29)
    >>> starts.tolist(), stops.tolist()
    ([0, 20], [10, 29])
    """
    grown = np.minimum(-(-stops // unit_bytes) * unit_bytes, end)
    return starts // unit_bytes * unit_bytes, np.where(starts < stops, grown, starts // unit_bytes * unit_bytes)
