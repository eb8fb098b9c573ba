"""Columns that are no arrays (ragged rows, texts, byte strings, objects), as samples and in torch's own DataLoader."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from headrace.datasets import OrderSampler
from headrace.datasets.batches import BatchForm
from headrace.formats import Column, Ragged, check_out
from tests.datasets.parts import identity
from tests.mixed import SAMPLES, Mixed, check_mixed_batch, mixed, mixed_sample, plain

IDS = [4, 0, 9, 9, 2]
FORMS = pytest.mark.parametrize("as_tuple", [False, True], ids=["dicts", "tuples"])


@pytest.fixture(params=[False, True], ids=["dicts", "tuples"])
def dataset(request):
    return mixed(as_tuple=request.param)


def as_dict(sample):
    return plain(dict(sample) if isinstance(sample, dict) else dict(zip(mixed_sample(0), sample, strict=True)))


# -- samples and batches ----------------------------------------------------------------------------------------------


def test_a_sample_has_tensors_of_its_own_length_texts_bytes_and_objects(dataset):
    for i in range(SAMPLES):
        sample = dataset[i]
        assert as_dict(sample) == mixed_sample(i)
        tokens, boxes = (sample["tokens"], sample["boxes"]) if isinstance(sample, dict) else sample[1:3]
        assert (tokens.dtype, boxes.dtype, boxes.shape[1:]) == (torch.int64, torch.float32, (2,))


def test_a_batch_has_a_tensor_ragged_rows_and_lists(dataset):
    check_mixed_batch(dataset[IDS], IDS)
    check_mixed_batch(dataset[2:7], [2, 3, 4, 5, 6])
    check_mixed_batch(dataset[[]], [])


def test_several_batches_of_one_read_are_cut_and_apart_from_each_other():
    source = Mixed()
    form = BatchForm(source.schema, as_tuple=False)
    batches = form.batches(source.read([1, 2, 3, 7, 7]), [0, 2, 2, 5])
    for batch, ids in zip(batches, [[1, 2], [], [3, 7, 7]], strict=True):
        check_mixed_batch(batch, ids)
    versions = [batches[2]["tokens"].values._version, batches[2]["id"]._version]
    batches[0]["tokens"].values.add_(1)
    batches[0]["id"].add_(1)
    assert [batches[2]["tokens"].values._version, batches[2]["id"]._version] == versions
    check_mixed_batch(batches[2], [3, 7, 7])


def test_arrays_to_fill_are_only_for_fixed_columns():
    schema = Mixed().schema
    assert list(check_out(None, schema, 3)) == list(check_out({"id": np.empty(3, np.int64)}, schema, 3)) == ["id"]
    with pytest.raises(ValueError, match=r"out\['tokens'\]: expected no array, since the samples .* leave it out"):
        check_out({"tokens": np.empty(3, np.int64)}, schema, 3)


def test_a_column_of_foreign_samples_is_a_fixed_one():
    assert Column(np.dtype("O")).is_fixed


# -- the list of samples that torch's fetcher gets --------------------------------------------------------------------


@pytest.fixture
def lazy(dataset):
    return dataset.__getitems__(IDS)


def test_torchs_default_collation_gives_the_batch_as_it_was_read(lazy):
    batch = lazy.untouched().batch
    assert default_collate(lazy) is batch
    check_mixed_batch(batch, IDS)


def test_whoever_looks_at_the_list_finds_ordinary_samples(lazy):
    assert as_dict(lazy[0]) == mixed_sample(4)
    assert [as_dict(sample) for sample in lazy] == [mixed_sample(i) for i in IDS]
    assert [as_dict(sample) for sample in pickle.loads(pickle.dumps(lazy))] == [mixed_sample(i) for i in IDS]


@pytest.mark.parametrize(("start", "stop"), [(0, 5), (1, 4), (2, 3)])
def test_a_run_of_the_samples_is_collated_at_once_in_memory_of_its_own(lazy, start, stop):
    rows = list(lazy)[start:stop]
    batch = default_collate(rows)
    check_mixed_batch(batch, IDS[start:stop])
    if stop - start < len(IDS):
        tokens = batch["tokens"] if isinstance(batch, dict) else batch[1]
        tokens.values.add_(1)
        assert [as_dict(sample) for sample in rows] == [mixed_sample(i) for i in IDS[start:stop]]


@pytest.mark.parametrize("column", ["tokens", "boxes"])
def test_a_sample_changed_in_place_is_seen(column):
    """Unequal tensors can't be stacked: torch's own collation, which then has its turn, says so."""
    lazy = mixed().__getitems__([9, 3, 7])
    lazy[0][column].add_(100)
    assert lazy.untouched() is None
    equal = mixed().__getitems__([3, 7])  # of three tokens each
    rows = [{"tokens": row["tokens"], "text": row["text"]} for row in equal]
    assert plain(default_collate(rows)) == {"tokens": [[30, 31, 32], [70, 71, 72]], "text": ["3", "é7"]}
    rows = list(mixed().__getitems__([9, 3, 7]))
    rows[1][column].add_(100)
    with pytest.raises(RuntimeError, match="equal size"):
        default_collate(rows)


def test_an_object_changed_or_replaced_in_the_first_sample_is_seen():
    for change in (lambda row: row["meta"].update(n=5), lambda row: row.update(text="other")):
        lazy = mixed().__getitems__(IDS)
        change(lazy[0])
        assert lazy.untouched() is None


# -- torch's DataLoader -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
@FORMS
def test_torchs_loader_delivers_whole_batches_from_worker_processes_too(as_tuple, num_workers):
    dataset = mixed(as_tuple=as_tuple)
    batches = list(DataLoader(dataset, batch_size=4, num_workers=num_workers))
    for batch, ids in zip(batches, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]], strict=True):
        check_mixed_batch(batch, ids)
    if num_workers:
        tokens = batches[0]["tokens"] if isinstance(batches[0], dict) else batches[0][1]
        assert tokens.values.is_shared()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_collate_fn_of_the_user_sees_ordinary_samples(num_workers):
    (samples,) = DataLoader(mixed(), batch_size=SAMPLES, num_workers=num_workers, collate_fn=identity)
    assert plain(list(samples)) == [mixed_sample(i) for i in range(SAMPLES)]


def test_a_sampler_of_ours_brings_them_in_its_order():
    dataset = mixed()
    order = list(OrderSampler(dataset, batch_size=4, seed=3))
    loader = DataLoader(dataset, batch_size=4, sampler=OrderSampler(dataset, batch_size=4, seed=3))
    for i, batch in enumerate(loader):
        check_mixed_batch(batch, order[4 * i : 4 * i + 4])


@pytest.mark.parametrize("num_workers", [0, 2])
@FORMS
def test_a_stream_gives_batches_of_them_padded_at_the_end(as_tuple, num_workers):
    stream = mixed(as_tuple=as_tuple).to_iterable_dataset(batch_size=4, shuffle=False, pad_last=True)
    valid = []
    for batch in DataLoader(stream, batch_size=None, num_workers=num_workers):
        if isinstance(batch, dict):
            valid += batch.pop("__valid__").tolist()
        else:
            valid += batch.pop().tolist()
        ids = batch["id"] if isinstance(batch, dict) else batch[0]
        check_mixed_batch(batch, ids.tolist())
    assert valid == [True] * SAMPLES + [False]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_gives_single_samples_that_torch_collates_at_once(num_workers):
    stream = mixed().to_iterable_dataset(shuffle=False)
    assert [as_dict(sample) for sample in stream] == [mixed_sample(i) for i in range(SAMPLES)]
    seen = []
    for batch in DataLoader(mixed().to_iterable_dataset(shuffle=False), batch_size=3, num_workers=num_workers):
        check_mixed_batch(batch, batch["id"].tolist())
        seen += batch["id"].tolist()
    assert sorted(seen) == list(range(SAMPLES))


def test_ragged_batches_are_pinned_by_torch_as_tensors_are():
    from torch.utils.data._utils.pin_memory import pin_memory

    class Pinned(Ragged):
        def pin_memory(self):
            return "pinned"

    rows = Pinned(torch.arange(3), torch.tensor([0, 1, 3]))
    assert pin_memory({"tokens": rows, "text": ["a"]}) == {"tokens": "pinned", "text": ["a"]}
