"""A read of samples from decoded pieces: which pieces it needs, and the gather once they are in memory."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from headrace.formats.source import Array, Ids
from headrace.storage import is_consecutive

if TYPE_CHECKING:
    import pyarrow as pa

Mask: TypeAlias = npt.NDArray[np.bool_]
# Of so many samples it pays to look up the pieces in a table
_MANY = 64
# Counting in a table of so many entries takes as long as sorting a thousand numbers.
_SPAN = 1 << 14


@dataclass(frozen=True)
class Pieces:
    """What is decoded together: row groups, or slices of large ones.

    Attributes:
        starts: int64 (pieces + 1,), ascending: the first sample of each, then the number of samples.
        groups: int64 (pieces,), ascending: the row group that each belongs to.
        bytes: int64 (pieces,), about what each takes in memory.
    """

    starts: Ids
    groups: Ids
    bytes: Ids

    def __len__(self) -> int:
        return len(self.groups)

    def of(self, sample_ids: Ids) -> Ids:
        """The piece of each sample, int64 of the ids' shape."""
        if self._table is None or len(sample_ids) < _MANY:
            return np.searchsorted(self.starts, sample_ids, side="right") - 1
        shift, table = self._table
        pieces: Ids = table[sample_ids >> shift]
        pieces += self.starts[1:][pieces] <= sample_ids
        return pieces

    @cached_property
    def _table(self) -> tuple[int, Ids] | None:
        """For each run of 2**shift samples the piece of the first: none lies in a third one. None where that is long.

        Looking there takes a third of the time of a search.
        """
        shift = max(0, int(np.diff(self.starts).min()).bit_length() - 1)
        firsts = np.arange(0, int(self.starts[-1]), 1 << shift) if self.starts[-1] >> shift <= 4 * len(self) else None
        return None if firsts is None else (shift, np.searchsorted(self.starts, firsts, side="right") - 1)

    def locate(self, sample_ids: Ids) -> Ids | None:
        """The piece of each sample, int64 (samples,); None where they are a run of consecutive ones."""
        return None if len(sample_ids) and is_consecutive(sample_ids) else self.of(sample_ids)

    def run(self, sample_ids: Ids) -> tuple[Ids, Ids]:
        """Of consecutive samples the pieces, in order, and how many of the samples lie in each."""
        first, last = self.of(sample_ids[[0, -1]]).tolist()
        if first == last:
            return np.array([first]), np.array([len(sample_ids)])
        pieces = np.arange(first, last + 1)
        ends = np.minimum(self.starts[first + 1 : last + 2], sample_ids[-1] + 1)
        counts = ends - np.maximum(self.starts[first : last + 1], sample_ids[0])
        return pieces[counts > 0], counts[counts > 0]


class Content(Protocol):
    """A piece as it was decoded."""

    def views(self) -> Mapping[str, Array]:
        """The fixed columns that are arrays (samples, *shape) as they are, read-only perhaps."""

    def write(self, out: Mapping[str, Array]) -> None:
        """Fills arrays (samples, *shape), each for a fixed column."""

    def others(self) -> "Mapping[str, pa.Array]":
        """The other columns, in memory of their own."""


# Decodes pieces of a group, from the first to the last that are given, in this order, and perhaps some before them.
Decode: TypeAlias = Callable[[int, int, int], Generator[tuple[int, Content], None, None]]


class Need:
    """Which pieces are in memory, and what was announced of each.

    Attributes:
        is_there: bool (pieces,).
        due: int64 (pieces,), samples that were announced and not read yet.
    """

    def __init__(self, pieces: Pieces) -> None:
        self._groups = pieces.groups
        self.is_there = np.zeros(len(pieces), np.bool_)
        self.due: Ids = np.zeros(len(pieces), np.int64)

    def has_due(self, group: int) -> bool:
        """Whether samples of a group were announced that are not in memory."""
        first, last = np.searchsorted(self._groups, [group, group + 1]).tolist()
        return bool((~self.is_there[first:last] & (self.due[first:last] > 0)).any())


def counted(pieces: Ids) -> tuple[Ids, Ids]:
    """The distinct ones of some pieces, int64 (n,), ascending, and how often each occurs.

    >>> counted(np.array([7, 5, 7]))
    (array([5, 7]), array([1, 2]))
    """
    lowest = pieces.min()
    span = pieces.max() - lowest + 1
    if span > 4 * len(pieces) + _SPAN:  # so far apart that sorting is faster
        return np.unique(pieces, return_counts=True)
    counts = np.bincount(pieces - lowest)
    used = np.flatnonzero(counts)
    return used + lowest, counts[used]


