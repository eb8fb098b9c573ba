"""Seeds for the random generators that a whole process shares: torch's (on the CPU), NumPy's and Python's.

User code that draws from them, instead of asking for an `rng`, gets the same numbers for a sample whatever the number
of workers and ranks, and again after a resume: before each call they are seeded by (seed, epoch, sample id).

Guarantees:
- Seeding touches these three generators and nothing else; `kept_generators` puts them back.
- They belong to the process, so only one thread of it may seed them, which runs the user's code too.
"""

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

import numpy as np
import torch

from headrace.formats import DatasetSource, Ids
from headrace.order import SEEDING, hash_words

# What is about to be called, so that none of them draws what another has drawn. A part of the contract, as the order is
_READ, _TRANSFORM, _BATCH, _WORKER = range(4)
_PYTHON_STATE: Final = random.Random(0).getstate()  # noqa: S311 (set in a fifth of the time that seeding takes)
_HIGH_BITS: Final = 32  # NumPy and torch seed the same algorithm with 32 bits: these are NumPy's, the others torch's


class Seeding:
    """Seeds the generators before the user's code is called.

    For datasets, whose reads may be repeated, NumPy's and Python's are seeded only once they are known to be drawn
    from, since that takes some 6 microseconds a sample: until then, each read is looked after, and the first one that
    has drawn is repeated after seeding.
    """

    def __init__(self) -> None:
        # twins of the generators, which give the same numbers as long as nobody draws from those; None from then on
        self._python: random.Random | None = random.Random()  # noqa: S311 (nothing is to be kept secret)
        self._numpy: np.random.RandomState | None = np.random.RandomState()

    def __reduce__(self) -> tuple[type["Seeding"], tuple[()]]:
        return Seeding, ()

    def seeds(self, seed: int, epoch: int, sample_ids: Ids) -> list[int]:
        """What to give to `set` before each sample's transform.

        Args:
            seed: The order's seed.
            epoch: The epoch.
            sample_ids: int64, shape (m,).
        """
        return _seeds(seed, epoch, sample_ids, _TRANSFORM)

    def set(self, value: int) -> None:
        """Seeds the generators."""
        seed_generators(value)

    def seed(self, seed: int, epoch: int, sample_ids: Ids) -> None:
        """Seeds them before code that takes a whole batch, by the first of its samples.

        Args:
            seed: The order's seed.
            epoch: The epoch.
            sample_ids: int64, shape (m,); at least one.
        """
        seed_generators(_seeds(seed, epoch, sample_ids[:1], _BATCH)[0])

    def seeded(self, source: DatasetSource, seed: int, epoch: int) -> DatasetSource:
        """The same samples, each read as if the generators were seeded for it before; by `__getitems__`, for the first.

        Args:
            source: A foreign dataset.
            seed: The order's seed.
            epoch: The epoch.
        """

        def around(sample_ids: Ids, get: Callable[[int], Any]) -> Callable[[int], Any]:
            seeds = _seeds(seed, epoch, sample_ids, _READ)
            self._begin()
            coming = iter(seeds)
            return lambda sample_id: self._read(get, sample_id, next(coming))

        return source.read_through(around)

    def _begin(self) -> None:
        """Makes twins of the generators, whatever was drawn before."""
        if self._python is not None:
            random.setstate(_PYTHON_STATE)
            self._python.setstate(_PYTHON_STATE)
        if self._numpy is not None:
            np.random.seed(0)  # noqa: NPY002
            self._numpy.seed(0)

    def _read(self, get: Callable[[int], Any], sample_id: int, value: int) -> Any:
        torch.default_generator.manual_seed(value)
        if self._numpy is None:
            np.random.seed(value >> _HIGH_BITS)  # noqa: NPY002
        if self._python is None:
            random.seed(value)
        try:
            sample = get(sample_id)
        except Exception:
            if not self._notices_draws():
                raise
        else:
            if not self._notices_draws():
                return sample
        return self._read(get, sample_id, value)  # a third time at most

    def _notices_draws(self) -> bool:
        """Whether it shows for the first time that somebody draws from a generator."""
        noticed = False
        if self._python is not None and random.getrandbits(64) != self._python.getrandbits(64):
            self._python, noticed = None, True
        if self._numpy is not None and np.random.random_sample() != self._numpy.random_sample():  # noqa: NPY002
            self._numpy, noticed = None, True
        return noticed


def worker_seed(seed: int, worker: int) -> int:
    """A seed for what a worker process draws outside of any sample: 64 bits.

    Args:
        seed: The order's seed.
        worker: The worker's number.
    """
    return int(hash_words(seed, SEEDING, _WORKER, worker)[0])


def seed_generators(value: int) -> None:
    """Seeds the three generators with 64 bits."""
    # not torch.manual_seed, which looks after every accelerator and takes a hundred times as long
    torch.default_generator.manual_seed(value)
    np.random.seed(value >> _HIGH_BITS)  # noqa: NPY002 (it is this one that old code draws from)
    random.seed(value)


@contextlib.contextmanager
def kept_generators() -> Iterator[None]:
    """Puts the three generators back as they were, whatever is drawn or seeded inside."""
    torchs, numpys, pythons = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(torchs)
        np.random.set_state(numpys)  # noqa: NPY002
        random.setstate(pythons)


def _seeds(seed: int, epoch: int, sample_ids: Ids, what_for: int) -> list[int]:
    # a single one takes a fifth of the time outside of arrays
    words = int(sample_ids[0]) if len(sample_ids) == 1 else sample_ids
    return cast(list[int], hash_words(seed, epoch, SEEDING, what_for, words).tolist())
