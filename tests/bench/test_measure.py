import gc
import time
import weakref

import numpy as np
import pytest
import torch

from headrace.bench import Measurement, SimulatedStep, measure
from headrace.bench.measure import batch_bytes, sample_counter
from headrace.bench.usage import ProcessUsage
from headrace.errors import ArgumentError


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds


class Loader:
    """Batches of 10 rows of 8 bytes that each take a while; a pass takes a while to begin."""

    def __init__(self, clock, *, wait=1.0, begin=0.0, batches=1000):
        self.clock, self.wait, self.begin, self.batches = clock, wait, begin, batches

    def __iter__(self):
        self.clock.advance(self.begin)
        for _ in range(self.batches):
            self.clock.advance(self.wait)
            yield {"x": torch.zeros(10, 2)}


class FakeUsage:
    def __init__(self, cpu=(None, None), own=(), total=(None, None)):
        self.cpu, self.own, self.total = iter(cpu), iter(own), iter(total)

    def cpu_seconds(self):
        return next(self.cpu)

    def memory_bytes(self):
        return next(self.own, None)

    def total_memory_bytes(self):
        return next(self.total)


def measured(clock, loader, *, step_seconds=0.0, usage=None, **limits):
    limits = {"seconds": None, "batches": 4, "warmup_seconds": 0.0, **limits}
    return measure(
        loader, step=lambda batch: clock.advance(step_seconds), clock=clock, usage=usage or FakeUsage(), **limits
    )


def test_rates_count_waiting_and_training_time():
    clock = Clock()
    done = measured(clock, Loader(clock, wait=1.0), step_seconds=3.0)
    assert (done.batches, done.samples, done.bytes, done.seconds) == (4, 40, 320, 16.0)
    assert done.samples_per_second == 2.5
    assert done.megabytes_per_second == 320 / 16 / 1e6


def test_the_stall_share_is_the_time_inside_next():
    clock = Clock()
    assert measured(clock, Loader(clock, wait=1.0), step_seconds=3.0).stall_share == 0.25
    assert measured(clock, Loader(clock, wait=1.0), step_seconds=0.0).stall_share == 1.0


def test_the_first_batch_is_timed_from_making_the_loader():
    clock = Clock()

    def make():
        clock.advance(5.0)
        return Loader(clock, wait=1.0, begin=2.0)

    assert measured(clock, make).first_batch_seconds == 8.0


def test_the_warm_up_is_not_measured_and_has_both_limits():
    clock = Clock()
    measured(clock, Loader(clock), warmup_batches=3)
    assert clock.now == 3 + 4
    clock = Clock()
    measured(clock, Loader(clock), warmup_seconds=5.0)
    assert clock.now == 1 + 5 + 4


def test_the_first_limit_that_is_reached_ends_the_measurement():
    clock = Clock()
    assert measured(clock, Loader(clock), seconds=2.5, batches=10).batches == 3
    assert measured(clock, Loader(clock), seconds=2.5, batches=2).batches == 2


def test_a_pass_that_ends_is_followed_by_the_next_and_what_that_takes_is_waiting():
    clock = Clock()
    done = measured(clock, Loader(clock, begin=7.0, batches=2), batches=3)
    assert done.batches == 3
    assert done.wait_seconds == 3 + 7
    assert done.wait_p50_seconds == 1.0
    assert done.wait_p99_seconds > 7


def test_an_iterator_that_ends_early_is_measured_as_far_as_it_came():
    clock = Clock()
    assert measured(clock, iter(Loader(clock, batches=3)), batches=10).batches == 2


def test_a_loader_that_ends_in_the_warm_up_is_an_error_that_says_so():
    clock = Clock()
    with pytest.raises(ArgumentError, match=r"mine ended before a batch was measured.*warmup_batches=5"):
        measured(clock, iter(Loader(clock, batches=3)), warmup_batches=5, name="mine")
    with pytest.raises(ArgumentError, match="ended before"):
        measured(clock, [])


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({"seconds": None, "batches": None}, "expected a limit, got seconds=None and batches=None"),
        ({"seconds": 0}, "seconds: expected more than 0, or None, got 0"),
        ({"batches": 0}, "batches: expected 1 or more, or None, got 0"),
        ({"warmup_seconds": -1}, "warmup_seconds: expected 0 or more, got -1"),
        ({"warmup_batches": 0}, "warmup_batches: expected 1 or more, got 0"),
    ],
)
def test_limits_out_of_range_are_refused(limits, text):
    with pytest.raises(ArgumentError, match=text):
        measured(Clock(), [torch.zeros(2)], **limits)


def test_cpu_time_counts_only_what_was_spent_while_measuring():
    clock = Clock()
    done = measured(clock, Loader(clock), usage=FakeUsage(cpu=(10.0, 12.0)))
    assert done.cpu_seconds == 2.0
    assert done.cpu_seconds_per_million == 2.0 / 40 * 1e6


