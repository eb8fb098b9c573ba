"""Which sample comes when: an epoch's order as a pure function."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headrace.errors import ArgumentError
from headrace.order.hashing import hash_words
from headrace.order.layout import Layout
from headrace.order.permutation import MAX_SAMPLES, Permutation, permute

# What a key is for. Part of the public contract: a number is never reused for something else.
SHUFFLE_ALL, SHUFFLE_BLOCKS, SHUFFLE_WINDOW, SPLIT, SAMPLE, DECODE, SEEDING = range(7)


def bit_reversed(lanes: int) -> NDArray[np.int64]:
    """The numbers below a power of two, each with its bits in reverse.

    Example:
        >>> bit_reversed(8).tolist()
        [0, 4, 2, 6, 1, 5, 3, 7]
    """
    reverse = np.zeros(1, np.int64)
    while len(reverse) < lanes:
        reverse = np.concatenate([2 * reverse, 2 * reverse + 1])
    return reverse


def _distinct(values: NDArray[np.int64], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct values, ascending, and each value's index among them; all are in [0, size)."""
    if size > 4 * len(values) + 4096:
        return np.unique(values, return_inverse=True)
    seen = np.zeros(size, np.bool_)
    seen[values] = True
    used = np.flatnonzero(seen)
    index = np.empty(size, np.int64)
    index[used] = np.arange(len(used))
    return used, index[values]


def _bounds_of_blocks(samples: int, block_lengths: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """The file's blocks that hold samples, as the samples that they begin with, and `samples`."""
    if block_lengths is None:
        raise ArgumentError('block_lengths: expected the samples of each block for shuffle="window", got none')
    lengths = np.asarray(block_lengths, np.int64)
    if lengths.size and lengths.min() < 0:
        raise ArgumentError(f"block_lengths: expected 0 samples or more in each block, got {lengths.min()}")
    if int(lengths.sum()) != samples:
        raise ArgumentError(f"block_lengths: expected a sum of {samples} samples, got {int(lengths.sum())}")
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths[lengths > 0])])


@dataclass(frozen=True, slots=True)
class _BlockSequence:
    """One epoch's blocks in their permuted order: where each begins in the sequence and in the file."""

    epoch: int
    sequence_starts: NDArray[np.int64]
    file_starts: NDArray[np.int64]


