"""Batch memory: what is kept stays unchanged, and what nobody views any more is used again."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import headrace as hr
from headrace.formats import Column
from headrace.loader.pool import Pool
from tests.loader.stand_ins import numbers

WORKERS = pytest.mark.parametrize("num_workers", [0, 2])
SCHEMA = {"x": Column(np.dtype(np.float32), (4,)), "y": Column(np.dtype(np.int64))}

VIEWS: dict[str, Callable[[torch.Tensor], Any]] = {
    "the batch": lambda x: x,
    "a slice": lambda x: x[1:3],
    "a slice of a slice": lambda x: x[1:][:1, ::2],
    "one row": lambda x: x[2],
    "unbound rows": lambda x: x.unbind(0)[1],
    "a view of another shape": lambda x: x.view(-1),
    "a view of another dtype": lambda x: x.view(torch.uint8),
    "a transpose": lambda x: x.T,
    "detached": lambda x: x.detach()[1:],
    "an array": lambda x: x.numpy(),
    "a slice of an array": lambda x: x.numpy()[1:3],
    "an array of a slice": lambda x: x[1:3].numpy().reshape(-1),
    "an array of a subclass": lambda x: x.numpy().view(np.matrix) if x.ndim == 2 else x.numpy(),
    "a tensor of an array": lambda x: torch.from_numpy(x.numpy()[1:]),
    "through dlpack": lambda x: np.from_dlpack(x)[1:],
    "a memoryview": lambda x: memoryview(x.numpy()[1:]),
    "the storage": lambda x: x.untyped_storage(),
    "a tensor over the storage": lambda x: torch.empty(0, dtype=x.dtype).set_(x.untyped_storage()),
    "a view that needs a gradient": lambda x: x.detach().double().requires_grad_() if x.dtype != torch.int64 else x[0],
}


def content(kept: Any) -> bytes:
    """The bytes that a view shows now."""
    if isinstance(kept, torch.UntypedStorage):
        return bytes(torch.empty(0, dtype=torch.uint8).set_(kept).numpy())
    if isinstance(kept, torch.Tensor):
        return kept.detach().contiguous().view(torch.uint8).numpy().tobytes()
    return np.asarray(kept).tobytes()


@WORKERS
@pytest.mark.parametrize("batch_size", [5, 33])
@pytest.mark.parametrize("view", VIEWS)
def test_every_seventh_batch_that_is_kept_is_unchanged_after_many_epochs(num_workers, batch_size, view):
    loader = hr.DataLoader(numbers(700, width=4), batch_size=batch_size, shuffle=True, num_workers=num_workers)
    kept, number = [], 0
    for _ in range(6):
        for batch in loader:
            number += 1
            if number % 7 == 0:
                seen = VIEWS[view](batch["x"])
                kept.append((seen, content(seen)))
    del batch
    assert len(kept) >= 12
    assert all(content(seen) == then for seen, then in kept)


@WORKERS
def test_samples_that_a_transform_passes_on_stay_unchanged(num_workers):
    loader = hr.DataLoader(
        numbers(700), batch_size=5, num_workers=num_workers, transform=lambda s: s, collate_fn=lambda samples: samples
    )
    kept = [sample for _ in range(3) for number, samples in enumerate(loader) if number % 7 == 0 for sample in samples]
    assert [int(sample["x"]) for sample in kept] == 3 * [35 * i + j for i in range(20) for j in range(5)]


@WORKERS
def test_fields_of_structured_columns_stay_unchanged(num_workers):
    points = np.zeros(700, [("n", "i4"), ("w", "f8", (2,))])
    points["n"], points["w"] = np.arange(700), np.arange(700)[:, None]
    loader = hr.DataLoader(hr.ArrayDataset({"p": points}), batch_size=5, num_workers=num_workers)
    kept = [
        (number, batch["p"]["n"], batch["p"]["w"])
        for _ in range(5)
        for number, batch in enumerate(loader)
        if number % 7 == 0
    ]
    for number, n, w in kept:
        assert n.tolist() == list(range(5 * number, 5 * number + 5))
        assert w[:, 1].tolist() == n.tolist()


@WORKERS
def test_changing_a_batch_in_place_changes_no_other(num_workers):
    loader = hr.DataLoader(numbers(700), batch_size=5, num_workers=num_workers)
    for _ in range(3):
        for number, batch in enumerate(loader):
            assert batch["x"].flatten().tolist() == list(range(5 * number, 5 * number + 5))
            batch["x"].fill_(-1)


@WORKERS
@pytest.mark.parametrize("batch_size", [5, 50])
def test_memory_is_used_again_when_nothing_is_kept(num_workers, batch_size):
    loader = hr.DataLoader(numbers(4000, width=2000), batch_size=batch_size, num_workers=num_workers)
    # threads may read all of a pass ahead, so that only the next one can use its memory again
    seen = [batch["x"].data_ptr() for _ in range(5) for batch in loader]
    assert len(set(seen)) < len(seen) / 2


@WORKERS
def test_memory_is_used_again_once_what_was_kept_is_dropped(num_workers):
    loader = hr.DataLoader(numbers(400, width=2000), batch_size=50, num_workers=num_workers)
    kept = list(loader)
    pointers = {batch["x"].data_ptr() for batch in kept}
    kept.clear()
    assert pointers & {batch["x"].data_ptr() for batch in loader}


# -- the pool ---------------------------------------------------------------------------------------------------------


def memory_of(lent: dict[str, Any]) -> dict[str, int]:
    return {name: array.ctypes.data for name, array in lent.items()}


def test_a_pool_lends_arrays_of_the_schema_s_columns():
    lent = Pool(SCHEMA, 10, idle=2).lend(7)
    assert {name: (array.shape, array.dtype) for name, array in lent.items()} == {
        "x": ((7, 4), np.float32),
        "y": ((7,), np.int64),
    }
    assert all(array.flags.carray and array.flags.writeable for array in lent.values())


def test_memory_returns_when_the_last_view_is_gone_and_not_before():
    pool = Pool(SCHEMA, 10, idle=2)
    lent = pool.lend(10)
    memory = memory_of(lent)
    view = torch.from_numpy(lent["x"][2:4])[1:].numpy()[0]
    del lent
    other = pool.lend(10)
    assert memory_of(other)["x"] != memory["x"]
    assert memory_of(other)["y"] == memory["y"]
    del view
    assert memory_of(pool.lend(10))["x"] == memory["x"]


def test_fewer_rows_are_lent_out_of_the_same_memory():
    pool = Pool(SCHEMA, 10, idle=2)
    memory = memory_of(pool.lend(10))
    lent = pool.lend(0)
    assert lent["x"].shape == (0, 4)
    assert memory_of(lent) == memory
    del lent
    assert memory_of(pool.lend(3)) == memory


def test_no_more_idle_memory_is_kept_than_was_asked_for():
    pool = Pool(SCHEMA, 10, idle=2)
    lent = [pool.lend(10) for _ in range(5)]
    addresses = {arrays["x"].ctypes.data for arrays in lent}
    lent.clear()
    again = [pool.lend(10) for _ in range(2)]
    assert {arrays["x"].ctypes.data for arrays in again} <= addresses
    assert all(len(idle) == 0 for *_, idle in pool._columns.values())


def test_a_pool_that_is_gone_leaves_what_it_lent_to_whoever_keeps_it():
    pool = Pool(SCHEMA, 10, idle=2)
    lent = pool.lend(10)
    lent["y"][:] = range(10)
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None
    assert lent["y"].tolist() == list(range(10))
