"""Nulls: refused with a count, or replaced and told apart; what lies below them never shows."""

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ArgumentError
from headrace.formats.parquet_columns import ColumnOptions, ColumnRefused, plan_columns
from tests.formats.parquet_round_trip import planned, read, read_array, written

X = frozenset(["x"])


def garbage(values, valid, kind):
    """An array that holds `values` also where it is null."""
    array = pa.array(values, kind)
    bits = pa.py_buffer(np.packbits(valid, bitorder="little").tobytes())
    children = [array.values] if pa.types.is_nested(kind) else None
    data = array.buffers()[1:1] if pa.types.is_fixed_size_list(kind) else array.buffers()[1:2]
    return pa.Array.from_buffers(kind, len(array), [bits, *data], children=children)


def written_by(array, **options):
    """What the columns for an array write, without a file: files don't hold what lies below nulls."""
    schema = pa.schema([("x", array.type)])
    result = {}
    for column in plan_columns(schema, None, ColumnOptions(**options), where="f"):
        if column.stored is None:
            result[column.name] = column.finish(column.keep(array), None)
            continue
        result[column.name] = out = np.full((len(array), *column.stored.shape), 77).astype(column.stored.dtype)
        column.write(array, out)
    return result


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (
            pa.array([1, None, None]),
            r"^holds 2 nulls: give fill=\{'x': ...\} for a value .* or validity=\['x'\] for a c",
        ),
        (pa.array([1, None]).cast(pa.timestamp("us")), "holds 1 null:"),
        (pa.array([[1, 2], None], pa.list_(pa.int64(), 2)), "holds 1 null:"),
        (pa.array([[1, None], [None, 2]], pa.list_(pa.int64(), 2)), "holds 2 nulls within its lists: give fill"),
        (pa.array([[[1, 2]], [None]], pa.list_(pa.list_(pa.int64(), 2), 1)), "holds 2 nulls within its lists"),
        (pa.array([[1], None]), "holds 1 null:"),
        (pa.array([[1], [None, 2]]), "holds 1 null within its lists"),
        (pa.array([[[1, 2]], [None]], pa.list_(pa.list_(pa.int64(), 2))), "holds 2 nulls within its lists"),
        (pa.array(["a", None]), "holds 1 null:"),
        (pa.array([None, b"a"]), "holds 1 null:"),
        (pa.array(["a", None]).dictionary_encode(), "holds 1 null:"),
        (pa.array([["a"], None]), "holds 1 null:"),
    ],
)
def test_nulls_are_refused_with_a_count(tmp_path, array, text):
    with pytest.raises(ColumnRefused, match=text):
        read_array(tmp_path, array)


def test_nan_is_no_null(tmp_path):
    columns = read(written(tmp_path, {"x": pa.array([float("nan"), 1.0])}), validity=X)
    assert np.isnan(columns["x"][0])
    assert columns["x.__valid__"].tolist() == [True, True]


def test_nulls_have_no_code(tmp_path):
    with pytest.raises(ColumnRefused, match="holds 1 null:"):
        read_array(tmp_path, pa.array(["a", None]), codes=("a",))


def test_a_fill_value_takes_their_place(tmp_path):
    assert read_array(tmp_path, pa.array([1, None, 3]), fill=-1).tolist() == [1, -1, 3]
    assert np.isnan(read_array(tmp_path, pa.array([1.0, None], pa.float32()), fill=float("nan"))[1])
    assert read_array(tmp_path, pa.array([True, None]), fill=True).tolist() == [True, True]
    assert read_array(tmp_path, pa.array([Decimal(1), None]), fill=0.5, cast="float64").tolist() == [1, 0.5]
    assert read_array(tmp_path, pa.array(["a", None, "b"]), fill="?").to_pylist() == ["a", "?", "b"]
    assert read_array(tmp_path, pa.array(["a", None]), fill="?", batch_rows=1).to_pylist() == ["a", "?"]
    assert read_array(tmp_path, pa.array([b"abc", None], pa.binary(3)), fill=b"").to_pylist() == [b"abc", b""]
    assert read_array(tmp_path, pa.array([["a"], None]), fill=["b", "c"]).to_pylist() == [["a"], ["b", "c"]]
    assert read_array(tmp_path, pa.array(["a", None]), codes=("a",), fill=-100).tolist() == [0, -100]
    codes = read_array(tmp_path, pa.array(["a", None]).dictionary_encode(), codes=("a",), fill=-100)
    assert codes.tolist() == [0, -100]


