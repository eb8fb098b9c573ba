"""transformers' Trainer, in two processes: on our loader with exact resume, and on its own over our datasets."""

import pytest

from tests.integrations.parts import BATCH, RANKS, SAMPLES, order, over_ranks

EPOCHS = order(0) + order(1) + order(2)


@pytest.mark.parametrize(("check", "step", "batches"), [("loader", 6, 6), ("loader", 8, 8), ("accumulated", 3, 10)])
def test_the_trainer_resumes_on_our_loader_with_just_the_samples_that_are_left(seen, check, step, batches):
    ranks = seen("transformers", check)
    assert over_ranks(rank["whole"] for rank in ranks) == EPOCHS
    assert over_ranks(rank["after"][str(step)] for rank in ranks) == EPOCHS[batches * BATCH * RANKS :]


def test_its_own_loader_reads_every_sample_of_a_dataset_once_an_epoch_and_resumes(seen):
    ranks = seen("transformers", "mapped")
    whole = over_ranks(rank["whole"] for rank in ranks)
    epochs = [sorted(whole[start : start + SAMPLES]) for start in range(0, 3 * SAMPLES, SAMPLES)]
    assert epochs == [[*range(SAMPLES)]] * 3
    assert over_ranks(rank["after"]["8"] for rank in ranks) == whole[8 * BATCH * RANKS :]


def test_its_own_loader_reads_every_sample_of_a_stream_once_an_epoch_where_the_stream_is_not_split(seen):
    ranks = seen("transformers", "streamed")
    assert over_ranks(rank["whole"] for rank in ranks) == EPOCHS[: 2 * SAMPLES]
    assert over_ranks(rank["after"]["4"] for rank in ranks) == EPOCHS[4 * BATCH * RANKS : 2 * SAMPLES]


def test_a_stream_that_splits_itself_is_refused_by_its_own_loader(seen):
    for error in seen("transformers", "split_twice"):
        assert error.startswith("ArgumentError: accelerator.prepare splits among its processes")
        assert "give it rank=0, world_size=1" in error


def test_steps_of_another_size_are_refused_with_both_places(seen):
    for error in seen("transformers", "other_steps"):
        assert error.startswith("ResumeError: cannot resume: the Trainer and the data don't stand at the same place")
        assert "data:    epoch 1, after 1 of 3 batches" in error
        assert "Trainer: epoch 2, after 2 batches (step 8)" in error


def test_a_checkpoint_without_a_state_of_the_loader_is_refused(seen):
    for error in seen("transformers", "no_state"):
        assert "ResumeError: cannot resume: the checkpoint holds no state of the loader" in error
