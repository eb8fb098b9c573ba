"""Reading ahead of the consumer: groups of steps, read by threads, delivered in order, bounded.

Several small batches are handed over at once, since a hand-over between threads costs about as much as gathering one of
them.

Guarantees:
- Batches come in the order of the steps, whichever thread finishes first; an error comes at the place of its batch.
- At most `max_groups` groups, and about `max_bytes` bytes, are being read or wait to be taken; one always proceeds.
- `ReadAhead` belongs to one consumer. Its threads know only its queue, never itself, so that dropping it ends them.
- `close` ends the threads as soon as each has finished the batch that it is reading, or has given up waiting for
  stored bytes, and waits for that; it may be called from any thread and more than once.
- With a `timeout`, a wait that lasts longer is an error that shows what each thread waits for. Code that holds the
  interpreter's lock all the while holds up the error too.
- In a process that was forked from its own, `next` is an error, and `close` leaves everything as it is.
"""

import contextlib
import logging
import textwrap
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from queue import SimpleQueue
from typing import Any

from headrace.datasets.skipping import listed_ids
from headrace.errors import LoaderError
from headrace.formats import Ids
from headrace.loader.forks import Birth
from headrace.loader.plan import Group
from headrace.loader.watchdog import stacks_of
from headrace.storage.cancellation import cancellable

CLOSE_SECONDS = 5.0  # how long `close` waits for threads that are in the middle of a batch
# The same where one has hung before: as long as a thread takes to give up waiting for a store, and some more
_HUNG_CLOSE_SECONDS = 0.5

_log = logging.getLogger("headrace")


class _Task:
    """A group in the hands of the threads; `done` is released when its batches, and perhaps an error, are there.

    `reader` is the thread that has taken it.
    """

    __slots__ = ("batches", "done", "error", "group", "reader")

    def __init__(self, group: Group) -> None:
        self.group = group
        self.batches: list[tuple[Any, int]] = []
        self.error: BaseException | None = None
        self.reader: threading.Thread | None = None
        self.done = threading.Lock()
        self.done.acquire()


class _Planned:
    """Groups, planned before they are needed: by the threads, between two groups, since the consumer has better to do.

    One consumer takes them; any number of threads may plan.
    """

    def __init__(self, groups: Iterator[tuple[Group, Ids | None]]) -> None:
        self._groups = groups
        self._ready: deque[tuple[Group, Ids | None] | BaseException] = deque()
        self._has_all = False
        self._planning = threading.Lock()

    def take(self) -> tuple[Group, Ids | None] | None:
        """The next one; None after the last."""
        if not self._ready:
            self.plan(1, waits=True)
        planned = self._ready.popleft() if self._ready else None
        if isinstance(planned, BaseException):
            raise planned
        return planned

    def plan(self, count: int, *, waits: bool = False) -> None:
        """Sees to it that `count` are there, unless another thread does; it may be waited for."""
        if not self._planning.acquire(blocking=waits):
            return
        try:
            while len(self._ready) < count and not self._has_all:
                planned = next(self._groups, None)
                if planned is None:
                    self._has_all = True
                else:
                    self._ready.append(planned)
        except BaseException as error:  # noqa: BLE001 (whoever takes the group at this place shall see it)
            self._has_all = True
            self._ready.append(error)
        finally:
            self._planning.release()


class _Work:
    """What the threads of one `ReadAhead` share."""

    def __init__(
        self,
        planned: _Planned,
        read: Callable[[Group], Iterable[Any]],
        announce: Callable[[Ids], None],
        within: Callable[[], AbstractContextManager[object]],
        *,
        in_order: bool,
        planned_ahead: int,
    ) -> None:
        self.planned, self._planned_ahead = planned, planned_ahead
        self.tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self.announced: deque[Ids | None] = deque()  # one for each task
        self.closed = False
        self._read, self._announce, self._within = read, announce, within
        self._turn = threading.Lock() if in_order else contextlib.nullcontext()

    def add(self, task: _Task, announced: Ids | None) -> None:
        """Hands a group to the threads."""
        self.announced.append(announced)
        self.tasks.put(task)

    def run(self) -> None:
        """One thread's life: reads groups until it is told to end."""
        with cancellable(lambda: self.closed):
            try:
                with self._within():
                    self._serve()
            except BaseException as error:  # noqa: BLE001 (a thread that can't live: the consumer shall see why)
                if (task := self.tasks.get()) is not None:
                    task.error = error
                    task.done.release()
                else:
                    self.tasks.put(None)

    def _serve(self) -> None:
        me = threading.current_thread()
        while (task := self.tasks.get()) is not None:
            task.reader = me
            try:
                self._read_into(task)
            except BaseException as error:  # noqa: BLE001 (whatever it is, the consumer shall see it)
                task.error = error
            task.done.release()
            del task  # the next wait may be long, and finished batches belong to the consumer
            if not self.closed:
                self.planned.plan(self._planned_ahead)
        self.tasks.put(None)  # for the next thread

    def _read_into(self, task: _Task) -> None:
        # in a frame of its own, which keeps no batch when it ends
        with self._turn:
            announced = self.announced.popleft()
            if not self.closed and announced is not None:
                self._announce(announced)
        if not self.closed:
            for finished in zip(self._read(task.group), task.group.positions, strict=True):
                task.batches.append(finished)
                if self.closed:
                    return


