"""Rows of different lengths."""

import copy
import itertools
import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import headrace as hr
from headrace.errors import ArgumentError
from headrace.formats import Pad, PayloadError, Ragged, concatenate

ROWS = st.lists(st.lists(st.integers(-5, 5), max_size=4), max_size=6)


def joined(lists: list[list[Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(lists))


def ragged(rows: list[list[int]]) -> Ragged:
    return Ragged.from_arrays(np.array(joined(rows), np.int64), np.cumsum([0, *map(len, rows)]))


def listed(rows: Ragged) -> list[list[int]]:
    return [row.tolist() for row in rows]


@given(ROWS)
def test_it_holds_its_rows_however_they_are_asked_for(rows):
    batch = ragged(rows)
    assert len(batch) == len(rows)
    assert listed(batch) == rows
    assert [row.tolist() for row in batch.to_list()] == rows
    assert [batch[i].tolist() for i in range(-len(rows), len(rows))] == rows * 2
    assert batch.lengths.tolist() == list(map(len, rows))


@given(ROWS, st.slices(6))
def test_a_slice_is_ragged_again_as_a_lists_slice_is_a_list(rows, cut):
    part = ragged(rows)[cut]
    assert listed(part) == rows[cut]
    assert part.offsets[0] == 0
    assert len(part.values) == part.offsets[-1]


@given(st.lists(ROWS, min_size=1, max_size=4))
def test_parts_are_joined_row_after_row(parts):
    assert listed(concatenate([ragged(part) for part in parts])) == joined(parts)


@given(ROWS, st.integers(0, 5), st.integers(-3, 3))
def test_padding_fills_up_the_ends_and_drops_what_is_too_much_only_when_told(rows, length, value):
    batch = ragged(rows)
    expected = [(row + [value] * length)[:length] for row in rows]
    assert batch.to_padded(length, value, truncate=True).tolist() == expected
    longest = max(map(len, rows), default=0)
    assert batch.to_padded(value=value).tolist() == [row + [value] * (longest - len(row)) for row in rows]
    if longest > length:
        place = next(i for i, row in enumerate(rows) if len(row) > length)
        text = f"row {place} holds {len(rows[place])} values, more than the length {length}: .* truncate=True"
        with pytest.raises(ArgumentError, match=text):
            batch.to_padded(length)
    else:
        assert torch.equal(batch.to_padded(length, value), torch.tensor(expected).reshape(len(rows), length))


def test_values_may_have_a_shape_of_their_own():
    batch = Ragged(torch.arange(12.0).reshape(3, 2, 2), torch.tensor([0, 1, 1, 3]))
    assert [row.shape for row in batch] == [(1, 2, 2), (0, 2, 2), (2, 2, 2)]
    padded = batch.to_padded(3, value=-1)
    assert padded.shape == (3, 3, 2, 2)
    assert torch.equal(padded[2, :2], batch[2])
    assert (padded[1] == -1).all()


def test_padding_lets_gradients_through():
    values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    Ragged(values, torch.tensor([0, 1, 3])).to_padded(2).square().sum().backward()
    assert values.grad.tolist() == [2, 4, 6]


def test_it_becomes_torchs_nested_tensor_over_the_same_memory():
    batch = ragged([[1, 2], [], [3]])
    nested = batch.to_nested()
    assert nested.layout == torch.jagged
    assert [row.tolist() for row in nested.unbind()] == [[1, 2], [], [3]]
    batch.values[0] = 9
    assert nested.unbind()[0].tolist() == [9, 2]


def test_its_rows_are_views_and_a_clone_is_not():
    batch = ragged([[1, 2], [3]])
    apart = batch.clone()
    batch[1][0] = 7
    assert listed(batch) == [[1, 2], [7]]
    assert listed(apart) == [[1, 2], [3]]


def test_an_array_is_not_copied_unless_it_is_read_only():
    array = np.arange(3)
    rows = Ragged.from_arrays(array, np.array([0, 1, 3]))
    array[0] = 5
    assert listed(rows) == [[5], [1, 2]]
    array.flags.writeable = False
    copied = Ragged.from_arrays(array, np.array([0, 1, 3]))
    copied.values[0] = 8
    assert array[0] == 5


def test_offsets_of_a_slice_are_moved_to_0_without_changing_the_array_given():
    offsets = np.array([2, 3, 6], np.int32)
    rows = Ragged.from_arrays(np.arange(9), offsets)
    assert (rows.offsets.tolist(), rows.values.tolist()) == ([0, 1, 4], [2, 3, 4, 5])
    assert offsets.tolist() == [2, 3, 6]


@pytest.mark.parametrize(
    ("offsets", "text"),
    [
        ([], r"offsets \(rows \+ 1,\), got shape \(0,\)"),
        ([0, 4], "from 0 to 3, got them from 0 to 4"),
        ([-1, 3], "from 0 to 3, got them from -1 to 3"),
        ([0, 2, 1, 3], "never fall, got 2 and 1 for row 1"),
        ([[0, 3]], "got shape"),
    ],
)
def test_offsets_that_do_not_fit_the_values_are_refused(offsets, text):
    with pytest.raises(ArgumentError, match=text):
        Ragged.from_arrays(np.arange(3), np.array(offsets, np.int64))
    if offsets and not isinstance(offsets[0], list):
        with pytest.raises(ArgumentError, match=text):
            Ragged(torch.arange(3), torch.tensor(offsets))


def test_tensors_of_another_kind_are_refused():
    with pytest.raises(ArgumentError, match="int64 offsets"):
        Ragged(torch.arange(3), torch.tensor([0, 3], dtype=torch.int32))
    with pytest.raises(ArgumentError, match="int64 offsets"):
        Ragged(torch.tensor(3), torch.tensor([0, 1]))


def test_a_row_that_is_not_there_is_an_index_error():
    for place in (2, -3):
        with pytest.raises(IndexError, match=f"row {place} is out of range: there are 2"):
            ragged([[1], [2]])[place]
    with pytest.raises(TypeError):
        ragged([[1]])["x"]


def test_it_moves_with_its_offsets_and_only_its_values_change_their_dtype():
    moved = ragged([[1], [2, 3]]).to("cpu", torch.float32, non_blocking=True)
    assert (moved.values.dtype, moved.offsets.dtype) == (torch.float32, torch.int64)
    meta = ragged([[1], [2, 3]]).to("meta")
    assert meta.values.device.type == meta.offsets.device.type == "meta"


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda rows: pickle.loads(pickle.dumps(rows))])
def test_it_can_be_copied_and_pickled(copied):
    assert listed(copied(ragged([[1], [], [2, 3]]))) == [[1], [], [2, 3]]


