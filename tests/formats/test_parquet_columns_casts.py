"""Casts: asked for, checked, and never silently lossy."""

import math
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ArgumentError
from headrace.formats.parquet_casts import converted, fitted
from headrace.formats.parquet_columns import ColumnRefused
from tests.formats.parquet_round_trip import planned, read_array, written

INF, NAN = math.inf, math.nan
INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
FLOATS = ["float16", "float32", "float64"]


@pytest.mark.parametrize(
    ("values", "source", "target"),
    [
        ([2**31 - 1, -(2**31)], "int64", "int32"),
        ([0, 255], "int64", "uint8"),
        ([0, 2**63 - 1], "uint64", "int64"),
        ([0, 2**64 - 1], "uint64", "uint64"),
        ([2**53, -(2**53), 2**60, -(2**63)], "int64", "float64"),
        ([2**24, -(2**24), 2**40], "int64", "float32"),
        ([2048, -(2**15)], "int32", "float16"),
        ([2**63, 2**53 - 1], "uint64", "float64"),
        ([0.0, -0.0, 1.0, -(2.0**31)], "float64", "int32"),
        ([-(2.0**63)], "float64", "int64"),
        ([2.0**63], "float64", "uint64"),
        ([65504.0], "float16", "int32"),
        ([0.1, INF, -INF, NAN, -0.0, 1e-300], "float64", "float32"),
        ([0.1, 65504.0], "float32", "float16"),
        ([0.1], "float32", "float64"),
        ([0, 1], "int8", "bool"),
        ([0.0, 1.0], "float32", "bool"),
        ([True, False], "bool", "float16"),
        ([True, False], "bool", "int64"),
    ],
)
def test_what_fits_is_cast(tmp_path, values, source, target):
    array = np.array(values, source)
    cast = read_array(tmp_path, pa.array(array), cast=target)
    assert cast.dtype == target
    assert np.array_equal(cast, array.astype(target), equal_nan=target in FLOATS)
    if target in FLOATS and source in FLOATS:
        assert np.array_equal(np.signbit(cast), np.signbit(array))


