"""Which rank this process is."""

import subprocess
import sys

import pytest

from headrace import ArgumentError, ArrayDataset, DataLoader, OrderSampler
from headrace.datasets.world import resolve_world


@pytest.fixture(autouse=True)
def _no_torchrun(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def test_alone_it_is_rank_0_of_1():
    assert resolve_world() == (0, 1)


def test_explicit_values_come_first(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert resolve_world(3, 5) == (3, 5)


def test_torchruns_environment_counts_before_there_is_a_process_group(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert resolve_world() == (1, 4)
    dataset = ArrayDataset({"x": range(16)})
    assert [batch["x"].tolist() for batch in DataLoader(dataset, batch_size=4)] == [[4, 5, 6, 7]]
    assert list(OrderSampler(dataset, batch_size=4, shuffle=False)) == [4, 5, 6, 7]
    assert [batch["x"].tolist() for batch in dataset.to_iterable_dataset(batch_size=4)] == [[4, 5, 6, 7]]


@pytest.mark.parametrize("only", ["RANK", "WORLD_SIZE"])
def test_half_of_torchruns_environment_is_none(monkeypatch, only):
    monkeypatch.setenv(only, "1")
    assert resolve_world() == (0, 1)


@pytest.mark.parametrize(("rank", "world_size"), [("one", "2"), ("", "2"), ("0", "two"), ("1.0", "2")])
def test_garbage_in_the_environment_is_refused_and_shown(monkeypatch, rank, world_size):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world_size)
    with pytest.raises(ArgumentError) as caught:
        resolve_world()
    assert str(caught.value) == (
        f"expected whole numbers in the environment, got RANK={rank!r} and WORLD_SIZE={world_size!r}; "
        "give rank= and world_size="
    )


@pytest.mark.parametrize(("rank", "world_size"), [(2, 2), (-1, 2), (0, 0), (0, -1)])
def test_values_that_do_not_fit_each_other_are_refused_wherever_they_come_from(monkeypatch, rank, world_size):
    text = rf"rank: expected 0 <= rank < world_size, got rank={rank}, world_size={world_size}"
    with pytest.raises(ArgumentError, match=text):
        resolve_world(rank, world_size)
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    with pytest.raises(ArgumentError, match=text):
        resolve_world()


@pytest.mark.parametrize(("rank", "world_size"), [(0, None), (None, 2)])
def test_one_without_the_other_is_refused(rank, world_size):
    with pytest.raises(ArgumentError, match=rf"expected both or neither, got rank={rank}, world_size={world_size}"):
        resolve_world(rank, world_size)


IN_A_GROUP = """
import sys, torch.distributed as dist
from headrace import ArrayDataset, DataLoader
rank = int(sys.argv[1])
dist.init_process_group("gloo", store=dist.FileStore(sys.argv[2], 2), rank=rank, world_size=2)
print([x for batch in DataLoader(ArrayDataset({"x": range(8)}), batch_size=2) for x in batch["x"].tolist()])
dist.destroy_process_group()
"""


def test_ranks_of_a_process_group_read_what_is_theirs_whatever_the_environment_says(tmp_path, environment):
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", IN_A_GROUP, str(rank), str(tmp_path / "store")],
            env={**environment, "RANK": "7", "WORLD_SIZE": "9"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    assert [rank.communicate()[0].strip() for rank in ranks] == ["[0, 1, 4, 5]", "[2, 3, 6, 7]"]
    assert [rank.returncode for rank in ranks] == [0, 0]
