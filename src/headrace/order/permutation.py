"""A keyed bijection of range(n) that needs no memory: the shuffle.

A Feistel network over a grid of a rows and 2**c columns, both near the square root of n and together just above it,
with cycle walking down to n. Rounds alternate: the row is shifted modulo a by a hash of the column, the column is
changed by exclusive or with a hash of the row. Six rounds, and a round function of two multiplications with a shifted
exclusive or between them: fewer rounds, or one multiplication, visibly fail the statistics in tests/order. The grid
exceeds n by less than one row, so hardly any position walks, whatever n is (over the next power of two, half of them
may).

The arithmetic is on 32-bit halves modulo 2**32, and one product of 32 by 32 bits, so nothing can overflow; every step
is defined element by element, so the result does not depend on how positions are grouped into calls. The constants are
part of the public contract.
"""

from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headrace.errors import ArgumentError
from headrace.order.hashing import hash_words

ROUNDS = 6
MAX_SAMPLES = 1 << 53  # bit lengths are taken from float64 exponents, exact up to here

# Multipliers and shift of Wellons' "lowbias32" (hash-prospector, 2018), a mixer found by search for low avalanche bias
_MULTIPLIERS = (np.uint32(0x7FEB352D), np.uint32(0x846CA68B))
_SHIFT = np.uint32(15)
_WORD = np.uint64(32)

# The narrowest grid: below 16 x 16 cells, six rounds leave some permutations of few positions visibly more likely
_MIN_COLUMN_BITS = 4
_MIN_ROWS = 16

# Positions worked on at a time: scratch arrays of this length stay in the second-level cache
_CHUNK = 32_768


def permute(positions: ArrayLike, n: ArrayLike, key: ArrayLike, which: ArrayLike | None = None) -> NDArray[np.int64]:
    """Where keyed pseudorandom bijections of range(n) send positions.

    The generator is a generalised Feistel network with cycle walking (Black and Rogaway, "Ciphers with arbitrary finite
    domains", 2002). It is not meant to resist an adversary.

    Args:
        positions: int64, shape (m,), each in [0, n).
        n: The size of the permuted range, 1 to 2**53: one integer, or int64 of shape (k,), one for each bijection.
        key: 64-bit key, from `hash_words`: one integer, or uint64 of shape (k,), one for each bijection.
        which: int64, shape (m,): the bijection, in [0, k), that each position goes through; None where there is one.

    Returns:
        int64, shape (m,), each in [0, n). For one bijection, distinct positions have distinct results.

    Raises:
        ArgumentError: A position is outside [0, n), n outside [1, 2**53], or `which` outside [0, k).
    """
    return Permutation(n, key)(positions, which)


