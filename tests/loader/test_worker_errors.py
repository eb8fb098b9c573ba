"""Errors of worker processes: in user code, of processes that die, hang or cannot begin, and how processes end."""

import ctypes
import functools
import io
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from headrace.errors import ArgumentError, LoaderError, SampleError
from headrace.loader import process_ahead
from headrace.loader import processes as processes_module
from headrace.loader.processes import Processes
from tests.clock import HandClock
from tests.loader.descriptors import descriptors, opened_since
from tests.loader.stand_ins import WAITING_SECONDS
from tests.loader.works import Doing, ahead_of, constant, done_by, in_hand, is_running, jobs_of, wait_until


@pytest.fixture(scope="module")
def shared() -> Iterator[Processes]:
    """A process for all tests that leave it alive."""
    processes = Processes(1, Doing())
    yield processes
    processes.close()


@pytest.fixture
def mortal() -> Iterator[Callable[..., Processes]]:
    """Makes processes that may be killed."""
    made: list[Processes] = []

    def make(num_workers: int = 1, **options: Any) -> Processes:
        made.append(Processes(num_workers, Doing(), **options))
        return made[-1]

    yield make
    for processes in made:
        processes.close()
        assert not any(is_running(worker.pid) for worker in processes.workers)


def raised_by(processes: Processes, fail: Callable[[], Any]) -> BaseException:
    """What arrives of an error that a function raises in a worker."""
    with pytest.raises(BaseException) as caught:
        done_by(processes, fail)
    return caught.value


# -- errors in user code ----------------------------------------------------------------------------------------------


