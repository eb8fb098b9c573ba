"""One loader, measured under one setting."""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from headrace.bench.measurement import Measurement, SettingValue
from headrace.bench.usage import ProcessUsage, Usage
from headrace.errors import ArgumentError

Clock = Callable[[], float]
Step = Callable[[Any], object]

MEMORY_SECONDS = 0.1  # between two looks at the memory; a look costs about 50 us


def measure(
    loader: Iterable[Any] | Callable[[], Iterable[Any]],
    *,
    name: str = "loader",
    settings: Mapping[str, SettingValue] | None = None,
    step: Step | None = None,
    seconds: float | None = 2.0,
    batches: int | None = None,
    warmup_seconds: float = 0.25,
    warmup_batches: int = 1,
    samples_in: Callable[[Any], int] | None = None,
    clock: Clock = time.perf_counter,
    usage: Usage | None = None,
) -> Measurement:
    """What the loader delivers between the warm-up and the first of the limits.

    A pass that ends is followed by the next one; what that costs counts, as it does in training. Waiting is the time
    inside `next()`. An accelerator is waited for at both ends of the stretch and not in between, so `step` should not
    synchronise either.

    Args:
        loader: Anything that can be iterated over, or a function that makes it; then making it counts into the time to
            the first batch.
        name: What to call it.
        settings: What it was made with, for the record.
        step: What to do with each batch; None loads alone.
        seconds: Stop with the batch that reaches this time; None for no such limit.
        batches: Stop after so many batches; None for no such limit.
        warmup_seconds: Batches that come within so long after the first one are not measured.
        warmup_batches: At least so many batches are not measured, 1 or more.
        samples_in: The samples of a batch; by default the length of the first array in it.
        clock: Seconds; another clock makes a test exact.
        usage: Where CPU time and memory are read.

    Raises:
        ArgumentError: A limit is out of range, or the loader ends before anything could be measured.

    Example:
        >>> measurement = measure(lambda: [torch.zeros(32, 8)] * 5, seconds=None, batches=10, warmup_seconds=0)
        >>> measurement.batches, measurement.samples, measurement.bytes
        (10, 320, 10240)
    """
    _check(seconds, batches, warmup_seconds, warmup_batches)
    usage = usage or ProcessUsage()
    idle_memory = usage.total_memory_bytes()
    began = clock()
    stream = _passes(loader if isinstance(loader, Iterable) else loader())
    try:
        batch = next(stream)
        first_batch_seconds = clock() - began
        loop = _Loop(count=samples_in or sample_counter(batch), step=step or _nothing, clock=clock, usage=usage)
        sample_bytes = batch_bytes(batch) / max(loop.count(batch), 1)
        loop.warm_up(batch, stream, warmup_seconds, warmup_batches)
        stretch = loop.run(stream, seconds, batches)
    except StopIteration:
        raise ArgumentError(
            f"measure: {name} ended before a batch was measured; give it more batches, or less warm-up "
            f"(warmup_seconds={warmup_seconds}, warmup_batches={warmup_batches})"
        ) from None
    finally:
        stream.close()
    p50, p99 = np.percentile(stretch.waits, (50, 99))
    return Measurement(
        name=name,
        settings=dict(settings or {}),
        step=None if step is None else getattr(step, "__name__", type(step).__name__),
        batches=len(stretch.waits),
        samples=stretch.samples,
        bytes=round(stretch.samples * sample_bytes),
        seconds=stretch.seconds,
        first_batch_seconds=first_batch_seconds,
        wait_seconds=sum(stretch.waits),
        wait_p50_seconds=float(p50),
        wait_p99_seconds=float(p99),
        cpu_seconds=stretch.cpu_seconds,
        memory_bytes=stretch.memory_bytes,
        idle_memory_bytes=idle_memory,
    )


