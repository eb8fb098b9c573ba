"""Our map-style datasets in torch's own DataLoader, with no other argument."""

import functools

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset, random_split
from torch.utils.data._utils import collate as torch_collate

import headrace as hr
from headrace import ArrayDataset, NumpyDataset
from tests.datasets.parts import PerRow, Tenfold, columns, counting, identity, numbers, same, watched

N = 50
NAMED = columns(N)
FEW = {"x": np.arange(2 * N, dtype=np.float32).reshape(N, 2), "y": np.arange(N)}


def shuffled(dataset, **options):
    """All batches of torch's DataLoader in an order that a seed decides."""
    options = {"batch_size": 8, "shuffle": True, "generator": torch.Generator().manual_seed(0), **options}
    return list(DataLoader(dataset, **options))


class TestInThisProcess:
    @pytest.mark.parametrize("as_tuple", [False, True])
    @pytest.mark.parametrize("drop_last", [False, True])
    def test_batches_are_exactly_those_of_a_dataset_written_by_hand(self, as_tuple, drop_last):
        ours = shuffled(ArrayDataset(NAMED, as_tuple=as_tuple), drop_last=drop_last)
        theirs = shuffled(PerRow(NAMED, as_tuple=as_tuple), drop_last=drop_last)
        assert same(ours, theirs)

    def test_batches_are_exactly_those_of_a_tensor_dataset(self):
        tensors = [torch.randn(N, 3), torch.randint(0, 9, (N,)), torch.randn(N).bfloat16()]
        assert same(shuffled(ArrayDataset(*tensors)), shuffled(TensorDataset(*tensors)))

    def test_batches_of_a_numpy_dataset_are_the_same_too(self, tmp_path):
        for name, values in FEW.items():
            np.save(tmp_path / f"{name}.npy", values)
        dataset = NumpyDataset({name: tmp_path / f"{name}.npy" for name in FEW})
        assert same(shuffled(dataset), shuffled(PerRow(FEW)))

    def test_each_batch_is_one_read_of_its_ids(self):
        dataset = ArrayDataset(FEW)
        source = watched(dataset)
        batches = shuffled(dataset)
        assert source.reads == [batch["y"].tolist() for batch in batches]

    @pytest.mark.parametrize("wrap", [lambda d: Subset(d, list(range(9, 40))), lambda d: random_split(d, [31, 19])[0]])
    def test_each_batch_is_one_read_through_torchs_own_subsets(self, wrap):
        dataset = ArrayDataset(FEW)
        source = watched(dataset)
        torch.manual_seed(0)
        assert sum(len(batch["y"]) for batch in shuffled(wrap(dataset))) == 31
        assert [len(read) for read in source.reads] == [8, 8, 8, 7]

    def test_a_concatenation_by_torch_works_sample_by_sample(self):
        joined = ConcatDataset([ArrayDataset(FEW), ArrayDataset(FEW)])
        assert same(shuffled(joined), shuffled(ConcatDataset([PerRow(FEW), PerRow(FEW)])))

    def test_negative_ids_of_a_sampler_count_from_the_end(self):
        (batch,) = DataLoader(ArrayDataset(FEW), batch_sampler=[[-1, 0]])
        assert batch["y"].tolist() == [N - 1, 0]

    @pytest.mark.parametrize("as_tuple", [False, True])
    def test_a_collate_fn_of_the_user_gets_a_list_of_samples(self, as_tuple):
        ours = shuffled(ArrayDataset(FEW, as_tuple=as_tuple), collate_fn=identity)
        theirs = shuffled(PerRow(FEW, as_tuple=as_tuple), collate_fn=identity)
        plain = type(theirs[0][0])
        assert same([[plain(sample) for sample in batch] for batch in ours], theirs)

    def test_a_collate_fn_may_change_the_samples_and_collate_them_as_torch_does(self):
        def negated(samples):
            for sample in samples:
                sample["x"] = -sample["x"]
            return torch.utils.data.default_collate(samples)

        assert same(shuffled(ArrayDataset(FEW), collate_fn=negated), shuffled(PerRow(FEW), collate_fn=negated))

    def test_without_batches_samples_come_as_they_are(self):
        assert same(
            list(DataLoader(ArrayDataset(FEW), batch_size=None)), list(DataLoader(PerRow(FEW), batch_size=None))
        )

    @pytest.mark.parametrize("as_tuple", [False, True])
    def test_a_torch_without_its_table_of_collate_functions_gives_the_same(self, monkeypatch, as_tuple):
        expected = shuffled(ArrayDataset(FEW, as_tuple=as_tuple))
        table = {torch.Tensor: torch_collate.collate_tensor_fn}
        monkeypatch.delattr(torch_collate, "default_collate_fn_map")
        collate_fn = functools.partial(torch_collate.collate, collate_fn_map=table)
        assert same(shuffled(ArrayDataset(FEW, as_tuple=as_tuple), collate_fn=collate_fn), expected)