class Peculiar(Exception):  # noqa: N818
    """Its arguments are not what it keeps."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


def test_an_error_keeps_its_type_and_tells_where_it_was_raised(shared):
    error = raised_by(shared, lambda: int("x"))
    assert type(error) is ValueError
    assert str(error) == "invalid literal for int() with base 10: 'x'"
    where, doing = error.__notes__
    assert where.startswith(f"in worker process 0 (pid {shared.workers[0].pid}), where it was raised:\nTraceback")
    assert 'raised_by(shared, lambda: int("x"))' in where
    assert "worker.py" not in where
    assert doing == "while it worked on samples 0 of epoch 2"


def test_an_error_comes_at_the_place_of_its_batch(shared):
    passing = ahead_of(shared, jobs_of([constant(0), constant(1), lambda: 1 / 0, constant(3)], together=4))
    assert [next(passing)[0], next(passing)[0]] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(passing)
    assert done_by(shared, constant(5)) == [5]  # the process goes on


def test_an_error_keeps_its_notes_arguments_and_attributes_though_its_class_takes_others(shared):
    def fail() -> None:
        error = Peculiar(code=3)
        error.add_note("in transform of sample 7")
        raise error

    error = raised_by(shared, fail)
    assert type(error) is Peculiar
    assert (error.code, error.args) == (3, ("code 3",))
    assert error.__notes__[0] == "in transform of sample 7"
    assert len(error.__notes__) == 2  # that tells the sample well enough


def test_an_error_of_the_system_keeps_what_it_knows(shared):
    error = raised_by(shared, lambda: os.open("/nowhere", os.O_RDONLY))
    assert type(error) is FileNotFoundError
    assert (error.errno, error.filename, str(error)) == (
        2,
        "/nowhere",
        "[Errno 2] No such file or directory: '/nowhere'",
    )


def test_an_error_whose_attributes_cannot_travel_comes_with_their_text(shared):
    def fail() -> None:
        error = ValueError("bad", threading.Lock())
        error.lock = threading.Lock()
        raise error

    error = raised_by(shared, fail)
    assert type(error) is ValueError
    assert error.args[0] == "bad"
    assert "lock object" in error.args[1]
    assert "lock object" in error.lock


def test_an_error_of_a_class_that_only_the_worker_has_comes_as_a_sample_error_with_its_text(shared):
    def fail() -> None:
        import types

        module = types.ModuleType("only_here")
        exec("class Local(Exception): pass", module.__dict__)
        sys.modules["only_here"] = module
        raise module.Local("never seen")

    error = raised_by(shared, fail)
    assert type(error) is SampleError
    assert str(error) == "only_here.Local: never seen"


def test_an_error_that_cannot_even_be_printed_comes_as_a_sample_error(shared):
    class Unprintable(Exception):  # noqa: N818
        def __str__(self) -> str:
            raise RuntimeError

    def fail() -> None:
        raise Unprintable

    error = raised_by(shared, fail)
    assert type(error) is SampleError
    assert "Unprintable" in str(error)


def test_all_errors_of_a_group_keep_their_types(shared):
    def fail() -> None:
        raise ExceptionGroup("several", [ValueError("a"), ExceptionGroup("inner", [Peculiar(code=4)])])

    error = raised_by(shared, fail)
    assert type(error) is ExceptionGroup
    assert (error.message, repr(error.exceptions[0]), error.exceptions[1].exceptions[0].code) == (
        "several",
        "ValueError('a')",
        4,
    )


def test_the_cause_of_an_error_is_told(shared):
    def fail() -> None:
        try:
            {}["missing"]
        except KeyError as error:
            raise ValueError("no such sample") from error

    assert "KeyError: 'missing'" in raised_by(shared, fail).__notes__[0]


def test_a_stop_iteration_of_user_code_does_not_end_the_pass_as_if_all_were_well(shared):
    from headrace.loader.remote_errors import packed, unpacked

    # a generator, such as our work, makes a RuntimeError of it by itself
    assert type(raised_by(shared, lambda: next(iter([])))) is RuntimeError
    error = unpacked(packed(StopIteration()), "a process")
    assert type(error) is SampleError
    assert str(error) == "user code raised StopIteration"


def test_even_the_exit_of_user_code_reaches_the_consumer(shared):
    def interrupt() -> None:
        raise KeyboardInterrupt

    assert repr(raised_by(shared, lambda: sys.exit("enough"))) == "SystemExit('enough')"
    assert type(raised_by(shared, interrupt)) is KeyboardInterrupt


def test_of_a_traceback_without_end_the_first_and_the_last_lines_are_told(shared):
    def one(depth: int) -> None:
        other(depth)

    def other(depth: int) -> None:
        if depth == 0:
            raise ValueError("y" * 10_000_000)
        one(depth - 1)

    error = raised_by(shared, lambda: one(200))
    told = error.__notes__[0]
    assert len(error.args[0]) == 10_000_000
    assert len(told) < 20_000
    assert "lines more ..." in told


def test_a_batch_that_cannot_be_pickled_is_an_error_that_names_it_and_those_before_are_delivered(shared):
    passing = ahead_of(
        shared, jobs_of([constant(1), lambda: {"x": np.ones(3), "file": io.BufferedReader(io.BytesIO())}], together=2)
    )
    assert next(passing)[0] == 1
    with pytest.raises(ArgumentError) as caught:
        next(passing)
    assert str(caught.value) == (
        "batches: expected what can be pickled, since it comes from a worker process, but batch['file'], of type "
        "BufferedReader, can't: cannot pickle '_io.BufferedReader' object; give batches of arrays, or use "
        'worker_type="thread"'
    )
    assert "while it worked on samples 1 of epoch 2" in caught.value.__notes__


def test_a_batch_that_cannot_be_unpickled_here_is_an_error_that_names_it(shared):
    with pytest.raises(ArgumentError, match=r"made of samples 0 of epoch 2 can't be unpickled here: AttributeError"):
        done_by(shared, lambda: sys.flags)
    with pytest.raises(ArgumentError, match=r"made of samples 0, 1 of epoch 2 can't be unpickled here"):
        next(ahead_of(shared, jobs_of([constant(1), lambda: sys.flags], together=2)))  # it may be either
    assert done_by(shared, constant(5)) == [5]


def test_a_job_that_cannot_be_unpickled_there_is_an_error(shared):
    def step() -> None:
        raise AssertionError

    error = raised_by(shared, functools.partial(step, Peculiar(code=5)))  # whose `__init__` pickle will call wrongly
    assert type(error) is TypeError
    assert done_by(shared, constant(5)) == [5]


def test_an_error_of_what_the_jobs_are_read_from_comes_at_its_place(shared):
    def jobs() -> Iterator[Any]:
        yield from jobs_of([constant(0), constant(1)])
        raise OSError("the disk is on fire")

    passing = ahead_of(shared, jobs())
    assert [next(passing)[0], next(passing)[0]] == [0, 1]
    with pytest.raises(OSError, match="on fire"):
        next(passing)
    assert done_by(shared, constant(5)) == [5]


def test_an_error_in_taking_notes_comes_in_the_place_of_the_batches_that_they_came_with(shared):
    def refuse(notes: list[Any]) -> None:
        raise SampleError(f"too many: {notes}")

    def noting() -> str:
        sys._getframe(1).f_locals["self"].notes.append(5)
        return "there"

    for together in (1, 3):
        passing = ahead_of(shared, jobs_of([constant(1), noting, constant(2)], together=together), notes=refuse)
        assert next(passing)[0] == 1
        with pytest.raises(SampleError, match=r"too many: \[5\]"):
            next(passing)


def test_what_a_failing_step_has_noted_is_told_after_the_batches_before_it(shared):
    told: list[Any] = []

    def fail() -> None:
        sys._getframe(1).f_locals["self"].notes.append("skipped")
        raise ValueError("no more")

    passing = ahead_of(shared, jobs_of([constant(0), constant(1), fail], together=3), notes=told.append)
    assert [next(passing)[0], next(passing)[0]] == [0, 1]
    assert told == []
    with pytest.raises(ValueError, match="no more"):
        next(passing)
    assert told == [["skipped"]]


# -- processes that die -----------------------------------------------------------------------------------------------


def death(processes: Processes, *steps: Callable[[], Any]) -> str:
    """The text of the error of a death in the last step, which comes after the batches before it."""
    passing = ahead_of(processes, list(steps))
    for expected in range(len(steps) - 1):
        assert next(passing)[0] == expected
    with pytest.raises(LoaderError) as caught:
        next(passing)
    assert processes.closed
    assert not any(is_running(worker.pid) for worker in processes.workers)
    return (
        str(caught.value).replace(str(processes.workers[0].pid), "1234").replace(str(processes.workers[-1].pid), "1234")
    )


def test_a_process_that_is_killed_as_for_lack_of_memory_is_an_error_that_names_the_batch_and_ends_the_others(mortal):
    text = death(mortal(2), constant(0), constant(1), lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert text.replace("process 0", "process 1") == (
        "worker process 1 (pid 1234) was ended by signal 9 (SIGKILL) while it worked on samples 2 of epoch 2\n"
        "  the system does this when memory runs out (dmesg tells): give fewer workers, smaller batches or a smaller "
        "prefetch_bytes"
    )


def test_a_death_in_the_middle_of_a_job_names_the_step(mortal):
    processes = mortal()
    passing = ahead_of(processes, jobs_of([constant(0), constant(1), functools.partial(os._exit, 3)], together=3))
    with pytest.raises(LoaderError, match=r"exit code 3 while it worked on samples 2 of epoch 2"):
        next(passing)


def test_a_death_at_a_job_of_a_former_pass_names_no_step_of_this_one_as_begun(mortal, tmp_path):
    gate = tmp_path / "gate"

    def die() -> None:
        while not gate.exists():
            os.sched_yield()
        os._exit(3)

    processes = mortal()
    former = ahead_of(processes, jobs_of([constant(0), constant(1), constant(2), die], together=2))
    assert next(former)[0] == 0
    wait_until(lambda: processes.busy(0) == 1 and processes.steps_done(0) == 1)  # of the second job
    former.close()
    passing = ahead_of(processes, jobs_of([constant(0), constant(1)], together=2))
    opener = threading.Thread(target=lambda: (wait_until(lambda: in_hand(passing) == 1), gate.touch()))
    opener.start()
    with pytest.raises(LoaderError, match=r"exit code 3 before it could begin with samples 0 of epoch 2"):
        next(passing)
    opener.join()


def test_a_crash_is_an_error_that_tells_where_it_happened(mortal):
    text = death(mortal(), lambda: ctypes.string_at(0))
    assert "was ended by signal 11 (SIGSEGV) while it worked on samples 0 of epoch 2\n" in text
    assert "in string_at\n" in text
    assert "test_worker_errors.py" in text


def test_a_process_that_exits_is_an_error_that_tells_its_exit_code(mortal):
    assert death(mortal(), constant(0), lambda: os._exit(3)) == (
        "worker process 0 (pid 1234) has ended with exit code 3 while it worked on samples 1 of epoch 2\n"
        "  user code has called os._exit"
    )


def test_a_process_that_was_killed_while_it_was_idle_is_an_error_at_the_next_batch(mortal):
    processes = mortal()
    assert done_by(processes, constant(0)) == [0]
    os.kill(processes.workers[0].pid, signal.SIGKILL)
    wait_until(lambda: not is_running(processes.workers[0].pid))
    assert "(SIGKILL) before it could begin with samples 0 of epoch 2" in death(processes, constant(0))


def test_a_process_that_dies_before_it_is_ready_is_an_error(mortal):
    processes = mortal(worker_init_fn=lambda worker: os.kill(os.getpid(), signal.SIGKILL))
    assert "(SIGKILL) before it could begin with samples 0 of epoch 2" in death(processes, constant(0))


def test_an_error_in_worker_init_fn_keeps_its_type(mortal):
    def refuse(worker: int) -> None:
        raise Peculiar(code=worker)

    processes = mortal(worker_init_fn=refuse)
    with pytest.raises(Peculiar, match="code 0") as caught:
        done_by(processes, constant(0))
    assert caught.value.__notes__[0] == "in worker_init_fn(0)"
    assert "as it started, where it was raised:\nTraceback" in caught.value.__notes__[1]
    assert processes.closed


def test_what_cannot_be_pickled_for_a_process_is_refused_by_its_name_before_any_starts(mortal):
    processes = mortal(dataset={"lock": threading.Lock()})
    with pytest.raises(
        ArgumentError, match=r"^dataset: expected .* dataset\['lock'\] can't: cannot pickle '_thread.lock'"
    ):
        done_by(processes, constant(0))
    assert processes.workers == []


# -- hangs and ends ---------------------------------------------------------------------------------------------------


def test_a_hang_is_an_error_that_shows_what_each_process_does_and_processes_end_though_they_hang(
    mortal, tmp_path, monkeypatch
):
    monkeypatch.setattr(processes_module, "_STACKS_SECONDS", WAITING_SECONDS)
    hangs = tmp_path / "hangs"

    def hang() -> None:
        hangs.touch()
        time.sleep(1000)

    def jobs() -> Iterator[Any]:
        yield from jobs_of([hang])
        wait_until(hangs.exists)  # before the wait for a batch begins

    processes = mortal()
    assert done_by(processes, constant(0)) == [0]
    passing = ahead_of(processes, jobs(), timeout=0.1)
    with pytest.raises(LoaderError) as caught:
        next(passing)
    text = str(caught.value)
    assert text.startswith("no batch came within 0.1 seconds (timeout=0.1): that of samples 0 of epoch 2\n")
    assert f"worker process 0 (pid {processes.workers[0].pid}):\n" in text
    assert "in hang\n" in text
    assert processes.closed


def test_a_time_limit_is_held_against_a_step_and_not_against_all_of_a_job(mortal, tmp_path, monkeypatch):
    def wait(number: int) -> int:
        wait_until((tmp_path / str(number)).exists)
        return number

    def look() -> float:
        """Tells the time, of which a step takes 1.2 seconds."""
        clock.pass_(0.4)
        step = processes.steps_done(0)
        looks.append(step)
        if looks.count(step) == 3:
            (tmp_path / str(step)).touch()
            wait_until(lambda: processes.steps_done(0) != step)
        return clock()

    clock, looks = HandClock(), list[int]()
    processes = mortal()
    assert done_by(processes, constant(0)) == [0]
    monkeypatch.setattr(process_ahead, "time", SimpleNamespace(monotonic=look))
    monkeypatch.setattr(process_ahead, "_LOOK_SECONDS", 0.01)
    began = clock()
    jobs = jobs_of([functools.partial(wait, i) for i in range(6)], together=6)
    assert [batch for batch, _ in ahead_of(processes, jobs, timeout=2.0)] == list(range(6))
    assert clock() - began > 3 * 2.0

    def look_later() -> float:
        """Tells the time, which passes when the first step is done."""
        clock.pass_(float(processes.steps_done(0)))
        return clock()

    monkeypatch.setattr(process_ahead, "time", SimpleNamespace(monotonic=look_later))
    jobs = jobs_of([constant(0), functools.partial(wait, 6)], together=2)
    with pytest.raises(LoaderError, match=r"no batch came within 1.5 seconds.*that of samples 1 of epoch 2"):
        next(ahead_of(processes, jobs, timeout=1.5))


def test_closing_from_another_thread_ends_the_wait_for_a_batch_and_a_busy_process(mortal):
    processes = mortal()
    assert done_by(processes, constant(0)) == [0]
    passing = ahead_of(processes, [lambda: time.sleep(1000)])
    left: list[Any] = [None]
    consumer = threading.Thread(target=lambda: left.extend(passing))
    consumer.start()
    wait_until(lambda: in_hand(passing) == 1)
    processes.close()
    consumer.join(WAITING_SECONDS)
    assert not consumer.is_alive()
    assert left == [None]


def test_a_fork_leaves_the_processes_of_its_parent_alone(mortal):
    processes = mortal()
    assert done_by(processes, constant(0)) == [0]
    child = os.fork()
    if child == 0:
        with warnings.catch_warnings(record=True) as warned:
            processes.close()
            os._exit(len(warned))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert done_by(processes, constant(1)) == [1]


def test_dropping_processes_ends_them_and_closes_what_was_open(mortal):
    before = descriptors()
    processes = Processes(1, Doing())
    assert done_by(processes, constant(0)) == [0]
    assert len(opened_since(before)) == 2
    pid = processes.workers[0].pid
    del processes
    assert not is_running(pid)
    assert opened_since(before) == set()


SCRIPT = """
import collections, dataclasses, os, signal, sys, time
from headrace.loader.process_ahead import Job, ProcessAhead
from headrace.loader.processes import Processes
import numpy as np

