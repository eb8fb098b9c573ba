"""A batch that was read at once, seen as a list of samples: nothing that a user does with it may show the trick."""

import copy
import gc
import pickle
import random
import weakref

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate
from torch.utils.data._utils import collate as torch_collate

from headrace import ArrayDataset
from tests.datasets.parts import PerRow, columns, same, watched

IDS = [4, 0, 9, 9, 2]
NAMED = columns()
PAIRS = np.array([(i, i / 3) for i in range(12)], dtype=[("id", "i4"), ("value", "f8")])


@pytest.fixture(params=[False, True], ids=["dicts", "tuples"])
def as_tuple(request) -> bool:
    return request.param


@pytest.fixture
def lazy(as_tuple):
    return ArrayDataset(NAMED, as_tuple=as_tuple).__getitems__(IDS)


@pytest.fixture
def plain(as_tuple):
    reference = PerRow(NAMED, as_tuple=as_tuple)
    return [reference[i] for i in IDS]


def as_plain(samples):
    """The samples without our private types, for a comparison of types."""
    return [dict(sample) if isinstance(sample, dict) else tuple(sample) for sample in samples]


def _extended(target, batch):
    target += batch
    return target


def _sliced(batch):
    target = [0, 0]
    target[:] = batch
    return target


def _matched(batch):
    match batch:
        case [a, *rest]:
            return [a, *rest]


def _arguments(*samples):
    return list(samples)


def _unpacked(batch):
    a, b, c, d, e = batch
    return [a, b, c, d, e]


READINGS = {
    "list()": list,
    "iteration": lambda batch: [sample for sample in batch],  # noqa: C416
    "tuple()": lambda batch: [*tuple(batch)],
    "a star": lambda batch: [*batch],
    "arguments": lambda batch: _arguments(*batch),
    "unpacking": _unpacked,
    "indexing": lambda batch: [batch[i] for i in range(len(batch))],
    "indexing from the end": lambda batch: [batch[i - len(batch)] for i in range(len(batch))],
    "slicing": lambda batch: batch[:2] + batch[2:],
    "+": lambda batch: batch + [],  # noqa: RUF005
    "+ from the left": lambda batch: [] + batch,  # noqa: RUF005
    "sum()": lambda batch: sum([batch], []),  # noqa: RUF017
    "+=": lambda batch: _extended([], batch),
    "extend": lambda batch: [sample for sample in _extended([], batch)],  # noqa: C416
    "reversed()": lambda batch: list(reversed(batch))[::-1],
    "enumerate()": lambda batch: [sample for _, sample in enumerate(batch)],
    "zip()": lambda batch: [sample for sample, _ in zip(batch, range(9), strict=False)],
    "copy()": lambda batch: batch.copy(),
    "copy.copy()": copy.copy,
    "copy.deepcopy()": copy.deepcopy,
    "pop": lambda batch: [batch.pop(0) for _ in range(len(batch))],
    "* 1": lambda batch: batch * 1,
    "sorted()": lambda batch: sorted(batch, key=lambda sample: 0),
    "slice assignment": _sliced,
    "match": _matched,
}


