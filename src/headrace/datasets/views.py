"""Parts of a source that are sources again."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from headrace.errors import ArgumentError
from headrace.formats import Array, Blocks, Ids, ReadPart, Source, Values, check_ids, fingerprint, uniform_blocks
from headrace.formats.source import KeysOf


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

    @property
    def goes_by_block(self) -> bool:
        """Whether its places run through the source's blocks one after the other."""
        return False

    def taken(self, block_lengths: Ids) -> Ids:
        """Where it goes by block: how many samples it holds of each of the blocks, both int64 (blocks,)."""
        raise NotImplementedError


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

    @property
    def goes_by_block(self) -> bool:
        return self.ids.step == 1

    def taken(self, block_lengths: Ids) -> Ids:
        ends = np.cumsum(block_lengths)
        covered = np.minimum(ends, self.ids.stop) - np.maximum(ends - block_lengths, self.ids.start)
        taken: Ids = np.maximum(covered, 0)
        return taken


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


class SelectedSource(Source):
    """A source that holds some samples of another one.

    Attributes:
        base: The other one.
    """

    def __init__(self, base: Source, selection: Selection) -> None:
        """Raises ArgumentError where the selection is empty."""
        if len(selection) == 0:
            raise ArgumentError("expected a selection of at least one sample, got none")
        self.base, self._selection = base, selection
        self.schema, self.random_access = base.schema, base.random_access
        self.read_ahead_bytes, self.is_sequential = base.read_ahead_bytes, base.is_sequential
        self.splits_by_block = base.splits_by_block and selection.goes_by_block

    def __len__(self) -> int:
        return len(self._selection)

    @cached_property
    def blocks(self) -> Blocks:
        """The parts of the base's blocks that a selection by block takes; else runs of equal length, in its order."""
        blocks = self.base.blocks
        if not self._selection.goes_by_block:
            return uniform_blocks(len(self), int(blocks.bytes.sum()) // len(self.base))
        taken = self._selection.taken(blocks.lengths)
        kept = np.flatnonzero(taken)
        lengths = taken[kept]
        return Blocks(lengths, blocks.bytes[kept] * lengths // blocks.lengths[kept])

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint([(self.base.fingerprint, self._selection.describe())])

    def read(self, sample_ids: npt.ArrayLike, out: Mapping[str, Array] | None = None) -> Mapping[str, Values]:
        return self.base.read(self._ids(sample_ids), out)

    def prepare(self, sample_ids: npt.ArrayLike) -> ReadPart:
        return self.base.prepare(self._ids(sample_ids))

    def narrowed(self, columns: Collection[str]) -> Source:
        base = self.base.narrowed(columns)
        return self if base is self.base else SelectedSource(base, self._selection)

    def keyed(self, keys_of: KeysOf) -> Source:
        """A key belongs to a sample of the base, so that it is decoded alike in every part."""
        base = self.base.keyed(keys_of)
        return self if base is self.base else SelectedSource(base, self._selection)

    def prefetch(self, sample_ids: npt.ArrayLike) -> None:
        self.base.prefetch(self._ids(sample_ids))

    def end_prefetch(self) -> None:
        self.base.end_prefetch()

    def counts(self) -> dict[str, int]:
        """The base's: parts of one source share what is counted."""
        return self.base.counts()

    def where(self, sample_id: int) -> str:
        return self.base.where(int(self._ids([sample_id])[0]))

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
