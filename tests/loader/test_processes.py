"""Worker processes: how they start and end, in which order batches come, and how many are made ahead."""

import ctypes
import functools
import itertools
import mmap
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate, get_worker_info

from headrace.loader import grouping
from headrace.loader.grouping import JobSteps
from headrace.loader.process_ahead import Job
from headrace.loader.processes import Processes
from headrace.loader.seeding import worker_seed
from headrace.loader.tunables import keep_freed_memory, restoring_code
from tests.loader import works
from tests.loader.stand_ins import WAITING_SECONDS
from tests.loader.works import Doing, ahead_of, constant, done_by, in_hand, jobs_of, wait_until

DATASET = {"name": "a dataset", "rows": np.arange(5.0)}


def prepare(worker: int) -> None:
    """A worker_init_fn."""
    info = get_worker_info()
    assert info is not None
    info.dataset["prepared by"] = worker


@pytest.fixture(scope="module")
def _two() -> Iterator[Processes]:
    processes = Processes(2, Doing(), dataset=DATASET, worker_init_fn=prepare, seed=9)
    yield processes
    processes.close()


@pytest.fixture
def shared(_two: Processes) -> Processes:
    """Two processes for all tests that leave them alive; done with what a former one gave them, so both are free."""
    wait_until(lambda: not any(map(_two.busy, range(len(_two.workers)))))
    return _two


# -- what they are ----------------------------------------------------------------------------------------------------


def test_processes_start_with_the_first_batch_and_not_before():
    processes = Processes(2, Doing())
    ahead_of(processes, [os.getpid])
    assert processes.workers == []
    processes.close()
    assert list(ahead_of(processes, [os.getpid])) == []
    assert processes.workers == []


def test_batches_come_from_other_processes_in_order_with_the_position_after_each(shared):
    jobs = jobs_of([constant(i) for i in range(50)], together=3)
    assert list(ahead_of(shared, jobs)) == [(i, i + 1) for i in range(50)]
    pids = set(done_by(shared, *[os.getpid] * 20))
    assert pids == {worker.pid for worker in shared.workers}
    assert os.getpid() not in pids


def test_a_slow_batch_is_waited_for_and_what_comes_after_it_is_done_by_others(shared, tmp_path):
    gate = str(tmp_path / "gate")

    def slow() -> str:
        while not os.path.exists(gate):
            os.sched_yield()
        return "slow"

    passing = ahead_of(shared, [slow, *[constant(i) for i in range(4)]], max_groups=5)
    opener = threading.Thread(target=lambda: (wait_until(lambda: passing.depth()[0] >= 2), Path(gate).touch()))
    opener.start()
    assert [batch for batch, _ in passing] == ["slow", 0, 1, 2, 3]
    opener.join()


def test_a_worker_is_a_worker_in_torch_s_eyes_and_has_been_initialised_by_the_user_s_function(shared):
    def seen() -> tuple[int, tuple[Any, ...]]:
        info = get_worker_info()
        return info.id, (info.num_workers, info.seed, info.dataset["prepared by"], torch.get_num_threads())

    infos = dict(done_by(shared, *[seen] * 10))
    assert infos == {worker: (2, worker_seed(9, worker), worker, 1) for worker in (0, 1)}
    assert "prepared by" not in DATASET


def test_torch_s_collation_in_a_worker_takes_no_shared_memory_of_its_own(shared):
    def collated() -> tuple[bool, bool, bool]:
        batch = default_collate([{"a": torch.ones(2), "b": np.ones(2)}] * 3)
        return batch["a"].is_shared(), batch["b"].is_shared(), get_worker_info() is None

    assert done_by(shared, collated) == [(False, False, False)]


def test_a_worker_has_the_paths_folder_environment_and_arguments_of_the_loader_s_process(shared):
    def seen() -> tuple[Any, ...]:
        return sys.path, os.getcwd(), sys.argv, tuple(sys.flags), sys.warnoptions

    assert done_by(shared, seen) == [seen()]
    assert {**os.environ}.items() <= done_by(shared, lambda: {**os.environ})[0].items() | {
        ("PYTEST_CURRENT_TEST", os.environ["PYTEST_CURRENT_TEST"])
    }