class Order:
    """The order of every epoch of a dataset, as a pure function from sequence numbers to sample ids.

    Nothing is held that grows with the number of samples: at most three integers a block and a few a lane. Instances
    may be shared by threads.

    Attributes:
        samples: Samples in an epoch.
        seed: The seed, as given.
        layout: The shuffle mode, lanes and window.
    """

    def __init__(
        self, samples: int, layout: Layout, *, seed: int = 0, block_lengths: NDArray[np.int64] | None = None
    ) -> None:
        """Prepares the order of `samples` samples; costs nothing that grows with their number.

        Args:
            samples: 1 to 2**53.
            layout: From `resolve_layout`.
            seed: Any integer in [-2**63, 2**64); -1 and 2**64 - 1 are the same seed.
            block_lengths: int64, shape (blocks,): each block's samples in file order; only for a "window" shuffle.

        Raises:
            ArgumentError: There is no sample, the seed is too large, or the lengths are missing, negative or don't add
                up to `samples`.
        """
        if not 1 <= samples <= MAX_SAMPLES:
            raise ArgumentError(f"expected a dataset of 1 to 2**53 samples, got {samples}")
        if not -(2**63) <= seed < 2**64:
            raise ArgumentError(f"seed: expected a 64-bit integer, got {seed}")
        self.samples, self.seed, self.layout = samples, seed, layout
        self._lane_of = bit_reversed(layout.lanes)
        self._lane_lengths = samples // layout.lanes + (self._lane_of < samples % layout.lanes)
        self._lane_starts = np.cumsum(self._lane_lengths) - self._lane_lengths
        self._block_bounds = np.zeros(1, np.int64)
        self._blocks: _BlockSequence | None = None
        self._shuffled: tuple[int, Permutation] | None = None
        if layout.shuffle == "window":
            self._block_bounds = _bounds_of_blocks(samples, block_lengths)

    def sample_ids(self, epoch: int, sequence: ArrayLike) -> NDArray[np.int64]:
        """The samples at some places of an epoch's order.

        Args:
            epoch: 0 or more.
            sequence: int64, shape (m,): sequence numbers, each in [0, samples).

        Returns:
            int64, shape (m,): sample ids, each in [0, samples), in memory of their own.

        Raises:
            ArgumentError: A sequence number is outside [0, samples).
        """
        sequence = np.asarray(sequence, np.int64)
        if sequence.size and not sequence.view(np.uint64).max() < self.samples:  # unsigned, negative ones are huge
            raise ArgumentError(
                f"expected sequence numbers in range({self.samples}), got {sequence.min()}..{sequence.max()}"
            )
        lane, place = self._split(sequence)
        match self.layout.shuffle:
            case False:
                return self._flat(lane, place).copy()
            case "global":
                return self._permutation(epoch)(self._flat(lane, place))
        return self._within_windows(epoch, lane, place) if sequence.size else sequence.copy()

    def _permutation(self, epoch: int) -> Permutation:
        """The epoch's permutation of all samples, the last one kept."""
        cached = self._shuffled
        if cached is None or cached[0] != epoch:
            permutation = Permutation(self.samples, hash_words(self.seed, epoch, SHUFFLE_ALL))
            cached = self._shuffled = epoch, permutation
        return cached[1]

    def _split(self, sequence: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The lane of each sequence number, and its place in that lane."""
        lanes = self.layout.lanes
        if lanes == 1:
            return np.zeros(1, np.int64), sequence
        return self._lane_of[sequence & (lanes - 1)], sequence // lanes

    def _flat(self, lane: NDArray[np.int64], place: NDArray[np.int64]) -> NDArray[np.int64]:
        """The places of the end-to-end lanes as places of one sequence."""
        return place if self.layout.lanes == 1 else self._lane_starts[lane] + place

    def _within_windows(self, epoch: int, lane: NDArray[np.int64], place: NDArray[np.int64]) -> NDArray[np.int64]:
        """The sample ids at some places of the lanes, each permuted within its window."""
        assert self.layout.window is not None
        width = -(-self.layout.window // self.layout.lanes)
        # lane l's first window is shorter by its lead, so that the lanes cross their borders at different steps
        leads = self._lane_of * width // self.layout.lanes
        window = (place + leads[lane]) // width
        # the windows that these places lie in, as a table by (lane, window): few, where the places are neighbours
        first = int(window.min())
        span = int(window.max()) - first + 1
        used, which = _distinct(lane * span + (window - first), self.layout.lanes * span)
        lanes, windows = used // span, used % span + first
        starts = np.maximum(windows * width - leads[lanes], 0)
        lengths = np.minimum((windows + 1) * width - leads[lanes], self._lane_lengths[lanes]) - starts
        keys = hash_words(self.seed, epoch, SHUFFLE_WINDOW, lanes, windows)
        permuted = permute(place - starts[which], lengths, keys, which)
        starts += self._lane_starts[lanes]
        return self._in_blocks(epoch, starts[which] + permuted, starts, starts + lengths)

    def _in_blocks(
        self, epoch: int, places: NDArray[np.int64], starts: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """The sample ids at some places of the block-permuted sequence, all within [starts, ends) of windows."""
        blocks = self._blocks
        if blocks is None or blocks.epoch != epoch:
            blocks = self._blocks = self._permute_blocks(epoch)
        begins = blocks.sequence_starts
        # a search among the windows' own blocks stays in the cache, where one among all blocks would not
        firsts = np.searchsorted(begins, starts, side="right") - 1
        counts = np.searchsorted(begins, ends, side="left") - firsts
        if int(counts.sum()) <= len(places):
            near = np.repeat(firsts - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
            block = near[np.searchsorted(begins[near], places, side="right") - 1]
        else:
            block = np.searchsorted(begins, places, side="right") - 1
        sample_ids: NDArray[np.int64] = blocks.file_starts[block] + (places - begins[block])
        return sample_ids

    def _permute_blocks(self, epoch: int) -> _BlockSequence:
        count = len(self._block_bounds) - 1
        sequence = permute(np.arange(count), count, hash_words(self.seed, epoch, SHUFFLE_BLOCKS))
        starts = self._block_bounds[sequence]
        lengths = self._block_bounds[sequence + 1] - starts
        return _BlockSequence(epoch, np.cumsum(lengths) - lengths, starts)
