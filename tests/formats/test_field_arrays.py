"""Arrays in `.npy` payloads: stacked where they are alike, else one by one, and never by running code."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import headrace as hr
from headrace.errors import ArgumentError
from headrace.formats import PayloadError
from headrace.formats.payloads import Payloads
from tests.formats.field_files import decoded, npy, planned

SHAPES = [(), (5,), (2, 3), (2, 3, 4), (1, 1), (0, 4)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<i8", ">u2", "u1", "?", "<c16", "<f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_one_layout_come_as_one_array(dtype, shape, order):
    arrays = [np.asarray(np.random.default_rng(i).integers(0, 99, shape).astype(dtype), order=order) for i in range(5)]
    column = planned("npy", [npy(array) for array in arrays]).decoder.column
    assert (column.dtype, column.shape, column.is_fixed) == (np.dtype(dtype).newbyteorder("="), shape, True)
    values = decoded("npy", [npy(array) for array in arrays])
    assert values.dtype == column.dtype
    assert (values == np.stack(arrays)).all()


def test_an_array_that_is_given_is_filled():
    arrays = [np.arange(6.0).reshape(2, 3) + i for i in range(4)]
    payloads = [npy(array) for array in arrays]
    out = np.empty((4, 2, 3))
    assert planned("npy", payloads).decoder.decode(Payloads(payloads), out, None) is out
    assert (out == np.stack(arrays)).all()


def test_headers_that_differ_but_say_the_same_are_taken():
    """Another version, memory order or byte order, of the same number of bytes."""
    array = np.arange(6, dtype="<i4").reshape(2, 3)
    ways = [npy(array), npy(array, (2, 0)), npy(np.asfortranarray(array)), npy(array.astype(">i4"))]
    assert len({len(way) for way in ways}) == 1
    assert (decoded("npy", ways) == np.stack([array] * 4)).all()


def test_arrays_with_named_fields_are_stacked():
    array = np.array([(1, 2.0), (3, 4.0)], dtype=[("a", "<i4"), ("b", ">f8")])
    values = decoded("npy", [npy(array)] * 3)
    assert values.shape == (3, 2)
    assert (values["b"] == [[2.0, 4.0]] * 3).all()


def test_equal_sizes_with_other_shapes_are_refused_with_the_way_out():
    payloads = [npy(np.zeros((2, 3))), npy(np.zeros((3, 2)))]
    with pytest.raises(
        PayloadError, match=r"expected an array of float64 \(2, 3\).*got float64 \(3, 2\).*npy_list"
    ) as e:
        decoded("npy", payloads)
    assert e.value.place == 1
    assert [array.shape for array in decoded("npy", payloads, decode={"npy": "npy_list"})] == [(2, 3), (3, 2)]


@given(
    st.lists(
        npst.arrays(
            npst.scalar_dtypes().filter(lambda dtype: dtype.kind in "biuf" and dtype.itemsize <= 8),
            npst.array_shapes(min_dims=0, min_side=0, max_side=4),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_any_arrays_come_as_they_were_saved(arrays):
    values = decoded("npy", [npy(array) for array in arrays], decode={"npy": "npy_list"})
    for found, expected in zip(values, arrays, strict=True):
        assert found.dtype == expected.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found, expected)


def test_arrays_of_different_sizes_come_as_a_list_in_memory_of_their_own():
    payloads = [bytearray(npy(np.arange(n))) for n in (3, 1, 2)]
    column = planned("npy", payloads).decoder.column
    assert (column.python_type, column.is_fixed) == (object, False)
    values = decoded("npy", payloads)
    payloads[0][-8:] = bytes(8)
    assert [array.tolist() for array in values] == [[0, 1, 2], [0], [0, 1]]
    values[0][0] = 7


def test_arrays_are_padded_on_request():
    payloads = [npy(np.arange(n * 2, dtype=np.int32).reshape(n, 2)) for n in (3, 0, 2)]
    column = planned("npy", payloads, pad_to={"npy": 4}).decoder.column
    assert (column.dtype, column.shape) == (np.dtype(np.int32), (4, 2))
    padded = decoded("npy", payloads, pad_to={"npy": hr.Pad(4, value=-1)})
    assert padded[0].tolist() == [[0, 1], [2, 3], [4, 5], [-1, -1]]
    assert padded[1].tolist() == [[-1, -1]] * 4
    with pytest.raises(PayloadError, match="row 0 holds 3 values, more than the length 2") as caught:
        decoded("npy", payloads, pad_to={"npy": 2})
    assert caught.value.place == 0
    assert decoded("npy", payloads, pad_to={"npy": hr.Pad(2, truncate=True)})[0].tolist() == [[0, 1], [2, 3]]


def test_what_cannot_be_padded_is_refused():
    with pytest.raises(ArgumentError, match="one axis or more"):
        planned("npy", [npy(np.array(1))], pad_to={"npy": 4})
    with pytest.raises(PayloadError, match=r"float64 \('any length', 2\) to pad.*got float64 \(3,\)") as caught:
        decoded("npy", [npy(np.zeros((1, 2))), npy(np.zeros(3))], pad_to={"npy": 4})
    assert caught.value.place == 1
    with pytest.raises(ArgumentError, match=r"pad_to: column 'txt' holds no .npy arrays"):
        planned("txt", [b"a"], pad_to={"txt": 4})
    with pytest.raises(ArgumentError, match=r"pad_to: expected for column 'npy' a length or headrace.Pad"):
        planned("npy", [npy(np.zeros(3))], pad_to={"npy": "4"})


# -- bad input --------------------------------------------------------------------------------------------------------


class Boom:
    def __reduce__(self):
        return print, ("ran code",)


def test_arrays_of_objects_are_refused_when_columns_are_planned(capsys):
    payload = npy(np.array([Boom()], dtype=object))
    with pytest.raises(ArgumentError, match=r"column 'x.npy': object holds Python objects, and reading them would run"):
        planned("x.npy", [payload])
    with pytest.raises(PayloadError, match="would run code") as caught:
        decoded("npy", [npy(np.zeros(3)), payload])
    assert caught.value.place == 1
    assert capsys.readouterr().out == ""


def test_arrays_of_text_are_refused_with_the_way_out():
    with pytest.raises(ArgumentError, match="no tensor holds text"):
        planned("npy", [npy(np.array(["a", "b"]))])


HEADER = "{{'descr': '<f8', 'fortran_order': False, 'shape': {}, }}"


def header_of(text: str) -> bytes:
    padded = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode()


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"", "the payload is empty"),
        (b"hello", "not a .npy file"),
        (npy(np.zeros(3))[:-1], r"has 151 bytes, but float64 \(3,\) takes 152"),
        (npy(np.zeros(3)) + b"\0", "has 153 bytes"),
        (npy(np.zeros(3))[:40], "ends within its header"),
        (header_of(HEADER.format("(1 << 60,)")), "not a dict literal"),
        (header_of(HEADER.format("(4611686018427387904, 4)")), "takes 147573952589676413056"),
        (header_of(HEADER.format("(-1,)")), "whole numbers"),
        (header_of(HEADER.format("(3,)").replace("<f8", "|O")) + bytes(24), "would run code"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "not a dict literal"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + b"x" * 99, "claims 2147483647 bytes"),
    ],
)
@pytest.mark.parametrize("decode", [None, {"npy": "npy_list"}], ids=["as the first", "lists"])
def test_damaged_arrays_are_refused_with_their_place(payload, said, decode):
    good = npy(np.zeros(3))
    with pytest.raises(PayloadError, match=said) as caught:
        decoded("npy", [good, good, payload], decode=decode)
    assert caught.value.place == 2


def test_a_lying_header_of_the_right_size_is_refused_in_a_stacked_batch():
    good = npy(np.zeros(3))
    lying = good.replace(b"(3,)", b"(4,)")
    with pytest.raises(PayloadError, match=r"has 152 bytes, but float64 \(4,\) takes 160") as caught:
        decoded("npy", [good, lying])
    assert caught.value.place == 1


def test_a_damaged_first_array_does_not_spoil_the_others():
    """It says nothing of the layout, so arrays come as lists; a sample that can't be read can be skipped."""
    good = npy(np.arange(3.0))
    decoder = planned("npy", [b"x" * len(good), good]).decoder
    assert decoder.decode(Payloads([good, good]), None, None)[1].tolist() == [0, 1, 2]


def test_no_payloads_are_no_rows():
    assert planned("npy", [npy(np.zeros((2, 3)))]).decoder.decode(Payloads([]), None, None).shape == (0, 2, 3)


def test_decoders_travel_to_other_processes():
    good = npy(np.arange(3.0))
    for options in ({}, {"decode": {"npy": "npy_list"}}, {"pad_to": {"npy": 4}}):
        decoder = pickle.loads(pickle.dumps(planned("npy", [good], **options).decoder))
        assert decoder.decode(Payloads([good]), None, None)[0][:3].tolist() == [0, 1, 2]
