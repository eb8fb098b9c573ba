"""Wall and CPU time of whole epochs, two of a kind alternately."""

import resource
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Spent(NamedTuple):
    """What one epoch, or one plain reading, took."""

    seconds: float
    cpu_seconds: float


class Clock:
    """Wall and CPU time from when it is made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), _cpu_seconds()

    def spent(self) -> Spent:
        """What has passed."""
        return Spent(time.perf_counter() - self._wall, _cpu_seconds() - self._cpu)


def alternating(
    first: Callable[[], Spent], second: Callable[[], Spent], repetitions: int
) -> Iterator[tuple[Spent, Spent]]:
    """Pairs of (first, second), which of them is measured first alternating."""
    for repetition in range(repetitions):
        if repetition % 2 == 0:
            one = first()
            other = second()
        else:
            other = second()
            one = first()
        yield one, other


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