def test_memory_is_the_most_that_was_seen_and_added_memory_is_above_the_start():
    clock = Clock()
    done = measured(clock, Loader(clock), usage=FakeUsage(own=(100, 900, 300, 300), total=(50, 400)))
    assert (done.memory_bytes, done.idle_memory_bytes, done.added_memory_bytes) == (900, 50, 850)
    workers = measured(clock, Loader(clock), usage=FakeUsage(own=(100,), total=(50, 4000)))
    assert workers.memory_bytes == 4000


def test_what_a_system_does_not_tell_is_none():
    clock = Clock()
    done = measured(clock, Loader(clock))
    assert done.cpu_seconds_per_million is None
    assert done.added_memory_bytes is None
    assert "CPU" not in done.describe()


def test_describing_a_measurement_takes_one_line():
    clock = Clock()
    usage = FakeUsage(cpu=(0.0, 4e-5), own=(0,), total=(0, 5_000_000))
    assert measured(clock, Loader(clock), name="mine", usage=usage).describe() == (
        "mine: 10 samples/s (0 MB/s), waiting for data 100% of the time, first batch after 1,000 ms, "
        "1 CPU seconds per million samples, 5 MB of memory"
    )


def test_the_record_holds_the_derived_figures_too():
    clock = Clock()
    record = measured(clock, Loader(clock), settings={"batch_size": 10}).as_dict()
    assert record["settings"] == {"batch_size": 10}
    assert record["samples_per_second"] == 10.0
    assert {"stall_share", "megabytes_per_second", "first_batch_seconds", "wait_p99_seconds"} <= record.keys()


def test_the_step_is_named_after_its_function():
    clock = Clock()

    def train(batch):
        clock.advance(1.0)

    limits = {"seconds": None, "batches": 1, "warmup_seconds": 0, "clock": clock, "usage": FakeUsage()}
    assert measure(Loader(clock), step=train, **limits).step == "train"
    limits["usage"] = FakeUsage()
    assert measure(Loader(clock), **limits).step is None


def test_the_pass_is_closed_when_the_measurement_ends():
    class Pass:
        def __iter__(self):
            return self

        def __next__(self):
            return torch.zeros(1)

    made = []

    def make():
        loader = Pass()
        made.append(weakref.ref(loader))
        return loader

    measure(make, seconds=None, batches=1, warmup_seconds=0)
    gc.collect()
    assert made[0]() is None


@pytest.mark.parametrize(
    ("batch", "samples", "size"),
    [
        (torch.zeros(3, 5), 3, 60),
        (np.zeros((4, 2)), 4, 64),
        ({"x": torch.zeros(6, 2), "y": torch.zeros(6)}, 6, 72),
        ([torch.zeros(7), torch.zeros(7, 3)], 7, 112),
        (({"deep": [np.zeros(2, np.int8)]}, None), 2, 2),
        (["a", "b", "c"], 3, 0),
    ],
    ids=["tensor", "array", "dict", "list", "nested", "strings"],
)
def test_samples_and_bytes_are_counted_in_any_form_of_batch(batch, samples, size):
    assert sample_counter(batch)(batch) == samples
    assert batch_bytes(batch) == size


def test_the_usage_of_this_process_is_known_and_grows_with_work():
    usage = ProcessUsage()
    before, computed = usage.cpu_seconds(), time.thread_time() + 1
    while usage.cpu_seconds() <= before:  # the system counts in steps of up to 10 ms
        assert time.thread_time() < computed
    assert usage.memory_bytes() > 1 << 20
    assert usage.total_memory_bytes() > 1 << 20


def test_usage_without_psutil_is_that_of_this_process(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    usage = ProcessUsage()
    assert usage.cpu_seconds() > 0
    assert usage.total_memory_bytes() > 1 << 20


def test_the_memory_of_worker_processes_counts():
    gc.collect()  # what others left behind would else be given back meanwhile
    loader = torch.utils.data.DataLoader(Large(), batch_size=1, num_workers=1)
    done = measure(loader, seconds=None, batches=2, warmup_seconds=0)
    assert done.added_memory_bytes > 100_000_000


class Large(torch.utils.data.Dataset):
    def __init__(self):
        self.held = None

    def __len__(self):
        return 100

    def __getitem__(self, index):
        if self.held is None:
            self.held = np.ones(200_000_000, np.uint8)
        return torch.zeros(2)


def test_a_simulated_step_sleeps_first_and_spins_to_its_exact_end():
    clock, slept = Clock(), []

    def sleep(seconds):
        slept.append(seconds)
        clock.advance(seconds)

    def ticking():
        clock.advance(0.00001)
        return clock.now

    SimulatedStep(0.01, clock=ticking, sleep=sleep)(None)
    assert slept == [pytest.approx(0.0097)]
    assert clock.now == pytest.approx(0.01, abs=3e-5)


def test_a_short_simulated_step_only_spins():
    clock = Clock()

    def ticking():
        clock.advance(0.00001)
        return clock.now

    def sleep(seconds):
        raise AssertionError(seconds)

    SimulatedStep(0.0002, clock=ticking, sleep=sleep)(None)
    assert clock.now >= 0.0002


def test_a_measurement_cannot_be_changed():
    clock = Clock()
    done = measured(clock, Loader(clock))
    assert isinstance(done, Measurement)
    with pytest.raises(AttributeError):
        done.samples = 0
