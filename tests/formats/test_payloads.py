"""Payloads in many pieces of memory are gathered at once, and nothing outside of these is ever read."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headrace.formats import payloads
from headrace.formats.payloads import Held, Memories, Payloads, PlacedPayloads


def memory(seed: int, length: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, length, dtype=np.uint8)


def placed(lengths, places, starts=None) -> tuple[PlacedPayloads, Payloads]:
    """The same payloads, where they lie and as bytes; `places` are (memory, offset, size)."""
    memories = [memory(seed, length) for seed, length in enumerate(lengths)]
    starts = np.zeros(len(memories), np.int64) if starts is None else np.array(starts)
    memory_of, offsets, sizes = (np.array(column, np.int64) for column in zip(*places, strict=True))
    there = PlacedPayloads(Held(Memories(memories, starts), memory_of), offsets + starts[memory_of], sizes)
    return there, Payloads([memories[m][offset : offset + size].tobytes() for m, offset, size in places])


@st.composite
def layouts(draw):
    lengths = draw(st.lists(st.integers(1, 3000), min_size=1, max_size=4))

    def place(number):
        offset = draw(st.integers(0, lengths[number]))
        return number, offset, draw(st.integers(0, lengths[number] - offset))

    places = [place(draw(st.integers(0, len(lengths) - 1))) for _ in range(draw(st.integers(1, 20)))]
    return lengths, places, [draw(st.integers(0, 1 << 40)) for _ in lengths]


class TestAnyLayout:
    @given(layouts(), st.integers(0, 64))
    def test_views_rows_and_beginnings_are_those_of_the_bytes(self, layout, width):
        there, plain = placed(*layout)
        assert there.sizes.tolist() == plain.sizes.tolist()
        assert [bytes(view) for view in there.views()] == [bytes(view) for view in plain.views()]
        np.testing.assert_array_equal(there.beginnings(width), plain.beginnings(width))
        least = int(plain.sizes.min())
        for start in {0, least // 3, least}:
            out = np.empty((len(plain), least - start), np.uint8)
            np.testing.assert_array_equal(there.rows(start, out), plain.rows(start, np.empty_like(out)))

    @pytest.mark.parametrize("width", [8, 4096, 4097, 32_760, 32_768, 100_000])
    def test_rows_of_any_width_are_gathered(self, width):
        places = [(place % 3, 512 * place, width) for place in range(40)]
        there, plain = placed([150_000] * 3, places)
        out = np.empty((len(places), width), np.uint8)
        assert there.rows(0, out) is out
        np.testing.assert_array_equal(out, plain.rows(0, np.empty_like(out)))

    def test_rows_may_be_strided_in_the_array_that_they_fill(self):
        there, plain = placed([1000], [(0, 8, 64), (0, 72, 64)])
        out = np.zeros((2, 128), np.uint8)
        there.rows(0, out[:, :64])
        np.testing.assert_array_equal(out[:, :64], plain.rows(0, np.empty((2, 64), np.uint8)))
        assert not out[:, 64:].any()

    def test_where_addresses_are_of_another_kind_payloads_are_copied_one_by_one(self, monkeypatch):
        monkeypatch.setattr(payloads, "_HAS_ADDRESSES", False)
        there, plain = placed([1000], [(0, 8, 64), (0, 500, 64)])
        out = np.empty((2, 64), np.uint8)
        np.testing.assert_array_equal(there.rows(0, out), plain.rows(0, np.empty_like(out)))


class TestLimits:
    @pytest.mark.parametrize("place", [(0, 990, 11), (0, -1, 5), (0, 1001, 0), (0, 10, -1), (1, 0, 501)])
    def test_a_payload_beyond_its_memory_is_refused(self, place):
        memories = Memories([memory(0, 1000), memory(1, 500)], np.array([0, 7000]))
        number, offset, size = place
        held = Held(memories, np.array([number]))
        with pytest.raises(ValueError, match="does not lie within its memory"):
            PlacedPayloads(held, np.array([offset + 7000 * number]), np.array([size], np.int64))

    def test_beginnings_never_read_beyond_the_memory(self):
        there, plain = placed([100], [(0, 90, 10), (0, 0, 3)])
        np.testing.assert_array_equal(there.beginnings(24), plain.beginnings(24))

    def test_rows_longer_than_a_payload_are_a_mistake(self):
        there, _ = placed([100], [(0, 0, 10)])
        with pytest.raises(ValueError, match=r"a payload does not have the bytes \[4, 11\)"):
            there.rows(4, np.empty((1, 7), np.uint8))

    def test_views_are_read_only_and_keep_the_memory(self):
        there, plain = placed([64], [(0, 3, 9)])
        [view] = there.views()
        del there
        assert view.readonly
        assert bytes(view) == bytes(plain.views()[0])

    def test_none_of_torchs_threads_are_woken(self):
        """By torch's own count of what it shares among threads: an operation on fewer elements than that is not."""
        there, _ = placed([64 * 4096], [(0, 4096 * place, 4096) for place in range(64)])
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
            there.rows(0, np.empty((64, 4096), np.uint8))
        shapes = [event.input_shapes for event in profile.events() if event.name == "aten::index_select"]
        assert shapes
        assert all(shape[0][1] * shape[2][0] <= 32_768 for shape in shapes)
