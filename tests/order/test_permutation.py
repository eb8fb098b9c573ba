"""permute: a keyed bijection of range(n), for any n, in any grouping."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ArgumentError
from headrace.order import hash_words, permute
from tests.order.reference import PlainPermutation
from tests.order.strategies import examples

KEYS = (0, 0x9E3779B97F4A7C15, 2**64 - 1)
AROUND_POWERS = sorted({(1 << k) + d for k in range(1, 21) for d in (-1, 0, 1)})
# a rows of 2**c columns: one row less than whole, whole, and one position into the next row
AROUND_GRIDS = [
    rows * 2**bits + d for rows, bits in ((16, 4), (17, 4), (24, 5), (33, 5), (100, 7), (181, 8)) for d in (-1, 0, 1)
]
HUGE = (10**9, 10**12, 10**13, 2**43 + 1, 2**53 - 1, 2**53)

sizes = st.integers(1, 400) | st.integers(1, 2**53) | st.integers(0, 53).map(lambda bits: 1 << bits)
keys = st.integers(0, 2**64 - 1)


def is_a_permutation(values: np.ndarray, n: int) -> bool:
    return len(values) == n and bool((np.bincount(values, minlength=n) == 1).all())


def test_every_size_up_to_300_is_permuted_without_loss_or_repetition() -> None:
    for n, key in itertools.product(range(1, 301), KEYS):
        assert is_a_permutation(permute(np.arange(n), n, key), n), (n, key)


@pytest.mark.parametrize("n", AROUND_POWERS)
def test_sizes_around_powers_of_two_are_permuted_without_loss_or_repetition(n: int) -> None:
    for key in KEYS[: 3 if n < 2**17 else 1]:
        assert is_a_permutation(permute(np.arange(n), n, key), n)


@pytest.mark.parametrize("n", AROUND_GRIDS)
def test_sizes_around_whole_grids_are_permuted_without_loss_or_repetition(n: int) -> None:
    for key in KEYS:
        assert is_a_permutation(permute(np.arange(n), n, key), n)


@given(sizes, keys, st.data())
@examples(150)
def test_the_permutation_is_the_one_of_plain_integers_which_cannot_overflow(
    n: int, key: int, data: st.DataObject
) -> None:
    positions = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=5))
    plain = PlainPermutation(n, key)
    assert permute(positions, n, key).tolist() == [plain(position) for position in positions]


@pytest.mark.parametrize("n", HUGE)
def test_huge_sizes_stay_in_range_and_can_be_inverted(n: int) -> None:
    positions = [0, 1, n // 2, n - 2, n - 1, *random.Random(n).choices(range(n), k=300)]
    images = permute(positions, n, KEYS[1])
    assert images.dtype == np.int64
    assert 0 <= images.min() <= images.max() < n
    plain = PlainPermutation(n, KEYS[1])
    assert [plain.inverse(image) for image in images.tolist()] == positions


@pytest.mark.parametrize("n", [97, 1000, 70_001, 10**13])
def test_the_grouping_of_positions_into_calls_changes_nothing(n: int) -> None:
    positions = np.random.default_rng(n).integers(0, n, 65_536)
    at_once = permute(positions, n, 5)
    for group in (1, 7, 256, 16_383, 16_385):
        groups = [positions[start : start + group] for start in range(0, min(len(positions), 500 * group), group)]
        assert np.concatenate([permute(part, n, 5) for part in groups]).tolist() == at_once[: 500 * group].tolist()


@given(st.lists(st.tuples(sizes, keys), min_size=1, max_size=12), st.data())
@examples(100)
def test_a_table_of_bijections_gives_what_each_of_them_gives_alone(
    table: list[tuple[int, int]], data: st.DataObject
) -> None:
    which = data.draw(st.lists(st.integers(0, len(table) - 1), min_size=1, max_size=30))
    positions = [data.draw(st.integers(0, table[i][0] - 1)) for i in which]
    n, key = np.array([n for n, _ in table], np.int64), np.array([key for _, key in table], np.uint64)
    together = permute(positions, n, key, which)
    alone = [int(permute([position], *table[i])[0]) for i, position in zip(which, positions, strict=True)]
    assert together.tolist() == alone


def test_a_table_longer_than_a_chunk_is_permuted_as_its_parts_are() -> None:
    n = np.array([3, 300, 70_000, 10**12])
    which = np.arange(40_000) % 4
    positions = np.arange(40_000) % n[which]
    together = permute(positions, n, hash_words(1, np.arange(4)), which)
    for i in range(4):
        assert together[which == i].tolist() == permute(positions[which == i], n[i], hash_words(1, i)).tolist()


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_all_permutations_of_few_samples_are_equally_likely(n: int) -> None:
    arrangements = list(itertools.permutations(range(n)))
    draws = 200 * len(arrangements)
    which = np.repeat(np.arange(draws), n)
    images = permute(np.tile(np.arange(n), draws), np.full(draws, n), hash_words(3, np.arange(draws)), which)
    number = {arrangement: i for i, arrangement in enumerate(arrangements)}
    seen = np.bincount([number[tuple(row)] for row in images.reshape(draws, n).tolist()], minlength=len(number))
    freedom = len(arrangements) - 1
    chi_square = float(((seen - 200) ** 2 / 200).sum())
    assert abs(chi_square - freedom) < 4 * np.sqrt(2 * freedom)


def test_every_position_of_a_small_range_goes_everywhere_equally_often() -> None:
    n, draws = 20, 20_000
    which = np.repeat(np.arange(draws), n)
    images = permute(np.tile(np.arange(n), draws), np.full(draws, n), hash_words(4, np.arange(draws)), which)
    seen = np.bincount(np.tile(np.arange(n), draws) * n + images, minlength=n * n)
    chi_square = float(((seen - draws / n) ** 2 / (draws / n)).sum())
    freedom = (n - 1) ** 2
    assert abs(chi_square - freedom) < 4 * np.sqrt(2 * freedom)


def test_positions_are_left_as_they_were_and_no_positions_give_none() -> None:
    positions = np.arange(100)
    permute(positions, 100, 1)
    assert positions.tolist() == list(range(100))
    assert permute([], 100, 1).tolist() == []
    assert permute([], [3, 4], [1, 2], []).tolist() == []


def test_positions_outside_the_range_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"^permute: expected positions in range\(10\), got 10$"):
        permute([3, 10, 11], 10, 0)
    with pytest.raises(ArgumentError, match=r"^permute: expected positions in range\(10\), got -1$"):
        permute([-1], 10, 0)
    with pytest.raises(ArgumentError, match=r"^permute: expected positions in range\(5\), got 5$"):
        permute([5, 5], [60, 5], [1, 2], [0, 1])


@pytest.mark.parametrize("n", [0, -3, 2**53 + 1])
def test_sizes_outside_1_to_2_to_the_53_are_refused(n: int) -> None:
    with pytest.raises(ArgumentError, match=rf"^permute: expected n in 1\.\.2\*\*53, got {n}\.\.{n}$"):
        permute([0], n, 0)


def test_a_table_must_say_which_bijection_each_position_goes_through() -> None:
    with pytest.raises(ArgumentError, match=r"^permute: expected `which` of 2 bijections each position goes through"):
        permute([0], [5, 6], 0)
    with pytest.raises(ArgumentError, match=r"^permute: expected `which` in range\(2\), got -1\.\.2$"):
        permute([0, 0], [5, 6], 0, [-1, 2])
    with pytest.raises(ArgumentError, match=r"got \(3,\) and \(2,\)$"):
        permute([0, 0, 0], [5, 6], 0, [0, 1])


@pytest.mark.parametrize("positions", [3, [[0, 1], [2, 3]]])
def test_positions_must_have_one_axis(positions: object) -> None:
    with pytest.raises(ArgumentError, match=r"^permute: expected positions of one axis"):
        permute(positions, 10, 0)