class Reading:
    """One read.

    Args:
        pieces: All pieces.
        sample_ids: int64 (samples,), what to read.
        arrays: Where the rows of the fixed columns lie, each (rows, *shape).
        out: Arrays (samples, *shape) for them.
        others: The names of the columns that are Arrow's.
        pieces_of_them: What `pieces.locate` says of them.

    Attributes:
        pieces: int64 (distinct,), ascending: the pieces that it needs.
        counts: int64 (distinct,), how many of the samples lie in each.
        here: bool (distinct,), which of them stay in memory for its sake.
        left: bool (distinct,), which of them are yet to be gathered from.
        is_run: Whether the samples are consecutive.
    """

    def __init__(
        self,
        pieces: Pieces,
        sample_ids: Ids,
        arrays: Mapping[str, Array],
        out: Mapping[str, Array],
        others: Sequence[str],
        *,
        pieces_of_them: Ids | None,
    ) -> None:
        self._ids, self._arrays, self._out = sample_ids, arrays, out
        self._parts: dict[str, list[pa.Array]] = {name: [] for name in others}
        self._places: list[Ids] = []
        self._starts = pieces.starts
        self._piece_of = pieces_of_them
        self.is_run = pieces_of_them is None
        if len(sample_ids) == 0:
            self.pieces = self.counts = np.zeros(0, np.int64)
        elif pieces_of_them is None:
            self.pieces, self.counts = pieces.run(sample_ids)
        else:
            self.pieces, self.counts = counted(pieces_of_them)
        self.here = np.zeros(len(self.pieces), np.bool_)
        self.left = np.ones(len(self.pieces), np.bool_)

    def gather(
        self,
        first_rows: Ids,
        views: "Sequence[Mapping[str, Array]]",
        others: "Sequence[Mapping[str, pa.Array]]",
    ) -> None:
        """Gathers what lies in the pieces that are here, each of them once.

        Args:
            first_rows: int64 (all pieces,), the row of the arrays with which each of these pieces begins.
            views: Of a run, for each of the distinct pieces the columns that don't lie in the arrays.
            others: For each of the distinct pieces its Arrow columns, where it is here.
        """
        if self._piece_of is None:
            self._copy_runs(first_rows, views)
        elif self._arrays:
            places = None if self.here.all() else self._places_here()
            pieces = self._piece_of if places is None else self._piece_of[places]
            rows = first_rows[pieces]
            rows -= self._starts[pieces]
            rows += self._ids if places is None else self._ids[places]
            for name, array in self._arrays.items():
                if places is None:
                    array.take(rows, 0, self._out[name], "clip")
                else:
                    self._out[name][places] = array.take(rows, 0, None, "clip")
        if self._parts:
            self._take_others(others)

    def _places_here(self) -> Ids:
        """The places of the samples that lie in pieces that are here."""
        assert self._piece_of is not None
        return np.flatnonzero(self.here[self.pieces.searchsorted(self._piece_of)])

    def others(self) -> "dict[str, pa.Array]":
        """The Arrow columns, once all pieces were gathered: in memory of their own."""
        import pyarrow as pa

        if not self._parts:
            return {}
        places = np.concatenate(self._places) if self._places else self._ids[:0]
        back = None
        if not (places == np.arange(len(places))).all():
            back = np.empty(len(places), np.int64)
            back[places] = np.arange(len(places))
        joined = {}
        for name, parts in self._parts.items():
            whole = parts[0] if len(parts) == 1 else pa.concat_arrays(parts)
            joined[name] = whole if back is None else whole.take(pa.array(back))
        return joined

    def _copy_runs(self, first_rows: Ids, views: "Sequence[Mapping[str, Array]]") -> None:
        stop = 0
        for i, (piece, count) in enumerate(zip(self.pieces.tolist(), self.counts.tolist(), strict=True)):
            start, stop = stop, stop + count
            if self.here[i]:
                within = int(self._ids[start] - self._starts[piece])
                first = int(first_rows[piece]) + within
                for name, array in self._arrays.items():
                    view = views[i].get(name)
                    if view is None:
                        self._out[name][start:stop] = array[first : first + count]
                    else:
                        self._out[name][start:stop] = view[within : within + count]

    def _take_others(self, others: "Sequence[Mapping[str, pa.Array]]") -> None:
        import pyarrow as pa

        for i in np.flatnonzero(self.here).tolist():
            places = self._sorted[self._bounds[i] : self._bounds[i + 1]]
            rows = pa.array(self._ids[places] - self._starts[self.pieces[i]])
            self._places.append(places)
            for name, parts in self._parts.items():
                parts.append(others[i][name].take(rows))

    @cached_property
    def _sorted(self) -> Ids:
        """The places of the samples, those of each piece together."""
        return np.arange(len(self._ids)) if self._piece_of is None else np.argsort(self._piece_of, kind="stable")

    @cached_property
    def _bounds(self) -> list[int]:
        bounds: list[int] = [0, *np.cumsum(self.counts).tolist()]
        return bounds
