"""Work for worker processes whose jobs are the functions to be called there; light to import, as workers do."""

import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from headrace.loader.process_ahead import Job, ProcessAhead
from headrace.loader.processes import Processes
from tests.loader.stand_ins import WAITING_SECONDS


class Watched:
    """A batch that can be referred to weakly."""


kept: list[Any] = []  # for functions to keep something in a worker


class Doing:
    """Calls the functions of a job, each of which gives one batch.

    Attributes:
        notes: What the next reply shall bring as notes; functions may append to it.
    """

    def __init__(self) -> None:
        self.notes: list[Any] = []

    def __call__(self, seed: int, epoch: int, job: Iterable[Callable[[], Any]]) -> Iterator[Any]:
        for function in job:
            yield function()

    def take_notes(self) -> list[Any]:
        notes, self.notes[:] = self.notes[:], []
        return notes


def jobs_of(steps: Iterable[Callable[[], Any]], *, together: int = 1) -> Iterator[Job]:
    """Jobs of some functions each; functions are "samples", numbered from 0."""
    functions = list(steps)
    for first in range(0, len(functions), together):
        ids = np.arange(first, min(first + together, len(functions)))
        yield Job([functions[i] for i in ids], ids, list(range(len(ids) + 1)), (ids + 1).tolist())


def ahead_of(processes: Processes, jobs: Any, **options: Any) -> ProcessAhead:
    """What reads ahead with these processes; jobs may be plain functions."""
    if isinstance(jobs, list):
        jobs = jobs_of(jobs)
    given = {"seed": 7, "epoch": 2, "max_groups": 5, "max_bytes": 1 << 30, "step_bytes": lambda batch: 1, **options}
    return ProcessAhead(jobs, processes, **given)


def done_by(processes: Processes, *steps: Callable[[], Any], **options: Any) -> list[Any]:
    """The batches that functions make in worker processes."""
    return [batch for batch, _ in ahead_of(processes, list(steps), **options)]


def in_hand(passing: ProcessAhead) -> int:
    """How many jobs the workers have, or are done with, whose batches were not taken."""
    return sum(passing.depth()[:2])


def constant(value: Any) -> Callable[[], Any]:
    return functools.partial(lambda value: value, value)


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie, or has threads that still end and keep its descriptors till then."""
    process = Path(f"/proc/{pid}")
    try:
        is_zombie = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        return not is_zombie or len(list((process / "task").iterdir())) > 1
    except OSError:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAITING_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        os.sched_yield()
