"""Batches that worker processes make before they are asked for: in order, bounded.

Guarantees:
- Batches come in the order of the steps, whichever process finishes first; an error comes at the place of its batch,
  and what keeps a reply from coming, a death or a hang, at that of the first one that the reply would have brought.
- At most `max_groups` jobs, and about `max_bytes` bytes, are being worked on or wait to be taken; one always proceeds.
- A process that dies is an error that says how, and on which batch; one that hangs is, with a `timeout`.
- `ProcessAhead` belongs to one consumer, in whose thread all of it happens; `close` may be called from any thread, and
  more than once.
"""

import textwrap
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from headrace.datasets.skipping import listed_ids
from headrace.errors import ArgumentError, LoaderError
from headrace.formats import Ids
from headrace.loader.forks import Birth
from headrace.loader.grouping import JobSteps
from headrace.loader.processes import Processes
from headrace.loader.remote_errors import unpacked
from headrace.loader.worker import ANY

_LOOK_SECONDS = 0.2  # how often a wait looks whether the process that it waits for lives
_READY_SECONDS = 0.002  # how often it looks for further jobs to hand out


class Job(NamedTuple):
    """Steps for a worker process to do.

    Attributes:
        content: What it is sent.
        sample_ids: int64, shape (rows,): the samples of all the steps, one step after the other.
        bounds: Step i holds rows [bounds[i], bounds[i + 1]).
        positions: The epoch's position after each step.
    """

    content: Any
    sample_ids: Ids
    bounds: list[int]
    positions: list[int]


class _Task:
    """A job in the hands of a worker, after so many others; of none where it could not be had, with the error.

    Of its steps, the batches of the first `taken` have come.
    """

    __slots__ = ("after", "bounds", "error", "number", "positions", "sample_ids", "taken", "was_sent", "worker")

    def __init__(self, sample_ids: Ids, bounds: list[int], positions: list[int]) -> None:
        self.sample_ids, self.bounds, self.positions = sample_ids, bounds, positions
        self.number = self.worker = self.after = -1
        self.taken = 0
        self.was_sent = False
        self.error: BaseException | None = None


