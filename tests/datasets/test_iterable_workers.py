"""IterableView in torch's DataLoader with worker processes."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from headrace import ArgumentError, NumpyDataset
from tests.datasets.parts import counting, numbers

# torch finds three workers too many for two cores
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")

N = 44


def epoch_of(epoch: int, samples: int = N) -> list[int]:
    view = counting(samples).to_iterable_dataset(batch_size=1, shuffle=True)
    view.set_epoch(epoch)
    return numbers(view)


@pytest.fixture(params=[False, True], ids=["fresh", "persistent"])
def persistent(request) -> bool:
    return request.param


def test_forked_workers_agree_on_epochs_follow_the_main_process_and_resume_exactly(persistent):
    view = counting(N).to_iterable_dataset(batch_size=5, shuffle=True)
    loader = DataLoader(view, batch_size=None, num_workers=3, persistent_workers=persistent)
    assert [numbers(loader), numbers(loader)] == [epoch_of(0), epoch_of(1)]

    batches = iter(loader)
    taken = numbers([next(batches) for _ in range(3)])
    saved = view.state_dict(3)
    assert (saved["epoch"], saved["position"]) == (2, 15)
    del batches

    assert numbers(loader) == epoch_of(3)
    view.set_epoch(7)
    assert numbers(loader) == epoch_of(7)
    view.load_state_dict(saved)
    view.set_epoch(2)
    assert taken + numbers(loader) == epoch_of(2)
    assert numbers(loader) == epoch_of(3)
    assert len(loader) == 9


def test_persistent_workers_take_the_order_of_a_loaded_state():
    saver = counting(N).to_iterable_dataset(batch_size=5, shuffle="global", seed=9)
    expected = numbers(saver)
    view = counting(N).to_iterable_dataset(batch_size=5)
    loader = DataLoader(view, batch_size=None, num_workers=2, persistent_workers=True)
    assert numbers(loader) == list(range(N))
    view.load_state_dict({**saver.state_dict(), "epoch": 0, "position": 20})
    assert numbers(loader) == expected[20:]


def test_single_samples_come_once_each_over_ranks_and_forked_workers():
    for epoch in range(2):
        got = []
        for rank in range(2):
            view = counting(N).to_iterable_dataset(shuffle=True, rank=rank, world_size=2)
            loader = DataLoader(view, batch_size=4, num_workers=2, persistent_workers=True)
            passes = [numbers(loader) for _ in range(epoch + 1)]
            got += passes[-1]
        assert sorted(got) == list(range(N))
        assert set(got[: N // 2]) == set(epoch_of(epoch)[0::2])


def test_a_pass_that_was_broken_off_at_once_and_its_iterator_kept_does_not_disturb_the_next():
    view = counting(N).to_iterable_dataset(batch_size=5, shuffle=True)
    loader = DataLoader(view, batch_size=None, num_workers=3)
    kept = [iter(loader)]
    next(kept[0])
    second = iter(loader)
    assert numbers(second) == epoch_of(1)
    assert view.state_dict(2)["epoch"] == 1
    assert numbers(kept[0]) == epoch_of(0)[5:]


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda view: pickle.loads(pickle.dumps(view))], ids=["copy", "pickle"]
)
def test_a_copy_is_a_run_of_its_own_whose_workers_agree_too(copied):
    view = counting(N).to_iterable_dataset(batch_size=5, shuffle=True)
    other = copied(view)
    loader = DataLoader(other, batch_size=None, num_workers=2)
    assert [numbers(loader), numbers(loader)] == [epoch_of(0), epoch_of(1)]
    assert view.state_dict()["epoch"] == 0
    assert numbers(view) == epoch_of(0)


def test_spawned_workers_agree_on_epochs_and_follow_the_main_process(persistent, tmp_path):
    np.save(tmp_path / "x.npy", np.arange(N))
    view = NumpyDataset({"x": tmp_path / "x.npy"}).to_iterable_dataset(batch_size=5, shuffle=True)
    options = {"num_workers": 2, "multiprocessing_context": "spawn", "persistent_workers": persistent}
    loader = DataLoader(view, batch_size=None, **options)
    assert numbers(loader) == epoch_of(0)
    saved = view.state_dict(4)
    assert (saved["epoch"], saved["position"]) == (0, 20)
    view.load_state_dict(saved)
    assert numbers(loader) == epoch_of(0)[20:]
    if persistent:
        assert numbers(loader) == epoch_of(1)


def test_fresh_workers_under_the_same_torch_seed_are_refused_instead_of_repeating_an_epoch():
    view = counting(12).to_iterable_dataset(batch_size=4, shuffle=True)
    passes = []
    for epoch in range(2):
        torch.manual_seed(0)
        view.set_epoch(epoch)  # which tells the passes apart
        passes.append(numbers(DataLoader(view, batch_size=None, num_workers=2)))
    assert passes == [epoch_of(0, 12), epoch_of(1, 12)]
    torch.manual_seed(0)
    with pytest.raises(ArgumentError, match="torch's seed was set to the same value before both"):
        numbers(DataLoader(view, batch_size=None, num_workers=2))
