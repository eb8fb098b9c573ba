"""What a recorder counts, by a clock that the tests move."""

import threading

import pytest

from headrace import metrics
from headrace.errors import ArgumentError
from headrace.loader import recorder as recorder_module
from headrace.loader.recorder import Recorder
from headrace.metrics import metering, stage
from tests.clock import HandClock


@pytest.fixture
def clock(monkeypatch):
    clock = HandClock()
    monkeypatch.setattr(metrics, "perf_counter", clock)
    monkeypatch.setattr(recorder_module, "perf_counter", clock)
    return clock


def take(recorder: Recorder, clock: HandClock, *, wait: float, step: float, count: int = 1) -> None:
    """Batches of 4 samples of 100 bytes, each waited for, and a training step after each."""
    for _ in range(count):
        recorder.asked()
        clock.pass_(wait)
        if recorder.delivered(4, 100):
            recorder.tell(recorder.snapshot())
        clock.pass_(step)


def finish(recorder: Recorder, *, tells: bool = True) -> None:
    recorder.asked()
    recorder.waited()
    recorder.ended()
    if tells:
        recorder.tell(recorder.snapshot())


def test_samples_batches_bytes_and_the_share_that_was_waited_are_counted(clock):
    recorder = Recorder()
    recorder.began(3)
    take(recorder, clock, wait=1, step=3, count=5)
    stats = recorder.snapshot()
    assert (stats.passes, stats.epoch, stats.samples, stats.batches, stats.bytes_read) == (1, 3, 20, 5, 500)
    assert (stats.elapsed_seconds, stats.wait_seconds, stats.first_wait_seconds) == (20, 5, 1)
    assert (stats.wait_share, stats.samples_per_second) == (0.25, 1)


def test_time_between_passes_and_before_the_first_batch_is_asked_for_counts_for_nothing(clock):
    recorder = Recorder()
    for epoch in range(2):
        recorder.began(epoch)
        clock.pass_(50)
        take(recorder, clock, wait=2, step=1, count=2)
        finish(recorder)
        clock.pass_(1000)
    stats = recorder.snapshot()
    assert (stats.elapsed_seconds, stats.wait_seconds, stats.first_wait_seconds) == (12, 8, 4)


def test_a_wait_that_goes_on_is_seen_from_another_thread(clock):
    recorder = Recorder()
    recorder.began(0)
    recorder.asked()
    clock.pass_(30)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(recorder.snapshot()))
    thread.start()
    thread.join()
    assert (seen[0].batches, seen[0].wait_seconds, seen[0].elapsed_seconds) == (0, 30, 30)


def test_a_pass_that_fails_counts_what_was_waited(clock):
    recorder = Recorder()
    recorder.began(0)
    recorder.asked()
    clock.pass_(5)
    recorder.waited()
    recorder.ended()
    clock.pass_(100)
    stats = recorder.snapshot()
    assert (stats.batches, stats.wait_seconds, stats.elapsed_seconds) == (0, 5, 5)


def test_a_pass_that_was_never_ended_ends_with_the_next_one_and_ending_twice_is_ending_once(clock):
    recorder = Recorder()
    recorder.began(0)
    take(recorder, clock, wait=1, step=1)
    recorder.began(1)
    take(recorder, clock, wait=1, step=1)
    recorder.ended()
    recorder.ended()
    assert recorder.snapshot().elapsed_seconds == 4


def test_stages_of_threads_of_processes_and_of_the_consumer_add_up(clock):
    recorder = Recorder()
    recorder.began(0)

    def read() -> None:
        with metering(recorder.meter), stage("read"):
            clock.pass_(2)
            with stage("storage"):
                clock.pass_(1)

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    recorder.add_remote({"user": 3.0}, {"user": 2.5})
    recorder.asked()
    with stage("plan"):
        clock.pass_(0.5)
    recorder.delivered(4, 100)
    with stage("copy"):  # the training loop's own
        clock.pass_(9)
    stats = recorder.snapshot()
    assert stats.busy_seconds == {"plan": 0.5, "read": 2, "decode": 0, "user": 3, "copy": 0}
    assert (stats.storage_seconds, stats.remote_seconds, stats.cpu_seconds["user"]) == (1, 3, 2.5)


def test_what_the_consumer_does_itself_and_no_stage_says_is_reading(clock):
    recorder = Recorder(reads_here=True)
    recorder.began(0)
    recorder.asked()
    clock.pass_(2)
    with stage("decode"):
        clock.pass_(3)
    recorder.delivered(4, 100)
    stats = recorder.snapshot()
    assert (stats.busy_seconds["read"], stats.busy_seconds["decode"], stats.wait_seconds) == (2, 3, 5)


def test_a_stage_that_goes_on_in_the_consumer_s_thread_is_no_reading_besides(clock):
    recorder = Recorder(reads_here=True)
    recorder.began(0)
    recorder.asked()
    clock.pass_(2)
    with stage("user"):
        clock.pass_(3)
        busy = recorder.snapshot().busy_seconds  # as another thread sees it
    assert (busy["read"], busy["user"]) == (2, 3)


