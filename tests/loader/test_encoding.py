"""Objects as bytes: what comes back is what was given, and its arrays are views of the bytes."""

import struct
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import headrace as hr
from headrace.loader.encoding import MOST_PIECES, decode, decode_pieces, encode, in_one_piece, in_pieces


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclass
class Record:
    name: str
    values: torch.Tensor


def there_and_back(obj: Any) -> Any:
    encoded = encode(obj)
    memory = bytearray(encoded.nbytes)
    encoded.write_into(memoryview(memory))
    return decode(memoryview(memory))


STRUCTURED = np.dtype([("id", "i4"), ("box", "f8", (2,)), ("tag", "S3")], align=True)
ARRAYS = {
    "numbers": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "no dimensions": np.array(2.5),
    "no elements": np.zeros((0, 3), np.int16),
    "no elements in the middle": np.zeros((3, 0, 2)),
    "every third column": np.arange(100).reshape(10, 10)[:, ::3],
    "backwards": np.arange(10)[::-1],
    "one row for all": np.broadcast_to(np.arange(3), (4, 3)),
    "columns first": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "axes turned": np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
    "other byte order": np.arange(3, dtype=">f4"),
    "half": np.arange(3, dtype=np.float16),
    "booleans": np.array([True, False]),
    "text": np.array(["a", "bcd"]),
    "bytes": np.array([b"a", b"bcd"]),
    "dates": np.array(["2026-01-01", "NaT"], "M8[D]"),
    "no duration": np.array(5, "m8[ns]"),
    "structured": np.array([(1, (2.0, 3.0), b"x")], STRUCTURED),
    "objects": np.array([{"a": 1}, None], object),
    "strings of any length": np.array(["a", "b" * 100], np.dtypes.StringDType()),
    "masked": np.ma.array([1, 2, 3], mask=[0, 1, 0]),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_comes_back_with_its_dtype_shape_values_and_type(name):
    array = ARRAYS[name]
    back = there_and_back(array)
    assert type(back) is type(array)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    np.testing.assert_array_equal(np.asarray(back), np.asarray(array))
    assert back.flags.writeable == array.flags.writeable


def test_an_array_without_gaps_keeps_its_order_in_memory():
    for array in (ARRAYS["columns first"], ARRAYS["axes turned"]):
        assert there_and_back(array).strides == array.strides
    images = torch.arange(120.0).reshape(2, 3, 4, 5).to(memory_format=torch.channels_last)
    back = there_and_back(images)
    assert torch.equal(back, images)
    assert back.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.bool, torch.uint8, torch.int64, torch.uint16, torch.float16, torch.bfloat16, torch.float32,
        torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2,
    ],
)  # fmt: skip
def test_a_tensor_comes_back_with_its_dtype_shape_and_values(dtype):
    whole = torch.arange(12).reshape(3, 4).to(dtype)
    for tensor in (whole, whole[:, ::2], whole.T, whole[0, 0], whole[:0], whole.expand(2, 3, 4)):
        back = there_and_back(tensor)
        assert (type(back), back.dtype, back.shape) == (torch.Tensor, dtype, tensor.shape)
        assert back.tolist() == tensor.tolist()


def test_what_is_more_than_a_plain_tensor_stays_so():
    weight = there_and_back(torch.nn.Parameter(torch.ones(3)))
    assert type(weight) is torch.nn.Parameter
    assert weight.requires_grad
    assert there_and_back(torch.ones(3, requires_grad=True)).requires_grad
    sparse = torch.eye(3).to_sparse()
    assert torch.equal(there_and_back(sparse).to_dense(), torch.eye(3))
    conjugate = torch.tensor([1 + 2j]).conj()
    assert torch.equal(there_and_back(conjugate), torch.tensor([1 - 2j]))
    marked = torch.ones(2)
    marked.mark = "kept"
    assert there_and_back(marked).mark == "kept"


def test_a_read_only_array_comes_back_read_only():
    array = np.arange(5)
    array.flags.writeable = False
    assert not there_and_back(array).flags.writeable
    assert not there_and_back(array[::2]).flags.writeable


