"""Memory for blocks is used again, but never while anything views it."""

import gc
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from headrace.formats import block_buffers
from headrace.formats.block_buffers import recycled

MIB = 1 << 20


@pytest.fixture(autouse=True)
def idle(monkeypatch):
    """Nothing lies idle at first, and nothing of other tests comes back in the midst of one."""
    gc.collect()
    idle = {size: deque(maxlen=8) for size in range(MIB, 8 * MIB + 1, MIB)}
    monkeypatch.setattr(block_buffers, "_idle", idle)
    return idle


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_it_is_writable_and_as_long_as_asked_for():
    for length in (0, 1, MIB - 1, MIB, 4 * MIB - 5, 8 * MIB, 9 * MIB):
        memory = recycled(length)
        memory[:] = 7
        assert (memory.dtype, memory.shape, memory.flags.carray) == (np.uint8, (length,), True)


def test_it_comes_again_once_nothing_views_it():
    first = recycled(4 * MIB - 100)
    there = address(first)
    del first
    assert address(recycled(4 * MIB)) == there


@pytest.mark.parametrize(
    "view",
    [
        lambda array: array[5:],
        lambda array: array.data,
        torch.from_numpy,
        lambda array: np.frombuffer(array.data[10:20], np.uint8),
        lambda array: array.view(np.int32).reshape(2, -1)[1],
    ],
    ids=["slice", "memoryview", "tensor", "buffer", "view"],
)
def test_any_view_keeps_it(view, idle):
    memory = recycled(4 * MIB)
    kept = view(memory)
    del memory
    gc.collect()
    assert not idle[4 * MIB]
    others = [recycled(4 * MIB) for _ in range(4)]
    for other in others:
        other[:] = 255
    del other, others, kept
    gc.collect()
    assert len(idle[4 * MIB]) == 5


def test_no_more_lies_idle_than_is_allowed(idle):
    kept = [recycled(2 * MIB) for _ in range(12)]
    kept.clear()
    assert len(idle[2 * MIB]) == 8


def test_threads_never_get_the_same(idle):
    def hammer(seed: int) -> bool:
        for turn in range(200):
            memory = recycled(MIB)
            memory[:64] = seed
            memory[-64:] = turn % 256
            if not ((memory[:64] == seed).all() and (memory[-64:] == turn % 256).all()):
                return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(hammer, range(8)))
    assert len(idle[MIB]) <= 8


def test_a_forked_child_has_its_own():
    memory = recycled(MIB)
    memory[:] = 1
    child = os.fork()
    if child == 0:
        memory[:] = 2
        del memory
        other = recycled(MIB)
        other[:] = 3
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert (memory == 1).all()