def test_the_c_library_of_a_worker_is_tuned_and_its_environment_is_not(monkeypatch):
    tunables = functools.partial(os.environ.get, "GLIBC_TUNABLES")

    def at_start() -> bytes:
        return Path("/proc/self/environ").read_bytes()

    for own in (None, "glibc.malloc.check=0"):
        monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
        if own is not None:
            monkeypatch.setenv("GLIBC_TUNABLES", own)
        processes = Processes(1, Doing())
        seen, started_with = done_by(processes, tunables, at_start)
        assert seen == own
        assert f"GLIBC_TUNABLES={own or ''}".encode() in started_with
        assert b"glibc.cpu.x86_non_temporal_threshold=" in started_with
        processes.close()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc, whose settings these are")
def test_a_worker_uses_memory_again_that_user_code_has_freed(shared):
    def faults() -> int:
        def batch() -> int:
            return sum(map(len, [b"x" * (6 << 20) for _ in range(8)]))

        batch()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        sizes = [batch() for _ in range(3)]
        assert sizes == [48 << 20] * 3
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    pages = 3 * (48 << 20) // mmap.PAGESIZE
    assert done_by(shared, faults)[0] < pages / 10


@pytest.mark.parametrize(
    ("own", "largest", "told"),
    [
        ({}, 1 << 30, [(-3, 1 << 30), (-1, 1 << 30)]),
        ({}, 32 << 20, [(-3, 1 << 30), (-3, 32 << 20), (-1, 1 << 30)]),
        ({}, 0, [(-3, 1 << 30), (-3, 32 << 20)]),
        ({"MALLOC_TRIM_THRESHOLD_": "1000"}, 1 << 30, []),
        ({"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1000"}, 1 << 30, []),
    ],
    ids=["a new version", "an old version", "another malloc", "the user's own", "the user's own tunable"],
)
def test_how_memory_is_kept_depends_on_the_c_library_and_the_user(monkeypatch, own, largest, told):
    calls: list[tuple[int, int]] = []

    def mallopt(parameter: int, value: int) -> int:
        calls.append((parameter, value))
        return int(parameter == -1 or value <= largest)

    for name in ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    keep_freed_memory()
    assert calls == told


def test_a_c_library_without_such_settings_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    keep_freed_memory()


def test_a_c_library_that_takes_its_settings_out_of_the_environment_is_no_error(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    exec(restoring_code())
    assert "GLIBC_TUNABLES" not in os.environ


def test_what_is_no_text_among_the_paths_is_passed_over_as_imports_do(monkeypatch):
    paths = list(sys.path)
    monkeypatch.setattr(sys, "path", [Path("/nowhere"), *paths])
    processes = Processes(1, Doing())
    assert done_by(processes, lambda: sys.path) == [paths]
    processes.close()


def test_a_worker_reads_nothing_from_the_terminal_and_gets_none_of_its_signals(shared):
    group = done_by(shared, lambda: (sys.stdin.read(), os.getpgid(0)))[0]
    assert group[0] == ""
    assert group[1] in [worker.pid for worker in shared.workers]


def test_requests_to_end_are_left_to_the_loader_s_process(shared):
    def ask() -> str:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        return "still here"

    assert done_by(shared, ask) == ["still here"]


def test_what_user_code_starts_can_be_ended_as_anywhere(shared):
    def start() -> tuple[int, int]:
        threading.Thread(target=time.sleep, args=[0]).start()
        child = subprocess.Popen(["sleep", "100"])
        child.terminate()
        forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=[0])
        forked.start()
        forked.join()
        return child.wait(), forked.exitcode

    assert done_by(shared, start) == [(-signal.SIGTERM, 0)]


# -- how far they work ahead ------------------------------------------------------------------------------------------


def handed_out(processes: Processes, **options: Any) -> int:
    """How many jobs are in the workers' hands, or done, when the consumer has taken one batch."""
    passing = ahead_of(processes, [constant(i) for i in range(100)], **options)
    next(passing)
    next(passing)
    ahead = in_hand(passing)
    passing.close()
    return ahead


def test_batches_of_a_job_that_takes_long_come_before_all_of_it_is_done(shared, tmp_path):
    def take_long() -> int:
        time.sleep(0.1)
        return 0

    def wait() -> int:
        wait_until((tmp_path / "taken").exists)
        return 2

    jobs = jobs_of([take_long, constant(1), wait, constant(3), constant(4)], together=4)
    passing = ahead_of(shared, jobs)
    assert next(passing) == (0, 1)
    (tmp_path / "taken").touch()
    assert list(passing) == [(i, i + 1) for i in range(1, 5)]


