"""A thread that watches how much memory its process holds."""

import threading
from typing import NamedTuple

LOOK_SECONDS = 0.005  # between two looks, each of about 50 us


class Held(NamedTuple):
    """Bytes held at most in each third of an epoch, beyond those of the process itself."""

    first_third: int
    second_third: int
    last_third: int

    @property
    def most(self) -> int:
        """In the whole epoch."""
        return max(self)


class Watch(threading.Thread):
    """Notes the most memory held for each third that `third` is set to."""

    def __init__(self) -> None:
        from headrace.bench.usage import ProcessUsage

        super().__init__(daemon=True)
        self._memory = ProcessUsage().memory_bytes
        self._ended = threading.Event()
        self.before = self._memory() or 0
        self.most = [0, 0, 0]
        self.third = 0

    def run(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            third = self.third
            self.most[third] = max(self.most[third], (self._memory() or 0) - self.before)

    def end(self) -> list[int]:
        """Stops watching; what was seen."""
        self._ended.set()
        self.join()
        return self.most
