"""Ranges on their way into memory: a queue, and threads that live only while there is work.

Guarantees:
    - Everything may be called from any thread. Urgent parts come first, the others in the order in which they came.
    - At most `max_requests` parts (or probes), and about `max_request_bytes` bytes, are under way; one always proceeds.
    - A thread ends when there has been nothing to take for 0.1 s: when reading has stopped, no thread is left.
    - `wait` returns as soon as the memory is filled. Until `released`, a disk cache may still read from it, or a
      request that was given up may still write into it.
"""

import contextlib
import copy
import os
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from headrace.errors import StorageError
from headrace.storage.cancellation import ReadCancelled, wait_for
from headrace.storage.objects import RangeRead, StoredObject
from headrace.storage.urls import shown

# Starting a thread takes until it runs, a millisecond on a busy machine. A stream has work again within some of these.
_LINGER_SECONDS = 0.1


class Transfer:
    """A range on its way into memory, in one part or several.

    Attributes:
        read: The range.
        parts: Its parts, one request each.
    """

    def __init__(self, read: RangeRead, parts: Iterable[RangeRead], queue: "TransferQueue") -> None:
        self.read = read
        self.parts = [Part(part, self) for part in parts]
        self._queue, self._pid = queue, os.getpid()
        self._unfilled = self._unreleased = len(self.parts)
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._done, self._released = threading.Event(), threading.Event()
        if not self.parts:
            self._done.set()
            self._released.set()

    def __str__(self) -> str:
        failed = max((part.attempts for part in self.parts), default=0)
        return f"{self.read}" + (f" (failed attempts: {failed})" if failed else "")

    @property
    def done(self) -> bool:
        """Whether the memory is filled, or an error came instead: `wait` won't wait."""
        return self._done.is_set()

    @property
    def failed(self) -> bool:
        """Whether an error came."""
        return self._error is not None

    @property
    def released(self) -> bool:
        """Whether nobody reads from or writes into the memory any more."""
        return self._released.is_set()

    def wait(self) -> None:
        """Returns when the memory is filled; within `cancellable`, only while that is wanted.

        Raises:
            StorageError: The bytes cannot be had.
            ReadCancelled: They are no longer wanted.
        """
        self._check_process()
        wait_for(self._done, self)
        if self._error is not None:
            raise _again(self._error)  # it may be raised to several

    def wait_released(self) -> None:
        """Returns when nobody uses the memory any more."""
        self._check_process()
        self._released.wait()

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise StorageError(f"cannot read {self.read}: the transfer belongs to the process that forked this one")

    def hurry(self) -> None:
        """Moves it to the front of the queue, since somebody waits for it."""
        if waiting := [part for part in self.parts if not part.taken]:
            self._queue.put(waiting, urgent=True)

    def cancel(self) -> None:
        """Gives it up: unless it is done, `wait` raises ReadCancelled. A request under way ends soon, not at once."""
        for part in self.parts:
            part.give_up()

    def count_filled(self) -> None:
        """One more of its parts is there."""
        with self._lock:
            self._unfilled -= 1
            if self._unfilled == 0:
                self._done.set()

    def count_released(self, error: BaseException | None) -> None:
        """Nobody uses one more of its parts any more; with an error, that part did not come."""
        with self._lock:
            self._unreleased -= 1
            first_error = error is not None and self._error is None
            if first_error:
                self._error = _untraced(error)
                self._done.set()
        if first_error:
            self.cancel()
        if self._unreleased == 0:
            # They refer to this transfer: the memory shall go with the last reference, not when garbage is collected.
            self.parts = []
            self._released.set()


class Work(ABC):
    """Something that a thread of the queue does, in as many attempts as it takes, unless it is given up.

    Attributes:
        attempts: How many attempts have failed.
        ends: When the present attempt must be over, in seconds of `time.monotonic`.
        taken: Whether a thread has taken it, or it was given up before that.
    """

    work_bytes = 0

    def __init__(self) -> None:
        self.attempts = 0
        self.ends = float("inf")
        self.taken = False
        self._abort: Callable[[], None] | None = None
        self._given_up = threading.Event()
        self._lock = threading.RLock()

    def take(self) -> bool:
        """Whether it is the caller's to do now."""
        with self._lock:
            mine, self.taken = not self.taken, True
        return mine

    def check(self) -> None:
        """Raises ReadCancelled where nobody wants it any more."""
        if self._given_up.is_set():
            raise ReadCancelled

    def pause(self, seconds: float) -> None:
        """Waits that long; raises ReadCancelled as soon as it is given up."""
        if self._given_up.wait(seconds):
            raise ReadCancelled

    def give_up(self) -> None:
        """Ends it, whatever it is doing; nothing happens where it is done."""
        with self._lock:
            self._given_up.set()
            if not self.taken:
                self.taken = True
                self.release(ReadCancelled())
            elif self._abort is not None:
                self._abort()

    @contextlib.contextmanager
    def abortable(self, abort: Callable[[], None]) -> Iterator[None]:
        """Within it, `give_up` calls `abort`, from another thread; it must not wait."""
        with self._lock:
            self.check()
            self._abort = abort
        try:
            yield
        finally:
            with self._lock:
                self._abort = None

    @abstractmethod
    def release(self, error: BaseException | None = None) -> None:
        """Says that it is over; where it didn't succeed, `error` says why."""