def test_jobs_hold_as_many_steps_as_take_a_worker_long_enough():
    steps = JobSteps(32, 1 << 20)
    assert steps.next == 1
    seen = []
    for seconds, step_bytes in [(1e-5, 1)] * 6 + [(1e-5, 1 << 18), (1e-5, 1 << 30), (1e-5, 1), (0.0, 1), (0.003, 1)]:
        steps.took(steps.next, seconds * steps.next, step_bytes)
        seen.append(steps.next)
    assert seen == [2, 4, 8, 16, 32, 32, 4, 1, 2, 4, 1]
    steps = JobSteps(3)
    for _ in range(5):
        steps.took(1, 1e-5, 1)
    assert steps.next == 3


def test_jobs_grow_while_their_steps_take_next_to_nothing_and_no_more_steps_than_max_steps_are_handed_out(
    shared, monkeypatch
):
    monkeypatch.setattr(grouping, "_JOB_SECONDS", 1000.0)  # next to nothing, however slow the machine
    sizes: list[int] = []
    delivered = 0

    def jobs() -> Iterator[Job]:
        steps = iter(range(100))
        while ids := list(itertools.islice(steps, job_steps.next)):
            sizes.append(len(ids))
            bounds = list(range(len(ids) + 1))
            yield Job([constant(i) for i in ids], np.array(ids), bounds, [i + 1 for i in ids])

    job_steps = JobSteps(4)
    passing = ahead_of(shared, jobs(), job_steps=job_steps, max_steps=9)
    for batch, position in passing:
        assert (batch, position) == (delivered, delivered + 1)
        delivered += 1
        assert sum(sizes) - delivered <= 9 + 3  # those of one job that were not asked for yet
    assert delivered == 100
    assert sizes[:1] == [1]
    assert max(sizes) == 4


def test_all_steps_of_the_jobs_that_wait_count_for_the_bytes_that_are_there(shared):
    jobs = jobs_of([constant(i) for i in range(12)], together=3)
    passing = ahead_of(shared, jobs, max_groups=3, step_bytes=lambda batch: 100)
    next(passing)
    wait_until(lambda: passing.depth()[1] == 0)
    assert passing.depth() == (3, 0, 800)  # two batches of the first job, and two jobs
    next(passing), next(passing)
    assert passing.depth() == (2, 0, 600)
    passing.close()


def test_no_more_jobs_than_max_groups_are_handed_out(shared):
    assert handed_out(shared, max_groups=7) == 6  # and the one that was taken


def test_no_more_bytes_than_max_bytes_are_made_ahead_but_one_batch_always_is(shared):
    assert handed_out(shared, max_groups=50, max_bytes=400, step_bytes=lambda batch: 100) == 3
    assert done_by(shared, constant(1), constant(2), max_bytes=1, step_bytes=lambda batch: 100) == [1, 2]


def test_batches_may_hold_nothing(shared):
    assert done_by(shared, constant(1), constant(2), step_bytes=lambda batch: 0) == [1, 2]


def test_batches_whose_size_shows_only_when_they_are_there_are_bounded_from_then_on(shared):
    sizes = {"step_bytes": lambda batch: 1 if batch is None else 100, "max_bytes": 300}
    passing = ahead_of(shared, [constant(i) for i in range(20)], **sizes)
    for _ in range(10):
        next(passing)
    assert in_hand(passing) <= 3
    passing.close()


class Slow:
    """Jobs of which only some are there without waiting."""

    def __init__(self, steps: list[Callable[[], Any]]) -> None:
        self._jobs = jobs_of(steps)
        self.taken = 0
        self.there = 0

    def __iter__(self) -> "Slow":
        return self

    def __next__(self) -> Any:
        self.taken += 1
        return next(self._jobs)

    def ready(self) -> bool:
        return self.taken < self.there


def test_jobs_are_waited_for_only_when_there_is_nothing_else_to_wait_for(shared):
    jobs = Slow([constant(i) for i in range(5)])
    passing = ahead_of(shared, jobs)
    assert next(passing) == (0, 1)
    assert jobs.taken == 1
    jobs.there = 3
    assert next(passing) == (1, 2)
    assert jobs.taken == 3
    assert [batch for batch, _ in passing] == [2, 3, 4]