@dataclass(frozen=True, slots=True)
class _Stretch:
    """What the loop saw between the warm-up and the limit."""

    waits: list[float]
    samples: int
    seconds: float
    cpu_seconds: float | None
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class _Loop:
    """A training loop that watches itself."""

    count: Callable[[Any], int]
    step: Step
    clock: Clock
    usage: Usage

    def warm_up(self, batch: Any, stream: Iterator[Any], seconds: float, batches: int) -> None:
        """Trains on `batch` and on the next ones, until both limits are reached."""
        warm_at = self.clock() + seconds
        self.step(batch)
        warmed = 1
        while warmed < batches or self.clock() < warm_at:
            self.step(next(stream))
            warmed += 1

    def run(self, stream: Iterator[Any], seconds: float | None, batches: int | None) -> _Stretch:
        """Trains until the first of the limits is reached or the stream ends."""
        waits: list[float] = []
        samples = 0
        memory = _Peak()
        _synchronize()
        cpu = self.usage.cpu_seconds()
        began = now = look_at = self.clock()
        while (batch := next(stream, _END)) is not _END:
            ready = self.clock()
            waits.append(ready - now)
            samples += self.count(batch)
            self.step(batch)
            if ready >= look_at:
                memory.see(self.usage.memory_bytes())
                look_at = ready + MEMORY_SECONDS
            now = self.clock()
            if len(waits) == batches or (seconds is not None and now - began >= seconds):
                break
        if not waits:
            raise StopIteration
        _synchronize()
        ended = self.clock()
        cpu_after = self.usage.cpu_seconds()
        memory.see(self.usage.total_memory_bytes())  # while the workers still run
        spent = None if cpu is None or cpu_after is None else cpu_after - cpu
        return _Stretch(waits, samples, ended - began, spent, memory.bytes)


class _Peak:
    """The largest of the values seen; None where none is known."""

    bytes: int | None = None

    def see(self, value: int | None) -> None:
        if value is not None:
            self.bytes = max(value, self.bytes or 0)


_END = object()


def _passes(loader: Iterable[Any]) -> Generator[Any, None, None]:
    """The batches of one pass after the other, until a pass is empty."""
    delivered = True
    while delivered:
        delivered = False
        for batch in loader:
            delivered = True
            yield batch


def _nothing(batch: Any) -> None:
    """The step of loading alone."""


def _synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def _check(seconds: float | None, batches: int | None, warmup_seconds: float, warmup_batches: int) -> None:
    if seconds is None and batches is None:
        raise ArgumentError("measure: expected a limit, got seconds=None and batches=None; give one of them")
    if seconds is not None and seconds <= 0:
        raise ArgumentError(f"seconds: expected more than 0, or None, got {seconds!r}")
    if batches is not None and batches < 1:
        raise ArgumentError(f"batches: expected 1 or more, or None, got {batches!r}")
    if warmup_seconds < 0:
        raise ArgumentError(f"warmup_seconds: expected 0 or more, got {warmup_seconds!r}")
    if warmup_batches < 1:
        raise ArgumentError(
            f"warmup_batches: expected 1 or more, got {warmup_batches!r}; the first batch is never measured"
        )


def sample_counter(batch: Any) -> Callable[[Any], int]:
    """A function that counts the samples of batches like this one: the length of the first array in dicts and lists.

    Where that array is gets settled once: looking for it in every batch would cost as much as a small batch does.
    """
    if isinstance(batch, torch.Tensor | np.ndarray):
        return lambda array: int(array.shape[0])
    first: Any = next(iter(batch)) if isinstance(batch, Mapping) else 0
    if isinstance(batch, Mapping) or (
        isinstance(batch, list | tuple) and isinstance(batch[0], torch.Tensor | np.ndarray | Mapping | list | tuple)
    ):
        count = sample_counter(batch[first])
        return lambda columns: count(columns[first])
    return len


def batch_bytes(batch: Any) -> int:
    """The bytes of all arrays in a batch's dicts and lists."""
    if isinstance(batch, torch.Tensor | np.ndarray):
        return int(batch.nbytes)
    if isinstance(batch, Mapping):
        return sum(batch_bytes(value) for value in batch.values())
    if isinstance(batch, list | tuple):
        return sum(batch_bytes(value) for value in batch)
    return 0
