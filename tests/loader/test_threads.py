"""Threads: when they start and end, what becomes of errors, and how far they read ahead."""

import gc
import itertools
import logging
import os
import sys
import threading
import weakref
from typing import Any

import numpy as np
import pytest
import torch

import headrace as hr
from headrace.errors import SampleError, StalePassError
from headrace.loader import prefetch
from headrace.loader.plan import Group
from headrace.loader.prefetch import ReadAhead
from tests.loader.stand_ins import WAITING_SECONDS, delivered, flat, ids_of, numbers


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("headrace")]


def loader_of(samples: int = 1000, batch_size: int = 5, num_workers: int = 2, **options: Any) -> hr.DataLoader:
    return hr.DataLoader(numbers(samples), batch_size=batch_size, num_workers=num_workers, **options)


# -- their life -------------------------------------------------------------------------------------------------------


def test_threads_start_with_the_first_batch_and_not_before():
    loader = loader_of(num_workers=3)
    loader.load_state_dict(loader.state_dict())
    passing = iter(loader)
    assert threads() == []
    next(passing)
    assert len(threads()) == 3


def test_no_worker_means_no_thread():
    passing = iter(loader_of(num_workers=0))
    next(passing)
    assert threads() == []


def test_threads_end_when_the_loop_comes_to_its_end():
    loader = loader_of()
    for step, _ in enumerate(loader, start=1):
        assert bool(threads()) == (step < len(loader))  # some trainers stop at len() and never see the end
    assert threads() == []


def test_threads_end_when_the_loop_is_left_by_break():
    for _ in loader_of():
        break
    assert threads() == []


def test_threads_end_when_the_body_of_the_loop_fails():
    def train() -> None:
        for _ in loader_of():
            raise KeyError("in the body")

    with pytest.raises(KeyError):
        train()
    assert threads() == []


def test_threads_end_when_an_unfinished_iterator_is_dropped():
    passing = iter(loader_of())
    next(passing)
    del passing
    assert threads() == []


def test_threads_of_the_former_pass_end_when_a_new_one_begins():
    loader = loader_of()
    former = iter(loader)
    next(former)
    iter(loader)
    assert threads() == []


def test_a_finished_pass_that_is_asked_again_starts_no_threads():
    passing = iter(loader_of(samples=20))
    assert len(list(passing)) == 4
    assert next(passing, None) is None
    assert threads() == []


def test_a_dropped_loader_is_gone_with_its_threads_and_all_that_it_held():
    loader = loader_of()
    passing = iter(loader)
    next(passing)
    gone = [weakref.ref(thing) for thing in (loader, loader.dataset, loader.dataset.source, passing)]
    del loader, passing
    gc.collect()
    assert [reference() for reference in gone] == [None] * 4
    assert threads() == []


def test_fifty_loaders_half_read_and_dropped_leave_no_threads():
    passes = []
    for _ in range(50):
        passing = iter(loader_of(num_workers=1))
        next(passing)
        passes.append(passing)
    assert len(threads()) == 50
    passes.clear()
    del passing
    assert threads() == []


def test_closing_reads_nothing_more_of_what_was_planned():
    loader = loader_of(num_workers=1, prefetch_factor=8)
    source = loader.dataset.source
    source.gate.clear()
    ended = threading.Event()

    def consume() -> None:
        with pytest.raises(StalePassError):
            next(passing)
        ended.set()

    passing = iter(loader)
    consumer = threading.Thread(target=consume)
    consumer.start()
    source.wait_for_reads(1)
    reader = threads()[0]
    closer = threading.Thread(target=loader.seek, kwargs={"epoch": 0})
    closer.start()
    while not passing._batches._work.closed:  # no promise says when; only that it comes to that
        os.sched_yield()
    source.gate.set()
    for thread in (closer, consumer, reader):
        thread.join(WAITING_SECONDS)
    assert ended.is_set()
    assert source.reads == 1


def outlived(passing: Any) -> None:
    with pytest.raises(StalePassError):
        list(passing)


