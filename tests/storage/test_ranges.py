"""Range arithmetic, compared with plain sets of bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.storage.ranges import BLOCK_BYTES, align, coalesce, split

FAR = 2**62

spans = st.tuples(st.integers(0, 120), st.integers(0, 20)).map(lambda span: (span[0], span[0] + span[1]))
far_spans = st.tuples(st.integers(0, FAR), st.integers(0, FAR)).map(sorted)


def as_arrays(ranges) -> tuple[np.ndarray, np.ndarray]:
    array = np.array(ranges, np.int64).reshape(len(ranges), 2)
    return array[:, 0], array[:, 1]


def covered(ranges) -> set[int]:
    return {byte for start, stop in ranges for byte in range(start, stop)}


def merged(ranges, gap_bytes: int) -> list[tuple[int, int]]:
    """The definition: bytes in order, and a new range wherever a hole is too wide."""
    found: list[list[int]] = []
    for byte in sorted(covered(ranges)):
        if found and byte - found[-1][1] <= gap_bytes:
            found[-1][1] = byte + 1
        else:
            found.append([byte, byte + 1])
    return [(start, stop) for start, stop in found]


@given(ranges=st.lists(spans, max_size=12), gap_bytes=st.integers(0, 30))
def test_merged_ranges_are_the_fewest_that_bridge_no_hole_wider_than_the_gap(ranges, gap_bytes):
    starts, stops, _ = coalesce(*as_arrays(ranges), gap_bytes)
    assert list(zip(starts.tolist(), stops.tolist(), strict=True)) == merged(ranges, gap_bytes)


@given(ranges=st.lists(spans, max_size=12), gap_bytes=st.integers(0, 30))
def test_every_range_lies_in_its_owner_and_one_without_bytes_has_none(ranges, gap_bytes):
    starts, stops, owner = coalesce(*as_arrays(ranges), gap_bytes)
    assert owner.shape == (len(ranges),)
    for (start, stop), number in zip(ranges, owner.tolist(), strict=True):
        assert number == -1 if start == stop else starts[number] <= start < stop <= stops[number]


@given(ranges=st.lists(far_spans, min_size=1, max_size=6), gap_bytes=st.integers(0, FAR))
def test_merging_does_not_overflow(ranges, gap_bytes):
    starts, stops, owner = coalesce(*as_arrays(ranges), gap_bytes)
    assert ((starts >= 0) & (starts < stops) & (stops <= FAR)).all()
    assert (starts[1:] - stops[:-1] > gap_bytes).all()
    for (start, stop), number in zip(ranges, owner.tolist(), strict=True):
        assert start == stop or (starts[number] <= start and stop <= stops[number])


def test_no_ranges_merge_to_none():
    assert [array.tolist() for array in coalesce(*as_arrays([]), 5)] == [[], [], []]
    assert [array.tolist() for array in coalesce(*as_arrays([(7, 7), (3, 3)]), 5)] == [[], [], [-1, -1]]


def test_ranges_that_touch_are_merged_without_any_gap():
    starts, stops, owner = coalesce(np.array([20, 0, 10]), np.array([30, 10, 19]), 0)
    assert (starts.tolist(), stops.tolist(), owner.tolist()) == ([0, 20], [19, 30], [1, 0, 0])


@given(start=st.integers(0, FAR), length=st.integers(0, 300), part_bytes=st.integers(1, 50))
def test_the_parts_of_a_range_are_full_but_for_the_last_and_follow_each_other(start, length, part_bytes):
    parts = split(start, start + length, part_bytes)
    assert len(parts) == -(-length // part_bytes)
    edges = [start, *(stop for _, stop in parts)]
    assert [first for first, _ in parts] == edges[:-1]
    assert edges[-1] == start + length
    assert all(stop - first == part_bytes for first, stop in parts[:-1])
    assert all(0 < stop - first <= part_bytes for first, stop in parts)


def test_a_large_range_is_cut_into_blocks_from_its_own_start():
    assert split(3, 3 + 2 * BLOCK_BYTES + 1, BLOCK_BYTES) == [
        (3, 3 + BLOCK_BYTES),
        (3 + BLOCK_BYTES, 3 + 2 * BLOCK_BYTES),
        (3 + 2 * BLOCK_BYTES, 3 + 2 * BLOCK_BYTES + 1),
    ]


@given(ranges=st.lists(spans, max_size=12), unit_bytes=st.integers(1, 40), beyond=st.integers(0, 60))
def test_aligned_ranges_hold_the_whole_units_that_a_range_touches_up_to_the_end(ranges, unit_bytes, beyond):
    end = max((stop for _, stop in ranges), default=0) + beyond
    starts, stops = align(*as_arrays(ranges), unit_bytes, end)
    for (start, stop), first, last in zip(ranges, starts.tolist(), stops.tolist(), strict=True):
        units = {byte // unit_bytes for byte in range(start, stop)}
        assert set(range(first, last)) == {byte for byte in range(end) if byte // unit_bytes in units}
        assert first % unit_bytes == 0


@given(
    span=far_spans.map(lambda span: (span[0], max(span[0] + 1, span[1]))).filter(lambda span: span[1] <= FAR),
    unit_bytes=st.integers(1, FAR),
)
def test_aligning_does_not_overflow(span, unit_bytes):
    starts, stops = align(*as_arrays([span]), unit_bytes, FAR)
    assert int(starts[0]) == span[0] // unit_bytes * unit_bytes
    assert int(stops[0]) == min(-(-span[1] // unit_bytes) * unit_bytes, FAR)


@pytest.mark.parametrize("end", [12, np.array([12, 19])])
def test_each_range_may_have_an_end_of_its_own(end):
    starts, stops = align(np.array([3, 11]), np.array([5, 12]), 10, end)
    assert starts.tolist() == [0, 10]
    assert stops.tolist() == [10, 12 if isinstance(end, int) else 19]
