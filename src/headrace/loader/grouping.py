"""How many steps are read, gathered and handed over together."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from headrace.errors import ArgumentError
from headrace.formats import Column
from headrace.loader.workers import Workers

# Batches that are planned, looked up and, with workers, handed over together, so that the Python between two gathers,
# which finds the caches emptied, costs little, and threads seldom wait for the interpreter's lock: of batches of 1 MB
# two threads delivered a fifth more than in groups of 8, gathered by twos
_GROUP_BYTES = 16 << 20
_GROUP_STEPS = 32
# Batches that threads gather together, into memory that they share, which a kept batch keeps: so many bytes, or a few
# batches that have twice as many. In the caller's thread each is gathered by itself, when it is asked for, into memory
# that is still in the cache
_GATHER_BYTES = 2 << 20
_GATHER_STEPS = 4
# What a worker process is given at once takes it about so long, several times as long as handing it over
_JOB_SECONDS = 0.002


@dataclass(frozen=True, slots=True)
class Grouping:
    """What is read ahead together, and how much at most.

    Attributes:
        steps: Steps of a group: planned together, and handed over together.
        gathered_steps: Steps of it that are gathered together, into one piece of memory.
        most: The most groups that are being read, or wait.
        most_steps: The same in steps, if they are limited.
        most_job_steps: The most steps that a worker process is given at once, of samples that it reads itself.
        most_bytes: The same in bytes.
        idle: Pieces of memory that are kept while nobody uses them: for what may be read ahead, and for what the
            consumer had before its last batch.
    """

    steps: int
    gathered_steps: int
    most: int
    most_steps: int | None
    most_job_steps: int
    most_bytes: int
    idle: int

    def job_steps(self) -> "JobSteps":
        """How many steps to give worker processes at once."""
        return JobSteps(self.most_job_steps, min(_GROUP_BYTES, self.most_bytes // self.most))


def resolve_grouping(
    schema: Mapping[str, Column],
    *,
    batch_bytes: int,
    workers: Workers,
    prefetch_factor: int | None,
    prefetch_bytes: int,
    is_by_sample: bool,
) -> Grouping:
    """How batches of a schema are grouped.

    Args:
        schema: The columns that are read.
        batch_bytes: The bytes of a batch, as far as the schema tells.
        workers: Who reads.
        prefetch_factor: Batches that are read ahead, per worker; None for as many as keep the workers busy.
        prefetch_bytes: The most bytes that are read ahead.
        is_by_sample: Whether user code looks at samples one by one, so that a batch takes long.

    Raises:
        ArgumentError: The two limits can't be meant.
    """
    if prefetch_factor is not None and (
        not isinstance(prefetch_factor, int | np.integer) or prefetch_factor < 1 or workers.count == 0
    ):
        raise ArgumentError(
            f"prefetch_factor: expected 1 or more, with 1 or more workers, got {prefetch_factor} and "
            f"num_workers={workers.count}"
        )
    if not isinstance(prefetch_bytes, int | np.integer) or prefetch_bytes < 1:
        raise ArgumentError(f"prefetch_bytes: expected a number of bytes, 1 or more, got {prefetch_bytes!r}")
    batch_bytes = max(batch_bytes, 1)
    steps = 1 if is_by_sample else min(_GROUP_STEPS, min(_GROUP_BYTES, prefetch_bytes) // batch_bytes) or 1
    if workers.count == 0:
        return Grouping(steps, 1, 1, None, 1, prefetch_bytes, idle=2)
    most, most_steps, job_steps = 2 * workers.count + 1, None, _GROUP_STEPS
    if prefetch_factor is not None:
        most_steps, job_steps = prefetch_factor * workers.count, max(1, prefetch_factor // 2)
        steps = min(steps, job_steps)
        most = max(workers.count, prefetch_factor * workers.count // steps)
    gathered = max(1, _GATHER_BYTES // batch_bytes, min(_GATHER_STEPS, 2 * _GATHER_BYTES // batch_bytes))
    if any(column.python_type in (object, np.ndarray) for column in schema.values()):
        gathered = 1  # what they become may depend on what they are read with: images of one size are a tensor
    gathered = min(steps, gathered)
    idle = 1 + most * -(-steps // gathered)
    return Grouping(steps, gathered, most, most_steps, job_steps, prefetch_bytes, idle)


class JobSteps:
    """How many steps worker processes are given at once: one, or as many small ones as make handing them over worth it.

    Attributes:
        next: The steps of the next job.
    """

    def __init__(self, most: int, most_bytes: int = _GROUP_BYTES) -> None:
        """Begins with one step; there are never more than `most`, nor more than one of over `most_bytes`."""
        self.next, self._most, self._most_bytes = 1, most, most_bytes

    def took(self, steps: int, seconds: float, step_bytes: int) -> None:
        """Learns what a job took, and the bytes of one of its batches."""
        in_time = int(_JOB_SECONDS * steps / (seconds or 1e-9))
        self.next = max(1, min(self._most, 2 * self.next, self._most_bytes // max(step_bytes, 1), in_time))