def test_arrays_are_views_of_the_bytes_at_multiples_of_64():
    encoded = encode([torch.arange(3), np.arange(5), torch.arange(7).to(torch.bfloat16)])
    memory = np.zeros(encoded.nbytes, np.uint8)
    encoded.write_into(memory.data)
    first, second, third = decode(memory.data)
    for address in (first.data_ptr(), second.__array_interface__["data"][0], third.data_ptr()):
        assert (address - memory.__array_interface__["data"][0]) % 64 == 0
    memory[:] = 0
    assert first.tolist() == second[:3].tolist() == [0, 0, 0]


def test_containers_come_back_as_they_were():
    batch = {
        "ragged": hr.Ragged(torch.tensor([1, 2, 3]), torch.tensor([0, 1, 3])),
        "pair": Pair(np.arange(2), None),
        "record": Record("ä", torch.ones(2)),
        "keys": ["a", b"b", 3, 2.5, {4}],
    }
    back = there_and_back(batch)
    assert [row.tolist() for row in back["ragged"]] == [[1], [2, 3]]
    assert type(back["pair"]) is Pair
    assert back["pair"].left.tolist() == [0, 1]
    assert type(back["record"]) is Record
    assert back["record"].name == "ä"
    assert back["keys"] == batch["keys"]


def test_the_same_object_twice_is_one_and_two_views_of_one_memory_become_two():
    whole = torch.arange(6)
    one, same, half = there_and_back([whole, whole, whole[:3]])
    assert one is same
    half[0] = 9
    assert one[0] == 0


def test_thousands_of_arrays_are_one_message():
    arrays = [np.full(i % 5, i) for i in range(5000)]
    for array, back in zip(arrays, there_and_back(arrays), strict=True):
        assert back.tolist() == array.tolist()


def test_functions_made_on_the_spot_come_back():
    factor = 3
    assert there_and_back(lambda value: value * factor)(4) == 12


@pytest.mark.parametrize(
    "memory",
    [b"", b"\0" * 4, b"\0" * 64, struct.pack("<Q", 1), struct.pack("<2Q", 1, 2**60), struct.pack("<3Q", 2, 5, 2**63)],
)
def test_bytes_that_are_no_parts_are_refused(memory):
    with pytest.raises(ValueError, match="expected"):
        decode(memoryview(memory))


# -- in pieces --------------------------------------------------------------------------------------------------------

SIZES = st.lists(st.one_of(st.just(0), st.integers(0, 100), st.integers(0, 3000), st.integers(0, 60_000)), max_size=100)


@given(
    sizes=st.one_of(SIZES, st.builds(lambda sizes, times: sizes[:8] * times, SIZES, st.integers(1, 60))),
    apart_bytes=st.sampled_from([64, 500, 1024, 30_000]),
    inline_bytes=st.sampled_from([0, 300, 5000]),
)
def test_objects_of_any_parts_come_back_from_few_pieces_of_which_large_arrays_have_one_each(
    sizes, apart_bytes, inline_bytes
):
    arrays = [np.full(size, i % 251, np.uint8) for i, size in enumerate(sizes)]
    encoded = encode(arrays)
    with mock.patch.multiple("headrace.loader.encoding", _APART_BYTES=apart_bytes, _SHARED_BYTES=2 * apart_bytes):
        first, *others = in_pieces(encoded, inline_bytes=inline_bytes)
    assert len(others) <= MOST_PIECES
    for pieces in ([first, *others], [in_one_piece(encoded)]):
        received = decode_pieces([memoryview(piece.in_bytes()) for piece in pieces])
        assert [array.tolist() for array in received] == [array.tolist() for array in arrays]
    large = max(apart_bytes, encoded.nbytes // 32)
    assert all(len(piece.parts) == 1 for piece in others if max(part.nbytes for part in piece.parts) >= large)
    assert sum(part.nbytes for part in first.parts[1:]) <= inline_bytes


@pytest.mark.parametrize("places", [b"\1", b"\0\0"])
def test_places_where_no_parts_are_are_refused(places):
    piece = in_one_piece(encode(5))
    piece.parts[0] = memoryview(places)
    memory = piece.of(piece.parts).in_bytes()
    with pytest.raises(ValueError, match="expected the places of parts in 1 pieces"):
        decode_pieces([memoryview(memory)])