class TestSubclassThatMakesItsSamples:
    def test_torchs_loader_serves_it_sample_by_sample_through_its_getitem(self):
        assert sorted(numbers(shuffled(Tenfold(range(20))))) == list(range(0, 200, 10))

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_headraces_loader_does_so_too(self, num_workers):
        loader = hr.DataLoader(Tenfold(range(20)), batch_size=8, shuffle=True, num_workers=num_workers)
        assert sorted(numbers(loader)) == list(range(0, 200, 10))

    @pytest.mark.parametrize(
        ("view", "expected"),
        [
            (lambda d: d.select([3, 1, 4]), [30, 10, 40]),
            (lambda d: d.take(3), [0, 10, 20]),
            (lambda d: d.select(range(10, 16)).select(slice(None, None, -2)), [150, 130, 110]),
        ],
        ids=["select", "take", "select of select"],
    )
    def test_its_views_are_served_in_the_same_way_by_every_loader(self, view, expected):
        part = view(Tenfold(range(20)))
        assert isinstance(part, Tenfold)
        assert [part[i]["x"].item() for i in range(len(part))] == expected
        assert numbers(DataLoader(part, batch_size=2)) == expected
        assert numbers(hr.DataLoader(part, batch_size=2)) == expected

    def test_its_splits_too(self):
        parts = Tenfold(range(20)).split({"a": 15, "b": 5})
        got = [numbers(DataLoader(part, batch_size=4)) for part in parts.values()]
        assert [len(values) for values in got] == [15, 5]
        assert sorted(got[0] + got[1]) == list(range(0, 200, 10))

    def test_the_choice_is_the_views_own_and_leaves_the_dataset_as_it_was(self):
        dataset = Tenfold(range(20))
        part = dataset.take(2)
        part.factor = 100
        assert (dataset[1]["x"], part[1]["x"], len(dataset)) == (10, 100, 20)


class TestInWorkerProcesses:
    """Two workers: the same batches in the same order as without."""

    @pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
    def test_batches_are_the_same_for_every_way_of_starting_them(self, method, tmp_path):
        for name, values in FEW.items():
            np.save(tmp_path / f"{name}.npy", values)
        files = NumpyDataset({name: tmp_path / f"{name}.npy" for name in FEW})
        # one loader with three kinds of datasets in it: processes that start by spawn import torch, which takes seconds
        datasets = [files, files.split({"a": 0.5, "b": 0.5})["b"], Tenfold(range(N)).select(range(30))]
        many = Several(datasets)
        got = list(DataLoader(many, batch_sampler=many.batches(), num_workers=2, multiprocessing_context=method))
        assert same(got, list(DataLoader(many, batch_sampler=many.batches())))
        assert sum(len(next(iter(batch.values()))) for batch in got) == N + N // 2 + 30

    def test_a_users_list_of_samples_arrives_as_plain_types(self):
        (batch,) = DataLoader(ArrayDataset(FEW).take(3), batch_size=3, num_workers=1, collate_fn=identity)
        assert type(batch) is list
        assert same(batch, [PerRow(FEW)[i] for i in range(3)])


class Several(torch.utils.data.Dataset):
    """Some datasets side by side: an id is (dataset, sample), and each batch is of one dataset."""

    def __init__(self, datasets):
        self.datasets = datasets

    def __getitem__(self, index):
        raise AssertionError("a batch is asked for at once")

    def __getitems__(self, pairs):
        return self.datasets[pairs[0][0]].__getitems__([sample_id for _, sample_id in pairs])

    def batches(self):
        return [
            [(number, sample_id) for sample_id in range(start, min(start + 8, len(dataset)))]
            for number, dataset in enumerate(self.datasets)
            for start in range(0, len(dataset), 8)
        ]


def test_a_dataset_of_a_trillion_samples_costs_torch_only_its_own_sampler():
    dataset = counting(10**12)
    assert DataLoader(dataset, batch_sampler=[[10**12 - 1, 5]]).dataset is dataset
    assert numbers(DataLoader(dataset, batch_sampler=[[10**12 - 1, 5]])) == [10**12 - 1, 5]
