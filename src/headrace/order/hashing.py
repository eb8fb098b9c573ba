"""A keyed hash of integers, vectorised: the only source of randomness in headrace.

Everything random is a hash of what it is for: (seed, epoch, purpose, ...). Nothing is added up before hashing, so that
(seed 10, epoch 1) and (seed 11, epoch 0) have nothing in common, and nothing is drawn from a stream, so that no result
depends on who asked first.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MASK = 0xFFFFFFFFFFFFFFFF
_START = 0x9E3779B97F4A7C15
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def hash_words(*words: ArrayLike) -> NDArray[np.uint64]:
    """A 64-bit hash of a sequence of integers, element by element over broadcast arrays.

    Each word is folded in by exclusive or, then mixed by the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast
    splittable pseudorandom number generators", OOPSLA 2014, with Stafford's variant 13 of the constants). The result is
    part of the public contract: it is the same on every platform and in every release.

    Args:
        words: Integers or integer arrays that broadcast together, each taken modulo 2**64.

    Returns:
        uint64, of the broadcast shape, with at least one axis.
    """
    # plain integers, which come first as a rule, take a tenth of the time outside of arrays
    folded, first = _START, 0
    for word in words:
        if not isinstance(word, int):
            break
        folded = _mix_one(folded ^ (word & _MASK))
        first += 1
    state = np.array([folded], np.uint64)
    for word in words[first:]:
        state = _mix(state ^ _as_uint64(word))
    return state


def _as_uint64(word: ArrayLike | int) -> NDArray[np.uint64]:
    if isinstance(word, int):
        return np.array([word & _MASK], np.uint64)
    return np.atleast_1d(np.asarray(word)).astype(np.uint64)


def _mix_one(state: int) -> int:
    state ^= state >> 30
    state = state * 0xBF58476D1CE4E5B9 & _MASK
    state ^= state >> 27
    state = state * 0x94D049BB133111EB & _MASK
    return state ^ state >> 31


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    # `state` is fresh, so it is mixed in place; arrays, unlike NumPy scalars, wrap around silently
    state ^= state >> _SHIFTS[0]
    state *= _FACTORS[0]
    state ^= state >> _SHIFTS[1]
    state *= _FACTORS[1]
    state ^= state >> _SHIFTS[2]
    return state