def test_jobs_that_come_while_a_batch_is_waited_for_are_handed_out_meanwhile(shared, tmp_path):
    gate = str(tmp_path / "gate")

    def waiting() -> str:
        while not os.path.exists(gate):
            os.sched_yield()
        return "first"

    jobs = Slow([waiting, lambda: Path(gate).touch()])
    passing = ahead_of(shared, jobs)
    adder = threading.Timer(0, lambda: (wait_until(lambda: jobs.taken == 1), setattr(jobs, "there", 2)))
    adder.start()
    assert next(passing) == ("first", 1)  # only the second job, done by the other process, has let it be
    adder.join()
    passing.close()


def test_what_was_skipped_and_what_took_how_long_is_told_with_its_batches(shared):
    notes: list[Any] = []
    seconds: list[Any] = []

    def noting() -> None:
        # `work` is what the frame of `Doing.__call__` has as self
        sys._getframe(1).f_locals["self"].notes.append((5, "there", "bad"))

    passing = ahead_of(shared, [noting], notes=notes.extend, recorder=lambda *spent: seconds.append(spent))
    assert next(passing)[0] is None
    assert notes == [(5, "there", "bad")]
    assert [set(map(type, spent)) for spent in seconds] == [{dict}]


# -- passes -----------------------------------------------------------------------------------------------------------


def test_a_pass_that_was_left_leaves_nothing_to_the_next_one(shared, tmp_path):
    gate = str(tmp_path / "gate")

    def waiting() -> str:
        while not os.path.exists(gate):
            os.sched_yield()
        return "late"

    former = ahead_of(shared, [constant("first"), *[waiting] * 4])
    assert next(former)[0] == "first"
    next_one = threading.Thread(target=lambda: (wait_until(lambda: former._closed), Path(gate).touch()))
    next_one.start()
    former.close()
    assert list(former) == []
    assert done_by(shared, *[constant(i) for i in range(10)]) == list(range(10))
    next_one.join()


def until_unwanted() -> None:
    """In a worker: returns when the job that calls it is not wanted any more."""
    frame = sys._getframe()
    while "inbox" not in frame.f_locals:
        frame = frame.f_back
    while frame.f_locals["inbox"].first_wanted <= frame.f_locals["number"]:
        os.sched_yield()


def test_jobs_of_a_pass_that_was_left_are_not_begun(shared, tmp_path):
    log = tmp_path / "log"
    former = ahead_of(shared, [constant(0), until_unwanted, until_unwanted, *[log.touch] * 2])
    next(former)
    former.close()
    assert done_by(shared, constant(1), constant(2)) == [1, 2]
    assert not log.exists()


def test_who_waits_for_a_batch_of_a_pass_that_is_closed_meanwhile_waits_no_longer(shared, tmp_path):
    gate = str(tmp_path / "gate")

    def waiting() -> None:
        while not os.path.exists(gate):
            os.sched_yield()

    former = ahead_of(shared, [waiting] * 2)
    left: list[Any] = []
    consumer = threading.Thread(target=lambda: left.extend(former))
    consumer.start()
    wait_until(lambda: in_hand(former) == 2)
    former.close()
    consumer.join(WAITING_SECONDS)
    assert not consumer.is_alive()
    assert left == []
    Path(gate).touch()
    assert done_by(shared, constant(1)) == [1]


def test_a_pass_that_is_closed_while_it_hands_out_jobs_takes_no_batch_from_further_on(shared):
    def jobs() -> Iterator[Any]:
        steps = jobs_of([constant(i) for i in range(4)])
        yield from (next(steps), next(steps))  # one for each process, which both are ready then
        passing.close()
        yield from steps

    passing = ahead_of(shared, jobs(), max_groups=1)
    assert [batch for batch, _ in passing] == [0, 1]


def test_idle_workers_keep_no_batch(shared):
    def made() -> works.Watched:
        works.kept.append(weakref.ref(batch := works.Watched()))
        return batch

    def alive() -> int:
        return sum(reference() is not None for reference in works.kept)

    assert len(done_by(shared, *[made] * 4)) == 4
    assert done_by(shared, *[alive] * 4) == [0] * 4


def test_a_reply_is_kept_by_nobody_when_the_consumer_has_dropped_it(shared):
    passing = ahead_of(shared, [lambda: np.ones(100_000)] * 4)
    batch = next(passing)[0]
    gone = weakref.ref(batch)
    del batch
    assert gone() is None
    passing.close()
