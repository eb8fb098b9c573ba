"""Bytes of row groups ahead of decoding: each range once, bounded, and given up when nobody wants it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.formats.fetch_ahead import FetchAhead, GroupBytes
from headrace.formats.stored_file import StoredFile
from headrace.storage import ReadCancelled, StoredObject
from tests.formats.stand_in_store import BASE, StandInStore

URL = f"{BASE}/file"
GROUP_BYTES = 1000


@pytest.fixture
def store():
    return StandInStore({URL: bytes(i % 251 for i in range(20 * GROUP_BYTES))})


def ahead_of(store, most_bytes: int, due=None) -> FetchAhead:
    [source] = store.open([URL])

    def locate(group: int) -> GroupBytes:
        start = group * GROUP_BYTES
        return GroupBytes(source, np.array([start, start + 600]), np.array([start + 500, start + 900]))

    return FetchAhead(store, locate, (lambda _: True) if due is None else due.__contains__, most_bytes)


def groups_asked(store) -> list[int]:
    return [start // GROUP_BYTES for _, start, _, _ in store.asked]


def test_groups_are_fetched_in_the_order_of_need_as_far_as_there_is_room(store):
    ahead = ahead_of(store, 3 * GROUP_BYTES)
    ahead.announce([7, 2, 9, 4, 1])
    assert groups_asked(store) == [7, 2, 9]
    ahead.open(7).close()
    assert groups_asked(store) == [7, 2, 9, 4]


def test_a_group_that_is_open_is_not_fetched_again_before_it_is_closed(store):
    ahead = ahead_of(store, 5 * GROUP_BYTES)
    ahead.announce([3])
    file = ahead.open(3)
    ahead.announce([3])
    assert groups_asked(store) == [3]
    file.close()
    ahead.announce([3])
    assert groups_asked(store) == [3, 3]


def test_groups_that_are_no_longer_due_are_passed_over(store):
    ahead = ahead_of(store, 2 * GROUP_BYTES, due={1, 3})
    ahead.announce([0, 1, 2, 3])
    assert groups_asked(store) == [1, 3]


def test_a_group_that_will_not_be_decoded_makes_room_for_others(store):
    ahead = ahead_of(store, GROUP_BYTES)
    ahead.announce([0, 1])
    ahead.drop(0)
    assert groups_asked(store) == [0, 1]


@pytest.mark.parametrize("way", ["forget", "close"])
def test_what_is_on_its_way_is_given_up_when_nobody_wants_it(store, way):
    ahead = ahead_of(store, 3 * GROUP_BYTES)
    store.hold()
    ahead.announce([0])
    file = ahead.open(0)
    if way == "close":
        file.close()
    else:
        ahead.announce([1])
        ahead.forget()
    given_up = store.transfers[0 if way == "close" else 1]
    store.answer()
    with pytest.raises(ReadCancelled):
        given_up.wait()


def test_a_group_larger_than_the_room_is_read_in_parts_when_it_is_decoded(store):
    ahead = ahead_of(store, 400)
    ahead.announce([0])
    assert store.asked == []
    file = ahead.open(0)
    assert file.is_streamed
    assert bytes(file.read(10)) == store.objects[URL][:10]


def test_chunks_far_apart_are_not_fetched_with_what_lies_between(store):
    [source] = store.open([URL])
    place = GroupBytes(source, np.array([0, 5000]), np.array([100, 5100]))
    assert place.ranges(1 << 20) == [(0, 100), (5000, 5100)]
    assert GroupBytes(source, np.array([0, 110]), np.array([100, 210])).ranges(1 << 20) == [(0, 210)]


@given(
    cuts=st.lists(st.integers(0, 5000), min_size=2, max_size=20, unique=True).map(sorted),
    gap_bytes=st.integers(0, 1000),
)
def test_ranges_hold_all_chunks_and_no_more_than_twice_their_bytes(cuts, gap_bytes):
    chunks = np.array(cuts[: len(cuts) // 2 * 2]).reshape(-1, 2)
    place = GroupBytes(StoredObject(URL, 5000), chunks[:, 0], chunks[:, 1])
    ranges = place.ranges(gap_bytes)
    assert all(any(start <= a and b <= stop for start, stop in ranges) for a, b in chunks.tolist())
    assert sum(stop - start for start, stop in ranges) <= 2 * (chunks[:, 1] - chunks[:, 0]).sum()


@given(
    reads=st.lists(st.tuples(st.integers(0, 400), st.integers(-1, 300)), max_size=12), part_bytes=st.integers(1, 300)
)
def test_a_stored_file_reads_as_the_object_itself(reads, part_bytes):
    content = bytes(i % 251 for i in range(400))
    store = StandInStore({URL: content})
    [source] = store.open([URL])
    file = StoredFile(store, source, streams=[(50, 200), (220, 390)], part_bytes=part_bytes)
    for offset, length in reads:
        file.seek(offset)
        assert bytes(file.read(length)) == content[offset : None if length < 0 else offset + length]
    assert file.seek(-10, 2) == 390
    assert file.tell() == 390
