"""What the properties of this folder draw from, and how often."""

from typing import NamedTuple

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from headrace.order import Layout, Order


def examples(count: int) -> settings:
    """Settings of a property: the same `count` examples in every run, however busy the machine is."""
    return settings(max_examples=count, derandomize=True, deadline=None, database=None)


class WindowCase(NamedTuple):
    """A window shuffle over some blocks."""

    lengths: list[int]
    lanes: int
    window: int
    seed: int
    epoch: int

    @property
    def samples(self) -> int:
        return sum(self.lengths)

    def order(self) -> Order:
        layout = Layout("window", self.lanes, self.window)
        return Order(self.samples, layout, seed=self.seed, block_lengths=self.array())

    def array(self) -> NDArray[np.int64]:
        return np.array(self.lengths, np.int64)


seeds = st.integers(-(2**63), 2**64 - 1)
lane_counts = st.integers(0, 6).map(lambda bits: 1 << bits)


def _with_half_in_one(lengths: list[int]) -> list[int]:
    return [*lengths, sum(lengths) or 1, 0]


_mixed = st.lists(st.integers(0, 30), min_size=1, max_size=20).filter(any)
block_lengths = st.one_of(
    _mixed,
    _mixed.map(_with_half_in_one),
    st.integers(1, 300).map(lambda length: [length]),
    st.integers(1, 100).map(lambda count: [1] * count),
    st.just([1]),
)


@st.composite
def window_cases(draw: st.DrawFn) -> WindowCase:
    lengths = draw(block_lengths)
    window = draw(st.integers(1, sum(lengths)) | st.just(sum(lengths)))
    return WindowCase(lengths, draw(lane_counts), window, draw(seeds), draw(st.integers(0, 2**40)))
