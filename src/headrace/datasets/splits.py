"""Random parts of a source: disjoint, complete, and computed instead of stored."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from headrace.datasets.views import Selection
from headrace.errors import ArgumentError
from headrace.formats import Ids
from headrace.order import SPLIT, hash_words, permute
from headrace.order.permutation import Permutation

# The fourth word of a key for SPLIT, which a split of all samples at once does not have
_BLOCKS, _WITHIN_BLOCK = range(2)


@dataclass(frozen=True)
class SplitSelection(Selection):
    """Places [start, stop) of a keyed permutation of all samples; nothing is stored but its ends."""

    samples: int
    seed: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def sample_ids(self, places: Ids) -> Ids:
        return permute(places + self.start, self.samples, hash_words(self.seed, 0, SPLIT))

    def describe(self) -> str:
        return f"split {self.seed % 2**64} {self.start} {self.stop}"


@dataclass(frozen=True, eq=False)
class BlockSplitSelection(Selection):
    """Of each block, places [first, first + count) of a keyed permutation of its samples; three integers a block.

    Attributes:
        lengths: int64 (blocks,), the samples of each of the source's blocks.
        firsts: int64 (blocks,), where in each block's permutation this part begins.
        counts: int64 (blocks,), how many it takes from there.
        seed: The seed, as given.
        totals: The samples of this part and of those after it, which say how the blocks were cut.
    """

    lengths: Ids
    firsts: Ids
    counts: Ids
    seed: int
    totals: tuple[int, ...]

    def __len__(self) -> int:
        return self.totals[0]

    def sample_ids(self, places: Ids) -> Ids:
        ends, starts, firsts, permutation = self._used
        block = np.searchsorted(ends, places, side="right")
        within: Ids = permutation(firsts[block] + places, block)
        return starts[block] + within

    @cached_property
    def _used(self) -> tuple[Ids, Ids, Ids, Permutation]:
        """What `sample_ids` needs to know of the blocks that it takes from.

        Where each ends in the view, and begins in the source; what to add to a place of the view to have one of the
        block's permutation; and the permutations.
        """
        used = np.flatnonzero(self.counts)
        lengths, counts = self.lengths[used], self.counts[used]
        starts, ends = (np.cumsum(self.lengths) - self.lengths)[used], np.cumsum(counts)
        permutation = Permutation(lengths, hash_words(self.seed, 0, SPLIT, _WITHIN_BLOCK, used))
        return ends, starts, self.firsts[used] - (ends - counts), permutation

    def describe(self) -> str:
        return f"split by block {self.seed % 2**64} {' '.join(map(str, self.totals))}"

    @property
    def goes_by_block(self) -> bool:
        return True

    def taken(self, block_lengths: Ids) -> Ids:
        assert len(block_lengths) == len(self.counts)
        return self.counts


def split(
    samples: int, parts: Mapping[str, float], seed: int, block_lengths: Ids | None = None
) -> dict[str, Selection]:
    """Disjoint selections that together hold every sample once.

    Args:
        samples: How many there are.
        parts: Each part's share: fractions that sum to 1, or whole numbers that sum to `samples`.
        seed: Any 64-bit integer; the same seed gives the same parts.
        block_lengths: int64 (blocks,), to draw every part from each block by itself, in proportion to its samples.

    Raises:
        ArgumentError: The shares don't sum up, a part would be empty, or the seed is no 64-bit integer.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**64:
        raise ArgumentError(f"seed: expected a 64-bit integer, got {seed!r}")
    is_numbers = isinstance(parts, Mapping) and all(
        isinstance(share, int | float | np.number) for share in parts.values()
    )
    if not is_numbers:
        raise ArgumentError(
            f"split: expected each part's share by its name, as {{'train': 0.9, 'val': 0.1}}, got {parts!r}"
        )
    ends = _part_ends(samples, list(parts.values()))
    starts = [0, *ends[:-1]]
    for (name, share), start, end in zip(parts.items(), starts, ends, strict=True):
        if end <= start:
            raise ArgumentError(f"split: expected parts of at least one sample, got {name!r}: {share} of {samples}")
    if block_lengths is not None:
        totals = [end - start for start, end in zip(starts, ends, strict=True)]
        return dict(zip(parts, _block_splits(block_lengths, totals, seed), strict=True))
    return {
        name: SplitSelection(samples, seed, start, end) for name, start, end in zip(parts, starts, ends, strict=True)
    }


def _block_splits(lengths: Ids, totals: Sequence[int], seed: int) -> list[BlockSplitSelection]:
    """Parts of so many samples, each drawn from all blocks.

    The last part takes the ends of the blocks' permutations, the one before it the ends of what is left, and so on: as
    in a split of all samples, which samples a part holds does not depend on how those before it are cut.
    """
    sequence = permute(np.arange(len(lengths)), len(lengths), hash_words(seed, 0, SPLIT, _BLOCKS))
    left = lengths
    made: list[BlockSplitSelection] = []
    for number in reversed(range(len(totals))):
        counts = np.empty_like(left)
        counts[sequence] = _proportional(left[sequence], totals[number])
        left = left - counts
        made.append(BlockSplitSelection(lengths, left, counts, seed, tuple(totals[number:])))
    return made[::-1]


def _proportional(lengths: Ids, total: int) -> Ids:
    """How many samples to take of each block so that they sum to `total`: its share of them, rounded up or down.

    Both int64 (blocks,). What rounding leaves is carried on to the next block, so blocks come in a random sequence.

    >>> _proportional(np.array([5, 1, 4]), 5).tolist()
    [2, 1, 2]
    """
    ends = np.cumsum(lengths)
    samples = int(ends[-1])
    exact = np.int64 if samples * total < 2**63 else object  # Python's integers never overflow
    cuts = (ends.astype(exact) * total // samples).astype(np.int64)
    return np.diff(cuts, prepend=0)


def _part_ends(samples: int, shares: Sequence[float]) -> list[int]:
    as_counts = all(isinstance(share, int | np.integer) for share in shares)
    total = samples if as_counts else 1
    if not (shares and min(shares) >= 0 and abs(sum(shares) - total) <= 1e-9):
        raise ArgumentError(
            f"split: expected fractions that sum to 1, or numbers of samples that sum to {samples}, "
            f"got {list(shares)}\n  name one more part for the samples that you don't want"
        )
    ends = [int(end) if as_counts else round(float(end) * samples) for end in itertools.accumulate(shares)]
    return [*ends[:-1], samples]  # fractions that sum to almost 1 leave nothing out either