def test_close_gives_up_within_its_time_on_a_source_that_blocks_and_says_so(monkeypatch, caplog):
    monkeypatch.setattr(prefetch, "CLOSE_SECONDS", 0.01)
    loader = loader_of(num_workers=3, prefetch_factor=1)
    source = loader.dataset.source
    passing = iter(loader)
    next(passing)
    source.gate.clear()
    reads = source.reads
    following = threading.Thread(target=outlived, args=[passing])
    following.start()
    source.wait_for_reads(reads + 1)
    with caplog.at_level(logging.WARNING, "headrace"):
        loader.seek(epoch=0)
    assert "is still reading a batch; it ends when that is done" in caplog.text
    source.gate.set()
    following.join(WAITING_SECONDS)
    assert not following.is_alive()


# -- errors -----------------------------------------------------------------------------------------------------------


class BadSample:
    """A dataset whose sample 33 fails with an error of its own."""

    class Unusual(Exception):  # noqa: N818
        pass

    def __len__(self) -> int:
        return 100

    def __getitem__(self, number: int) -> int:
        if number == 33:
            raise self.Unusual("no such luck")
        return number


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_an_error_comes_at_the_place_of_its_batch_with_its_type_and_its_sample(num_workers):
    loader = hr.DataLoader(BadSample(), batch_size=10, num_workers=num_workers, worker_type="thread")
    seen: list[Any] = []
    with pytest.raises(BadSample.Unusual, match="no such luck") as caught:
        seen.extend(loader)
    assert torch.cat(seen).tolist() == list(range(30))
    assert "while reading sample 33 of BadSample" in caught.value.__notes__
    assert loader.position == 30
    assert threads() == []


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_an_error_in_batches_that_are_read_together_comes_at_the_place_of_its_own(num_workers):
    loader = hr.DataLoader(numbers(100, bad=[33]), batch_size=5, num_workers=num_workers)
    seen: list[Any] = []
    with pytest.raises(OSError, match="the disk is on fire") as caught:
        seen.extend(loader)
    assert flat(delivered(seen)) == list(range(30))
    assert caught.value.__notes__ == ["while reading sample 33 (row 33 of the numbers)"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_even_the_exit_of_a_user_s_function_reaches_the_consumer(num_workers):
    loader = loader_of(num_workers=num_workers, transform=lambda sample: sys.exit("enough"))
    with pytest.raises(SystemExit, match="enough"):
        next(iter(loader))
    assert threads() == []


def test_errors_of_the_library_tell_the_sample_themselves():
    def failing(sample_ids: Any, out: Any = None) -> Any:
        raise SampleError("jpg: image data ends\n  sample 7: member 'a.jpg'")

    loader = loader_of()
    loader.dataset.source.read = failing
    with pytest.raises(SampleError) as caught:
        next(iter(loader))
    assert not hasattr(caught.value, "__notes__")


# -- reading ahead ----------------------------------------------------------------------------------------------------


def batches_read_ahead(loader: hr.DataLoader) -> int:
    """How many batches the threads read while the consumer has taken one and waits."""
    passing = iter(loader)
    next(passing)
    for _ in range(2):  # the groups that were planned with the first; what is asked for then is all there is
        for task in tuple(passing._batches._tasks):
            task.done.acquire()
            task.done.release()
    return sum(loader.dataset.source.samples_read.values()) // 5


@pytest.mark.parametrize(("factor", "workers", "most"), [(1, 1, 1), (1, 3, 3), (2, 2, 4), (5, 1, 5), (40, 2, 80)])
def test_no_more_than_prefetch_factor_batches_a_worker_are_read_ahead(factor, workers, most):
    read = batches_read_ahead(loader_of(num_workers=workers, prefetch_factor=factor))
    assert most // 2 < read <= most


def test_no_more_than_prefetch_bytes_are_read_ahead():
    dataset = numbers(1000, width=1000)  # batches of 40 KB
    loader = hr.DataLoader(dataset, batch_size=5, num_workers=3, prefetch_bytes=200_000, prefetch_factor=50)
    assert 1 <= batches_read_ahead(loader) <= 5


def test_a_batch_larger_than_prefetch_bytes_proceeds_alone():
    dataset = numbers(100, width=1000)
    loader = hr.DataLoader(dataset, batch_size=5, num_workers=3, prefetch_bytes=10)
    assert batches_read_ahead(loader) == 1
    loader.set_epoch(0)
    assert len(list(loader)) == 20


@pytest.mark.parametrize("how", ["a foreign dataset", "a batch transform"])
def test_batches_whose_size_shows_only_when_they_are_there_are_bounded_from_then_on(how):
    if how == "a foreign dataset":
        options = {"transform": lambda sample: {"x": sample["x"].repeat(1000)}}
    else:
        options = {"batch_transform": lambda batch: {"x": batch["x"].repeat(1, 1000)}}
    loader = loader_of(num_workers=1, prefetch_bytes=80_000, prefetch_factor=8, **options)
    passing = iter(loader)
    for _ in range(40):
        next(passing)
    read = sum(loader.dataset.source.samples_read.values()) // 5
    assert read <= 40 + 8  # the first groups were planned before any size was known
    assert sum(len(task.group.positions) for task in passing._batches._tasks) <= 2


class Watched(dict[str, Any]):
    """A batch that can be referred to weakly."""


@pytest.mark.parametrize("num_workers", [1, 3])
def test_idle_threads_keep_no_batch(num_workers):
    made: dict[int, weakref.ref[Watched]] = {}  # by their first sample, since threads make them in any order

    def watch(batch: dict[str, Any]) -> Watched:
        watched = Watched(batch)
        made[ids_of(batch)[0]] = weakref.ref(watched)
        return watched

    loader = loader_of(samples=25, num_workers=num_workers, prefetch_factor=1, batch_transform=watch)
    passing = iter(loader)
    for _ in range(4):
        next(passing)
    assert [made[first]() for first in range(0, 20, 5)] == [None] * 4
    assert len(threads()) == num_workers


@pytest.mark.parametrize("num_workers", [0, 2])
def test_no_more_batches_are_alive_than_are_read_ahead_however_many_are_read(num_workers):
    alive = most = 0
    lock = threading.Lock()

    def gone() -> None:
        nonlocal alive
        with lock:
            alive -= 1

    def count(batch: dict[str, Any]) -> Watched:
        nonlocal alive, most
        watched = Watched(batch)
        weakref.finalize(watched, gone).atexit = False
        with lock:
            alive += 1
            most = max(most, alive)
        return watched

    loader = loader_of(batch_size=5, num_workers=num_workers, batch_transform=count, **ahead(num_workers))
    for _ in range(3):
        assert sum(1 for _ in loader) == 200
    assert most <= 8 + 2  # and the consumer's last and next one
    assert alive == 0


def ahead(num_workers: int) -> dict[str, int]:
    return {"prefetch_factor": 8 // num_workers} if num_workers else {}


def test_samples_are_announced_before_they_are_read_and_each_once():
    loader = loader_of(samples=20_000, batch_size=50, num_workers=0, shuffle=True)
    source = loader.dataset.source
    seen: set[int] = set()
    for batch in loader:
        seen.update(ids_of(batch))
    announced = flat(source.announced)
    assert len(announced) == len(set(announced))
    assert set(announced) <= seen
    assert len(announced) > 10_000


def test_islice_leaves_the_state_at_the_last_batch_taken():
    loader = loader_of()
    assert delivered(itertools.islice(loader, 3)) == [list(range(i, i + 5)) for i in (0, 5, 10)]
    assert loader.position == 15


def test_a_close_while_the_consumer_plans_ends_the_pass_instead_of_leaving_it_waiting():
    def groups():
        ahead.close()  # as another thread might, between the consumer's look and its submitting
        yield Group(np.arange(4), [0, 4], None, [4]), None

    ahead = ReadAhead(
        groups(),
        lambda group: iter([group.sample_ids]),
        lambda ids: None,
        num_workers=1,
        max_groups=2,
        max_bytes=1 << 20,
        step_bytes=lambda batch: 1,
    )
    assert list(ahead) == []
