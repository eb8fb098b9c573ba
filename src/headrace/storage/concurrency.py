"""How many requests a server gets at once: fewer when it asks for fewer, then slowly more again."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from headrace.storage.cancellation import POLL_SECONDS

# The requests that are under way when a server begins to throttle all fail together: they are one sign, not many.
_ONE_SIGN_SECONDS = 0.5


class Concurrency:
    """Bounds the requests to one server: halved when it throttles, one more after each round without (as TCP does).

    Safe from any number of threads.

    Attributes:
        limit: Requests at once, as of now.
    """

    def __init__(self, most: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = float(most)
        self._most, self._clock = most, clock
        self._in_use = 0
        self._waiting: deque[object] = deque()
        self._last_sign = float("-inf")
        self._changed = threading.Condition()

    @contextmanager
    def slot(self, check: Callable[[], None]) -> Iterator[None]:
        """Waits for a turn, first come first served, calling `check` meanwhile, which may raise; and holds it."""
        turn = object()
        with self._changed:
            self._waiting.append(turn)
            try:
                while self._waiting[0] is not turn or self._in_use >= max(1, int(self.limit)):
                    self._changed.wait(POLL_SECONDS)
                    check()
                self._in_use += 1
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._in_use -= 1
                self._changed.notify_all()

    def shrink(self) -> None:
        """To be called when the server throttles."""
        with self._changed:
            now = self._clock()
            if now - self._last_sign >= _ONE_SIGN_SECONDS:
                self._last_sign = now
                self.limit = max(1.0, self.limit / 2)

    def grow(self) -> None:
        """To be called when a request went well."""
        with self._changed:
            if self.limit < self._most:
                self.limit = min(float(self._most), self.limit + 1 / self.limit)
                self._changed.notify_all()
