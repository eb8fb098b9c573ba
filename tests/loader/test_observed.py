"""What a real loader tells of itself, against counts and clocks of the test's own."""

import os
from typing import Any

import pytest
import torch

import headrace as hr
from headrace.errors import StalePassError
from tests.loader.stand_ins import delivered, flat, ids_of, numbers

WORKERS = pytest.mark.parametrize("num_workers", [0, 2])


def loader_of(num_workers: int = 0, **options: Any) -> hr.DataLoader:
    return hr.DataLoader(numbers(20), batch_size=5, num_workers=num_workers, **options)


# -- on_stats ---------------------------------------------------------------------------------------------------------


@WORKERS
@pytest.mark.parametrize("at", [2, 4])
def test_when_on_stats_fails_the_pass_ends_and_its_batch_comes_again_after_a_resume(num_workers, at):
    def fail(stats):
        if stats.batches == at:
            raise RuntimeError("no connection")

    loader = loader_of(num_workers, on_stats=fail, stats_seconds=1e-9)
    passing, seen = iter(loader), []
    with pytest.raises(RuntimeError, match="no connection"):
        seen.extend(ids_of(batch) for batch in passing)
    for _ in range(2):
        with pytest.raises(StalePassError, match=r"was ended by RuntimeError; to go on"):
            next(passing)
    loader.load_state_dict(loader.state_dict())
    assert flat(seen) + flat(delivered(loader)) == list(range(20))


def test_on_stats_can_not_end_the_loop_unnoticed():
    loader = loader_of(on_stats=lambda stats: next(iter(())), stats_seconds=1e-9)
    with pytest.raises(RuntimeError, match="on_stats raised StopIteration"):
        list(loader)


@WORKERS
def test_what_on_stats_sees_is_before_its_batch_is_delivered_and_it_may_ask_for_anything(num_workers):
    seen = []

    def ask(stats):
        loader.report()
        seen.append((stats.batches, loader.stats().batches, loader.position))

    loader = loader_of(num_workers, on_stats=ask, stats_seconds=1e-9)
    assert flat(delivered(loader)) == list(range(20))
    assert seen == [(2, 2, 5), (3, 3, 10), (4, 4, 15)]


def test_an_on_stats_that_moves_the_run_ends_the_pass():
    loader = loader_of(on_stats=lambda stats: loader.seek(epoch=5, step=1), stats_seconds=1e-9)
    passing = iter(loader)
    next(passing)
    with pytest.raises(StalePassError, match=r"ended by seek\(epoch=5, step=1\)"):
        next(passing)
    assert (loader.epoch, loader.position) == (5, 5)


# -- worker processes -------------------------------------------------------------------------------------------------


class Images(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        return {"image": torch.full((256, 256), index, dtype=torch.float32), "label": os.getpid()}


def test_what_worker_processes_do_and_what_travels_is_counted():
    loader = hr.DataLoader(Images(), batch_size=4, num_workers=2, persistent_workers=True)
    batches = list(loader)
    nbytes = sum(batch["image"].nbytes + batch["label"].nbytes for batch in batches)
    stats = loader.stats()
    assert (stats.samples, stats.batches, stats.bytes_read) == (40, 10, nbytes)
    copied = stats.busy_seconds["copy"]
    assert copied > 0
    assert 0 < stats.remote_seconds < stats.busy_seconds["user"] + copied
    assert stats.busy_seconds["read"] == stats.busy_seconds["decode"] == 0
    loader.close()
    for pid in {pid for batch in batches for pid in batch["label"].tolist()}:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


# -- counts -----------------------------------------------------------------------------------------------------------


@WORKERS
@pytest.mark.parametrize("last", [{}, {"drop_last": True}, {"pad_last": True}], ids=str)
@pytest.mark.parametrize("rank", range(3))
def test_samples_batches_and_bytes_are_those_that_were_delivered(num_workers, last, rank):
    loader = hr.DataLoader(
        numbers(104), global_batch_size=20, num_workers=num_workers, rank=rank, world_size=3, shuffle=True, **last
    )
    batches = [batch for _ in range(2) for batch in loader]
    next(iter(loader))  # left after its first batch
    batches.append(batches[0])
    stats = loader.stats()
    assert (stats.passes, stats.epoch, stats.batches) == (3, 2, len(batches))
    assert stats.samples == sum(len(batch["x"]) for batch in batches)
    assert stats.bytes_read == sum(column.nbytes for batch in batches for column in batch.values())


@WORKERS
def test_bytes_of_samples_that_were_skipped_do_not_count(num_workers):
    loader = hr.DataLoader(numbers(20, bad=[3, 7, 8]), batch_size=5, num_workers=num_workers, on_error="skip")
    assert sum(map(len, delivered(loader))) == 17
    stats = loader.stats()
    assert (stats.samples, stats.skipped, stats.bytes_read) == (20, 3, 17 * 8)
