"""Counts what a loader does, and tells it as `Stats`.

How a loader uses its recorder, which lives as long as the loader:

    recorder = Recorder(on_stats=..., stats_seconds=10.0, reads_here=num_workers == 0)
    reading threads          with metering(recorder.meter): ... with stage("read"): ...
    replies of processes     recorder.add_remote(seconds, cpu_seconds), as `Meter.drain()` there gave them
    a pass begins            recorder.began(epoch, bar)
    __next__                 recorder.asked()                       first of all
      with a batch           if recorder.delivered(samples, nbytes): recorder.tell(recorder.snapshot(...))
      with an exception      recorder.waited()
    the pass has ended       recorder.ended(); where it came to its last batch: recorder.tell(recorder.snapshot(...))
    stats()                  recorder.snapshot(num_workers=..., counts=source.counts(), ...): what only the loader knows

Guarantees:
- `began` to `ended` and `tell` belong to the consumer's thread, but for `ended`, which any thread may call, and again.
- `meter`, `add_remote` and `snapshot` may be used from any thread.
- Nothing here refers to the loader, its passes or its source.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

from headrace.errors import ArgumentError
from headrace.loader.progress_bar import ProgressBar
from headrace.loader.stats import Mark, Stats
from headrace.metrics import Clock, Meter, thread

# How far back `Stats.recent` looks, and how often it is noted where it may begin
_RECENT_SECONDS = 10.0
_MARK_SECONDS = 1.0
_BAR_SECONDS = 0.25


class Recorder:
    """Counts what one loader does, in all its passes.

    Attributes:
        meter: What its threads are busy with.
        sample_bytes: Of a sample in a batch, where all have as many; else 0, and `delivered` is told those of a batch.
    """

    # beyond thirty attributes an object without slots takes twice as long to change one
    __slots__ = (
        "__weakref__",
        "_asked",
        "_bar",
        "_bar_due",
        "_batches",
        "_batches_before",
        "_began_at",
        "_bytes",
        "_clock",
        "_cores",
        "_counts_before",
        "_cpu_began",
        "_due",
        "_elapsed",
        "_epoch",
        "_first_wait",
        "_former",
        "_is_begun",
        "_is_open",
        "_mark_due",
        "_marks",
        "_on_stats",
        "_own",
        "_passes",
        "_process_cpu",
        "_reads_here",
        "_remote",
        "_samples",
        "_stats_due",
        "_stats_seconds",
        "_wait",
        "meter",
        "sample_bytes",
    )

    def __init__(
        self,
        *,
        on_stats: Callable[[Stats], object] | None = None,
        stats_seconds: float = 10.0,
        reads_here: bool = False,
        cores: int | None = None,
    ) -> None:
        """Begins to count.

        Args:
            on_stats: Called with `Stats` about every `stats_seconds`, and with the last batch of each pass.
            stats_seconds: How often.
            reads_here: Whether batches are read in the consumer's thread, so that what it waits for is its own work.
            cores: The cores that there are for this process; by default those that it may run on.

        Raises:
            ArgumentError: `on_stats` can't be called, or `stats_seconds` is not above 0.
        """
        if on_stats is not None and not callable(on_stats):
            raise ArgumentError(f"on_stats: expected a function of (stats), got {on_stats!r}")
        if not isinstance(stats_seconds, int | float) or not stats_seconds > 0:
            raise ArgumentError(f"stats_seconds: expected more than 0 seconds, got {stats_seconds!r}")
        self.meter, self.sample_bytes = Meter(), 0
        self._on_stats, self._stats_seconds, self._reads_here = on_stats, stats_seconds, reads_here
        self._cores = available_cores() if cores is None else cores
        self._clock = self.meter.clock(times_cpu=False)
        self._clock.is_on = False
        self._former: Clock | None = None  # another loader's, which goes on when this one is off
        self._own = 0.0  # the seconds of clocks that were given up
        self._samples = self._batches = self._bytes = self._passes = self._epoch = 0
        self._elapsed = self._wait = self._first_wait = self._remote = self._process_cpu = 0.0
        self._asked = self._began_at = self._cpu_began = 0.0
        self._is_open = self._is_begun = False  # a pass, and its first batch
        self._due = self._mark_due = self._stats_due = self._bar_due = 0.0
        self._bar: ProgressBar | None = None
        self._batches_before = 0
        self._marks: deque[Mark] = deque(maxlen=1 + round(_RECENT_SECONDS / _MARK_SECONDS))
        self._counts_before: Mapping[str, int] = {}

    def began(self, epoch: int, *, bar: ProgressBar | None = None, counts: Mapping[str, int] | None = None) -> None:
        """A pass begins; its time runs from the first `asked` on.

        Args:
            epoch: Its epoch.
            bar: Where it is shown; closed when the pass has ended.
            counts: What the source has counted so far; what it had at the first pass doesn't count.
        """
        self.ended()
        if self._passes == 0:
            self._counts_before = dict(counts or {})
        self._passes += 1
        self._epoch, self._bar, self._batches_before = epoch, bar, self._batches
        self._is_open, self._is_begun = True, False
        self._due = 0.0

    def asked(self) -> None:
        """The consumer asks for a batch, in this thread."""
        clock = self._clock
        if thread.clock is not clock:
            clock = self._adopt()
        clock.is_on = True
        self._asked = perf_counter()

    def _adopt(self) -> Clock:
        """Makes a clock this thread's, for good: it is off in between, and each change would cost every batch.

        But for the time of one batch only, where another loader's clock goes on meanwhile. Another thread's clock is
        given up, so that it counts nothing there when it is on here.
        """
        former = thread.clock
        if former is not None and former.is_on:
            self._former, self._due = former, 0.0
        self._own += sum(self._clock.spent.seconds.values())
        self.meter.give_back(self._clock)
        clock = thread.clock = self._clock = self.meter.clock(times_cpu=False)
        return clock

    def delivered(self, samples: int, nbytes: int = 0) -> bool:
        """It gets one; returns whether `tell` is due."""
        now = perf_counter()
        self._wait += now - self._asked
        self._clock.is_on = False
        self._batches += 1
        self._samples += samples
        if nbytes:
            self._bytes += nbytes
        return now >= self._due and self._is_due(now)

    def _restore(self) -> None:
        if self._former is not None:
            thread.clock, self._former = self._former, None

    def waited(self) -> None:
        """It gets none: the pass is over, or failed."""
        clock = self._clock
        if clock.is_on:
            now = perf_counter()
            self._begin()
            self._wait += now - self._asked
            clock.is_on = False
            clock.clear()
            self._restore()

    def ended(self) -> None:
        """The pass has ended, however it did; nothing where none is open."""
        is_open, self._is_open = self._is_open, False
        bar, self._bar = self._bar, None
        if is_open and self._is_begun:
            self._elapsed += perf_counter() - self._began_at
            self._process_cpu += time.process_time() - self._cpu_began
            self._stats_due = 0.0
        if bar is not None:
            bar.show(self._batches - self._batches_before)
            bar.close()

    def add_remote(self, seconds: Mapping[str, float], cpu_seconds: Mapping[str, float] | None = None) -> None:
        """Adds what a worker process was busy with, by stage."""
        self._remote += sum(seconds.values())
        self.meter.add(seconds, cpu_seconds)

    def tell(self, stats: Stats) -> None:
        """Shows stats in the progress bar and gives them to `on_stats`, each where it is time.

        Raises:
            Exception: Whatever `on_stats` raises, with a note; RuntimeError for StopIteration, which ends loops.
        """
        now = perf_counter()
        if self._bar is not None:
            self._bar.show(self._batches - self._batches_before, stats)
            self._bar_due = now + _BAR_SECONDS
        if self._on_stats is not None and now >= self._stats_due:
            self._stats_due = now + self._stats_seconds
            try:
                self._on_stats(stats)
            except StopIteration as error:
                raise RuntimeError("on_stats raised StopIteration") from error
            except Exception as error:
                error.add_note(f"in on_stats, called after {self._batches} batches")
                raise
        self._set_due()

    def snapshot(self, *, counts: Mapping[str, int] | None = None, memory_bytes: int = 0, **known: Any) -> Stats:
        """Everything up to now.

        Args:
            counts: The source's.
            memory_bytes: What batches take that are read ahead.
            known: Further fields of `Stats` that the loader knows.
        """
        mark = self._mark()
        counted = {
            # what is held is no count of what has happened since
            name: count if name.startswith("held_") else count - self._counts_before.get(name, 0)
            for name, count in (counts or {}).items()
        }
        memory_bytes += counted.get("held_bytes", 0) + counted.get("held_ahead_bytes", 0)
        common = {
            "passes": self._passes,
            "epoch": self._epoch,
            "cores": self._cores,
            "load": load_of_machine(),
            "counts": counted,
            "memory_bytes": memory_bytes,
            **known,
        }
        marks = list(self._marks)
        recent = None
        if marks and mark.elapsed_seconds - marks[0].elapsed_seconds >= _RECENT_SECONDS / 2:
            recent = Stats(**common, **mark.fields(marks[0]))
        return Stats(**common, **mark.fields(None), recent=recent)

    def _begin(self) -> None:
        """The first `asked` of a pass has come."""
        if self._is_open and not self._is_begun:
            self._is_begun = True
            self._began_at = self._asked
            self._cpu_began = time.process_time()

    def _is_due(self, now: float) -> bool:
        """Does what is to be done now and then; returns whether `tell` is due."""
        self._restore()
        if not self._is_open:
            return False
        if not self._is_begun:
            self._begin()
            self._first_wait += now - self._asked
            # a first word soon would be about nothing but the start
            self._stats_due = max(self._stats_due, now + self._stats_seconds)
            self._bar_due = now
        if now >= self._mark_due:
            self._mark_due = now + _MARK_SECONDS
            self._marks.append(self._mark())
        self._set_due()
        is_shown = self._bar is not None and now >= self._bar_due
        return is_shown or (self._on_stats is not None and now >= self._stats_due)

    def _set_due(self) -> None:
        due = self._mark_due
        if self._bar is not None:
            due = min(due, self._bar_due)
        if self._on_stats is not None:
            due = min(due, self._stats_due)
        self._due = due

    def _mark(self) -> Mark:
        elapsed, wait, process_cpu = self._elapsed, self._wait, self._process_cpu
        now = perf_counter()
        waits = self._clock.is_on
        if self._is_open and (self._is_begun or waits):
            elapsed += now - (self._began_at if self._is_begun else self._asked)
            if self._is_begun:
                process_cpu += time.process_time() - self._cpu_began
            if waits:
                wait += now - self._asked
        spent = self.meter.totals()
        if self._reads_here:
            # what the consumer waits for and no stage says is reading: stages for it would cost more than small batches
            own = self._own + sum(self._clock.so_far().seconds.values())
            spent.seconds["read"] += max(0.0, wait - own)
        return Mark(
            self._samples,
            self._batches,
            self._bytes + self._samples * self.sample_bytes,
            elapsed,
            wait,
            self._first_wait,
            spent,
            self._remote,
            process_cpu,
        )


def load_of_machine() -> float:
    """The system's load average of the last minute, a core; 0 where it doesn't say."""
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except (AttributeError, OSError):
        return 0.0


def available_cores() -> int:
    """How many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1
