"""`worker_type="process"`: what users get from worker processes, compared with what the caller's thread gives."""

import gc
import logging
import os
import random
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, get_worker_info

import headrace as hr
from headrace.errors import ArgumentError, LoaderError, SampleError

PROCESSES = {"num_workers": 2, "worker_type": "process"}


def children() -> set[int]:
    """This process's children that live, but for those that were there before."""
    path = Path(f"/proc/self/task/{os.getpid()}/children")
    return {int(child) for child in path.read_text().split()} - others


others: set[int] = set()


@pytest.fixture(autouse=True)
def _others_don_t_count() -> None:
    others.clear()
    others.update(children())


def rows(samples: int = 60) -> hr.ArrayDataset:
    return hr.ArrayDataset({"x": np.arange(samples * 4, dtype=np.float32).reshape(samples, 4), "id": range(samples)})


class Drawing(Dataset[Any]):
    """A foreign dataset that draws from every generator of the process, and says who read it."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Any:
        worker = get_worker_info()
        return {
            "id": index,
            "drawn": (random.random(), float(np.random.rand()), float(torch.rand(()))),  # noqa: NPY002
            "pid": os.getpid(),
            "worker": -1 if worker is None else worker.id,
        }


def augment(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    return {**sample, "noise": rng.random(), "pid": os.getpid()}


def noisy(sample: dict[str, Any]) -> dict[str, Any]:
    return {**sample, "noise": torch.rand(3) + random.random()}


def values(loader: hr.DataLoader, *names: str) -> list[Any]:
    return [{name: str(batch[name]) for name in names} for batch in loader]


def test_a_foreign_dataset_is_read_by_processes_by_default_and_draws_the_same_whatever_their_number():
    before = random.getstate(), torch.get_rng_state()
    options: dict[str, Any] = {"batch_size": 5, "shuffle": True, "seed": 3}
    loader = hr.DataLoader(Drawing(), num_workers=2, persistent_workers=True, **options)
    batches = list(loader)
    pids = set(torch.cat([batch["pid"] for batch in batches]).tolist())
    assert os.getpid() not in pids
    assert len(pids) == 2
    assert set(torch.cat([batch["worker"] for batch in batches]).tolist()) == {0, 1}
    assert pids <= children()

    # the next epoch comes from the same processes, and draws other numbers
    again = list(loader)
    assert set(torch.cat([batch["pid"] for batch in again]).tolist()) == pids
    assert values(batches, "drawn") != values(again, "drawn")
    assert sorted(torch.cat([batch["id"] for batch in again]).tolist()) == list(range(24))

    alone = hr.DataLoader(Drawing(), seed_samples=True, **options)
    assert values(alone, "id", "drawn") == values(batches, "id", "drawn")
    assert values(alone, "id", "drawn") == values(again, "id", "drawn")
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])

    stats = loader.stats()
    assert (stats.samples, stats.worker_type, stats.num_workers) == (48, "process", 2)
    assert stats.remote_seconds > 0
    assert stats.busy_seconds["user"] > 0
    loader.report()

    del loader, batches, again
    gc.collect()
    assert not pids & children()


def test_headrace_s_own_reading_stays_here_and_the_user_s_functions_run_elsewhere_with_the_same_results():
    options: dict[str, Any] = {"batch_size": 7, "shuffle": True, "seed": 5, "transform": augment}
    here = list(hr.DataLoader(rows(), **options))
    there = list(hr.DataLoader(rows(), **options, **PROCESSES))
    for ours, theirs in zip(here, there, strict=True):
        assert torch.equal(ours["x"], theirs["x"])
        assert torch.equal(ours["noise"], theirs["noise"])
    assert os.getpid() not in torch.cat([batch["pid"] for batch in there]).tolist()
    kept = [batch["x"].clone() for batch in there]
    assert all(torch.equal(batch["x"], copy) for batch, copy in zip(there, kept, strict=True))
    assert children() == set()


def test_functions_made_on_the_spot_work_and_whole_batches_go_there_and_back():
    offset = 5.0
    loader = hr.DataLoader(
        rows(),
        batch_size=16,
        batch_transform=lambda batch: {"y": batch["x"] + offset, "id": batch["id"]},
        pad_last=True,
        **PROCESSES,
    )
    seen = list(loader)
    assert all("x" not in batch for batch in seen)
    assert torch.equal(torch.cat([batch["y"] for batch in seen])[:60], torch.arange(240.0).view(60, 4) + 5)


def test_a_collate_fn_may_ask_which_worker_it_runs_in():
    loader = hr.DataLoader(rows(), batch_size=10, collate_fn=lambda samples: get_worker_info().id, **PROCESSES)
    assert set(loader) == {0, 1}


def test_generators_are_seeded_for_transforms_too_and_a_resume_goes_on_with_the_same_numbers():
    options: dict[str, Any] = {"batch_size": 4, "shuffle": True, "transform": noisy}
    alone = values(hr.DataLoader(rows(40), seed_samples=True, **options), "id", "noise")
    loader = hr.DataLoader(rows(40), **options, **PROCESSES)
    passing = iter(loader)
    first = [next(passing) for _ in range(3)]
    resumed = hr.DataLoader(rows(40), **options, **PROCESSES)
    resumed.load_state_dict(loader.state_dict())
    assert values([*first, *resumed], "id", "noise") == alone


def test_a_transform_that_takes_an_rng_may_draw_from_the_process_s_generators_as_well():
    def both(sample: dict[str, Any], rng: np.random.Generator) -> float:
        return rng.random() + random.random()

    loaders = [hr.DataLoader(rows(8), batch_size=4, transform=both, seed_samples=True) for _ in range(2)]
    first = [batch.tolist() for batch in loaders[0]]
    random.random()
    assert [batch.tolist() for batch in loaders[1]] == first


def test_bad_samples_are_counted_here_wherever_they_failed(caplog):
    def picky(sample: dict[str, Any]) -> dict[str, Any]:
        if int(sample["id"]) % 20 == 3:
            raise ValueError("not this one")
        return sample

    options: dict[str, Any] = {"batch_size": 10, "transform": picky, "on_error": "skip", **PROCESSES}
    loader = hr.DataLoader(rows(), **options)
    with caplog.at_level(logging.WARNING, "headrace"):
        assert [len(batch["id"]) for batch in loader] == [9, 10, 9, 10, 9, 10]
    assert loader.skipped == 3
    assert "skipped sample 23 (" in caplog.text
    assert "ValueError: not this one" in caplog.text
    stricter = hr.DataLoader(rows(), max_errors=2, **options)
    with pytest.raises(SampleError, match="3 samples could not be read or transformed, more than max_errors=2"):
        list(stricter)
    assert stricter.position == 40  # the batch with one sample too many is not delivered


def test_an_error_in_the_user_s_code_comes_at_its_place_with_its_type_and_sample_and_ends_the_processes():
    class UnluckyError(KeyError):
        pass

    def fails(sample: dict[str, Any]) -> dict[str, Any]:
        if int(sample["id"]) == 33:
            raise UnluckyError("no such luck")
        return sample

    loader = hr.DataLoader(rows(), batch_size=10, transform=fails, **PROCESSES)
    seen: list[Any] = []
    with pytest.raises(UnluckyError, match="no such luck") as caught:
        seen.extend(loader)
    assert len(seen) == 3
    assert loader.position == 30
    notes = "\n".join(caught.value.__notes__)
    assert "in transform of sample 33" in notes
    assert "in fails" in notes  # the traceback, as it was there
    assert children() == set()


def test_a_process_that_dies_is_an_error_and_a_new_pass_goes_on_where_the_last_batch_was(tmp_path):
    class Dies(Drawing):
        def __getitem__(self, index: int) -> Any:
            if index == 13 and not (tmp_path / "has died").exists():
                (tmp_path / "has died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return index

    loader = hr.DataLoader(Dies(), batch_size=4, persistent_workers=True, num_workers=2)
    seen: list[Any] = []
    with pytest.raises(LoaderError, match=r"SIGKILL\) while it worked on samples 12, 13, 14, 15 of epoch 0\n"):
        seen.extend(loader)
    assert [batch.tolist() for batch in seen] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert children() == set()
    loader.load_state_dict(loader.state_dict())
    seen.extend(loader)
    assert torch.cat(seen).tolist() == list(range(24))


def test_what_cannot_go_to_a_process_is_refused_by_its_name_before_anything_starts():
    lock = threading.Lock()
    loader = hr.DataLoader(rows(), batch_size=4, transform=lambda sample: (lock, sample), **PROCESSES)
    with pytest.raises(
        ArgumentError, match=r"^transform: expected something that can be pickled .*worker_type=\"thread\""
    ):
        next(iter(loader))
    assert children() == set()