@pytest.mark.parametrize(
    ("values", "source", "target", "text"),
    [
        ([2**31, 5], "int64", "int32", r"holds 1 value not to be had as int32 without loss, such as 2147483648"),
        (
            [-1, -2, 5],
            "int64",
            "uint8",
            r"holds 2 values not to be had as uint8 without loss, such as -1: cast to \"int6",
        ),
        ([2**63], "uint64", "int64", r"such as 9223372036854775808: cast to \"uint64\", or leave the cast out"),
        ([2**53 + 1, 2**63 - 1], "int64", "float64", "2 values .* such as 9007199254740993: leave the cast out"),
        ([2**64 - 1], "uint64", "float64", "such as 18446744073709551615"),
        ([2**24 + 1], "int32", "float32", r"such as 16777217: cast to \"float64\""),
        ([2049], "int16", "float16", "such as 2049"),
        ([65536, -65536], "int32", "float16", "2 values"),
        ([0.5], "float64", "int64", r"such as 0.5: cast to \"float64\""),
        ([NAN], "float64", "int64", "such as nan"),
        ([INF], "float32", "int32", "such as inf"),
        ([-INF], "float16", "int32", "such as -inf"),
        ([2.0**63], "float64", "int64", "such as 9.2"),
        ([2.0**31], "float32", "int32", "such as 2147483648.0"),
        ([-1.0], "float64", "uint64", "such as -1.0"),
        ([1e39, -1e39], "float64", "float32", "holds 2 values not to be had as float32"),
        ([65520.0], "float32", "float16", "such as 65520.0"),
        ([2], "int8", "bool", "such as 2"),
        ([NAN], "float64", "bool", "such as nan"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_count_and_an_example(tmp_path, values, source, target, text):
    with pytest.raises(ColumnRefused, match=text):
        read_array(tmp_path, pa.array(np.array(values, source)), cast=target)


@given(st.data())
def test_integers_are_cast_exactly_or_refused(data):
    source, target = data.draw(st.sampled_from(INTEGERS)), data.draw(st.sampled_from(INTEGERS + FLOATS))
    info = np.iinfo(source)
    near = [edge + by for bits in range(7, 65) for edge in (2**bits, -(2**bits)) for by in (-1, 0, 1)]
    values = data.draw(
        st.lists(
            st.integers(int(info.min), int(info.max))
            | st.sampled_from([edge for edge in near if info.min <= edge <= info.max]),
            min_size=1,
            max_size=4,
        )
    )
    try:
        cast = fitted(np.array(values, source), np.dtype(target))
    except ColumnRefused:
        if target in FLOATS:
            with np.errstate(over="ignore"):
                rounded = [float(np.array(value, source).astype(target)) for value in values]
            assert any(not math.isfinite(x) or int(x) != value for x, value in zip(rounded, values, strict=True))
        else:
            bounds = np.iinfo(target)
            assert any(not bounds.min <= value <= bounds.max for value in values)
    else:
        assert [int(value) for value in cast.tolist()] == values


@given(
    st.lists(st.floats() | st.integers(-(2**65), 2**65).map(float), min_size=1, max_size=4), st.sampled_from(INTEGERS)
)
def test_floats_become_the_same_integers_or_are_refused(values, target):
    info = np.iinfo(target)
    fits = all(math.isfinite(value) and value == int(value) and info.min <= int(value) <= info.max for value in values)
    try:
        cast = fitted(np.array(values), np.dtype(target))
    except ColumnRefused:
        assert not fits
    else:
        assert fits
        assert cast.tolist() == [int(value) for value in values]


def test_uint64_and_decimals_ask_for_a_cast(tmp_path):
    for array, text in (
        (pa.array([1], pa.uint64()), r"column 'x' of x.parquet: .* uint64: ask for cast={'x': 'int64'}, which checks"),
        (pa.array([Decimal(1)]), r"no tensor holds decimal128\(1, 0\): ask for cast={'x': 'float64'} to round, or"),
        (pa.array([[1]], pa.list_(pa.uint64())), "cast={'x': 'int64'}"),
        (pa.array([[Decimal(1)]], pa.list_(pa.decimal256(50, 2), 1)), r"decimal256\(50, 2\)"),
    ):
        with pytest.raises(ArgumentError, match=text):
            planned(written(tmp_path, {"x": array}))


DECIMALS = [pa.decimal32(9, 2), pa.decimal64(18, 2), pa.decimal128(15, 2), pa.decimal128(38, 2), pa.decimal256(76, 2)]


@pytest.mark.parametrize("kind", DECIMALS, ids=str)
def test_whole_decimals_become_integers(tmp_path, kind):
    array = pa.array([Decimal("12.00"), Decimal("-3.00"), Decimal(0)], kind)
    assert read_array(tmp_path, array, cast="int64").tolist() == [12, -3, 0]
    assert read_array(tmp_path, array, cast="int8", batch_rows=1).tolist() == [12, -3, 0]
    assert read_array(tmp_path, array[2:], cast="bool").tolist() == [False]
    with pytest.raises(ColumnRefused, match="1 value not to be had as uint8 without loss, such as -3"):
        read_array(tmp_path, array, cast="uint8")


@pytest.mark.parametrize("kind", DECIMALS, ids=str)
def test_decimals_that_are_no_such_integers_are_refused(tmp_path, kind):
    array = pa.array([Decimal("12.00"), Decimal("1.50"), Decimal("0.01")], kind)
    with pytest.raises(
        ColumnRefused, match=r"2 values not to be had as int64 without loss, such as 1.50: cast to \"float"
    ):
        read_array(tmp_path, array, cast="int64")


def test_decimals_of_38_digits_fit_or_are_refused(tmp_path):
    largest = pa.array([Decimal(2**63 - 1), Decimal(-(2**63))], pa.decimal128(38, 0))
    assert read_array(tmp_path, largest, cast="int64").tolist() == [2**63 - 1, -(2**63)]
    assert read_array(tmp_path, pa.array([Decimal(2**64 - 1)]), cast="uint64").tolist() == [2**64 - 1]
    for value, target in ((Decimal(2**63), "int64"), (Decimal(-1), "uint64"), (Decimal(10**38 - 1), "int64")):
        with pytest.raises(ColumnRefused, match=f"1 value not to be had as {target} without loss, such as {value}"):
            read_array(tmp_path, pa.array([value], pa.decimal128(38, 0)), cast=target)
    assert read_array(tmp_path, pa.array([Decimal("9" * 38)]), cast="float64").tolist() == [1e38]
    assert read_array(tmp_path, pa.array([Decimal("9" * 38)]), cast="float32").tolist() == [float(np.float32(1e38))]
    with pytest.raises(ColumnRefused, match="had as float16"):
        read_array(tmp_path, pa.array([Decimal("9" * 38)]), cast="float16")


@given(st.sampled_from([(15, 7), (15, 0), (5, 5), (18, 7), (38, 20)]), st.data())
def test_decimals_become_the_nearest_float(digits, data):
    precision, scale = digits
    limit = 10**precision - 1
    values = data.draw(st.lists(st.integers(-limit, limit).map(lambda n: Decimal(f"{n}E-{scale}")), max_size=5))
    array = pa.array([Decimal(0), *values], pa.decimal128(precision, scale))[1:]
    assert converted(array, np.dtype(np.float64), None).tolist() == [float(value) for value in values]


def test_casts_reach_into_lists(tmp_path):
    fixed = pa.array([[1, 2], [3, 4]], pa.list_(pa.uint64(), 2))
    assert read_array(tmp_path, fixed, cast="int64").tolist() == [[1, 2], [3, 4]]
    ragged = read_array(tmp_path, pa.array([[1.0], [2.0, 3.0]]), cast="int32")
    assert (ragged.values.tolist(), str(ragged.values.dtype)) == ([1, 2, 3], "torch.int32")
    decimals = pa.array([[Decimal("1.5")], []], pa.list_(pa.decimal128(5, 2)))
    assert [row.tolist() for row in read_array(tmp_path, decimals, cast="float32")] == [[1.5], []]
    with pytest.raises(ColumnRefused, match="1 value not to be had as int8 without loss, such as 300"):
        read_array(tmp_path, pa.array([[1], [300]]), cast="int8")


def test_times_can_be_cast_as_the_integers_that_they_are(tmp_path):
    assert read_array(tmp_path, pa.array([5], pa.timestamp("us")), cast="int32").tolist() == [5]
    with pytest.raises(ColumnRefused, match="had as int32"):
        read_array(tmp_path, pa.array([2**40], pa.timestamp("us")), cast="int32")


@pytest.mark.parametrize(
    ("array", "cast", "text"),
    [
        (pa.array([1]), "int33", r"cast: expected one of bool, int8, .*float64, got 'int33'"),
        (pa.array([1]), "bfloat16", "got 'bfloat16'"),
        (pa.array([1]), ["int8"], "cast: expected one of"),
        (pa.array(["a"]), "int64", "column 'x' of x.parquet: cast makes no sense for string: leave it out"),
        (pa.array([["a"]]), "int64", "cast makes no sense for list<"),
    ],
)
def test_casts_to_or_from_something_else_are_refused(tmp_path, array, cast, text):
    with pytest.raises(ArgumentError, match=text):
        planned(written(tmp_path, {"x": array}), cast={"x": cast})