class TestAsAList:
    @pytest.mark.parametrize("way", READINGS)
    def test_every_way_of_reading_it_gives_the_samples(self, lazy, plain, way):
        assert isinstance(lazy, list)
        assert same(as_plain(READINGS[way](lazy)), plain)

    @pytest.mark.parametrize("way", READINGS)
    def test_every_way_of_reading_it_works_after_a_look_at_the_first_sample(self, lazy, plain, way):
        assert lazy[0] is lazy[0]
        assert same(as_plain(READINGS[way](lazy)), plain)

    def test_transposing_it_gives_the_columns(self):
        batch = ArrayDataset(NAMED["f32"], NAMED["i64"]).__getitems__(IDS)
        values, labels = zip(*batch, strict=True)
        assert torch.equal(torch.stack(values), torch.from_numpy(NAMED["f32"][IDS]))
        assert torch.tensor(labels).tolist() == NAMED["i64"][IDS].tolist()

    def test_its_length_and_truth_are_known_without_making_a_sample(self, lazy):
        assert len(lazy) == len(IDS)
        assert lazy
        assert list.__len__(lazy) == 0

    def test_no_ids_give_an_empty_list(self):
        assert ArrayDataset([1, 2]).__getitems__([]) == []

    def test_copies_and_pickles_hold_plain_types_that_need_no_headrace_to_be_read(self, as_tuple):
        x = np.arange(5)
        lazy = ArrayDataset({"x": x}, as_tuple=as_tuple).__getitems__([1, 2])
        for copied in (pickle.loads(pickle.dumps(lazy)), copy.deepcopy(lazy), copy.copy(lazy)):
            assert type(copied) is list
            assert same(as_plain(copied), [(torch.tensor(i),) if as_tuple else {"x": torch.tensor(i)} for i in (1, 2)])
        for copied in (pickle.loads(pickle.dumps(lazy[1])), copy.copy(lazy[1]), copy.deepcopy(lazy[1])):
            assert same(copied, as_plain(lazy)[1])
        assert b"headrace" not in pickle.dumps(lazy)

    @pytest.mark.parametrize("look", [len, list, default_collate, lambda batch: batch[0]])
    def test_its_memory_is_free_once_it_is_dropped_without_waiting_for_the_garbage_collector(self, as_tuple, look):
        lazy = ArrayDataset(NAMED, as_tuple=as_tuple).__getitems__(IDS)
        chunk = weakref.ref(lazy._chunk)
        gc.disable()
        try:
            look(lazy)
            del lazy
            assert chunk() is None
        finally:
            gc.enable()

    @pytest.mark.parametrize(
        "change",
        [
            lambda batch: batch.append(batch[1]),
            lambda batch: batch.extend(batch[:2]),
            lambda batch: batch.insert(0, batch[3]),
            lambda batch: batch.pop(),
            lambda batch: batch.pop(0),
            lambda batch: batch.reverse(),
            lambda batch: batch.__delitem__(slice(1, 3)),
            lambda batch: batch.__setitem__(0, batch[4]),
            lambda batch: batch.__imul__(2),
            lambda batch: random.Random(0).shuffle(batch),
            lambda batch: batch.sort(
                key=lambda sample: (
                    -float(next(iter(list(sample.values() if isinstance(sample, dict) else sample)[1:2])))
                )
            ),
        ],
        ids=["append", "extend", "insert", "pop", "pop 0", "reverse", "del", "set", "repeat", "shuffle", "sort"],
    )
    def test_it_can_be_changed_as_any_list_and_collates_to_what_it_then_holds(self, lazy, plain, change):
        change(lazy)
        change(plain)
        assert same(default_collate(lazy), default_collate(plain))

    def test_clear_leaves_nothing(self, lazy):
        lazy.clear()
        assert len(lazy) == 0
        assert not lazy