class Part(Work):
    """One request's worth of a transfer.

    Attributes:
        read: The range.
        arrived: How many of its bytes are there: where the next attempt begins.
    """

    def __init__(self, read: RangeRead, transfer: Transfer) -> None:
        super().__init__()
        self.read, self._transfer = read, transfer
        self.work_bytes = len(read.out)
        self.arrived = 0
        self._filled = self._released = False

    def __str__(self) -> str:
        return f"read {self.read}"

    def write(self, data: bytes) -> None:
        """Copies all of its bytes, unless it was given up: then its memory belongs to others again."""
        with self._lock:
            self.check()
            self.read.out[:] = np.frombuffer(data, np.uint8)
            self.arrived = len(data)

    def fill(self) -> None:
        """Says that all its bytes are there."""
        if not self._filled:
            self._filled = True
            self._transfer.count_filled()

    def release(self, error: BaseException | None = None) -> None:
        """Says that nobody uses its memory any more; where it isn't filled, `error` says why. The first call counts."""
        with self._lock:
            first, self._released = not self._released, True
        if first:
            self._transfer.count_released(None if self._filled else error)


class Probe(Work):
    """A look at an object, to pin it.

    Attributes:
        url: Its URL, or the path of a local file.
        found: The object, once it is known.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.found: StoredObject | None = None
        self._error: BaseException | None = None
        self._done = threading.Event()

    def __str__(self) -> str:
        return f"open {shown(self.url)}"

    def release(self, error: BaseException | None = None) -> None:
        """Says that it is over."""
        self._error = _untraced(error)
        self._done.set()

    def wait(self) -> StoredObject:
        """The object; within `cancellable`, waits only while that is wanted.

        Raises:
            StorageError: It can't be opened.
            ReadCancelled: It is no longer wanted.
        """
        wait_for(self._done, self)
        if self._error is not None:
            raise _again(self._error)
        assert self.found is not None
        return self.found


def _untraced(error: BaseException | None) -> BaseException | None:
    """The error without its traceback, whose frames lead to whoever keeps the error: a cycle, and memory with it."""
    return None if error is None else error.with_traceback(None)


def _again(error: BaseException) -> BaseException:
    """A copy of an error that is kept, to be raised: the one that is kept gets no traceback (see `_untraced`)."""
    try:
        same = copy.copy(error)
    except Exception:  # noqa: BLE001 (a client's own class may ask for whatever it likes)
        same = error
    same.__cause__, same.__suppress_context__ = error.__cause__, error.__suppress_context__
    if notes := getattr(error, "__notes__", None):
        same.__notes__ = [*notes]
    return same.with_traceback(None)


class TransferQueue:
    """Work that waits for a thread, and the threads.

    Args:
        run: Does some work and releases it; doesn't raise.
        max_requests: How much of it is under way at once, each in a thread of its own.
        max_request_bytes: The most of their bytes together.
    """

    def __init__(self, run: Callable[[Work], None], *, max_requests: int, max_request_bytes: int) -> None:
        self._run, self._max_requests, self._max_request_bytes = run, max_requests, max_request_bytes
        self._urgent: deque[Work] = deque()
        self._ahead: deque[Work] = deque()
        self._threads = self._idle = 0
        self._bytes = 0
        self._lock = threading.Lock()
        self._has_work = threading.Condition(self._lock)

    def put(self, work: Iterable[Work], *, urgent: bool) -> None:
        """Adds work; what is there already may be added again as urgent."""
        with self._lock:
            (self._urgent if urgent else self._ahead).extend(work)
            starting = self._staff()
        self._start_threads(starting)

    def _staff(self) -> int:
        """Wakes idle threads for what is queued; returns how many more it takes. Needs the lock."""
        queued = len(self._urgent) + len(self._ahead) if self._has_room() else 0
        self._has_work.notify(queued)
        return max(0, min(queued - self._idle, self._max_requests - self._threads))

    def _start_threads(self, count: int) -> None:
        # Each counts itself when it runs, so that nothing is wrong where this is interrupted. If too many are started
        # meanwhile, some find that there are enough.
        for _ in range(count):
            # a daemon, so that a stalled server can't keep the interpreter from ending
            thread = threading.Thread(target=self._work, name="headrace-io", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the system gives no more threads: those that there are do the work
                with self._lock:
                    left = [] if self._threads else [*self._urgent, *self._ahead]
                for work in left:
                    if work.take():
                        work.release(StorageError(f"no thread can be started: {error}"))
                return

    def _work(self) -> None:
        """One thread's life."""
        with self._lock:
            if self._threads == self._max_requests:
                return
            self._threads += 1
        while True:
            with self._lock:
                work = self._next()
                if work is None:
                    self._threads -= 1
                    return
                self._bytes += work.work_bytes
            self._run(work)
            with self._lock:
                self._bytes -= work.work_bytes
                starting = self._staff()
            del work  # its memory belongs to others
            self._start_threads(starting)

    def _has_room(self) -> bool:
        return self._bytes < self._max_request_bytes

    def _next(self) -> Work | None:
        """What is to be done next; None where nothing comes for a while. Needs the lock."""
        is_over = False
        while True:
            while self._has_room() and (queue := self._urgent or self._ahead):
                work = queue.popleft()
                if work.take():
                    return work
            if is_over:  # said only after another look: work may have come when the wait had just ended
                return None
            self._idle += 1
            is_over = not self._has_work.wait(_LINGER_SECONDS)
            self._idle -= 1