def test_a_fill_value_of_fixed_lists_is_one_number_or_an_array(tmp_path):
    array = pa.array([[1, 2], None, [None, 4]], pa.list_(pa.int64(), 2))
    assert read_array(tmp_path, array, fill=7).tolist() == [[1, 2], [7, 7], [7, 4]]
    assert read_array(tmp_path, array, fill=[8, 9], batch_rows=2).tolist() == [[1, 2], [8, 9], [8, 4]]


def test_a_fill_value_of_a_tensor_lies_along_its_logical_axes():
    kind = pa.fixed_shape_tensor(pa.int32(), [2, 3], permutation=[1, 0])
    storage = pa.array([[0, 1, None, 3, 4, 5], None], kind.storage_type)
    filled = written_by(pa.ExtensionArray.from_storage(kind, storage), fill={"x": [[-1], [-2], [-3]]})["x"]
    assert filled.tolist() == [[[0, 3], [1, 4], [-3, 5]], [[-1, -1], [-2, -2], [-3, -3]]]


def test_a_fill_value_of_lists_stands_for_rows_if_it_is_a_list_and_else_for_values(tmp_path):
    array = pa.array([[1, None], None, [2]])
    assert [row.tolist() for row in read_array(tmp_path, array, fill=9)] == [[1, 9], [], [2]]
    with pytest.raises(
        ColumnRefused,
        match=r"1 null within its lists: give fill.* \(the list that is given stands for null rows only\)",
    ):
        read_array(tmp_path, array, fill=[5, 6])
    array = pa.array([[1], None, [2]])
    assert [row.tolist() for row in read_array(tmp_path, array, fill=[5, 6], batch_rows=2)] == [[1], [5, 6], [2]]
    array = pa.array([[[1, 2]], None], pa.list_(pa.list_(pa.int64(), 2)))
    assert [row.tolist() for row in read_array(tmp_path, array, fill=[[5, 6]])] == [[[1, 2]], [[5, 6]]]
    assert [row.tolist() for row in read_array(tmp_path, array, fill=[])] == [[[1, 2]], []]
    array = pa.array([[[1, 2]], None, [None, [3, None]]], pa.list_(pa.list_(pa.int64(), 2)))
    filled = read_array(tmp_path, array, fill=9)
    assert [row.tolist() for row in filled] == [[[1, 2]], [], [[9, 9], [3, 9]]]


def test_lists_with_a_shape_are_filled_too(tmp_path):
    array = pa.array([[1, 2], None, [None, 4]])
    assert read_array(tmp_path, array, shape=(2,), fill=7).tolist() == [[1, 2], [7, 7], [7, 4]]
    nested = pa.array([[[1, 2], None], None, [[3, 4], [5, None]]])
    assert read_array(tmp_path, nested, shape=(2, 2), fill=7).tolist() == [
        [[1, 2], [7, 7]],
        [[7, 7], [7, 7]],
        [[3, 4], [5, 7]],
    ]
    assert (
        read_array(tmp_path, pa.array([None, None], pa.list_(pa.int64())), shape=(2,), fill=7).tolist() == [[7, 7]] * 2
    )


def test_lists_of_arrays_with_a_shape_are_filled_too():
    pairs = pa.array([[[1, 2], None], None], pa.list_(pa.list_(pa.int64(), 2)))
    filled = written_by(pairs, shape={"x": (2, 2)}, fill={"x": 7})["x"]
    assert filled.tolist() == [[[1, 2], [7, 7]], [[7, 7], [7, 7]]]
    kind = pa.fixed_shape_tensor(pa.int64(), [1, 2], permutation=[1, 0])
    tensors = pa.ExtensionArray.from_storage(kind, pa.array([[1, 2], [3, 4]], kind.storage_type))
    array = pa.ListArray.from_arrays(pa.array([0, 2, 2], pa.int32()), tensors, mask=pa.array([False, True]))
    filled = written_by(array, shape={"x": (2, 2, 1)}, fill={"x": 7})["x"]
    assert filled.tolist() == [[[[1], [2]], [[3], [4]]], [[[7], [7]], [[7], [7]]]]


