"""How an epoch's sequence is cut into steps, and each step into the ranks' shares."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.errors import ArgumentError
from headrace.order.epoch import bit_reversed

_MAX_CACHED_ROWS = 1 << 20


class Share(NamedTuple):
    """One rank's part of some consecutive steps.

    Attributes:
        sequence: int64, shape (m,): the sequence numbers of all the steps, one step after the other.
        bounds: int64, shape (steps + 1,): step i holds rows [bounds[i], bounds[i + 1]).
        valid: bool, shape (m,): False where a row only fills up the last step; None unless the last step is filled.
    """

    sequence: NDArray[np.int64]
    bounds: NDArray[np.int64]
    valid: NDArray[np.bool_] | None


@dataclass(frozen=True)
class Steps:
    """The steps of an epoch with a fixed global batch size.

    A step is the slice [p, p + global_batch_size) of sequence numbers from any position p on, sorted by lane and by
    place in the lane; rank r of R takes rows [r * size // R, (r + 1) * size // R). So its samples don't depend on R.

    Attributes:
        samples: Samples in an epoch.
        lanes: The order's lanes, a power of two.
        global_batch_size: Samples of a step over all ranks.
        rank: This rank, in [0, world_size).
        world_size: Ranks that share each step.
        drop_last: Whether the samples that don't fill a last step are left out.
        pad_last: Whether the last step is filled up with repeats.
        may_pad: Whether it can be; where it can't, no error text advises it.

    Raises:
        ArgumentError: The values can't work together; a step would leave some rank without a sample; or there is no
            step.
    """

    samples: int
    lanes: int
    global_batch_size: int
    rank: int = 0
    world_size: int = 1
    drop_last: bool = False
    pad_last: bool = False
    may_pad: bool = True
    _offsets_of: dict[tuple[int, int], NDArray[np.int64]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if self.world_size < 1 or not 0 <= self.rank < self.world_size:
            raise ArgumentError(
                f"rank: expected 0 <= rank < world_size, got rank={self.rank}, world_size={self.world_size}"
            )
        if self.global_batch_size < self.world_size:
            raise ArgumentError(
                f"global_batch_size: expected at least one sample for each of {self.world_size} ranks, "
                f"got {self.global_batch_size}"
            )
        if self.drop_last and self.pad_last:
            raise ArgumentError("drop_last and pad_last: expected at most one of them, got both")
        if self.remaining(0) == 0:
            raise ArgumentError(
                f"no step: expected at least {self.global_batch_size} samples with drop_last=True, got {self.samples}\n"
                "  give a smaller batch size, or drop_last=False"
            )
        self.check_last(0)

    def __len__(self) -> int:
        """Steps in a full epoch."""
        return self.remaining(0)

    @property
    def dropped(self) -> int:
        """Samples that a full epoch leaves out at its end."""
        return self.samples % self.global_batch_size if self.drop_last else 0

    def remaining(self, position: int) -> int:
        """Steps from a position to the end of the epoch."""
        left = self.samples - position
        return left // self.global_batch_size if self.drop_last else -(-left // self.global_batch_size)

    def advanced(self, position: int, steps: int = 1) -> int:
        """The position after some more steps: samples consumed, at most `samples`."""
        return min(position + steps * self.global_batch_size, self.samples)

    def check_last(self, position: int) -> None:
        """Refuses a last step, counted from a position, that has fewer samples than there are ranks."""
        last = (self.samples - position) % self.global_batch_size
        if self.drop_last or self.pad_last or last == 0 or last >= self.world_size:
            return
        padding = "pad_last=True to fill the step up and mark what is real"
        other = padding if self.may_pad else "another batch_size or world_size"
        raise ArgumentError(
            f"the last step would hold {last} samples for {self.world_size} ranks "
            f"({self.samples - position} samples from position {position} on, {self.global_batch_size} a step)\n"
            f"  give drop_last=True to leave them out, or {other}"
        )

    def share(self, position: int, count: int, every: int = 1) -> Share:
        """This rank's part of `count` steps from a position on.

        Args:
            position: Samples consumed before the first of the steps; any value in [0, samples).
            count: At least 1, so many that the last of them lies before the end of the epoch.
            every: The distance of the steps from one another: 1 takes them all, w every w-th.
        """
        size, stride = self.global_batch_size, self.global_batch_size * every
        whole = (self.samples - position) // size  # steps that are full
        full = min(count, -(-whole // every))
        parts = [self._full_steps(position, full, stride)] if full else []
        if full < count:
            start = position + full * stride
            parts.append(start + self._offsets(start % self.lanes, size if self.pad_last else self.samples - start))
        lengths = np.full(count, self._end(size) - self._start(size))
        lengths[full:] = len(parts[-1]) if full < count else 0
        sequence = np.concatenate(parts) if len(parts) > 1 else parts[0]
        bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        if not self.pad_last:
            return Share(sequence, bounds, None)
        return Share(sequence % self.samples, bounds, sequence < self.samples)

    def share_rows(self, size: int) -> int:
        """The rows of this rank's part of a step of so many samples, with those that fill it up."""
        size = self.global_batch_size if self.pad_last else size
        return self._end(size) - self._start(size)

    def _start(self, size: int) -> int:
        return self.rank * size // self.world_size

    def _end(self, size: int) -> int:
        return (self.rank + 1) * size // self.world_size

    def _full_steps(self, position: int, count: int, stride: int) -> NDArray[np.int64]:
        if self.lanes == self.world_size == 1 and stride == self.global_batch_size:
            return np.arange(position, position + count * stride)
        starts = position + np.arange(count) * stride
        if stride % self.lanes == 0:
            offsets = self._offsets(position % self.lanes, self.global_batch_size)[None]
        else:
            phases, which = np.unique(starts % self.lanes, return_inverse=True)
            offsets = np.stack([self._offsets(int(phase), self.global_batch_size) for phase in phases])[which]
        # (count, 1) + (1 or count, rows): step by step
        return (starts[:, None] + offsets).reshape(-1)

    def _offsets(self, phase: int, size: int) -> NDArray[np.int64]:
        """This rank's rows of a step that starts at `phase` modulo lanes, as distances from the step's start."""
        offsets = self._offsets_of.get((phase, size))
        if offsets is None:
            if sum(map(len, self._offsets_of.values())) > _MAX_CACHED_ROWS:
                self._offsets_of.clear()
            offsets = self._offsets_of[phase, size] = self._sorted_rows(phase, size)
        return offsets

    def _sorted_rows(self, phase: int, size: int) -> NDArray[np.int64]:
        rows = np.arange(self._start(size), self._end(size))
        if self.lanes == 1:
            return rows
        # lane l's first sequence number in the step is `first[l]` after its start, then one every `lanes`
        first = (bit_reversed(self.lanes) - phase) % self.lanes
        counts = (size - first + self.lanes - 1) // self.lanes
        ends = np.cumsum(counts)
        lane = np.searchsorted(ends, rows, side="right")
        offsets: NDArray[np.int64] = first[lane] + (rows - (ends - counts)[lane]) * self.lanes
        return offsets
