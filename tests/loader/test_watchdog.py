"""A time limit for batches: what hangs becomes an error that shows what each thread waits for."""

import contextlib
import itertools
import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest

from headrace.errors import HeadraceError, LoaderError
from headrace.loader import prefetch
from headrace.loader.plan import Group
from headrace.loader.prefetch import ReadAhead
from headrace.loader.watchdog import stacks_of
from headrace.storage.cancellation import wait_for
from tests.loader.stand_ins import WAITING_SECONDS
from tests.loader.works import wait_until

TIMEOUT = 0.05
SAMPLES = 20  # of a group, in two steps


def groups(count: int, until: threading.Event | None) -> Iterator[tuple[Group, None]]:
    """Groups of two steps; none after the first before an event has come."""
    for start in range(0, count * SAMPLES, SAMPLES):
        middle, stop = start + SAMPLES // 2, start + SAMPLES
        yield Group(np.arange(start, stop), [0, SAMPLES // 2, SAMPLES], None, [middle, stop]), None
        assert until is None or until.wait(WAITING_SECONDS)


def ahead_of(
    read: Callable[[Group], Iterable[Any]],
    *,
    num_workers: int = 2,
    timeout: float | None = TIMEOUT,
    count: int = 6,
    until: threading.Event | None = None,
) -> ReadAhead:
    return ReadAhead(
        groups(count, until),
        read,
        lambda ids: None,
        num_workers=num_workers,
        max_groups=3,
        max_bytes=1 << 20,
        step_bytes=lambda batch: 1,
        timeout=timeout,
    )


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What hangs waits for it; it opens when the test is over."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that have hung are not waited for, and all others long enough to fail the test."""
    monkeypatch.setattr(prefetch, "_HUNG_CLOSE_SECONDS", 0.0)
    monkeypatch.setattr(prefetch, "CLOSE_SECONDS", 1e6)


class Stuck:
    """Reads that hang at a sample, and are done when the gate opens.

    Attributes:
        hangs: Set once one does.
    """

    def __init__(self, gate: threading.Event, sample_id: int) -> None:
        self.gate, self.sample_id, self.hangs = gate, sample_id, threading.Event()

    def read(self, group: Group) -> Iterator[list[int]]:
        for step in group.steps(group.bounds):
            if self.sample_id in step.sample_ids:
                self.wait_for_ever()
            yield step.sample_ids.tolist()

    def wait_for_ever(self) -> None:
        self.hangs.set()
        assert self.gate.wait(WAITING_SECONDS)


def firsts(group: Group) -> Iterator[int]:
    """The first sample of each step."""
    return (int(step.sample_ids[0]) for step in group.steps(group.bounds))


def hang(batches: ReadAhead) -> LoaderError:
    with pytest.raises(LoaderError) as caught:
        for _ in batches:
            pass
    return caught.value


@pytest.mark.usefixtures("brief")
def test_a_hang_is_an_error_that_shows_what_each_thread_waits_for(gate, caplog):
    stuck = Stuck(gate, 15)
    with caplog.at_level(logging.WARNING, "headrace"):
        error = hang(ahead_of(stuck.read, num_workers=1, until=stuck.hangs))
    head, what, name, *stack, advice = str(error).splitlines()
    assert head == (
        "no batch came within 0.05 seconds (timeout=0.05): that of samples 0, 1, 2, 3, 4, 5, 6, 7 and 2 more"
    )
    assert what == "  what each thread does, its innermost call last:"
    assert name == "    headrace-reader-0 reads samples 10, 11, 12, 13, 14, 15, 16, 17 and 2 more:"
    assert any(re.fullmatch(rf"        {re.escape(__file__)}:\d+ Stuck.wait_for_ever", line) for line in stack)
    assert len(stack) <= 8
    assert advice == "  mend what hangs, or give a larger timeout= where such a batch may take so long"
    assert caplog.text == ""


@pytest.mark.usefixtures("brief")
def test_what_was_read_before_comes_before_the_error(gate):
    ahead, seen = ahead_of(Stuck(gate, 40).read), []
    ahead.ready()  # hands out the first three groups
    wait_until(lambda: ahead.depth()[0] == 2)  # which takes as long as it takes
    with pytest.raises(LoaderError, match=r"no batch came within 0\.05 seconds .*: that of samples 40, 41, "):
        seen.extend(itertools.chain.from_iterable(batch for batch, _ in ahead))
    assert seen == list(range(40))


@pytest.mark.usefixtures("brief")
def test_threads_that_have_nothing_to_do_are_shown_as_such(gate):
    stuck = Stuck(gate, 0)
    text = str(hang(ahead_of(stuck.read, num_workers=3, count=1, until=stuck.hangs)))
    assert len(re.findall(r"headrace-reader-\d waits for work:", text)) == 2
    assert len(re.findall(r"headrace-reader-\d reads samples 0, 1, ", text)) == 1


@pytest.mark.usefixtures("brief")
def test_a_wait_for_a_store_tells_what_is_awaited_and_ends_with_the_pass(monkeypatch):
    monkeypatch.setattr(prefetch, "_HUNG_CLOSE_SECONDS", WAITING_SECONDS)
    begun = threading.Event()

    class Range:
        def __str__(self) -> str:
            return "bytes [0, 10) of s3://bucket/x.tar"

        def read(self, group: Group) -> list[Any]:
            wait_for(self, self)
            return []

        def is_set(self) -> bool:
            return False

        def wait(self, seconds: float) -> bool:
            begun.set()
            return threading.Event().wait(seconds)

    ahead = ahead_of(Range().read, num_workers=1, until=begun)
    assert "and 12 more: it waits for the store: bytes [0, 10) of s3://bucket/x.tar\n" in str(hang(ahead))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("headrace")]


@pytest.mark.usefixtures("brief")
def test_after_a_hang_no_more_comes_and_closing_again_waits_for_nothing(gate):
    ahead = ahead_of(Stuck(gate, 0).read)
    hang(ahead)
    assert list(ahead) == []
    ahead.close()


@pytest.mark.parametrize("timeout", [None, 0.5 * WAITING_SECONDS, 1e300, float("inf")])
def test_a_limit_that_is_not_reached_changes_nothing(timeout):
    with contextlib.closing(ahead_of(firsts, timeout=timeout)) as ahead:
        assert list(ahead) == [(start, start + 10) for start in range(0, 120, 10)]


def test_an_error_in_time_is_that_error():
    def fail(group: Group) -> list[Any]:
        raise KeyError(int(group.sample_ids[0]))

    with contextlib.closing(ahead_of(fail, timeout=WAITING_SECONDS)) as ahead, pytest.raises(KeyError):
        next(ahead)


def test_a_hang_is_an_error_of_the_library_and_a_runtime_error():
    assert issubclass(LoaderError, HeadraceError)
    assert issubclass(LoaderError, RuntimeError)


def test_stacks_name_each_thread_what_it_does_and_its_calls_and_those_that_have_ended(gate):
    threads = [
        threading.Thread(target=gate.wait, name="waits", daemon=True),
        threading.Thread(target=int, name="ended"),
    ]
    for thread in threads:
        thread.start()
    threads[1].join()
    waits, *frames, ended = stacks_of(threads, {threads[0]: "stands at the gate"}).splitlines()
    assert waits == "waits stands at the gate:"
    assert frames
    assert all(re.fullmatch(r"    \S.*:\d+ \S+", frame) for frame in frames)
    assert ended == "ended: it has ended"