class Permutation:
    """One or several keyed bijections, ready to be applied again and again; see `permute`."""

    def __init__(self, n: ArrayLike, key: ArrayLike) -> None:
        """Takes `n` and `key` as `permute` does."""
        sizes, keys = np.atleast_1d(np.asarray(n, np.int64)), np.atleast_1d(np.asarray(key, np.uint64))
        if sizes.size and (sizes.min() < 1 or sizes.max() > MAX_SAMPLES):
            raise ArgumentError(f"permute: expected n in 1..2**53, got {sizes.min()}..{sizes.max()}")
        self._networks = _Networks.of(*np.broadcast_arrays(sizes, keys))

    def __call__(self, positions: ArrayLike, which: ArrayLike | None = None) -> NDArray[np.int64]:
        """Where the bijections send positions; as `permute`."""
        positions = np.asarray(positions, np.int64)
        indices = None if which is None else np.asarray(which, np.int64)
        _check(positions, self._networks.sizes, indices)
        result = np.empty(positions.shape, np.int64)
        for start in range(0, len(positions), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            self._at(indices, chunk).apply_into(result[chunk], positions[chunk])
        self._walk(result, indices)
        return result

    def _walk(self, values: NDArray[np.int64], which: NDArray[np.int64] | None) -> None:
        """Applies the networks on, to those values that lie outside their ranges, until none does."""
        sizes = self._networks.sizes if which is None else self._networks.sizes[which]
        if sizes.size and sizes.min() == 1:
            np.copyto(values, 0, where=sizes == 1)  # where a walk would take 128 steps on average, for nothing
        outside = np.flatnonzero(values >= sizes)
        while outside.size:
            walked = values[outside]
            networks = self._at(which, outside)
            networks.apply_into(walked, walked)
            values[outside] = walked
            outside = outside[walked >= networks.sizes]

    def _at(self, which: NDArray[np.int64] | None, places: slice | NDArray[np.int64]) -> "_Networks":
        """The networks of the positions at some places."""
        return self._networks if which is None else self._networks.at(which[places])


def _check(positions: NDArray[np.int64], sizes: NDArray[np.int64], which: NDArray[np.int64] | None) -> None:
    if positions.ndim != 1 or (which is not None and which.shape != positions.shape):
        raise ArgumentError(
            "permute: expected positions of one axis, and `which`, where given, of the same shape; "
            f"got {positions.shape} and {None if which is None else which.shape}"
        )
    if which is None and len(sizes) != 1:
        raise ArgumentError(
            f"permute: expected `which` of {len(sizes)} bijections each position goes through, got none"
        )
    if which is not None and which.size and (which.min() < 0 or which.max() >= len(sizes)):
        raise ArgumentError(f"permute: expected `which` in range({len(sizes)}), got {which.min()}..{which.max()}")
    if not positions.size or positions.view(np.uint64).max() < sizes.min():
        return  # the common case in one reduction: seen as unsigned, a negative position is larger than any size
    limits = sizes if which is None else sizes[which]
    if positions.min() < 0 or (positions >= limits).any():
        wrong = np.flatnonzero((positions < 0) | (positions >= limits))[0]
        limit = np.broadcast_to(limits, positions.shape)[wrong]
        raise ArgumentError(f"permute: expected positions in range({limit}), got {positions[wrong]}")


class _Networks(NamedTuple):
    """Feistel networks: a table of them, or one for each of some positions, or one for all."""

    sizes: NDArray[np.int64]
    rows: NDArray[np.uint32]
    column_bits: NDArray[np.int64]
    round_keys: NDArray[np.uint32]  # (rounds, networks)

    @classmethod
    def of(cls, sizes: NDArray[np.int64], keys: NDArray[np.uint64]) -> Self:
        bits = np.frexp((sizes - 1).astype(np.float64))[1].astype(np.int64)
        column_bits = np.maximum((bits + 1) // 2, _MIN_COLUMN_BITS)
        rows = np.maximum(-(-sizes >> column_bits), _MIN_ROWS).astype(np.uint32)
        # six 32-bit round keys for each key: the halves of three hashes of it
        hashed = np.stack([hash_words(keys, i) for i in range(ROUNDS // 2)])
        halves = np.stack([hashed >> _WORD, hashed & np.uint64(0xFFFFFFFF)], axis=1).astype(np.uint32)
        return cls(sizes, rows, column_bits, halves.reshape(ROUNDS, -1))

    def at(self, indices: NDArray[np.int64]) -> Self:
        """One network for each index into the table."""
        return type(self)(
            self.sizes[indices], self.rows[indices], self.column_bits[indices], self.round_keys.take(indices, axis=1)
        )

    def apply_into(self, out: NDArray[np.int64], values: NDArray[np.int64]) -> None:
        """Fills `out` with each value's image in the grid of its network; the two may be one array."""
        row = (values >> self.column_bits).astype(np.uint32)
        column = values.astype(np.uint32)  # modulo 2**32, of which the column is the low bits
        column &= (np.uint32(1) << self.column_bits.astype(np.uint32)) - np.uint32(1)
        column_shift = (32 - self.column_bits).astype(np.uint32)
        rows_wide = self.rows.astype(np.uint64)
        hashed, scratch, wide = np.empty_like(row), np.empty_like(row), np.empty(row.shape, np.uint64)
        for i, key in enumerate(self.round_keys):
            if i % 2:
                _hash_into(hashed, scratch, row, key)
                np.right_shift(hashed, column_shift, out=hashed)
                np.bitwise_xor(column, hashed, out=column)
            else:
                # the hash, scaled to [0, rows), is added to the row modulo rows
                _hash_into(hashed, scratch, column, key)
                np.copyto(wide, hashed)
                np.multiply(wide, rows_wide, out=wide)
                np.right_shift(wide, _WORD, out=wide)
                np.copyto(hashed, wide, casting="unsafe")
                np.add(row, hashed, out=row)
                np.subtract(row, self.rows, out=hashed)  # wraps around, so that the smaller of the two is in range
                np.minimum(row, hashed, out=row)
        np.copyto(out, row)
        np.left_shift(out, self.column_bits, out=out)
        np.bitwise_or(out, column, out=out)


def _hash_into(
    out: NDArray[np.uint32], scratch: NDArray[np.uint32], values: NDArray[np.uint32], key: NDArray[np.uint32]
) -> None:
    """The round function: 32 bits, of which the high ones are well mixed."""
    np.bitwise_xor(values, key, out=out)
    np.multiply(out, _MULTIPLIERS[0], out=out)
    np.right_shift(out, _SHIFT, out=scratch)
    np.bitwise_xor(out, scratch, out=out)
    np.multiply(out, _MULTIPLIERS[1], out=out)
