"""Real ranks, started by torchrun: what they read together, and a training that doesn't depend on how many they are."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import epochs, mesh, training
from tests.distributed.launching import results_of_ranks
from tests.distributed.plain import plain_step, real, steps_left
from tests.loader.stand_ins import flat

Results = list[dict[str, Any]]


@pytest.fixture(scope="module")
def surroundings(root: Path) -> Mapping[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, surroundings: Mapping[str, str]) -> Results:
    return results_of_ranks(tmp_path_factory.mktemp("two"), "epochs", "training", ranks=2, environment=surroundings)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory, surroundings: Mapping[str, str]) -> Results:
    scenarios = ["epochs", "training", "mesh"]
    return results_of_ranks(tmp_path_factory.mktemp("four"), *scenarios, ranks=4, environment=surroundings)


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """What one process without any group gets of the training."""
    return training.run()


@pytest.fixture(params=["two", "four"])
def ranks(request: pytest.FixtureRequest) -> Results:
    return request.getfixturevalue(request.param)


class TestEpochs:
    @pytest.fixture(params=epochs.cases())
    def case(self, request: pytest.FixtureRequest) -> str:
        return request.param

    def test_all_ranks_take_equally_many_steps_and_each_sample_once(self, ranks, case):
        _, samples, size, rule = epochs.cases()[case]
        global_size = size.get("global_batch_size") or epochs.BATCH * len(ranks)
        count = steps_left(samples, 0, size=global_size, rule=rule)
        for epoch in range(epochs.EPOCHS):
            of_ranks = [rank["epochs"]["cases"][case][epoch] for rank in ranks]
            assert [len(steps) for steps in of_ranks] == [count] * len(ranks)
            read = [real(step) for steps in of_ranks for step in steps]
            assert len(flat(read)) == len(set(flat(read))), "no sample comes twice, on one rank or on two"
            dropped = set(range(samples)) - set(flat(read))
            assert len(dropped) == (samples % global_size if rule == "drop_last" else 0)
            for steps in zip(*of_ranks, strict=True):
                shares = [len(ids) for ids, _ in steps]
                assert max(shares) - min(shares) <= 1
                assert min(shares) > 0
                assert sum(shares) == global_size or (steps[0] is of_ranks[0][-1] and rule == "")

    def test_every_step_of_every_rank_is_that_of_the_plain_list(self, ranks, case):
        _, samples, size, rule = epochs.cases()[case]
        global_size = size.get("global_batch_size") or epochs.BATCH * len(ranks)
        for epoch in range(epochs.EPOCHS):
            of_ranks = [rank["epochs"]["cases"][case][epoch] for rank in ranks]
            for number, shares in enumerate(zip(*of_ranks, strict=True)):
                position = number * global_size
                expected = plain_step(samples, epoch, position, size=global_size, ranks=len(ranks), rule=rule)
                assert [tuple(share) for share in shares] == expected

    def test_too_few_samples_for_all_ranks_in_the_last_step_are_refused_on_all_of_them_alike(self, ranks):
        texts = {rank["epochs"]["refused"] for rank in ranks}
        assert len(texts) == 1
        assert f"the last step would hold 1 samples for {len(ranks)} ranks" in texts.pop()


class TestTraining:
    """The bounds are ten times what the order of the sums changed in float32, 2e-7 of a loss and 1e-7 of a weight."""

    @pytest.mark.parametrize("case", training.SAMPLES)
    def test_any_number_of_ranks_trains_on_the_same_samples_to_the_same_losses_and_weights(self, ranks, alone, case):
        expected, trained = alone[case], [rank["training"][case] for rank in ranks]
        for step, ids in enumerate(expected["ids"]):
            assert flat(rank["ids"][step] for rank in trained) == ids
        for rank in trained:
            assert rank["losses"] == pytest.approx(expected["losses"], rel=2e-6)
            assert rank["weights"] == pytest.approx(expected["weights"], abs=2e-6)
            assert rank["weights"] == trained[0]["weights"]

    @pytest.mark.parametrize("case", training.SAMPLES)
    def test_it_learns(self, alone, case):
        losses = torch.tensor(alone[case]["losses"])
        assert losses[-8:].mean() < 0.7 * losses[:8].mean()


class TestAMesh:
    def test_ranks_of_one_data_parallel_coordinate_read_the_same_and_all_coordinates_everything(self, four):
        of_dp: dict[int, list[Any]] = {0: [], 1: []}
        for rank in four:
            of_dp[rank["mesh"]["coordinate"][0]].append(rank["mesh"]["steps"])
        first, second = of_dp[0], of_dp[1]
        assert first[0] == first[1]
        assert second[0] == second[1]
        for way, both_epochs in first[0].items():
            assert both_epochs == first[0]["group"], way
            for one, other in zip(both_epochs, second[0][way], strict=True):
                assert len(one) == len(other)
                assert sorted(flat(one) + flat(other)) == list(range(mesh.SAMPLES))

    def test_a_rank_that_is_not_in_the_group_is_refused(self, four):
        *_, outside, last = (rank["mesh"]["three"] for rank in four)
        members = [four[0]["mesh"]["three"], four[1]["mesh"]["three"], last]
        assert sorted(flat(flat(members))) == list(range(mesh.SAMPLES))
        assert outside.startswith("process_group: expected a group that this process belongs to, got one without it: ")
        assert "rank 2 of 4 is no member" in outside
