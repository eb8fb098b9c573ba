"""How random the shuffle is: statistics that a random permutation passes, and that a weak one visibly does not.

NumPy's permutation goes through the same functions as the control that must pass; fewer rounds and an affine map are
the controls that must fail.
"""

import numpy as np
import pytest

from headrace.order import Layout, Order, hash_words, permutation, permute
from headrace.order.epoch import SHUFFLE_ALL, SHUFFLE_WINDOW
from tests.order import statistics
from tests.order.statistics import Images, Shuffle

# Of 22 statistics at 6 sizes with 2 shuffles, chance alone exceeds 4.5 standard deviations once in 500 such tests
BOUND = 4.5
WINDOW = 65_536
SIZES = [(12_288, None), (65_537, None), (600_000, None), (1_000_000, None), (2**20 + 1, None), (10**9, WINDOW)]


def shuffle_of_headrace(n: int, places: int | None) -> Shuffle:
    def images(seed: int, epoch: int) -> Images:
        order = Order(n, Layout("global", 1, None), seed=seed)
        return order.sample_ids(epoch, np.arange(n if places is None else places))

    return images


def shuffle_of_numpy(n: int, places: int | None) -> Shuffle:
    def images(seed: int, epoch: int) -> Images:
        generator = np.random.default_rng([seed, epoch])
        return generator.permutation(n) if places is None else generator.choice(n, places, replace=False)

    return images


def affine(n: int, places: int | None) -> Shuffle:
    def images(seed: int, epoch: int) -> Images:
        factor, offset = (hash_words(seed, epoch, np.arange(2)) % 999_983).astype(np.int64)
        return (np.arange(n if places is None else places) * (2 * factor + 1) + offset) % n

    return images


def worst(shuffle: Shuffle, n: int) -> tuple[float, str]:
    return max((abs(z), name) for name, z in statistics.deviations(shuffle, n))


@pytest.mark.parametrize("shuffle", [shuffle_of_headrace, shuffle_of_numpy])
@pytest.mark.parametrize(("n", "places"), SIZES)
def test_neighbours_batches_bits_epochs_and_seeds_look_as_random_as_numpys(shuffle, n: int, places: int | None) -> None:
    deviation, name = worst(shuffle(n, places), n)
    assert deviation < BOUND, name


@pytest.mark.parametrize(("n", "places"), SIZES)
def test_an_affine_map_is_found_out(n: int, places: int | None) -> None:
    assert worst(affine(n, places), n)[0] > 1000


@pytest.mark.parametrize(("n", "places"), SIZES)
def test_two_rounds_are_found_out(monkeypatch: pytest.MonkeyPatch, n: int, places: int | None) -> None:
    monkeypatch.setattr(permutation, "ROUNDS", 2)
    assert worst(shuffle_of_headrace(n, places), n)[0] > 20


@pytest.mark.parametrize("n", [12_288, 65_536, 1_000_000])
def test_four_rounds_are_found_out(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    monkeypatch.setattr(permutation, "ROUNDS", 4)
    assert worst(shuffle_of_headrace(n, None), n)[0] > 5


@pytest.mark.parametrize("shuffle", [shuffle_of_headrace, shuffle_of_numpy])
@pytest.mark.parametrize("n", [300, 12_288, 65_537])
def test_neighbouring_seeds_and_epochs_send_as_few_places_to_the_same_image_as_chance(shuffle, n: int) -> None:
    assert abs(statistics.equal_places(shuffle(n, None), 12, n)) < BOUND


@pytest.mark.parametrize("lanes", [1, 64])
def test_neighbouring_windows_and_lanes_are_shuffled_independently(lanes: int) -> None:
    def images(number: int, epoch: int) -> Images:
        key = hash_words(7, epoch, SHUFFLE_WINDOW, number % lanes, number // lanes)
        return permute(np.arange(WINDOW), WINDOW, key)

    deviation, name = worst(images, WINDOW)
    assert deviation < BOUND, name
    assert abs(statistics.equal_places(images, 12, WINDOW)) < BOUND


@pytest.mark.parametrize("n", [17, 40, 257])
def test_neighbours_in_small_ranges_go_everywhere_equally_often(n: int) -> None:
    # pairs of neighbouring places, over so many keys that each pair of different images is expected 30 times
    draws = 30 * n
    which = np.repeat(np.arange(draws), n)
    key = hash_words(5, np.arange(draws), SHUFFLE_ALL)
    images = permute(np.tile(np.arange(n), draws), np.full(draws, n), key, which).reshape(draws, n)
    seen = np.bincount((images[:, :-1] * n + images[:, 1:]).ravel(), minlength=n * n).reshape(n, n)
    assert np.trace(seen) == 0
    # each draw has n - 1 pairs, and there are n * (n - 1) pairs that they may be
    expected, freedom = draws / n, n * (n - 1) - 1
    chi_square = float(((seen[~np.eye(n, dtype=bool)] - expected) ** 2 / expected).sum())
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)
