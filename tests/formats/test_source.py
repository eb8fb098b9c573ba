"""Blocks, fingerprints and dtypes: what all sources share."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.formats import ArraySource, Column, fingerprint, uniform_blocks

MIB = 1 << 20


@given(samples=st.integers(1, 10**7), sample_bytes=st.integers(0, 10**9))
def test_blocks_hold_every_sample_once_in_at_most_64_mib_unless_one_sample_is_larger(samples, sample_bytes):
    blocks = (
        uniform_blocks(samples, sample_bytes) if samples * sample_bytes < 1 << 40 else uniform_blocks(1, sample_bytes)
    )
    assert blocks.lengths.sum() * sample_bytes == blocks.bytes.sum()
    assert (blocks.lengths >= 1).all()
    assert blocks.bytes.max() <= max(8 * MIB, sample_bytes)
    assert len(set(blocks.lengths[:-1])) <= 1


@pytest.mark.parametrize(
    ("samples", "sample_bytes", "count", "largest"),
    [
        (1, 1, 1, 1),
        (1_000_000, 1024, 123, 8 * MIB),
        (10, 100 * MIB, 10, 100 * MIB),
        (2**40, 16, 2**20, 16 * MIB),  # 16 TiB: larger blocks instead of more than 2**20
    ],
)
def test_blocks_are_of_8_mib_and_at_most_two_to_the_twenty(samples, sample_bytes, count, largest):
    blocks = uniform_blocks(samples, sample_bytes)
    assert (len(blocks), blocks.lengths.sum(), blocks.bytes.max()) == (count, samples, largest)


def test_a_fingerprint_tells_names_sizes_and_counts_apart():
    parts = [
        [("a", 1, 2)],
        [("a", 12)],
        [("a", 1), (2,)],
        [("a1", 2)],
        [("a", 2, 1)],
        [("a", 1, 2), ("b", 1, 2)],
        [("b", 1, 2), ("a", 1, 2)],
    ]
    assert len({fingerprint(each) for each in parts}) == len(parts)


def test_a_fingerprint_does_not_depend_on_the_kind_of_integer():
    assert fingerprint([("a", np.int64(1))]) == fingerprint([("a", 1)])


def test_names_that_are_not_utf_8_have_a_fingerprint():
    assert fingerprint([("caf\udce9", 1)]) != fingerprint([("cafe", 1)])


def test_a_column_knows_the_bytes_of_one_sample():
    assert Column(np.dtype("f4"), (3, 2)).sample_bytes == 24
    assert Column(np.dtype("i8")).sample_bytes == 8


def test_a_source_is_told_little_of_what_is_coming_unless_it_asks_for_more():
    source = ArraySource({"x": np.arange(3)})
    assert source.read_ahead_bytes == 0
    assert source.end_prefetch() is None
