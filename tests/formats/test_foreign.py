"""Any map-style torch Dataset as a source."""

import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from headrace.errors import ArgumentError, SampleError
from headrace.formats import DatasetSource


class Squares(Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, number):
        if number == 7:
            raise KeyError("no seven")
        return number**2


class Batched(Squares):
    short = False

    def __getitems__(self, numbers):
        return [number**2 for number in numbers if not (number == 7 and self[number])][: -1 if self.short else None]


def test_samples_of_any_kind_come_as_they_are():
    samples = [(1, 2), [3, 4], torch.ones(2), {"a": 1}]
    read = DatasetSource(samples).read([3, 1, 0, 2])["sample"]
    assert read.shape == (4,)
    assert [id(sample) for sample in read] == [id(samples[number]) for number in (3, 1, 0, 2)]


def test_a_batch_is_one_call_of_getitems_where_the_dataset_has_it():
    dataset = Batched()
    dataset.__class__ = type("OnlyBatches", (Batched,), {"__getitem__": lambda *_: pytest.fail("one by one")})
    assert DatasetSource(dataset).read([3, 1])["sample"].tolist() == [9, 1]


def test_the_ids_are_python_integers():
    class Kinds(Squares):
        def __getitem__(self, number):
            return type(number)

    assert DatasetSource(Kinds()).read([1])["sample"][0] is int


def test_torch_s_own_datasets_are_read():
    subset = Subset(TensorDataset(torch.arange(10)), [4, 5, 6])
    assert [int(sample[0]) for sample in DatasetSource(subset).read([2, 0])["sample"]] == [6, 4]


def test_an_error_in_the_dataset_keeps_its_type_and_names_the_sample():
    with pytest.raises(KeyError, match="no seven") as caught:
        DatasetSource(Squares()).read([1, 7, 2])
    assert caught.value.__notes__ == ["while reading sample 7 of Squares"]
    assert caught.traceback[-1].name == "__getitem__"


def test_an_error_in_getitems_names_the_batch():
    with pytest.raises(KeyError) as caught:
        DatasetSource(Batched()).read([1, 7, 2])
    assert caught.value.__notes__ == ["while reading 3 samples, 1 to 2, with __getitems__"]


def test_a_getitems_that_returns_too_few_is_an_error():
    dataset = Batched()
    dataset.short = True
    with pytest.raises(SampleError, match="__getitems__ was asked for 3 samples, 1 to 2, and returned 2"):
        DatasetSource(dataset).read([1, 3, 2])


class Stream(IterableDataset):
    def __iter__(self):
        return iter([1])


class Endless(Dataset):
    def __getitem__(self, number):
        return number


class NoItems(Dataset):
    def __len__(self):
        return 1


@pytest.mark.parametrize(
    ("dataset", "text"),
    [
        (Stream(), "expected a map-style dataset, got Stream, an IterableDataset: its samples have no numbers"),
        (Endless(), "got Endless, which has no __len__: the order needs it"),
        (NoItems(), "got NoItems, which has no __getitem__"),
        (object(), "got object, which has no __getitem__"),
        ([], "expected at least one sample, got an empty list"),
    ],
)
def test_what_is_no_map_style_dataset_is_refused(dataset, text):
    with pytest.raises(ArgumentError, match=text):
        DatasetSource(dataset)


def test_its_fingerprint_is_the_dataset_s_own_or_of_type_and_length():
    class Own(Squares):
        fingerprint = "abc"

    class OwnMethod(Squares):
        def fingerprint(self):
            return "abc"

    assert DatasetSource(Own()).fingerprint == DatasetSource(OwnMethod()).fingerprint
    assert DatasetSource([1, 2]).fingerprint == DatasetSource([3, 4]).fingerprint
    kinds = {DatasetSource(dataset).fingerprint for dataset in (Own(), Squares(), Batched(), [1, 2], [1, 2, 3])}
    assert len(kinds) == 5