def test_it_says_what_it_is():
    assert repr(Ragged(torch.zeros(3, 2), torch.tensor([0, 3]))) == (
        "Ragged of 1 rows, 3 values in all, each (2,), torch.float32"
    )


# -- Pad and concatenate ----------------------------------------------------------------------------------------------


def test_a_pad_fills_an_array():
    out = np.full((2, 3), 77, np.int64)
    assert hr.Pad(3, value=-1).write(ragged([[1], [2, 3]]), out) is out
    assert out.tolist() == [[1, -1, -1], [2, 3, -1]]
    assert Pad(1, truncate=True).write(ragged([[1], [2, 3]]), out[:, :1].copy()).tolist() == [[1], [2]]


def test_a_pad_names_the_row_that_is_too_long():
    with pytest.raises(PayloadError, match=r"row 1 holds 2 values, more than the length 1: .*truncate=True") as caught:
        Pad(1).write(ragged([[1], [2, 3]]), np.zeros((2, 1), np.int64))
    assert caught.value.place == 1
    assert pickle.loads(pickle.dumps(caught.value)).place == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"length": 0}, "length of 1 to 2147483647, got 0"),
        ({"length": 1 << 60}, f"length of 1 to 2147483647, got {1 << 60}"),
        ({"length": 2.0}, "length of 1 to 2147483647, got 2.0"),
        ({"length": True}, "length of 1 to 2147483647, got True"),
        ({"length": 2, "value": "x"}, "a number as value, got 'x'"),
        ({"length": 2, "truncate": 1}, "truncate=True or False, got 1"),
    ],
)
def test_a_pad_refuses_what_cannot_work(arguments, text):
    with pytest.raises(ArgumentError, match=text):
        Pad(**arguments)


def test_arrays_and_arrow_arrays_are_joined_too():
    assert concatenate([np.ones((1, 2)), np.zeros((2, 2))]).tolist() == [[1, 1], [0, 0], [0, 0]]
    assert concatenate([pa.array(["a"]), pa.array(["b", None])]).to_pylist() == ["a", "b", None]
