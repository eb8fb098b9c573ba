"""Integers in text, a batch at once: what Python's `int` makes of them."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.formats import PayloadError
from headrace.formats.field_numbers import IntegerDecoder
from headrace.formats.payloads import Payloads


def decoded(*texts: bytes) -> list[int]:
    out = np.full(len(texts), 99, np.int64)
    values = IntegerDecoder().decode(Payloads(texts), out)
    assert values is out
    assert (IntegerDecoder().decode(Payloads(texts)) == out).all()
    return out.tolist()


@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1), max_size=20))
def test_every_int64_comes_as_it_was_written(numbers):
    assert decoded(*(b"%d" % number for number in numbers)) == numbers


@given(st.lists(st.binary(max_size=22) | st.text("0123456789 \n\t-+_", max_size=20).map(str.encode), max_size=6))
def test_texts_are_what_int_makes_of_them_or_refused(texts):
    try:
        expected = [int(text) for text in texts]
        assert all(-(1 << 63) <= number < 1 << 63 for number in expected)
    except (ValueError, AssertionError):
        with pytest.raises(PayloadError):
            decoded(*texts)
    else:
        assert decoded(*texts) == expected


@pytest.mark.parametrize(
    "texts",
    [
        (b"7",),
        (b"7", b"0", b"3"),
        (b"10", b"7", b"123"),
        (b"7\n", b"12\n", b"3"),
        (b"7\n", b"12\n"),
        (b" 7", b"7 \r\n", b"\t7\n", b"+7", b"-7", b"007", b"1_000", b"5"),
        (b"9" * 18, b"1"),
        (b"9" * 18 + b"\n", b"1\n"),
        (b"9223372036854775807", b"-9223372036854775808", b"0" * 40 + b"5"),
    ],
)
def test_digits_signs_and_white_space_are_taken_as_int_takes_them(texts):
    assert decoded(*texts) == [int(text) for text in texts]


@pytest.mark.parametrize(
    ("texts", "place", "said"),
    [
        ((b"1", b""), 1, r"expected an integer as text, got 0 bytes, b''"),
        ((b"", b""), 0, "got 0 bytes"),
        ((b"12", b"1x", b"3"), 1, "got 2 bytes, b'1x'"),
        ((b"12", b"\n", b"3"), 1, "got 1 bytes"),
        ((b"12", b"1\0"), 1, r"b'1\\x00'"),
        ((b"12", b"1\n\n1"), 1, "got 4 bytes"),
        ((b"1", b"2.0"), 1, "b'2.0'"),
        ((b"1", b"9223372036854775808"), 1, "that int64 holds, got 9223372036854775808"),
        ((b"1", b"9" * 5000), 1, r"got 5000 bytes, b'9+'\.\.\."),
    ],
)
def test_what_is_no_int64_is_refused_with_its_place(texts, place, said):
    with pytest.raises(PayloadError, match=said) as caught:
        decoded(*texts)
    assert caught.value.place == place


def test_no_payloads_are_no_numbers():
    assert decoded() == []


def test_the_decoder_travels_to_other_processes():
    assert pickle.loads(pickle.dumps(IntegerDecoder())).decode(Payloads([b"4"])).tolist() == [4]
