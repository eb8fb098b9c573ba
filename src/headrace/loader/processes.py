"""Worker processes: started together, ended together.

Guarantees:
- `close` may be called from any thread and more than once; it ends the processes within `CLOSE_SECONDS`, kills those
  that don't end, and leaves nothing behind. A process that was forked from this one leaves them alone.
- No thread is started here. Processes outlive neither this process, however that ends, nor their `Processes`.
"""

import os
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from headrace.errors import ArgumentError
from headrace.loader.forks import Birth
from headrace.loader.parcel import Parcel, pack
from headrace.loader.slots import map_memory
from headrace.loader.worker_process import WorkerProcess

CLOSE_SECONDS = 2.0  # how long `close` lets processes end by themselves
_STACKS_SECONDS = 1.0  # what processes have to tell what they do


class Processes:
    """Worker processes, which start when they are first needed.

    Attributes:
        num_workers: How many.
        closed: Whether they have been ended; they are not started again.
        workers: The processes; empty until they are started.
        turn: Held by whoever waits for a reply.
    """

    def __init__(
        self,
        num_workers: int,
        work: Any,
        *,
        worker_init_fn: Callable[[int], object] | None = None,
        seed: int = 0,
        dataset: Any = None,
        parts: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepares to start; starts nothing.

        Args:
            num_workers: How many.
            work: What they do, as `headrace.loader.work.Work` says; each has its own copy.
            worker_init_fn: Called with its number in each process, once, before it works.
            seed: What the generators of each process are seeded with, as it starts, beside its number.
            dataset: The dataset that torch's `get_worker_info()` tells of; may be a part of `work`.
            parts: What `work` is made of, by the names that the user knows: for the error if it can't be pickled.
        """
        self.num_workers, self.closed = num_workers, False
        self._contents = {"work": work, "dataset": dataset, "worker_init_fn": worker_init_fn, "seed": seed}
        self._parts = {**(parts or {}), "dataset": dataset, "worker_init_fn": worker_init_fn}
        self._parcel: Parcel | None = None
        self._done = np.zeros((num_workers, 2), np.uint64)
        self._next_number = 0
        self.workers: list[WorkerProcess] = []
        self.turn = threading.Lock()
        # runs when they are dropped, on `close`, and when the interpreter ends
        self._end = weakref.finalize(self, _end, self.workers, Birth())

    def start(self) -> None:
        """Starts them, where that has not been done.

        Raises:
            ArgumentError: Something that they work with can't be pickled.
            OSError: The system has no room for them.
        """
        if self.workers or self.closed:
            return
        self._parcel = self._pack()
        done_fd = os.memfd_create("headrace-done", os.MFD_CLOEXEC)
        try:
            os.ftruncate(done_fd, self._done.nbytes)
            self._done = map_memory(done_fd, self._done.nbytes, shared=True).view(np.uint64).reshape(-1, 2)
            for worker in range(self.num_workers):
                self.workers.append(WorkerProcess(worker, self.num_workers, parcel_fd=self._parcel.fd, done_fd=done_fd))
        except BaseException:
            self.close()
            raise
        finally:
            os.close(done_fd)
            self._parcel.close()  # they have its descriptor
        if self.closed:  # by another thread, meanwhile
            _end(self.workers, Birth())

    def _pack(self) -> Parcel:
        contents = {**self._contents, "argv": sys.argv, "default_dtype": torch.get_default_dtype()}
        try:
            return pack(contents, "worker processes")
        except ArgumentError:
            for name, part in self._parts.items():
                pack(part, name).close()
            raise

    def busy(self, worker: int) -> int:
        """How many jobs a worker has that it is not done with."""
        return self.workers[worker].sent - int(self._done[worker, 0])

    def is_at(self, worker: int, after: int) -> bool:
        """Whether a worker is at the job that came after so many others, or waits for it."""
        return int(self._done[worker, 0]) == after

    def steps_done(self, worker: int) -> int:
        """How many steps a worker has done of the job that it is at."""
        return int(self._done[worker, 1])

    def number(self) -> int:
        """A number for a job, larger than those before."""
        self._next_number += 1
        return self._next_number

    def forget_jobs(self) -> None:
        """Tells the workers that nobody waits for the jobs that they have."""
        for i, worker in enumerate(self.workers):
            if self.busy(i):
                worker.send(self._next_number + 1)

    def stacks(self) -> str:
        """What each worker does now, the innermost call first."""
        for worker in self.workers:
            worker.ask_for_stacks()
        deadline = time.monotonic() + _STACKS_SECONDS
        return "\n".join(f"{worker}:\n{textwrap.indent(worker.stacks(deadline), '  ')}" for worker in self.workers)

    def close(self) -> None:
        """Ends them, and waits until they have ended."""
        self.closed = True
        self._end()


def _end(workers: list[WorkerProcess], birth: Birth) -> None:
    """Ends worker processes; in a process that was forked from theirs, leaves them alone."""
    if not birth.is_here:
        for worker in workers:
            worker.disown()
        return
    for worker in tuple(workers):
        worker.end()
    deadline = time.monotonic() + CLOSE_SECONDS
    for worker in tuple(workers):
        worker.wait(max(deadline - time.monotonic(), 0))
