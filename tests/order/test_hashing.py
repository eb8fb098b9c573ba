"""hash_words: everything random comes from it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.order import hash_words
from tests.order.reference import plain_hash
from tests.order.strategies import examples

words_64 = st.integers(-(2**63), 2**64 - 1)

# (0,) is the first number that SplitMix64 gives for seed 0, as published
GOLDEN = {
    (): 0x9E3779B97F4A7C15,
    (0,): 0xE220A8397B1DCDAF,
    (0, 0): 0x48218226FF3CD4BF,
    (1,): 0xE4D971771B652C20,
    (7, 1, 0): 0x163FC9C6F4D001A9,
    (-1,): 0xDE0A564CBCD060C4,
    (9223372036854775808, 3, 2, 63, 12345): 0x622E315D2D754BB9,
}


@pytest.mark.parametrize("words", GOLDEN)
def test_hashes_are_the_same_on_every_platform_and_in_every_release(words: tuple[int, ...]) -> None:
    assert hash_words(*words).tolist() == [GOLDEN[words]]


@given(st.lists(words_64, max_size=6))
@examples(200)
def test_the_hash_is_the_one_that_plain_integers_give(words: list[int]) -> None:
    assert hash_words(*words).tolist() == [plain_hash(*words)]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20), words_64)
@examples(100)
def test_an_array_hashes_to_what_its_elements_hash_to(column: list[int], word: int) -> None:
    hashed = hash_words(word, np.array(column), 5)
    assert hashed.dtype == np.uint64
    assert hashed.tolist() == [plain_hash(word, element, 5) for element in column]


def test_arrays_broadcast_and_are_left_as_they_were() -> None:
    rows, columns = np.arange(3)[:, None], np.arange(4, dtype=np.uint64)
    hashed = hash_words(rows, columns)
    assert hashed.tolist() == [[plain_hash(i, j) for j in range(4)] for i in range(3)]
    assert rows.ravel().tolist() == [0, 1, 2]
    assert columns.tolist() == [0, 1, 2, 3]


def test_the_order_and_the_number_of_words_matter() -> None:
    sequences = [(1, 2), (2, 1), (1, 2, 0), (0, 1, 2), (1,), (3,), ()]
    assert len({int(hash_words(*words)[0]) for words in sequences}) == len(sequences)


def test_seed_10_of_epoch_1_has_nothing_in_common_with_seed_11_of_epoch_0() -> None:
    assert hash_words(10, 1).tolist() != hash_words(11, 0).tolist()


def test_nearby_seeds_epochs_and_purposes_never_share_a_key() -> None:
    seeds, epochs, purposes = np.ogrid[-40:40, 0:80, 0:5]
    assert len(np.unique(hash_words(seeds, epochs, purposes))) == 80 * 80 * 5


def test_a_negative_seed_is_taken_modulo_2_to_the_64() -> None:
    assert hash_words(-1).tolist() == hash_words(2**64 - 1).tolist() == hash_words(np.int64(-1)).tolist()
    assert hash_words(-1).tolist() != hash_words(1).tolist()


@pytest.mark.parametrize("bit", range(64))
def test_flipping_any_bit_of_a_word_flips_about_half_of_the_hash(bit: int) -> None:
    words = np.arange(2000)
    flipped = np.bitwise_count(
        hash_words(7, words) ^ hash_words(7, words ^ np.int64(1 << bit if bit < 63 else -(2**63)))
    )
    # 64 fair coins: mean 32, standard deviation 4 / sqrt(2000) of the mean of 2000
    assert abs(flipped.mean() - 32) < 6 * 4 / np.sqrt(2000)
