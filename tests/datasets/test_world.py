"""Which rank this process is."""

import pickle
import subprocess
import sys

import pytest
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from headrace import ArgumentError, ArrayDataset, DataLoader, OrderSampler, TarDataset
from headrace.datasets.world import resolve_world
from tests.datasets.parts import counting, numbers
from tests.formats.tar_files import write_tar


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


class TestAProcessGroup:
    """Of rank 2 of 4, as torch makes groups where no other process is asked (its "fake" backend)."""

    @pytest.fixture(autouse=True)
    def _rank_2_of_4(self):
        dist.init_process_group("fake", store=FakeStore(), rank=2, world_size=4)
        yield
        if dist.is_initialized():
            dist.destroy_process_group()

    @pytest.fixture
    def mesh(self):
        return init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))

    def test_it_says_the_rank_in_it_and_its_size(self, mesh):
        assert resolve_world() == (2, 4)
        assert resolve_world(process_group=dist.group.WORLD) == (2, 4)
        assert resolve_world(process_group=dist.new_group([1, 2, 3])) == (1, 3)
        assert resolve_world(process_group=mesh.get_group("dp")) == (1, 2)
        assert resolve_world(process_group=mesh.get_group("tp")) == (0, 2)

    def test_it_may_be_one_dimension_of_a_mesh(self, mesh):
        assert resolve_world(process_group=mesh["dp"]) == (1, 2)
        assert resolve_world(process_group=mesh._flatten()) == (2, 4)
        with pytest.raises(ArgumentError) as caught:
            resolve_world(process_group=mesh)
        assert str(caught.value) == (
            "process_group: expected a DeviceMesh of one dimension, got one of 2, named ('dp', 'tp')\n"
            '  give the dimension whose ranks read different data, as mesh["dp"], or its group, mesh.get_group("dp")'
        )

    def test_every_face_reads_its_ranks_share(self, mesh, tmp_path):
        data, group = ArrayDataset({"x": range(8)}), mesh.get_group("dp")
        options = {"batch_size": 2, "process_group": group}
        assert numbers(DataLoader(data, **options)) == [2, 3, 6, 7]
        assert numbers(data.to_iterable_dataset(**options)) == [2, 3, 6, 7]
        assert list(OrderSampler(data, shuffle=False, **options)) == [2, 3, 6, 7]
        shard = write_tar(tmp_path / "x.tar", [(f"{i}.cls", b"%d" % i) for i in range(8)])
        tars = TarDataset(shard, **options)
        assert [x for batch in tars for x in batch["cls"].tolist()] == [2, 3, 6, 7]

    def test_it_does_not_travel_to_worker_processes_only_what_it_said(self, mesh):
        view = counting(8).to_iterable_dataset(batch_size=2, process_group=mesh.get_group("dp"))
        assert numbers(pickle.loads(pickle.dumps(view))) == [2, 3, 6, 7]

    def test_one_without_this_process_is_refused(self):
        text = (
            "process_group: expected a group that this process belongs to, got one without it: rank 2 of 4 is no "
            "member\n  read its data on its members alone, or give every process a group of its own (init_device_mesh)"
        )
        for without in (dist.new_group([0, 1]), DeviceMesh("cpu", [0, 3], mesh_dim_names=("dp",))):
            with pytest.raises(ArgumentError) as caught:
                resolve_world(process_group=without)
            assert str(caught.value) == text

    @pytest.mark.parametrize("ranks", [{"rank": 0}, {"world_size": 2}, {"rank": 0, "world_size": 2}])
    def test_it_does_not_go_together_with_ranks(self, ranks):
        with pytest.raises(ArgumentError, match=r"^process_group: expected it, or rank and world_size, got it with"):
            resolve_world(**ranks, process_group=dist.group.WORLD)

    def test_something_else_is_refused(self):
        for wrong, name in (("dp", "str"), (2, "int"), ([0, 1], "list")):
            with pytest.raises(ArgumentError, match=rf"ProcessGroup or a DeviceMesh of one dimension, got {name}$"):
                resolve_world(process_group=wrong)

    def test_one_that_was_destroyed_is_refused(self):
        group = dist.new_group([1, 2])
        dist.destroy_process_group()
        with pytest.raises(ArgumentError, match=r"torch\.distributed, which is not initialized\n  call torch"):
            resolve_world(process_group=group)
        dist.init_process_group("fake", store=FakeStore(), rank=2, world_size=4)
        with pytest.raises(ArgumentError, match="expected a group that exists, got one that was destroyed\n"):
            resolve_world(process_group=group)


@pytest.mark.parametrize(
    "face",
    [
        lambda dataset, **world: DataLoader(dataset, batch_size=2, **world),
        lambda dataset, **world: OrderSampler(dataset, batch_size=2, **world),
        lambda dataset, **world: dataset.to_iterable_dataset(batch_size=2, **world),
    ],
    ids=["DataLoader", "OrderSampler", "IterableDataset"],
)
def test_a_rank_that_was_taken_before_the_process_group_was_made_is_refused_when_a_pass_begins(face):
    dataset = ArrayDataset({"x": range(40)})
    taken, given = face(dataset), face(dataset, rank=0, world_size=1)
    next(iter(taken))
    dist.init_process_group("fake", store=FakeStore(), rank=2, world_size=4)
    try:
        with pytest.raises(ArgumentError, match="rank 2 of 4, got rank 0 of 1, which was taken by default before"):
            next(iter(taken))
        assert len(list(given)) == len(list(face(dataset, rank=0, world_size=1)))
        next(iter(face(dataset)))
    finally:
        dist.destroy_process_group()
