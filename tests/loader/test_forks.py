"""Forks: a loader in a process that was forked from its own is refused, and otherwise leaves the child in peace."""

import copy
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import headrace as hr
from headrace.errors import LoaderError
from headrace.loader.forks import Birth
from tests.loader.stand_ins import WAITING_SECONDS, delivered, flat, numbers

WORKERS = pytest.mark.parametrize("num_workers", [0, 2])


@pytest.fixture(autouse=True)
def _a_small_heap() -> Iterator[None]:
    """Children collect their garbage at once: what is there already takes long to look through, page by page."""
    gc.freeze()
    yield
    gc.unfreeze()


def in_child(check: Callable[[], object]) -> int:
    """The exit status of a forked process that runs a check: 0, where it holds; a hang ends by a signal."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(int(WAITING_SECONDS))
            check()
            status = 0
        except BaseException:  # noqa: BLE001 (the child must never come back into the tests)
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def loader_of(num_workers: int, **options: Any) -> hr.DataLoader:
    return hr.DataLoader(numbers(200), batch_size=5, num_workers=num_workers, **options)


def refused(use: Callable[[], object], parent: int) -> None:
    with pytest.raises(LoaderError) as caught:
        use()
    assert str(caught.value) == (
        f"this loader was made in process {parent} and is used in process {os.getpid()}, forked from it: it has no "
        "threads there, and would deliver the same samples once more\n"
        '  make the loader in the child, or start processes by "spawn" or "forkserver"'
    )


@WORKERS
def test_a_loader_is_refused_in_a_child_that_was_forked_after_it_was_made(num_workers):
    loader, parent = loader_of(num_workers), os.getpid()
    assert in_child(lambda: refused(lambda: iter(loader), parent)) == 0
    assert flat(delivered(loader)) == list(range(200))


@WORKERS
def test_a_pass_is_refused_in_the_child_and_goes_on_in_the_parent(num_workers):
    loader, parent = loader_of(num_workers), os.getpid()
    passing = iter(loader)
    seen = delivered([next(passing) for _ in range(3)])

    def check() -> None:
        refused(lambda: next(passing), parent)
        refused(lambda: iter(loader), parent)
        assert loader.state_dict()["position"] == 15

    assert in_child(check) == 0
    seen += delivered(passing)
    assert flat(seen) == list(range(200))


@WORKERS
def test_a_child_that_drops_the_pass_ends_nothing_of_the_parents_and_waits_for_nothing(num_workers):
    dataset, parent = numbers(200), os.getpid()
    lock = threading.Lock()

    def end_prefetch() -> None:
        if os.getpid() != parent:
            lock.acquire()  # as a lock that a thread of the parent held at the fork: nobody lets go of it here

    dataset.source.end_prefetch = end_prefetch
    passing = iter(hr.DataLoader(dataset, batch_size=5, num_workers=num_workers))
    seen = delivered([next(passing)])
    held = [passing]
    del passing

    def check() -> None:
        held.clear()
        gc.collect()

    with lock:
        assert in_child(check) == 0
    assert flat(seen + delivered(held[0])) == list(range(200))


@WORKERS
def test_a_loader_that_is_made_in_the_child_works_there(num_workers):
    passing = iter(loader_of(num_workers))
    next(passing)

    def check() -> None:
        assert flat(delivered(loader_of(num_workers))) == list(range(200))

    assert in_child(check) == 0


def test_a_fork_while_threads_read_and_batches_wait_is_safe_again_and_again():
    loader = loader_of(2, shuffle=True)
    seen = []
    for number, batch in enumerate(loader):
        seen.append(batch)
        if number % 10 == 0:
            assert in_child(gc.collect) == 0
    assert sorted(flat(delivered(seen))) == list(range(200))


def test_a_child_of_the_child_is_told_too():
    outer, parent = Birth(), os.getpid()

    def check() -> None:
        inner, child = Birth(), os.getpid()
        assert inner.is_here
        assert not outer.is_here
        refused(outer.check, parent)
        assert in_child(lambda: refused(inner.check, child)) == 0
        inner.check()

    assert in_child(check) == 0
    outer.check()


def test_what_was_pickled_is_at_home_where_it_is_unpickled():
    pickled = pickle.dumps(Birth())
    assert in_child(lambda: pickle.loads(pickled).check()) == 0
    assert copy.deepcopy(Birth()).is_here


class Holding(torch.utils.data.Dataset[int]):
    """A dataset with a loader among its attributes, which it doesn't use."""

    def __init__(self, passing: Any, loader: hr.DataLoader) -> None:
        self.passing, self.loader = passing, loader

    def __len__(self) -> int:
        return 20

    def __getitem__(self, number: int) -> int:
        return number


def test_torch_s_forked_workers_may_have_a_loader_that_they_do_not_use():
    loader = loader_of(2)
    passing = iter(loader)
    seen = delivered([next(passing)])
    theirs = torch.utils.data.DataLoader(
        Holding(passing, loader), batch_size=5, num_workers=2, multiprocessing_context="fork"
    )
    assert torch.cat(list(theirs)).tolist() == list(range(20))
    assert flat(seen + delivered(passing)) == list(range(200))


SCRIPT = """
import os, sys
import numpy as np
import headrace as hr

loader = hr.DataLoader(hr.ArrayDataset({"x": np.arange(1000)}), batch_size=10, num_workers=2)
passing = iter(loader)
next(passing)
child = os.fork()
if child == 0:
    sys.exit(0)  # with all that is done when an interpreter ends
_, status = os.waitpid(child, 0)
assert sum(1 for _ in passing) == 99
sys.exit(status)
"""


def test_a_child_that_ends_as_programs_do_ends_in_peace(environment: dict[str, str], tmp_path: Path):
    run = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", SCRIPT],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=2 * WAITING_SECONDS,
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