def test_between_batches_the_thread_that_asked_for_one_counts_nothing_for_the_loader(clock):
    recorder = Recorder()
    recorder.began(0)
    asking, done = threading.Event(), threading.Event()

    def ask():
        recorder.asked()
        asking.set()
        done.wait(30)
        recorder.delivered(4, 100)

    other = threading.Thread(target=ask)
    with metering(None):
        take(recorder, clock, wait=1, step=0)
        other.start()
        asking.wait(30)
        with stage("decode"):  # what this thread decodes for others
            clock.pass_(5)
    done.set()
    other.join()
    assert recorder.snapshot().busy_seconds["decode"] == 0


def test_a_loader_that_is_read_within_another_ones_stage_takes_nothing_from_it(clock):
    outer, inner = Recorder(reads_here=True), Recorder(reads_here=True)
    outer.began(0)
    inner.began(0)
    outer.asked()
    with stage("user"):
        clock.pass_(1)
        take(inner, clock, wait=2, step=0)
        clock.pass_(4)
    outer.delivered(4, 100)
    assert outer.snapshot().busy_seconds["user"] == 7
    assert inner.snapshot().busy_seconds["read"] == 2


def test_the_last_ten_seconds_of_passes_are_told_apart_from_the_whole(clock):
    recorder = Recorder()
    recorder.began(0)
    take(recorder, clock, wait=0.9, step=0.1, count=20)
    assert recorder.snapshot().recent_wait_share == pytest.approx(0.9, rel=0.05)
    take(recorder, clock, wait=0.0, step=1.0, count=30)
    clock.pass_(0.5)
    stats = recorder.snapshot()
    assert stats.wait_share == pytest.approx(18 / 50.5)
    assert stats.recent is not None
    assert stats.recent_wait_share == 0
    assert stats.recent_samples_per_second == pytest.approx(4, rel=0.2)
    assert stats.recent.elapsed_seconds <= 12
    assert stats.recent.recent is None


def test_before_there_is_anything_recent_the_whole_stands_for_it(clock):
    recorder = Recorder()
    recorder.began(0)
    take(recorder, clock, wait=1, step=1, count=2)
    stats = recorder.snapshot()
    assert stats.recent is None
    assert stats.recent_wait_share == stats.wait_share == 0.5


def test_on_stats_is_called_about_as_often_as_was_asked_for_and_at_the_end_of_each_pass(clock):
    seen = []
    recorder = Recorder(on_stats=seen.append, stats_seconds=5)
    for epoch in range(2):
        recorder.began(epoch)
        take(recorder, clock, wait=0, step=1, count=18)
        finish(recorder)
    assert [stats.batches for stats in seen] == [6, 11, 16, 18, 24, 29, 34, 36]


def test_a_pass_that_is_broken_off_does_not_call_on_stats(clock):
    seen = []
    recorder = Recorder(on_stats=seen.append, stats_seconds=5)
    recorder.began(0)
    take(recorder, clock, wait=0, step=1, count=3)
    recorder.ended()
    assert seen == []


def test_an_error_in_on_stats_comes_through_and_says_where_it_was(clock):
    def fail(stats):
        raise RuntimeError("no connection")

    recorder = Recorder(on_stats=fail, stats_seconds=1)
    recorder.began(0)
    with pytest.raises(RuntimeError, match="no connection") as raised:
        take(recorder, clock, wait=0, step=1, count=9)
    assert raised.value.__notes__ == ["in on_stats, called after 2 batches"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"on_stats": 3}, "on_stats: expected a function"),
        ({"stats_seconds": 0}, "stats_seconds: expected more than 0 seconds, got 0"),
        ({"stats_seconds": None}, "stats_seconds: expected more than 0 seconds, got None"),
        ({"stats_seconds": float("nan")}, "stats_seconds: expected more than 0"),
    ],
)
def test_what_makes_no_sense_is_refused(options, text):
    with pytest.raises(ArgumentError, match=text):
        Recorder(**options)


def test_counts_of_the_source_begin_with_the_first_pass_but_for_what_is_held(clock):
    recorder = Recorder()
    recorder.began(0, counts={"requests": 7, "held_bytes": 50})
    recorder.began(1, counts={"requests": 9})
    counts = {"requests": 10, "retries": 2, "held_bytes": 80, "held_ahead_bytes": 5, "held_pieces": 3, "cache_hits": 1}
    stats = recorder.snapshot(counts=counts, memory_bytes=1000, num_workers=2)
    assert (stats.requests, stats.retries, stats.cache_hits, stats.cache_misses) == (3, 2, 1, 0)
    assert (stats.memory_bytes, stats.num_workers) == (1085, 2)


class Bar:
    def __init__(self):
        self.shown, self.is_closed = [], False

    def show(self, batches, stats=None):
        self.shown.append(batches)

    def close(self):
        self.is_closed = True


def test_a_bar_is_shown_a_few_times_a_second_and_once_more_at_the_end_and_closed(clock):
    recorder, bars = Recorder(), [Bar(), Bar()]
    for bar in bars:
        recorder.began(0, bar=bar)
        take(recorder, clock, wait=0, step=0.125, count=8)
        finish(recorder, tells=bar is bars[0])
    assert [bar.shown for bar in bars] == [[1, 3, 5, 7, 8]] * 2
    assert all(bar.is_closed for bar in bars)
