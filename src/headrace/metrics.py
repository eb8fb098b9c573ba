"""Seconds by stage: what threads are busy with, cheap enough to be always on.

A thread has at most one meter, and is in at most one stage at a time: within `with stage("decode"):` its time goes to
that stage, but for what stages inside it take. Without a meter a stage costs some 0.2 microseconds and does nothing.

Guarantees:
- A `Meter` may be used from any thread. Each thread adds to a clock of its own, without a lock.
- A clock belongs to the one thread that entered it; what it holds is kept by its meter when the thread is done.
- A stage must not contain a `yield`: a generator's caller would then run within it.
"""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from time import perf_counter, thread_time
from types import TracebackType
from typing import NamedTuple, TypeVar

# plan: the order's arithmetic; read: finding and gathering samples; decode: bytes to samples, decompression too;
# user: the user's functions and datasets; copy: to pinned memory, to the device, between processes;
# storage: waiting for stored bytes; turn: waiting for another thread, which brings what this one needs.
STAGES = ("plan", "read", "decode", "user", "copy", "storage", "turn")

Item = TypeVar("Item")


class Spent(NamedTuple):
    """What a meter has counted.

    Attributes:
        seconds: Of all threads together, by stage.
        cpu_seconds: Of these, how long the threads computed; what a consumer's clock times is counted for "user" alone.
    """

    seconds: dict[str, float]
    cpu_seconds: dict[str, float]

    def minus(self, earlier: "Spent") -> "Spent":
        """What came since then."""
        return Spent(
            {name: self.seconds[name] - earlier.seconds[name] for name in STAGES},
            {name: self.cpu_seconds[name] - earlier.cpu_seconds[name] for name in STAGES},
        )


class Clock:
    """The seconds of one thread.

    Attributes:
        is_on: Whether stages count now.
        spent: By stage.
    """

    __slots__ = ("_cpu_since", "_since", "_stack", "_times_cpu", "is_on", "spent")

    def __init__(self, *, times_cpu: bool = True) -> None:
        self.is_on = True
        self.spent = Spent(dict.fromkeys(STAGES, 0.0), dict.fromkeys(STAGES, 0.0))
        self._stack: list[str] = []
        self._times_cpu = times_cpu
        self._since = self._cpu_since = 0.0

    def enter(self, name: str) -> None:
        """Begins a stage."""
        stack = self._stack
        if not (stack and stack[-1] == name):
            self._turn(stack[-1] if stack else None, name)
        stack.append(name)

    def leave(self) -> None:
        """Ends the stage that was begun last."""
        stack = self._stack
        if not stack:  # it began before the clock was on
            return
        name = stack.pop()
        outer = stack[-1] if stack else None
        if outer != name:
            self._turn(name, outer)

    def clear(self) -> None:
        """Forgets stages that were left without being ended."""
        self._stack.clear()

    def _turn(self, former: str | None, coming: str | None) -> None:
        now = perf_counter()
        # first of all: whoever asks for totals meanwhile may then miss some of it, but never counts it twice
        since, self._since = self._since, now
        if former is not None:
            self.spent.seconds[former] += now - since
        # asking for it takes up to a microsecond
        if self._times_cpu or "user" in (former, coming):
            cpu = thread_time()
            if former is not None and (self._times_cpu or former == "user"):
                self.spent.cpu_seconds[former] += cpu - self._cpu_since
            self._cpu_since = cpu

    def so_far(self) -> Spent:
        """What is spent, with the stage that goes on; for any thread."""
        since, stack = self._since, self._stack[-1:]
        seconds, cpu_seconds = dict(self.spent.seconds), dict(self.spent.cpu_seconds)
        if stack and since == self._since:
            seconds[stack[0]] += perf_counter() - since
        return Spent(seconds, cpu_seconds)


class _Thread(threading.local):
    """What the current thread adds to."""

    clock: Clock | None = None


thread = _Thread()


class Meter:
    """What any number of threads have spent, by stage."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._clocks: list[Clock] = []
        self._done = Clock()
        self._drained = self._done.spent.minus(self._done.spent)

    def clock(self, *, times_cpu: bool = True) -> Clock:
        """A new clock, counted from now on.

        Args:
            times_cpu: Whether CPU seconds of all stages are counted, not those of "user" alone.
        """
        clock = Clock(times_cpu=times_cpu)
        with self._lock:
            self._clocks.append(clock)
        return clock

    def give_back(self, clock: Clock) -> None:
        """Keeps what a clock holds, whose thread is done with it."""
        with self._lock:
            self._clocks.remove(clock)
            self._add(*clock.spent)

    def add(self, seconds: Mapping[str, float], cpu_seconds: Mapping[str, float] | None = None) -> None:
        """Adds what was spent elsewhere, in another process say."""
        with self._lock:
            self._add(seconds, cpu_seconds or {})

    def totals(self) -> Spent:
        """What was spent so far; of CPU seconds, those of stages that have ended."""
        with self._lock:
            parts = [self._done.spent, *(clock.so_far() for clock in self._clocks)]
            return Spent(
                {name: sum(part.seconds[name] for part in parts) for name in STAGES},
                {name: sum(part.cpu_seconds[name] for part in parts) for name in STAGES},
            )

    def drain(self) -> Spent:
        """What was spent since the last call."""
        total = self.totals()
        drained, self._drained = total.minus(self._drained), total
        return drained

    def _add(self, seconds: Mapping[str, float], cpu_seconds: Mapping[str, float]) -> None:
        for name, value in seconds.items():
            self._done.spent.seconds[name] += value
        for name, value in cpu_seconds.items():
            self._done.spent.cpu_seconds[name] += value


class Stage:
    """A stage, to be entered by any thread, any number of times."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        clock = thread.clock
        if clock is not None and clock.is_on:
            clock.enter(self._name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        clock = thread.clock
        if clock is not None and clock.is_on:
            clock.leave()


_STAGES = {name: Stage(name) for name in STAGES}


def stage(name: str) -> Stage:
    """A context within which the current thread's time goes to one of `STAGES`.

    >>> meter = Meter()
    >>> with metering(meter), stage("read"), stage("decode"):
    ...     total = sum(range(1000))
    >>> meter.totals().seconds["decode"] > 0, meter.totals().seconds["user"]
    (True, 0.0)
    """
    return _STAGES[name]


@contextlib.contextmanager
def metering(meter: Meter | None) -> Iterator[None]:
    """A context within which the current thread's stages go to a meter; for a thread's whole life as a rule.

    Args:
        meter: The meter; None for none.
    """
    former = thread.clock
    clock = None if meter is None else meter.clock()
    thread.clock = clock
    try:
        yield
    finally:
        thread.clock = former
        if meter is not None and clock is not None:
            meter.give_back(clock)


def timed(name: str, items: Iterator[Item]) -> Iterator[Item]:
    """The same items; making each of them is a stage of the thread that asks for it."""
    end = object()
    while True:
        with stage(name):
            item = next(items, end)
        if item is end:
            return
        yield item  # type: ignore[misc]
