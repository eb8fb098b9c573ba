"""Accelerate, in two processes: gradients flushed at an epoch's end, exact resume, and nothing split twice."""

import pytest

from tests.integrations.parts import SAMPLES, order, over_ranks

EPOCHS = [order(epoch) for epoch in range(3)]


def test_gradients_are_flushed_where_an_epoch_ends(seen):
    ranks = seen("accelerate", "accumulation")
    assert [rank["synchronised"] for rank in ranks] == [[[0, 3], [0, 5], [1, 3], [1, 5]]] * 2
    assert over_ranks(rank["trained"] for rank in ranks) == EPOCHS[0] + EPOCHS[1]
    assert ranks[0]["weight"] == ranks[1]["weight"]


@pytest.mark.parametrize("check", ["loader", "sampler", "batches"])
def test_what_is_registered_for_checkpointing_resumes_amid_an_epoch(seen, check):
    ranks = seen("accelerate", check)
    assert [len(rank["before"]) for rank in ranks] == [9, 9]
    assert over_ranks(rank["before"] + rank["after"] for rank in ranks) == EPOCHS[0] + EPOCHS[1] + EPOCHS[2]


def test_an_evaluation_whose_last_step_is_filled_up_gathers_each_sample_once(seen):
    assert seen("accelerate", "evaluation") == [[*range(21)]] * 2


def test_a_loader_of_another_rank_is_refused(seen):
    for rank, error in enumerate(seen("accelerate", "refused")):
        assert f"expected one that reads as rank {rank} of 2, as Accelerate trains here, got rank 0 of 1" in error


@pytest.mark.parametrize("check", ["sampler", "samples", "samples_in_shards"])
def test_what_splits_itself_is_refused_where_accelerate_would_split_it_again(seen, check):
    check = check.replace("_in_shards", "") + "_split_twice" + "_in_shards" * check.endswith("_in_shards")
    for error in seen("accelerate", check):
        assert "accelerator.prepare splits among its processes what is split over 2 ranks already" in error
        assert "headrace.integrations.accelerate.prepare(accelerator, ...)" in error


@pytest.mark.parametrize("check", ["sampler_split_once", "samples_split_once", "samples_split_once_in_shards"])
def test_what_does_not_split_itself_is_split_by_accelerate_alone(seen, check):
    epochs = over_ranks(seen("accelerate", check))
    assert [sorted(epochs[:SAMPLES]), sorted(epochs[SAMPLES:])] == [[*range(SAMPLES)]] * 2
    assert epochs == EPOCHS[0] + EPOCHS[1]


@pytest.mark.parametrize("check", ["whole", "whole_by_data_seed", "whole_by_set_seed"])
def test_what_torch_shuffles_comes_once_in_an_epoch_where_the_processes_have_a_seed_in_common(seen, check):
    epochs = over_ranks(seen("accelerate", check))
    assert [sorted(epochs[:SAMPLES]), sorted(epochs[SAMPLES:])] == [[*range(SAMPLES)]] * 2
    assert epochs[:SAMPLES] != epochs[SAMPLES:]
