"""A word to those who wait: how far something that takes long has come."""

import logging
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

_log = logging.getLogger("headrace")

# Most datasets open faster than this, and then nothing is said.
_FIRST_SECONDS = 2.0
_LINE_SECONDS = 0.2
_LOG_SECONDS = 10.0


class Progress:
    """Says how much of a task is done, once it has taken 2 s.

    On a terminal that is a line on stderr, written over and over and gone in the end; elsewhere a message of level INFO
    on the logger "headrace" every 10 s. A context manager. `add` may be called from any thread.

    >>> with Progress(3, "reading footers") as progress:
    ...     for _ in range(3):
    ...         progress.add(1)
    """

    def __init__(
        self,
        total: int,
        what: str,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begins to count.

        Args:
            total: How much there is to do.
            what: What is done: "reading footers".
            stream: Where the line goes; by default stderr.
            clock: Seconds.
        """
        self._total, self._what, self._clock = total, what, clock
        self._stream = sys.stderr if stream is None else stream
        self._is_terminal = self._stream is not None and self._stream.isatty()
        self._done = 0
        self._began = clock()
        self._next = self._began + _FIRST_SECONDS
        self._shown = 0  # characters of the line that stands there
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Counts so many more as done, and says so where it is time."""
        with self._lock:
            self._done += count
            now = self._clock()
            if now < self._next:
                return
            text = f"{self._what}: {self._done} of {self._total} after {now - self._began:.0f} s"
            if self._is_terminal:
                self._next = now + _LINE_SECONDS
                self._write(text)
            else:
                self._next = now + _LOG_SECONDS
                _log.info("%s", text)

    def _write(self, text: str) -> None:
        self._stream.write(f"\r{text.ljust(self._shown)}")
        self._stream.flush()
        self._shown = len(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            self._stream.write(f"\r{' ' * self._shown}\r")
            self._stream.flush()
            self._shown = 0
