"""headrace.DataLoader over columns that are no arrays: ragged rows, texts, byte strings, objects."""

from collections import UserDict

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

import headrace as hr
from headrace.formats import Ragged
from headrace.loader.pool import Pool
from headrace.loader.trees import bytes_of, map_tensors
from tests.mixed import SAMPLES, Mixed, check_mixed_batch, mixed, mixed_sample, plain

WORKERS = pytest.mark.parametrize("num_workers", [0, 2])
FORMS = pytest.mark.parametrize("as_tuple", [False, True], ids=["dicts", "tuples"])
NEEDS_ACCELERATOR = pytest.mark.skipif(
    not torch.accelerator.is_available(), reason="needs an accelerator: this machine has none"
)


@WORKERS
@FORMS
@pytest.mark.parametrize("prefetch_bytes", [1, 1 << 20])
def test_batches_come_whole_and_in_order(num_workers, as_tuple, prefetch_bytes):
    dataset = mixed(200, as_tuple=as_tuple)
    loader = hr.DataLoader(dataset, batch_size=7, num_workers=num_workers, prefetch_bytes=prefetch_bytes)
    for i, batch in enumerate(loader):
        check_mixed_batch(batch, list(range(200))[7 * i : 7 * i + 7])


@WORKERS
@FORMS
def test_batches_that_are_kept_stay_as_they_are(num_workers, as_tuple):
    loader = hr.DataLoader(
        mixed(200, as_tuple=as_tuple), batch_size=6, num_workers=num_workers, shuffle=True, pad_last=True
    )
    seen = []
    for batch in list(loader):
        columns = batch if isinstance(batch, dict) else dict(zip([*mixed_sample(0), "__valid__"], batch, strict=True))
        valid = columns.pop("__valid__")
        check_mixed_batch(columns, columns["id"].tolist())
        seen += columns["id"][valid].tolist()
    assert sorted(seen) == list(range(200))


@WORKERS
@FORMS
def test_samples_that_cannot_be_read_are_left_out(num_workers, as_tuple):
    dataset = mixed(as_tuple=as_tuple, broken=(1, 6, 7))
    loader = hr.DataLoader(dataset, batch_size=4, num_workers=num_workers, on_error="skip")
    for batch, ids in zip(loader, [[0, 2, 3], [4, 5], [8, 9, 10]], strict=True):
        check_mixed_batch(batch, ids)
    assert loader.skipped == 3


@WORKERS
def test_a_transform_sees_samples_and_may_make_them_equal(num_workers):
    def filled(sample):
        row = torch.zeros(3, dtype=torch.int64)
        row[: len(sample["tokens"])] = sample["tokens"]
        return {"tokens": row, "text": sample["text"].upper()}

    batches = list(hr.DataLoader(mixed(), batch_size=6, num_workers=num_workers, transform=filled))
    assert batches[0]["tokens"].tolist() == mixed()[:6]["tokens"].to_padded(3).tolist()
    assert batches[1]["text"] == [mixed_sample(i)["text"].upper() for i in range(6, SAMPLES)]


@WORKERS
def test_a_batch_transform_gets_ragged_rows(num_workers):
    def padded(batch):
        return {"tokens": batch["tokens"].to_padded(3), "id": batch["id"]}

    batches = list(hr.DataLoader(mixed(), batch_size=6, num_workers=num_workers, batch_transform=padded))
    assert [batch["tokens"].shape for batch in batches] == [(6, 3), (5, 3)]


@WORKERS
def test_a_collate_fn_sees_ordinary_samples(num_workers):
    loader = hr.DataLoader(mixed(), batch_size=SAMPLES, num_workers=num_workers, collate_fn=plain)
    assert next(iter(loader)) == [mixed_sample(i) for i in range(SAMPLES)]
    loader = hr.DataLoader(mixed(), batch_size=2, num_workers=num_workers, collate_fn=default_collate)
    with pytest.raises(RuntimeError, match="equal size"):
        next(iter(loader))


def test_memory_is_lent_for_fixed_columns_only():
    assert list(Pool(Mixed().schema, 4, idle=1).lend(3)) == ["id"]


def test_what_is_read_ahead_is_measured_with_its_texts_and_rows():
    batch = {
        "x": torch.zeros(3),
        "rows": Ragged(torch.zeros(5), torch.tensor([0, 2, 5])),
        "text": ["ab", "c"],
        "raw": [b"xyz"],
        "list": [torch.zeros(2), "four", None, 7],
        "user": UserDict(y=torch.zeros(4)),
        "arrays": [np.zeros(2), np.zeros(3)],
        "nothing": [],
    }
    assert bytes_of(batch) == 12 + (20 + 24) + 3 + 3 + (8 + 4) + 16 + 40
    assert bytes_of([torch.eye(2).to_sparse(), torch.zeros(2)]) == (2 * 4 + 2 * 16) + 8


def test_many_small_parts_of_a_batch_are_estimated_by_some_of_them():
    class Seen(dict):
        count = 0

        def values(self):
            Seen.count += 1
            return super().values()

    batch = [[Seen(a="ab", b=torch.zeros(1), c=i) for i in range(50)] for _ in range(1000)]
    assert bytes_of(batch) == 50_000 * 6
    assert Seen.count <= 512
    assert (
        bytes_of({"text": ["a"] * 50_000 + ["bc"], "arrays": [torch.zeros(2)] * 999 + [np.zeros(1)]}) == 50_002 + 8000
    )


def test_texts_pass_by_delivery_and_tensors_among_them_are_found():
    texts = ["a", "b"] * 500
    assert map_tensors(lambda tensor: tensor * 2, {"text": texts})["text"] is texts
    among = map_tensors(lambda tensor: tensor * 2, ["a", b"b", None, torch.ones(1), {"x": torch.ones(1)}, ("c", 1.5)])
    assert plain(among) == ["a", b"b", None, [2.0], {"x": [2.0]}, ("c", 1.5)]


def test_tensors_in_mappings_of_other_classes_are_found():
    batch = UserDict(x=torch.ones(1), n=3)
    batch.kept = "kept"
    moved = map_tensors(lambda tensor: tensor * 2, {"batch": batch})["batch"]
    assert type(moved) is UserDict
    assert (moved["x"].item(), moved["n"], moved.kept) == (2, 3, "kept")
    assert batch["x"].item() == 1


def test_ragged_rows_are_delivered_with_their_offsets():
    rows = Ragged(torch.arange(3.0), torch.tensor([0, 1, 3]))
    moved = map_tensors(lambda tensor: tensor.to("meta"), [rows])[0]
    assert isinstance(moved, Ragged)
    assert moved.values.device.type == moved.offsets.device.type == "meta"


@NEEDS_ACCELERATOR
@WORKERS
def test_batches_arrive_on_an_accelerator(num_workers):
    accelerator = torch.accelerator.current_accelerator()
    for i, batch in enumerate(hr.DataLoader(mixed(), batch_size=4, num_workers=num_workers, device=accelerator)):
        assert {
            tensor.device.type for tensor in (batch["tokens"].values, batch["tokens"].offsets, *batch["boxes"])
        } == {accelerator.type}
        check_mixed_batch(batch, list(range(SAMPLES))[4 * i : 4 * i + 4])


@NEEDS_ACCELERATOR
@WORKERS
def test_batches_come_in_locked_pages(num_workers):
    for batch in hr.DataLoader(mixed(), batch_size=4, num_workers=num_workers, pin_memory=True):
        assert batch["tokens"].values.is_pinned()
        assert batch["tokens"].offsets.is_pinned()
