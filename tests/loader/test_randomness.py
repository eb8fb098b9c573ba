"""The randomness that user code may ask for: distributions, and rows that depend on their sample alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ArgumentError
from headrace.loader.randomness import BatchRandom, sample_rng
from tests.order.strategies import examples

SAMPLES = 20_000


def batch_random(seed: int = 0, epoch: int = 0, ids: object = None) -> BatchRandom:
    return BatchRandom(seed, epoch, np.arange(SAMPLES) if ids is None else np.asarray(ids, np.int64))


def test_uniform_numbers_lie_in_the_unit_interval_and_have_its_mean_and_variance():
    x = batch_random().random(4)
    assert (x.shape, x.dtype) == ((SAMPLES, 4), torch.float32)
    assert 0 <= x.min() < 0.001
    assert 0.999 < x.max() < 1
    # five standard errors of 80 000 numbers: of the mean 5 * 0.289 / 283, of the variance 5 * 0.075 / 283
    assert abs(x.double().mean() - 1 / 2) < 0.0052
    assert abs(x.double().var() - 1 / 12) < 0.0014


def test_normal_numbers_have_the_moments_and_tails_of_the_normal_distribution():
    x = batch_random(seed=1).normal(4).double()
    assert abs(x.mean()) < 5 / 283
    assert abs(x.var() - 1) < 5 * 2**0.5 / 283
    assert abs((x**3).mean()) < 5 * 15**0.5 / 283
    assert abs((x**4).mean() - 3) < 5 * 96**0.5 / 283
    assert abs((x.abs() > 2).double().mean() - 0.0455) < 5 * 0.21 / 283
    assert torch.isfinite(x).all()


@pytest.mark.parametrize("high", [1, 2, 7, 100])
def test_integers_are_uniform_below_their_bound(high):
    x = batch_random(seed=2).integers(high, 4)
    assert (x.shape, x.dtype) == ((SAMPLES, 4), torch.int64)
    counts = torch.bincount(x.flatten(), minlength=high).double()
    assert len(counts) == high
    expected = 4 * SAMPLES / high
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < (high - 1) + 5 * (2 * high) ** 0.5  # five standard deviations above its mean


def test_integers_reach_all_of_32_bits():
    x = batch_random().integers(2**32)
    assert x.min() >= 0
    assert 2**32 - 2**20 < x.max() < 2**32


@pytest.mark.parametrize("high", [0, -1, 2**32 + 1])
def test_a_bound_outside_32_bits_is_refused(high):
    with pytest.raises(ArgumentError, match=rf"integers: expected high in 1..2\*\*32, got {high}"):
        batch_random().integers(high)


def test_neighbours_calls_epochs_and_seeds_are_independent():
    rng = batch_random()
    first, second = rng.random(2), rng.random(2)
    others = [first[:, 1], second[:, 0], batch_random(epoch=1).random(2)[:, 0], batch_random(seed=1).random(2)[:, 0]]
    for other in [*others, first[:, 0].roll(1)]:
        correlation = torch.corrcoef(torch.stack([first[:, 0], other]))[0, 1]
        assert abs(correlation) < 5 / SAMPLES**0.5


@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 10**6),
    st.lists(st.integers(0, 2**53), min_size=1, max_size=20),
    st.data(),
)
@examples(60)
def test_a_row_depends_on_its_sample_alone_whatever_batch_it_comes_in(seed, epoch, ids, data):
    place = data.draw(st.integers(0, len(ids) - 1))
    batch, single = BatchRandom(seed, epoch, np.array(ids)), BatchRandom(seed, epoch, np.array([ids[place]]))
    for draw in ("random", "normal", "bits"):
        together, alone = getattr(batch, draw)(3), getattr(single, draw)(3)
        assert together[place].tolist() == alone[0].tolist()
    assert batch.integers(9)[place] == single.integers(9)[0]


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (0,)])
@pytest.mark.parametrize("ids", [[], [5], [5, 6]])
def test_shapes_are_rows_and_what_was_asked_for(shape, ids):
    rng = batch_random(ids=ids)
    assert {tuple(x.shape) for x in (rng.random(*shape), rng.normal(*shape), rng.integers(5, *shape))} == {
        (len(ids), *shape)
    }


def test_random_bits_are_the_same_on_every_platform_and_in_every_release():
    assert batch_random(seed=7, epoch=2, ids=[3, 2**40]).bits().tolist() == [2657211206319058933, 422206876781607367]
    assert sample_rng(7, 2, 3).bit_generator.random_raw(2).tolist() == [16148713574888426757, 16669121904581192782]