class ReadAhead:
    """Finished batches with the position after each, read by threads before they are asked for."""

    def __init__(
        self,
        groups: Iterator[tuple[Group, Ids | None]],
        read: Callable[[Group], Iterable[Any]],
        announce: Callable[[Ids], None],
        *,
        in_order: bool = False,
        num_workers: int,
        max_groups: int,
        max_bytes: int,
        step_bytes: Callable[[Any], int],
        timeout: float | None = None,
        within: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> None:
        """Prepares to read; threads start with the first `next`.

        Args:
            groups: What to read, in order, each with samples to announce.
            read: Reads the steps of a group; called in the threads.
            announce: Tells the source which samples will be read soon; called in the threads.
            in_order: Whether samples must be announced in the order of their groups, one call after the other.
            num_workers: Threads.
            max_groups: The most groups that are being read or wait.
            max_bytes: The same in bytes, as far as they can be told beforehand: from the batches delivered so far.
            step_bytes: The bytes of a finished batch, or of one to expect where it is given None.
            timeout: How many seconds `next` waits for a batch; None for as long as it takes.
            within: Makes what each thread lives in, from its first group to its end.
        """
        self._work = _Work(_Planned(groups), read, announce, within, in_order=in_order, planned_ahead=max_groups)
        self._max_groups, self._max_bytes, self._step_bytes = max_groups, max_bytes, step_bytes
        self._expected_bytes = step_bytes(None)
        self._num_workers, self._birth = num_workers, Birth()
        self._timeout = None if timeout is None else min(timeout, threading.TIMEOUT_MAX)  # the most that locks take
        self._has_hung = False
        self._threads: list[threading.Thread] = []
        self._tasks: deque[_Task] = deque()
        self._batches: deque[tuple[Any, int]] = deque()
        self._error: BaseException | None = None

    def __iter__(self) -> "ReadAhead":
        return self

    def __next__(self) -> tuple[Any, int]:
        while not self._batches:
            self._birth.check()
            self._raise_error()
            if not self._work.closed:
                self._submit()
            # asked after submitting: a `close` that comes later finds these tasks in the queue before its end marker
            if self._work.closed or not self._tasks:
                raise StopIteration
            task = self._tasks[0]
            came = task.done.acquire() if self._timeout is None else task.done.acquire(timeout=self._timeout)
            if self._work.closed:
                raise StopIteration
            if not came:
                raise self._overdue(task.group)
            self._tasks.popleft()
            self._batches.extend(task.batches)
            task.batches.clear()  # the thread may hold the task a moment longer
            self._error = task.error
            if self._batches:
                self._expected_bytes = self._step_bytes(self._batches[0][0])
        return self._batches.popleft()

    def ready(self) -> bool:
        """Whether `next` would not wait; what is to be read has been handed to the threads."""
        if self._batches or self._error is not None or self._work.closed:
            return True
        self._birth.check()
        self._submit()
        return not self._tasks or not self._tasks[0].done.locked()

    def depth(self) -> tuple[int, int, int]:
        """How many groups wait to be taken, how many are being read or to be read, and the bytes of what is there.

        For any thread; what goes on meanwhile may be missed.
        """
        tasks = tuple(self._tasks)
        unread = sum(task.done.locked() for task in tasks)
        batches = len(self._batches) + sum(len(task.batches) for task in tasks)
        return len(tasks) - unread + bool(self._batches), unread, batches * self._expected_bytes

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # its traceback holds this frame

    def _overdue(self, awaited: Group) -> LoaderError:
        """What to raise where a group did not come in time; closes."""
        doing = dict.fromkeys(self._threads, "waits for work")
        for task in tuple(self._tasks):
            if task.reader is not None and task.done.locked():
                steps = len(task.group.positions)
                start = task.group.bounds[min(len(task.batches), steps - 1)]  # the first of those that aren't there
                doing[task.reader] = f"reads {listed_ids(task.group.sample_ids[start:])}"
        text = (
            f"no batch came within {self._timeout:g} seconds (timeout={self._timeout:g}): "
            f"that of {listed_ids(awaited.sample_ids[: awaited.bounds[1]])}\n"
            "  what each thread does, its innermost call last:\n"
            f"{textwrap.indent(stacks_of(self._threads, doing), '    ')}\n"
            "  mend what hangs, or give a larger timeout= where such a batch may take so long"
        )
        self._has_hung = True
        self.close()
        return LoaderError(text)

    def _submit(self) -> None:
        """Hands groups to the threads up to the bounds, but at least one.

        Several at once, when less than half is left: a thread that is woken takes the interpreter's lock, which the
        consumer then waits for.
        """
        self._start()
        if len(self._tasks) > max(self._num_workers, self._max_groups // 2):
            return
        in_flight = sum(len(task.group.positions) for task in self._tasks)
        while not self._tasks or (
            len(self._tasks) < self._max_groups
            and (in_flight + len(self._tasks[0].group.positions)) * self._expected_bytes <= self._max_bytes
        ):
            planned = self._work.planned.take()
            if planned is None:
                return
            group, announced = planned
            task = _Task(group)
            in_flight += len(group.positions)
            self._tasks.append(task)
            self._work.add(task, announced)

    def _start(self) -> None:
        for i in range(len(self._threads), self._num_workers):
            # daemons, so that a consumer that is never closed can't keep the interpreter from ending
            thread = threading.Thread(target=self._work.run, name=f"headrace-reader-{i}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def close(self) -> None:
        """Ends the threads and waits until they have ended: at most 5 seconds, and half a second after a hang."""
        if not self._birth.is_here:
            return
        self._work.closed = True
        self._work.tasks.put(None)
        deadline = time.monotonic() + (min(_HUNG_CLOSE_SECONDS, CLOSE_SECONDS) if self._has_hung else CLOSE_SECONDS)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(deadline - time.monotonic(), 0))
                if thread.is_alive() and not self._has_hung:  # else the error has named it
                    _log.warning("%s is still reading a batch; it ends when that is done", thread.name)
        self._threads.clear()
        self._tasks.clear()
        self._batches.clear()