class ProcessAhead:
    """Finished batches with the position after each, made by worker processes before they are asked for."""

    def __init__(
        self,
        jobs: Iterator[Job],
        processes: Processes,
        *,
        seed: int,
        epoch: int,
        max_groups: int,
        max_steps: int | None = None,
        max_bytes: int,
        step_bytes: Callable[[Any], int],
        job_steps: JobSteps | None = None,
        timeout: float | None = None,
        notes: Callable[[list[Any]], object] | None = None,
        recorder: Callable[[Mapping[str, float], Mapping[str, float]], object] | None = None,
    ) -> None:
        """Prepares to hand out jobs; processes start with the first `next`.

        Args:
            jobs: What to do, in order. Where it has a method `ready`, that says whether the next one can be had
                without waiting.
            processes: Who does it; used by one `ProcessAhead` at a time. What they still do for a former one is not
                waited for. They are closed when one of them has died or hangs, or this is interrupted.
            seed: The order's seed, for the work.
            epoch: The epoch, likewise.
            max_groups: The most jobs that are worked on or wait to be taken.
            max_steps: The same in steps, if they are limited.
            max_bytes: The same in bytes, as far as they can be told beforehand: from the batches delivered so far.
            step_bytes: The bytes of a finished batch, or of one to expect where it is given None.
            job_steps: How many steps the next job has, which is told how long they take; one by default.
            timeout: The most seconds to wait for a batch; None waits for ever.
            notes: Is given the notes of the work, each at the place of its batch; may raise instead of it.
            recorder: Is given the seconds that were spent, and of these the computing ones, by stage.
        """
        self._jobs, self._processes = jobs, processes
        self._is_ready: Callable[[], bool] = getattr(jobs, "ready", lambda: True)
        self._seed, self._epoch, self._timeout = seed, epoch, timeout
        self._max_groups, self._max_steps, self._max_bytes = max_groups, max_steps, max_bytes
        self._step_bytes, self._expected_bytes = step_bytes, step_bytes(None)
        self._job_steps = job_steps or JobSteps(1)
        self._notes, self._recorder = notes, recorder
        self._tasks: deque[_Task] = deque()
        self._batches: deque[tuple[Any, int]] = deque()
        self._notes_of: deque[Any] = deque()  # of each of them, and of the step that failed
        self._error: BaseException | None = None
        self._began = self._has_all = self._closed = False
        self._birth = Birth()

    def __iter__(self) -> "ProcessAhead":
        return self

    def __next__(self) -> tuple[Any, int]:
        while not self._batches:
            self._birth.check()
            self._raise_error()
            with self._processes.turn:  # a former pass may be waiting for a reply, until it sees that it was closed
                try:
                    # closed meanwhile, it has lost its place: what was handed out since is not what comes next
                    is_over = self._is_closed or not self._advance() or self._is_closed
                except BaseException:
                    is_over = self._is_closed  # by another thread, under this one's hands
                    if not is_over:
                        # a message may be half sent, or a process dead: what they do is of no use any more
                        self._processes.close()
                        raise
            if is_over:
                raise StopIteration
        batch = self._batches.popleft()
        self._tell_notes()
        return batch

    @property
    def _is_closed(self) -> bool:
        return self._closed or self._processes.closed

    def depth(self) -> tuple[int, int, int]:
        """How many jobs wait to be taken, how many are worked on or wait for that, and the bytes of what is there.

        For any thread; what goes on meanwhile may be missed.
        """
        busy = {worker: self._processes.busy(worker) for worker in range(len(self._processes.workers))}
        batches, jobs, at_work = len(self._batches), int(bool(self._batches)), 0
        for task in reversed(tuple(self._tasks)):  # what a worker has done are the first of its jobs
            if task.error is None and busy.get(task.worker, 0) > 0:
                busy[task.worker] -= 1
                at_work += 1
            else:
                batches += len(task.positions) - task.taken
                jobs += 1
        return jobs, at_work, batches * self._expected_bytes

    def _tell_notes(self) -> None:
        notes = self._notes_of.popleft() if self._notes_of else None
        if notes and self._notes is not None:
            self._notes(notes)

    def _raise_error(self) -> None:
        self._tell_notes()
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # its traceback holds this frame

    def _advance(self) -> bool:
        """Hands out jobs and takes the oldest one's batches; tells whether there was any."""
        if not self._began:
            self._began = True
            self._processes.start()
            self._processes.forget_jobs()
        self._hand_out()
        if self._tasks:
            self._take(self._tasks[0])
            return True
        return False

    def _has_room(self) -> bool:
        """Whether one more job may be handed out."""
        if self._has_all or not self._tasks:
            return not self._has_all
        in_flight = sum(len(task.positions) - task.taken for task in self._tasks) + self._job_steps.next
        return (
            len(self._tasks) < self._max_groups
            and (self._max_steps is None or in_flight <= self._max_steps)
            and in_flight * self._expected_bytes <= self._max_bytes
        )

    def _hand_out(self) -> None:
        """Hands jobs to the workers up to the bounds, but at least one."""
        while self._has_room() and (not self._tasks or self._is_ready()):
            try:
                planned = next(self._jobs, None)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 (it comes at the place of the batch that it belongs to)
                planned, failed = None, _Task(np.empty(0, np.int64), [0], [])
                failed.error = error
                self._tasks.append(failed)
            if planned is None:
                self._has_all = True
                return
            task = _Task(planned.sample_ids, planned.bounds, planned.positions)
            self._tasks.append(task)
            self._give(task, planned.content)

    def _give(self, task: _Task, content: Any) -> None:
        """Gives a job to the worker that has the fewest; of several such, to the one whose turn it is."""
        processes = self._processes
        task.number = processes.number()
        turns = ((task.number + i) % processes.num_workers for i in range(processes.num_workers))
        task.worker = min(turns, key=processes.busy)
        worker = processes.workers[task.worker]
        task.after = worker.sent
        try:
            task.was_sent = worker.send(task.number, self._seed, self._epoch, len(task.positions), content)
        except Exception as error:  # noqa: BLE001 (whatever a source reads may be impossible to send)
            error.add_note(f"while sending {listed_ids(task.sample_ids)} to {worker}")
            task.error = error
        else:
            worker.sent += 1

    def _take(self, task: _Task) -> None:
        """Takes batches of the oldest job, waiting for them: all, or what there is of one that takes long."""
        reply = self._reply(task) if task.error is None else None
        if reply is None:
            self._tasks.popleft()
            self._error = task.error
            return
        _, batches, notes, spent, error, is_done = reply
        if is_done:
            self._tasks.popleft()
        if self._recorder is not None:
            self._recorder(*spent)
        first, task.taken = task.taken, task.taken + len(batches)
        self._batches.extend(zip(batches, task.positions[first : task.taken], strict=True))
        assert task.taken == len(task.positions) or not is_done or error is not None
        self._notes_of.extend(notes)
        if batches:
            self._expected_bytes = self._step_bytes(batches[0])
            self._job_steps.took(len(batches), sum(spent[0].values()), self._expected_bytes)
        if error is not None:
            self._error = unpacked(error, str(self._processes.workers[task.worker]))
            if not error.notes:
                self._error.add_note(f"while it worked on {self._named(task, task.taken)}")

    def _reply(self, task: _Task) -> tuple[Any, ...] | None:
        """The reply to a job; None where it can't be had, and the job has the error."""
        worker = self._processes.workers[task.worker]
        began, former = time.monotonic(), self._steps_done(task)
        while True:
            try:
                reply = worker.reply(_READY_SECONDS if self._has_room() else _LOOK_SECONDS)
            except TimeoutError:
                if self._closed:
                    raise  # what is raised then doesn't matter
                if (steps := self._steps_done(task)) != former:
                    began, former = time.monotonic(), steps
                if self._timeout is not None and time.monotonic() - began >= worker.patience(self._timeout):
                    raise self._overdue(task, self._timeout) from None
                self._hand_out()
            except EOFError:
                began_it = task.was_sent and self._processes.is_at(task.worker, task.after)
                raise worker.death(self._named(task, self._steps_done(task)), began=began_it) from None
            except OSError:
                raise
            except Exception as error:  # noqa: BLE001 (unpickling may raise anything)
                task.error = ArgumentError(
                    f"batches: what {worker} made of {self._named(task, len(task.positions))} can't be unpickled here: "
                    f"{type(error).__name__}: {error}"
                )
                task.error.__cause__ = error
                return None
            else:
                if reply[0] is None:
                    raise unpacked(reply[1], f"{worker}, as it started")
                if reply[0] in (task.number, ANY):
                    return reply
                # else it is to a job of a former pass

    def _overdue(self, task: _Task, timeout: float) -> LoaderError:
        return LoaderError(
            f"no batch came within {timeout:g} seconds (timeout={timeout:g}): "
            f"that of {self._named(task, self._steps_done(task))}\n"
            "  what each worker process does, its innermost call first:\n"
            f"{textwrap.indent(self._processes.stacks(), '    ')}\n"
            "  mend what hangs, or give a larger timeout= where such a batch may take so long"
        )

    def _steps_done(self, task: _Task) -> int:
        """How many steps of a job are done, which may be all; none while its worker is at one of a former pass."""
        return self._processes.steps_done(task.worker) if self._processes.is_at(task.worker, task.after) else 0

    def _named(self, task: _Task, step: int) -> str:
        """The samples of a step; of all where it is beyond the last."""
        start, stop = task.bounds[step : step + 2] if step < len(task.positions) else (0, len(task.sample_ids))
        return f"{listed_ids(task.sample_ids[start:stop])} of epoch {self._epoch}"

    def close(self) -> None:
        """Ends the pass; the processes stay, but what they still do for it is of no use any more."""
        self._closed = True
        if not self._birth.is_here:
            return
        if self._began and not self._processes.closed:
            self._processes.forget_jobs()
        self._tasks.clear()
        self._batches.clear()
        self._notes_of.clear()
