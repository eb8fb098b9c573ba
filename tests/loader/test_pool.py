"""Batch memory of an allocator that isn't NumPy's: lent again, and tensors over the storages that it gave."""

import numpy as np
import pytest
import torch

from headrace.formats import Column
from headrace.loader.pool import Pool, TrackedPool

SCHEMA = {
    "x": Column(np.dtype(np.float32), (4,)),
    "y": Column(np.dtype(np.int64)),
    "nothing": Column(np.dtype(np.int8), (0,)),
}


class Allocator:
    """Memory by torch, which is asked for and counted."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.addresses: set[int] = set()
        self.storages: set[int] = set()

    def __call__(self, size_bytes: int) -> torch.Tensor:
        block = torch.zeros(size_bytes, dtype=torch.uint8)
        self.sizes.append(size_bytes)
        self.addresses.add(block.data_ptr())
        self.storages.add(block.untyped_storage()._cdata)
        return block


def test_arrays_lie_in_memory_of_the_allocator_which_is_asked_for_whole_batches():
    allocator = Allocator()
    lent = Pool(SCHEMA, 10, idle=2, allocate=allocator).lend(7)
    assert allocator.sizes == [160, 80, 0]
    assert {name: array.shape for name, array in lent.items()} == {"x": (7, 4), "y": (7,), "nothing": (7, 0)}
    assert {lent["x"].ctypes.data, lent["y"].ctypes.data} <= allocator.addresses


@pytest.mark.parametrize("keep", ["a slice of an array", "a tensor", "an array of a tensor"])
def test_memory_of_an_allocator_returns_when_the_last_view_is_gone_and_not_before(keep):
    pool = Pool(SCHEMA, 10, idle=2, allocate=Allocator())
    lent = pool.lend(10)
    address = lent["x"].ctypes.data
    view = {
        "a slice of an array": lambda x: x[2:][1:],
        "a tensor": lambda x: torch.from_numpy(x[2:])[1:],
        "an array of a tensor": lambda x: torch.from_numpy(x)[1].numpy()[2:],
    }[keep](lent["x"])
    del lent
    assert pool.lend(10)["x"].ctypes.data != address
    del view
    assert address in {lent["x"].ctypes.data for lent in (pool.lend(10), pool.lend(10))}


def test_batches_of_a_pool_are_handed_on_as_they_are():
    batches = [{"x": torch.ones(1)}]
    assert Pool(SCHEMA, 10, idle=2).finished({}, batches) is batches


def test_tensors_of_a_tracked_pool_are_made_over_the_allocator_s_storages():
    allocator = Allocator()
    pool = TrackedPool(SCHEMA, 10, allocate=allocator)
    lent = pool.lend(10)
    lent["x"][:] = np.arange(40).reshape(10, 4)
    lent["y"][:] = range(10)
    other = torch.ones(3)
    x, y = torch.from_numpy(lent["x"]), torch.from_numpy(lent["y"])
    first, second = pool.finished(
        lent, [{"x": x[:5], "y": (y[:5], "text"), "other": other}, [x[5:].view(torch.int32), y[5::2]]]
    )
    assert first["x"].tolist() == np.arange(20).reshape(5, 4).tolist()
    assert first["y"][0].tolist() == [0, 1, 2, 3, 4]
    assert first["y"][1] == "text"
    assert first["other"] is other
    assert second[0].view(torch.float32)[0].tolist() == [20, 21, 22, 23]
    assert second[1].tolist() == [5, 7, 9]
    tensors = first["x"], first["y"][0], *second
    assert {tensor.untyped_storage()._cdata for tensor in tensors} <= allocator.storages
    versions = second[0]._version
    first["x"].fill_(0)
    assert second[0]._version == versions


def test_memory_of_a_tracked_pool_goes_back_to_the_allocator_and_is_asked_for_each_time():
    allocator = Allocator()
    pool = TrackedPool({"y": SCHEMA["y"]}, 10, allocate=allocator)
    for _ in range(3):
        pool.finished(lent := pool.lend(10), [torch.from_numpy(lent["y"])])
        del lent
    assert allocator.sizes == [80, 80, 80]