print("started", flush=True)

@dataclasses.dataclass
class Batch:
    x: np.ndarray

Pair = collections.namedtuple("Pair", "a b")

class Work:
    def __call__(self, seed, epoch, job):
        yield job()
    def take_notes(self):
        return []

def once():
    print("from a worker")
    return Pair(Batch(np.arange(3)), os.getpid())

def forever():
    print("busy", flush=True)
    while True:
        pass

processes = Processes(1, Work())

def passing(*steps):
    jobs = (Job(step, np.array([i]), [0, 1], [i + 1]) for i, step in enumerate(steps))
    return ProcessAhead(jobs, processes, seed=0, epoch=0, max_groups=2, max_bytes=1000, step_bytes=lambda batch: 1)

[(pair, position)] = passing(once)
assert type(pair) is Pair and type(pair.a) is Batch and pair.a.x.sum() == 3, pair
print(pair.b, flush=True)
"""


@pytest.fixture
def script(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[[str], tuple[subprocess.Popen[str], int]]]:
    """Starts a script without a main guard; gives its process and its worker's number when both work."""
    started: list[subprocess.Popen[str]] = []

    def start(end: str) -> tuple[subprocess.Popen[str], int]:
        path = tmp_path / "script.py"
        path.write_text(SCRIPT + textwrap.dedent(end))
        process = subprocess.Popen(
            [sys.executable, "-W", "error", str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        started.append(process)
        assert [process.stdout.readline() for _ in range(2)] == ["started\n", "from a worker\n"]
        return process, int(process.stdout.readline())

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_script_without_a_main_guard_is_not_run_again_its_classes_are_the_same_and_its_end_ends_its_workers(script):
    process, worker = script("")
    out, err = process.communicate(timeout=WAITING_SECONDS)
    assert (process.returncode, out, err) == (0, "", "")
    wait_until(lambda: not is_running(worker))


def test_an_interrupt_ends_a_program_and_its_workers_without_a_word_of_theirs(script):
    process, worker = script(
        """
        signal.signal(signal.SIGINT, signal.default_int_handler)
        list(passing(forever))
        """
    )
    assert process.stdout.readline() == "busy\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=WAITING_SECONDS)
    assert process.returncode == -signal.SIGINT
    # it may come while the end of a wait is handled, which Python tells too
    assert err.count("Traceback") == 1 + err.count("During handling of the above exception")
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert not is_running(worker)


def test_workers_end_though_they_are_busy_when_their_program_is_killed(script):
    process, worker = script("list(passing(forever))")
    assert process.stdout.readline() == "busy\n"
    process.kill()
    process.wait()
    wait_until(lambda: not is_running(worker))