def test_a_validity_column_says_where_they_are_and_zeros_stand_for_them(tmp_path):
    for array, values, valid in (
        (pa.array([1, None]), [1, 0], [True, False]),
        (pa.array([[1, 2], None, [3, None]], pa.list_(pa.int64(), 2)), [[1, 2], [0, 0], [3, 0]], [True, False, False]),
        (pa.array([1, 2]), [1, 2], [True, True]),
    ):
        path = written(tmp_path, {"x": array, "y": pa.array(range(len(array)))})
        assert [column.name for column in planned(path, validity=X)] == ["x", "x.__valid__", "y"]
        columns = read(path, validity=X, batch_rows=2)
        assert (columns["x"].tolist(), columns["x.__valid__"].tolist()) == (values, valid)
        assert columns["x.__valid__"].dtype == np.bool_


def test_with_a_validity_column_text_is_empty_and_so_are_lists(tmp_path):
    def of(array, **options):
        columns = read(written(tmp_path, {"x": array}), validity=X, **options)
        return columns["x"], columns["x.__valid__"].tolist()

    for array, empty in (
        (pa.array(["a", None]), ""),
        (pa.array([None, b"a"], pa.binary(1)), b""),
        (pa.array(["a", None]).dictionary_encode(), ""),
        (pa.array([["a"], None]), []),
        (pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())), []),
    ):
        values, valid = of(array)
        assert values.to_pylist() == [empty if value is None else value for value in array.to_pylist()]
        assert valid == [value is not None for value in array.to_pylist()]
    values, valid = of(pa.array([[1], None, [], [None, 2]]))
    assert ([row.tolist() for row in values], valid) == ([[1], [], [], [0, 2]], [True, False, True, False])
    assert of(pa.array(["a", None]), codes={"x": ("a",)})[1] == [True, False]
    values, valid = of(pa.array([1, None]), fill={"x": 5})
    assert (values.tolist(), valid) == ([1, 5], [True, False])
    values, valid = of(pa.array([[1], None, [None]]), fill={"x": [5]})
    assert ([row.tolist() for row in values], valid) == ([[1], [5], [0]], [True, False, False])


def test_nulls_of_structs_are_nulls_of_their_fields(tmp_path):
    inner = pa.StructArray.from_arrays([pa.array([1, 2, None, 4])], ["y"], mask=pa.array([False, True, False, False]))
    outer = pa.StructArray.from_arrays([inner], ["in"], mask=pa.array([False, False, False, True]))
    path = written(tmp_path, {"a": outer})
    with pytest.raises(ColumnRefused, match="holds 3 nulls"):
        read(path)
    columns = read(path, validity=frozenset(["a.in.y"]), batch_rows=3)
    assert columns["a.in.y"].tolist() == [1, 0, 0, 0]
    assert columns["a.in.y.__valid__"].tolist() == [True, False, False, False]
    batch = pa.record_batch({"a": outer}).slice(1)
    (column,) = plan_columns(batch.schema, None, ColumnOptions(fill={"a.in.y": -1}), where="f")
    out = np.empty(3, np.int64)
    column.write(column.extract(batch), out)
    assert out.tolist() == [-1, -1, -1]


def test_what_lies_below_nulls_never_shows_nor_fails_a_cast():
    for kind in (pa.int64(), pa.float64(), pa.uint64()):
        array = garbage([1, 2**40, 3], [True, False, True], kind)
        assert written_by(array, fill={"x": 7}, cast={"x": "int32"})["x"].tolist() == [1, 7, 3]
    array = garbage([Decimal("1.00"), Decimal("2.50"), Decimal(3)], [True, False, True], pa.decimal128(20, 2))
    assert written_by(array, fill={"x": 7}, cast={"x": "int8"})["x"].tolist() == [1, 7, 3]
    array = garbage([Decimal("1.00"), Decimal("2.50"), Decimal(3)], [True, False, True], pa.decimal128(10, 2))
    assert written_by(array, validity=X, cast={"x": "float32"})["x"].tolist() == [1, 0, 3]
    flags = garbage([True, True], [True, False], pa.bool_())
    assert written_by(flags, validity=X)["x"].tolist() == [True, False]
    assert written_by(flags[1:], validity=X)["x"].tolist() == [False]