class TestDefaultCollation:
    def test_untouched_it_is_the_batch_as_it_was_read_and_no_sample_is_made(self, lazy, plain):
        batch = default_collate(lazy)
        assert same(batch, default_collate(plain))
        assert list.__len__(lazy) == 0

    def test_after_a_mere_look_at_its_samples_it_is_still_that_very_batch(self):
        lazy = ArrayDataset({"x": np.arange(5)}).__getitems__([1, 2])
        memory = default_collate(lazy)["x"].data_ptr()
        assert [sample["x"].item() for sample in lazy] == [1, 2]
        assert default_collate(lazy)["x"].data_ptr() == memory

    def test_a_run_of_its_samples_is_a_copy_that_does_not_keep_the_whole_batch(self, lazy, plain):
        part = default_collate(lazy[1:3])
        assert same(part, default_collate(plain[1:3]))
        column = next(iter(part.values() if isinstance(part, dict) else part))
        assert column.untyped_storage().nbytes() == column.nbytes

    def test_samples_of_two_batches_collate_together(self, as_tuple):
        dataset = ArrayDataset(NAMED, as_tuple=as_tuple)
        reference = PerRow(NAMED, as_tuple=as_tuple)
        mixed = [dataset.__getitems__([1, 2])[1], dataset.__getitems__([5, 6])[0], dataset[7]]
        assert same(default_collate(mixed), default_collate([reference[i] for i in (2, 5, 7)]))
        assert same(default_collate(mixed[::-1]), default_collate([reference[i] for i in (7, 5, 2)]))

    @pytest.mark.parametrize(
        "change",
        [
            lambda sample: sample.update(i64=torch.tensor(-1)),
            lambda sample: sample.__setitem__("f64", sample["f64"] + 1),
            lambda sample: sample.__setitem__("renamed", sample.pop("bf16")),
            lambda sample: sample.__setitem__("new", torch.tensor(3)),
            lambda sample: sample.pop("u8"),
            lambda sample: sample["f32"].mul_(2),
            lambda sample: sample["f32"].unsqueeze_(0),
            lambda sample: sample["f32"].t_(),
        ],
        ids=["update", "set", "rename", "add", "drop", "in place", "unsqueeze in place", "transpose in place"],
    )
    @pytest.mark.parametrize("ids", [[1, 2, 3], [1]])
    def test_changed_samples_collate_to_what_they_then_hold(self, change, ids):
        lazy, plain = ArrayDataset(NAMED).__getitems__(ids), [PerRow(NAMED)[i] for i in ids]
        for place in range(len(ids)):
            change(lazy[place])
            change(plain[place])
        assert same(default_collate(lazy), default_collate(plain))

    def test_a_change_of_the_first_sample_alone_is_not_lost(self):
        lazy = ArrayDataset({"x": [1, 2, 3]}).__getitems__([0, 1, 2])
        lazy[0]["x"] = torch.tensor(99)
        assert default_collate(lazy)["x"].tolist() == [99, 2, 3]

    def test_a_field_that_changed_within_a_structured_column_is_not_lost(self, as_tuple):
        lazy = ArrayDataset({"p": PAIRS}, as_tuple=as_tuple).__getitems__([3, 4])
        for sample in lazy:
            sample[0 if as_tuple else "p"]["id"] = torch.tensor(7)
        batch = default_collate(lazy)
        assert batch[0 if as_tuple else "p"]["id"].tolist() == [7, 7]

    def test_samples_that_no_longer_fit_fail_as_torch_has_them_fail(self):
        lazy = ArrayDataset({"x": [1, 2, 3]}).__getitems__([0, 1, 2])
        lazy[1].clear()
        with pytest.raises(KeyError, match="x"):
            default_collate(lazy)

    def test_a_users_own_collation_of_tensors_is_used(self):
        def doubled(tensors, *, collate_fn_map=None):
            return torch.stack(tensors) * 2

        lazy = ArrayDataset({"x": [1, 2, 3]}).__getitems__([0, 1, 2])
        table = {**torch_collate.default_collate_fn_map, torch.Tensor: doubled}
        assert torch_collate.collate(lazy, collate_fn_map=table)["x"].tolist() == [2, 4, 6]
        assert torch_collate.collate(lazy, collate_fn_map={torch.Tensor: doubled})["x"].tolist() == [2, 4, 6]

    def test_it_works_in_inference_mode(self):
        with torch.inference_mode():
            lazy = ArrayDataset({"x": [1, 2, 3]}).__getitems__([0, 2])
            assert default_collate(lazy)["x"].tolist() == [1, 3]
            assert default_collate(list(lazy))["x"].tolist() == [1, 3]

    def test_a_torch_without_its_table_of_collate_functions_gets_the_same_results(self, monkeypatch, as_tuple):
        expected = default_collate(ArrayDataset(NAMED, as_tuple=as_tuple).__getitems__(IDS))
        monkeypatch.delattr(torch_collate, "default_collate_fn_map")
        dataset = ArrayDataset(NAMED, as_tuple=as_tuple)
        source = watched(dataset)
        samples = dataset.__getitems__(IDS)
        assert source.reads == [IDS]
        assert type(samples[0]) is (tuple if as_tuple else dict)
        assert same(
            torch_collate.collate(samples, collate_fn_map={torch.Tensor: torch_collate.collate_tensor_fn}), expected
        )

    def test_samples_on_their_own_are_of_plain_types(self, as_tuple):
        assert type(ArrayDataset(NAMED, as_tuple=as_tuple)[0]) is (tuple if as_tuple else dict)
