"""Parts of a source that are sources again: selections, heads, splits."""

import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from headrace.errors import ArgumentError
from headrace.formats import Array, Blocks, Ids, ReadPart, Source, check_ids, fingerprint, uniform_blocks
from headrace.order import SPLIT, hash_words, permute


class Selection(ABC):
    """Which of a source's samples a view holds, and in which order: a function from its places to their ids."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def sample_ids(self, places: Ids) -> Ids:
        """The ids at some places, int64 (m,) in [0, len)."""

    @abstractmethod
    def describe(self) -> str:
        """What tells this selection from others of the same source, for the fingerprint."""


@dataclass(frozen=True)
class RangeSelection(Selection):
    """A range of sample ids; nothing is stored but its ends."""

    ids: range

    def __len__(self) -> int:
        return len(self.ids)

    def sample_ids(self, places: Ids) -> Ids:
        return self.ids.start + places * self.ids.step

    def describe(self) -> str:
        return f"range {self.ids.start} {self.ids.step} {len(self.ids)}"


@dataclass(frozen=True, eq=False)
class ListSelection(Selection):
    """Sample ids as the user listed them, int64 (m,)."""

    ids: Ids

    def __len__(self) -> int:
        return len(self.ids)

    def sample_ids(self, places: Ids) -> Ids:
        return self.ids[places]

    def describe(self) -> str:
        return "list " + hashlib.blake2b(self.ids.astype("<i8").tobytes(), digest_size=16).hexdigest()


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


class SelectedSource(Source):
    """A source that holds some samples of another one."""

    def __init__(self, base: Source, selection: Selection) -> None:
        """Raises ArgumentError where the selection is empty."""
        if len(selection) == 0:
            raise ArgumentError("expected a selection of at least one sample, got none")
        self._base, self._selection = base, selection
        self.schema, self.random_access = base.schema, base.random_access
        self.read_ahead_bytes = base.read_ahead_bytes

    def __len__(self) -> int:
        return len(self._selection)

    @cached_property
    def blocks(self) -> Blocks:
        """The parts of the base's blocks that a plain range covers; else runs of equal length, in the view's order."""
        blocks, selection = self._base.blocks, self._selection
        if not (isinstance(selection, RangeSelection) and selection.ids.step == 1):
            return uniform_blocks(len(self), int(blocks.bytes.sum()) // len(self._base))
        ends = np.cumsum(blocks.lengths)
        covered = np.minimum(ends, selection.ids.stop) - np.maximum(ends - blocks.lengths, selection.ids.start)
        kept = np.flatnonzero(covered > 0)
        lengths = covered[kept]
        return Blocks(lengths, blocks.bytes[kept] * lengths // blocks.lengths[kept])

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint([(self._base.fingerprint, self._selection.describe())])

    def read(self, sample_ids: npt.ArrayLike, out: Mapping[str, Array] | None = None) -> dict[str, Array]:
        return self._base.read(self._ids(sample_ids), out)

    def prepare(self, sample_ids: npt.ArrayLike) -> ReadPart:
        return self._base.prepare(self._ids(sample_ids))

    def prefetch(self, sample_ids: npt.ArrayLike) -> None:
        self._base.prefetch(self._ids(sample_ids))

    def end_prefetch(self) -> None:
        self._base.end_prefetch()

    def where(self, sample_id: int) -> str:
        return self._base.where(int(self._ids([sample_id])[0]))

    def _ids(self, sample_ids: npt.ArrayLike) -> Ids:
        return self._selection.sample_ids(check_ids(sample_ids, len(self)))


def select(samples: int, ids: slice | range | npt.ArrayLike) -> Selection:
    """A selection of `samples` samples by slice, range or list of ids.

    Raises:
        IndexError: An id lies outside [0, samples).
    """
    if isinstance(ids, slice):
        ids = range(*ids.indices(samples))
    if isinstance(ids, range):
        if len(ids) > 0:
            check_ids([ids[0], ids[-1]], samples)
        return RangeSelection(ids)
    array = np.asarray(ids)
    if array.dtype == np.bool_:
        raise ArgumentError("select: expected sample ids, got booleans; give np.flatnonzero(mask)")
    return ListSelection(check_ids(array, samples).copy())


def split(samples: int, parts: Mapping[str, float], seed: int) -> dict[str, Selection]:
    """Disjoint selections that together hold every sample once.

    Args:
        samples: How many there are.
        parts: Each part's share: fractions that sum to 1, or whole numbers that sum to `samples`.
        seed: Any 64-bit integer; the same seed gives the same parts.

    Raises:
        ArgumentError: The shares don't sum up, a part would be empty, or the seed is no 64-bit integer.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**64:
        raise ArgumentError(f"seed: expected a 64-bit integer, got {seed!r}")
    ends = _part_ends(samples, list(parts.values()))
    starts = [0, *ends[:-1]]
    for (name, share), start, end in zip(parts.items(), starts, ends, strict=True):
        if end <= start:
            raise ArgumentError(f"split: expected parts of at least one sample, got {name!r}: {share} of {samples}")
    return {
        name: SplitSelection(samples, seed, start, end) for name, start, end in zip(parts, starts, ends, strict=True)
    }


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
