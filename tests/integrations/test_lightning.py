"""Lightning, in two processes: fit, limits, exact resume wherever a checkpoint was saved, nothing split twice."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integrations.parts import BATCH, RANKS, SAMPLES, STEPS, order, over_ranks

EPOCHS = {epoch: order(epoch) for epoch in range(3)}


def trained(seen, when="trained", epoch=None):
    """The samples of both ranks, step by step, in the epochs of Lightning's that are asked for."""
    return over_ranks([ids for at, ids in rank[when] if epoch is None or at == epoch] for rank in seen)


@pytest.fixture
def launched(tmp_path, quiet_environment):
    """What both ranks saw of a script that Lightning has started once more for the second one, on a port it chose."""
    script = Path(__file__).with_name("with_lightning.py")
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(script), str(tmp_path)],
            env=quiet_environment,
            cwd=tmp_path,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            process.wait(180)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # both ranks
            process.wait()
            raise
    assert process.returncode == 0, log.read_text()[-4000:]
    return [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(RANKS)]


def test_each_epoch_trains_on_every_sample_once_over_two_ranks(seen):
    ranks = seen("lightning", "fit")
    assert [sorted(trained(ranks, epoch=epoch)) for epoch in range(2)] == [[*range(SAMPLES)]] * 2
    assert trained(ranks, epoch=0) != trained(ranks, epoch=1)


def test_each_epoch_validates_on_every_sample_once_over_two_ranks_whatever_the_sanity_check_has_read(seen):
    assert over_ranks(rank["validated"] for rank in seen("lightning", "fit")) == [*range(SAMPLES)] * 2


def test_where_batches_are_limited_each_epoch_begins_the_next_epoch_of_the_data(seen):
    ranks, taken = seen("lightning", "limits"), 2 * BATCH * RANKS
    assert [trained(ranks, epoch=epoch) for epoch in range(3)] == [EPOCHS[epoch][:taken] for epoch in range(3)]
    assert [rank["validated"] for rank in ranks] == [[[*range(6)]] * 3, [[*range(6, 12)]] * 3]


def test_an_order_sampler_in_torchs_loader_is_not_replaced(seen):
    ranks = seen("lightning", "sampler")
    assert [rank["is_ours"] for rank in ranks] == [True, True]
    assert [trained(ranks, epoch=epoch) for epoch in range(2)] == [EPOCHS[0], EPOCHS[1]]


@pytest.mark.parametrize("check", ["amid", "last", "end", "tracked", "by_itself"])
def test_training_resumes_with_just_the_samples_that_are_left(seen, check):
    ranks = seen("lightning", check)
    assert trained(ranks, "before") + trained(ranks, "after") == EPOCHS[0] + EPOCHS[1] + EPOCHS[2]
    assert [rank["warnings"] for rank in ranks] == [[], []]


@pytest.mark.parametrize("steps", [6, 9, 12])
def test_a_checkpoint_of_a_training_that_max_steps_has_ended_goes_on_amid_the_epoch_of_the_data(seen, steps):
    ranks = seen("lightning", f"stopped_{steps}")
    assert [len(rank["before"]) for rank in ranks] == [steps] * RANKS
    assert trained(ranks, "before") + trained(ranks, "after") == EPOCHS[0] + EPOCHS[1] + EPOCHS[2]


@pytest.mark.parametrize("call", [1, 6, 7, 9])
def test_a_checkpoint_that_is_saved_amid_a_step_as_on_an_exception_resumes_with_that_steps_samples(seen, call):
    ranks = seen("lightning", f"begun_{call}")
    assert [len(rank["before"]) for rank in ranks] == [call - 1] * RANKS
    assert trained(ranks, "before") + trained(ranks, "after") == EPOCHS[0] + EPOCHS[1] + EPOCHS[2]
    assert [[epoch for epoch, _ in rank["before"] + rank["after"]] for rank in ranks] == [
        [step // STEPS for step in range(3 * STEPS)]
    ] * RANKS


def test_a_checkpoint_that_is_saved_amid_the_first_step_after_a_limited_epoch_resumes_with_its_samples(seen):
    ranks, taken = seen("lightning", "limited_begun"), 4 * BATCH * RANKS
    assert trained(ranks, "before") == EPOCHS[0][:taken]
    assert [trained(ranks, "after", epoch) for epoch in range(3)] == [[], EPOCHS[1][:taken], EPOCHS[2][:taken]]


@pytest.mark.parametrize("check", ["limited", "limited_end"])
def test_a_checkpoint_where_a_limited_epoch_ends_resumes_as_training_would_have_gone_on(seen, check):
    ranks, taken = seen("lightning", check), 4 * BATCH * RANKS
    assert trained(ranks, "before") == EPOCHS[0][:taken]
    assert [trained(ranks, "after", epoch) for epoch in range(3)] == [[], EPOCHS[1][:taken], EPOCHS[2][:taken]]


@pytest.mark.parametrize(("check", "steps"), [("smaller", 6 + 2 * 12), ("larger", 2 + 2 * 3)])
def test_training_resumes_with_batches_of_another_size_and_still_ends_the_epoch(seen, check, steps):
    ranks, taken = seen("lightning", check), 3 * BATCH * RANKS
    assert trained(ranks, "before") == EPOCHS[0][:taken]
    assert sorted(trained(ranks, "after", 0)) == sorted(EPOCHS[0][taken:])
    assert [sorted(trained(ranks, "after", epoch)) for epoch in (1, 2)] == [[*range(SAMPLES)]] * 2
    assert [len(rank["after"]) for rank in ranks] == [steps] * RANKS


def test_a_loader_that_takes_itself_for_the_only_one_is_refused(seen):
    text = "the loader reads as rank 0 of 1, but Lightning's strategy trains here as rank {} of 2"
    for rank, error in enumerate(seen("lightning", "refused")):
        assert text.format(rank) in error


def test_the_callback_is_one_of_lightnings_and_goes_to_spawned_processes(seen):
    assert seen("lightning", "pickled") == [{"is_callback": True, "is_ours": True, "key": "headrace.first"}] * RANKS


def test_a_script_that_lightning_starts_for_each_rank_trains_on_every_sample_once_and_resumes_amid_an_epoch(launched):
    first = trained(launched, "before", 0)
    assert sorted(first) == [*range(SAMPLES)]
    assert len(first) == len(trained(launched, "before")) - 3 * BATCH * RANKS
    assert trained(launched, "before") + trained(launched, "after") == EPOCHS[0] + EPOCHS[1] + EPOCHS[2]
