"""Waits for stored bytes that can be given up: whoever reads for a pass that has ended must not wait for a server."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from headrace.metrics import stage

POLL_SECONDS = 0.1  # how often a wait looks whether it is still wanted


class ReadCancelled(BaseException):
    """A wait for stored bytes ended because nobody wants them any more.

    Not an Exception, so that no handler for failed reads takes it for one: it is meant for whoever cancelled.
    """


class _Here(threading.local):
    is_cancelled: Callable[[], bool] | None = None


_here = _Here()
_awaited: dict[int, object] = {}  # by thread, while it waits


@contextmanager
def cancellable(is_cancelled: Callable[[], bool]) -> Iterator[None]:
    """Within it, this thread's waits for stored bytes raise ReadCancelled soon after `is_cancelled()` turns true.

    >>> with cancellable(lambda: True):
    ...     check_cancelled()
    Traceback (most recent call last):
    headrace.storage.cancellation.ReadCancelled
    """
    outer, _here.is_cancelled = _here.is_cancelled, is_cancelled
    try:
        yield
    finally:
        _here.is_cancelled = outer


def wait_for(event: threading.Event, what: object) -> None:
    """Returns when an event has come; raises ReadCancelled where that is no longer wanted.

    Args:
        event: What to wait for.
        what: Says so, by its `str`, in the texts of `awaited_by`.
    """
    if event.is_set():
        return
    thread_id = threading.get_ident()
    _awaited[thread_id] = what
    try:
        with stage("storage"):
            while not event.wait(POLL_SECONDS):
                check_cancelled()
    finally:
        del _awaited[thread_id]


def awaited_by(thread_id: int) -> str | None:
    """What a thread waits for in `wait_for`; None where it doesn't."""
    what = _awaited.get(thread_id)
    return None if what is None else str(what)


def check_cancelled() -> None:
    """Raises ReadCancelled where this thread's work is no longer wanted."""
    if _here.is_cancelled is not None and _here.is_cancelled():
        raise ReadCancelled
