"""Reading ahead by itself: what threads live in, what is ready, and how deep the queue is."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from headrace.loader.plan import Group
from headrace.loader.prefetch import ReadAhead
from tests.loader.stand_ins import WAITING_SECONDS


def groups(count: int) -> Iterator[tuple[Group, None]]:
    """Groups of two steps of one sample each."""
    for start in range(0, 2 * count, 2):
        yield Group(np.array([start, start + 1]), [0, 1, 2], None, [start + 1, start + 2]), None


class Reads:
    """Reads of groups that begin when they are let, and can be waited for."""

    def __init__(self) -> None:
        self.let, self.done = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, group: Group) -> Iterator[int]:
        assert self.let.acquire(timeout=WAITING_SECONDS)
        yield from group.sample_ids.tolist()
        self.done.release()

    def one(self, ahead: ReadAhead) -> None:
        """Lets one group be read, and returns when it is there: a released semaphore is not yet a finished task."""
        depth = ahead.depth()
        self.let.release()
        assert self.done.acquire(timeout=WAITING_SECONDS)
        while ahead.depth() == depth or ahead.depth()[0] == depth[0]:
            pass


@contextlib.contextmanager
def reading(read: Any, count: int | Iterator[Any] = 4, num_workers: int = 1, **options: Any) -> Iterator[ReadAhead]:
    ahead = ReadAhead(
        groups(count) if isinstance(count, int) else count,
        read,
        lambda ids: None,
        num_workers=num_workers,
        max_groups=3,
        max_bytes=1 << 20,
        step_bytes=lambda batch: 100,
        **options,
    )
    with contextlib.closing(ahead):
        yield ahead


def ids(group: Group) -> list[int]:
    return group.sample_ids.tolist()


@pytest.mark.parametrize("num_workers", [1, 3])
def test_each_thread_lives_within_what_was_given_and_leaves_it_when_it_ends(num_workers):
    inside: set[int] = set()
    entered = []

    @contextlib.contextmanager
    def within() -> Iterator[None]:
        entered.append(threading.get_ident())
        inside.add(threading.get_ident())
        yield
        inside.discard(threading.get_ident())

    def read(group: Group) -> list[bool]:
        return [threading.get_ident() in inside] * 2

    with reading(read, num_workers=num_workers, within=within) as ahead:
        assert [is_inside for is_inside, _ in ahead] == [True] * 8
    assert len(entered) == num_workers
    assert inside == set()


@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_thread_that_cannot_live_is_an_error_of_the_consumers(num_workers):
    def within() -> contextlib.AbstractContextManager[None]:
        raise ValueError("no such device")

    with reading(ids, num_workers=num_workers, within=within) as ahead, pytest.raises(ValueError, match="no such dev"):
        next(ahead)


def test_it_is_ready_when_the_next_batch_or_the_end_is_there():
    reads = Reads()
    with reading(reads, count=2) as ahead:
        assert not ahead.ready()
        reads.one(ahead)
        assert ahead.ready()
        assert [next(ahead), next(ahead)] == [(0, 1), (1, 2)]
        assert not ahead.ready()
        reads.one(ahead)
        assert [next(ahead), next(ahead)] == [(2, 3), (3, 4)]
        assert ahead.ready()
        assert next(ahead, None) is None


def test_it_is_ready_where_an_error_is_next_or_it_was_closed():
    def fail(group: Group) -> Iterator[int]:
        yield 5
        raise KeyError("no")

    with reading(fail) as ahead:
        assert next(ahead) == (5, 1)
        assert ahead.ready()
        with pytest.raises(KeyError):
            next(ahead)
    assert ahead.ready()


def test_the_depth_tells_what_is_there_what_is_to_come_and_its_bytes():
    reads = Reads()
    with reading(reads) as ahead:
        assert ahead.depth() == (0, 0, 0)
        assert not ahead.ready()
        assert ahead.depth() == (0, 3, 0)
        reads.one(ahead)
        assert ahead.depth() == (1, 2, 200)
        next(ahead)
        assert ahead.depth() == (1, 2, 100)
        next(ahead)
        assert ahead.depth() == (0, 2, 0)
        for _ in range(3):
            reads.let.release()


def test_threads_plan_what_comes_later_so_that_the_consumer_plans_only_to_begin():
    planned_by: list[int] = []

    def planning() -> Iterator[tuple[Group, None]]:
        for group in groups(30):
            planned_by.append(threading.get_ident())
            yield group

    reads = Reads()
    with reading(reads, planning()) as ahead:
        taken: list[int] = []
        for _ in range(30):
            reads.let.release()
            taken += [next(ahead)[0], next(ahead)[0]]
            assert reads.done.acquire(timeout=WAITING_SECONDS)
            while ahead._work.planned._planning.locked():  # the thread that plans is between two groups
                pass
        assert taken == list(range(60))
        assert next(ahead, None) is None
    assert planned_by.count(threading.get_ident()) <= 10
    assert len(planned_by) == 30


def test_an_error_in_planning_reaches_the_consumer_and_what_came_before_is_in_order():
    def planning() -> Iterator[tuple[Group, None]]:
        yield from groups(5)
        raise ArithmeticError("no such step")

    seen = []
    with reading(ids, planning(), num_workers=2) as ahead, pytest.raises(ArithmeticError, match="no such step"):
        seen.extend(batch for batch, _ in ahead)
    assert seen[:4] == [0, 1, 2, 3]
    assert seen == list(range(len(seen)))