def test_what_lies_below_null_lists_never_shows():
    pair = pa.list_(pa.int64(), 2)
    array = garbage([[1, 2], [2**40, 2**40], [3, 4]], [True, False, True], pair)
    columns = written_by(array[1:], validity=X, cast={"x": "int32"})
    assert (columns["x"].tolist(), columns["x.__valid__"].tolist()) == ([[0, 0], [3, 4]], [False, True])
    decimals = garbage([[Decimal("0.50")], [Decimal(1)]], [False, True], pa.list_(pa.decimal128(20, 2), 1))
    assert written_by(decimals, fill={"x": 9}, cast={"x": "int64"})["x"].tolist() == [[9], [1]]
    array = garbage([[1, 2], [2**40] * 3, [3, 4]], [True, False, True], pa.list_(pa.int64()))
    ragged = written_by(array, validity=X, cast={"x": "int32"})["x"]
    assert [row.tolist() for row in ragged] == [[1, 2], [], [3, 4]]
    assert ragged.values.tolist() == [1, 2, 3, 4]
    fixed = written_by(array, fill={"x": 9}, shape={"x": (2,)}, cast={"x": "int32"})["x"]
    assert fixed.tolist() == [[1, 2], [9, 9], [3, 4]]


def test_the_null_type_is_refused(tmp_path):
    with pytest.raises(
        ArgumentError, match=r"column 'x' of x\.parquet: its type is null, so it holds nothing: leave it"
    ):
        planned(written(tmp_path, {"x": pa.nulls(2)}))


@pytest.mark.parametrize(
    ("array", "fill", "text"),
    [
        (pa.array([1]), 0.5, r"column 'x' of x\.parquet: fill: expected a value that int64 can hold, got 0\.5"),
        (pa.array([1]), "a", "fill: expected a value that int64 can hold, got 'a'"),
        (pa.array([1]), None, "int64 can hold, got None"),
        (pa.array([1], pa.int8()), 300, "int8 can hold, got 300"),
        (pa.array([1]), 2**70, "int64 can hold"),
        (pa.array([1]), [1, 2], "int64 can hold"),
        (pa.array([[1, 2]], pa.list_(pa.int64(), 2)), [1, 2, 3], r"int64 of shape \(2,\) can hold, got \[1, 2, 3\]"),
        (pa.array([[1]]), ["a"], "fill: expected"),
        (pa.array([[1]]), [[1], [1, 2]], "fill: expected"),
        (pa.array(["a"]), 5, "fill: expected a value of type large_string, got 5"),
        (pa.array(["a"]), None, "fill: expected a value of type large_string, got None: ask for validity"),
        (pa.array([["a"]]), 5, "fill: expected a value of type list<"),
    ],
)
def test_fill_values_that_the_column_can_not_hold_are_refused(tmp_path, array, fill, text):
    path = written(tmp_path, {"x": array})
    with pytest.raises(ArgumentError, match=text):
        planned(path, fill={"x": fill})


fixed_rows = st.lists(
    st.none() | st.lists(st.none() | st.integers(-(2**31), 2**31 - 1), min_size=3, max_size=3), max_size=12
)


@given(fixed_rows, st.integers(0, 5))
def test_fixed_lists_with_nulls_come_out_as_python_says(rows, start):
    array = pa.array([None, *rows], pa.list_(pa.int64(), 3))[1:][start:]
    rows = rows[start:]
    columns = written_by(array, fill={"x": -7}, validity=X, cast={"x": "int32"})
    expected = [[-7 if value is None else value for value in row or [None] * 3] for row in rows]
    assert columns["x"].tolist() == expected
    assert columns["x.__valid__"].tolist() == [row is not None and None not in row for row in rows]


@given(st.lists(st.none() | st.lists(st.none() | st.integers(0, 255), max_size=4), max_size=12), st.integers(0, 5))
def test_lists_with_nulls_come_out_as_python_says(rows, start):
    for kind in (pa.list_(pa.int64()), pa.large_list(pa.int64()), pa.list_view(pa.int64())):
        array = pa.array([[1], *rows], kind)[1:][start:]
        columns = written_by(array, fill={"x": 9}, validity=X, cast={"x": "uint8"})
        expected = [[9 if value is None else value for value in row or []] for row in rows[start:]]
        assert [row.tolist() for row in columns["x"].to_list()] == expected
        assert columns["x.__valid__"].tolist() == [row is not None and None not in row for row in rows[start:]]
