"""The rest of an epoch, cut into groups of steps that are read together."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

from headrace.datasets.schedule import Schedule
from headrace.formats import Array, Ids

_PLANNED_SAMPLES = 131_072  # planned at a time: enough that arithmetic costs some 15 nanoseconds a sample


class Step(NamedTuple):
    """One step of one rank: its samples, and which of them don't only fill it up."""

    sample_ids: Ids
    valid: Array | None


class Group(NamedTuple):
    """Consecutive steps that are read together.

    Attributes:
        sample_ids: int64, shape (rows,): the samples of all the steps, one step after the other.
        bounds: Step i holds rows [bounds[i], bounds[i + 1]).
        valid: bool, shape (rows,): which rows don't only fill up the last step; None where all are real.
        positions: The epoch's position after each step.
    """

    sample_ids: Ids
    bounds: list[int]
    valid: Array | None
    positions: list[int]

    def steps(self, bounds: list[int]) -> Iterator[Step]:
        """The steps between some of its bounds, one by one."""
        for start, stop in pairwise(bounds):
            yield Step(self.sample_ids[start:stop], None if self.valid is None else self.valid[start:stop])


def plan_groups(schedule: Schedule, epoch: int, position: int, steps_a_group: Callable[[int], int]) -> Iterator[Group]:
    """The rest of an epoch in groups of steps.

    Args:
        schedule: What to read when.
        epoch: The epoch.
        position: Where in it to begin.
        steps_a_group: Tells how many steps the next group has, given how many are left.
    """
    steps = schedule.steps
    size = steps.global_batch_size
    samples_a_step = max(1, size // steps.world_size)
    while left := steps.remaining(position):
        at_once = steps_a_group(left)
        count = min(at_once * max(1, _PLANNED_SAMPLES // (at_once * samples_a_step)), left)
        ids, bounds, valid = schedule.plan(epoch, position, count)
        edges = bounds.tolist()
        end = steps.advanced(position, count)
        positions = [*range(position + size, position + size * count, size), end]
        last = 0
        while last < count:
            first, last = last, min(last + steps_a_group(left - last), count)
            start, stop = edges[first], edges[last]
            inner = [edge - start for edge in edges[first : last + 1]]
            marks = None if valid is None else valid[start:stop]
            yield Group(ids[start:stop], inner, marks, positions[first:last])
        position = end
