"""The randomness that the user's functions may ask for.

It is a function of (seed, epoch, sample id), so a sample is augmented in the same way whatever the number of
workers and ranks, and again after a resume.
"""

from typing import Any

import numpy as np
import torch

from headrace.errors import ArgumentError
from headrace.formats import Ids
from headrace.order import SAMPLE, hash_words


def sample_rng(seed: int, epoch: int, sample_id: int) -> np.random.Generator:
    """The random generator of one sample in one epoch."""
    return np.random.Generator(np.random.Philox(key=int(hash_words(seed, epoch, SAMPLE, sample_id)[0])))


class BatchRandom:
    """Random numbers for a batch, a row a sample: each row depends on the seed, the epoch and its sample alone.

    A second call gives other numbers than the first.
    """

    def __init__(self, seed: int, epoch: int, sample_ids: Ids) -> None:
        self._key = hash_words(seed, epoch, SAMPLE, sample_ids)
        self._calls = 0

    def bits(self, *shape: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """64 random bits each: uint64, shape (rows, *shape)."""
        counters = np.arange(int(np.prod(shape))).reshape(1, -1)
        hashed = hash_words(self._key[:, None], self._calls, counters)
        self._calls += 1
        return hashed.reshape(len(self._key), *shape)

    def random(self, *shape: int) -> torch.Tensor:
        """Uniform numbers in [0, 1): float32, shape (rows, *shape)."""
        return torch.from_numpy((self.bits(*shape) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24))

    def integers(self, high: int, *shape: int) -> torch.Tensor:
        """Uniform integers in [0, high), high up to 2**32: int64, shape (rows, *shape)."""
        if not 1 <= high <= 2**32:
            raise ArgumentError(f"integers: expected high in 1..2**32, got {high}")
        return torch.from_numpy(
            (((self.bits(*shape) >> np.uint64(32)) * np.uint64(high)) >> np.uint64(32)).astype(np.int64)
        )

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal numbers: float32, shape (rows, *shape), by the method of Box and Muller (1958)."""
        uniform, angle = self.random(*shape), self.random(*shape)
        # 1 - uniform lies in (0, 1], so that the logarithm is finite
        return torch.sqrt(-2 * torch.log1p(-uniform)) * torch.cos(2 * torch.pi * angle)
