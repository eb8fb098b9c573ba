"""What each type of a Parquet column becomes."""

import datetime as dt
import tracemalloc
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
import torch

from headrace.errors import ArgumentError
from headrace.formats.parquet_columns import ColumnOptions, plan_columns
from headrace.formats.parquet_source import ParquetSource
from headrace.formats.source import Column
from tests.formats.parquet_round_trip import planned, read, read_array, read_column, written

NUMBERS = [
    (pa.bool_(), [True, False, True], "bool"),
    (pa.int8(), [-128, 0, 127], "int8"),
    (pa.int16(), [-(2**15), 0, 2**15 - 1], "int16"),
    (pa.int32(), [-(2**31), 0, 2**31 - 1], "int32"),
    (pa.int64(), [-(2**63), 0, 2**63 - 1], "int64"),
    (pa.uint8(), [0, 1, 255], "uint8"),
    (pa.uint16(), [0, 1, 2**16 - 1], "uint16"),
    (pa.uint32(), [0, 1, 2**32 - 1], "uint32"),
    (pa.float16(), [np.float16(1.5), np.float16(-0.0), np.float16("inf")], "float16"),
    (pa.float32(), [0.1, float("nan"), float("-inf")], "float32"),
    (pa.float64(), [0.1, float("nan"), -0.0], "float64"),
]
TIMES = [
    (pa.timestamp("ms"), "int64"),
    (pa.timestamp("us", "UTC"), "int64"),
    (pa.timestamp("ns"), "int64"),
    (pa.duration("s"), "int64"),
    (pa.duration("ns"), "int64"),
    (pa.date32(), "int32"),
    (pa.time32("ms"), "int32"),
    (pa.time64("us"), "int64"),
    (pa.time64("ns"), "int64"),
]


def bits(array):
    return array.view(f"u{array.dtype.itemsize}").tolist()


@pytest.mark.parametrize(("kind", "values", "dtype"), NUMBERS, ids=lambda given: str(given)[:12])
def test_numbers_keep_their_dtype_and_every_bit(tmp_path, kind, values, dtype):
    read_back = read_array(tmp_path, pa.array(values, kind), batch_rows=2)
    assert read_back.dtype == dtype
    assert bits(read_back) == bits(np.array(values, dtype))


@pytest.mark.parametrize(("kind", "dtype"), TIMES, ids=str)
def test_times_are_integers_in_their_own_unit(tmp_path, kind, dtype):
    values = [0, 86399, 12345]
    read_back = read_array(tmp_path, pa.array(np.array(values, dtype)).cast(kind))
    assert (read_back.dtype, read_back.tolist()) == (np.dtype(dtype), values)


def test_date64_is_milliseconds_where_arrow_gives_it():
    # Parquet itself has days only, and pyarrow reads them as date32
    (column,) = plan_columns(pa.schema([("x", pa.date64())]), None, ColumnOptions(), where="f")
    out = np.empty(1, np.int64)
    column.write(pa.array([86400000], pa.date64()), out)
    assert out.tolist() == [86400000]


def test_slices_of_every_type_give_their_own_rows(tmp_path):
    for kind, values, dtype in NUMBERS:
        (column,) = planned(written(tmp_path, {"x": pa.array(values, kind)}))
        array = pa.array(values * 7, kind)
        for start, stop in ((1, 4), (9, 20), (20, 21), (3, 3)):
            out = np.empty(stop - start, dtype)
            column.write(array[start:stop], out)
            assert bits(out) == bits(np.array(values * 7, dtype)[start:stop])


def test_text_and_bytes_stay_in_arrow_as_one_type_whatever_the_file_holds(tmp_path):
    for kind, python_type, value, kept in (
        (pa.string(), str, "ä", pa.large_string()),
        (pa.large_string(), str, "ä", pa.large_string()),
        (pa.string_view(), str, "ä", pa.large_string()),
        (pa.dictionary(pa.int32(), pa.string()), str, "ä", pa.large_string()),
        (pa.json_(), str, "{}", pa.large_string()),
        (pa.binary(), bytes, b"\0a", pa.large_binary()),
        (pa.large_binary(), bytes, b"\0a", pa.large_binary()),
        (pa.binary_view(), bytes, b"\0a", pa.large_binary()),
        (pa.binary(2), bytes, b"\0a", pa.large_binary()),
        (pa.uuid(), bytes, b"0123456789abcdef", pa.large_binary()),
    ):
        storage = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
        array = pa.array([value, value], storage)
        array = pa.ExtensionArray.from_storage(kind, array) if storage is not kind else array
        path = written(tmp_path, {"x": array})
        (column,) = planned(path)
        assert (column.column, column.stored) == (Column(np.dtype("O"), python_type=python_type), None)
        read_back = read_column(path, column, 1)
        assert (read_back.to_pylist(), read_back.type) == ([value, value], kept), kind


def test_fixed_size_lists_are_arrays_and_so_are_nested_ones(tmp_path):
    values = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    array = pa.array(values.tolist(), pa.list_(pa.list_(pa.float32(), 4), 3))
    assert np.array_equal(read_array(tmp_path, array), values)
    flags = pa.array([[True, False, True], [False, False, True]], pa.list_(pa.bool_(), 3))
    assert read_array(tmp_path, flags, batch_rows=1).tolist() == flags.to_pylist()
    halves = pa.array([[np.float16(1.5)], [np.float16(2.5)]], pa.list_(pa.float16(), 1))
    assert read_array(tmp_path, halves).dtype == np.float16


def test_slices_of_fixed_size_lists_give_their_own_rows(tmp_path):
    values = np.arange(5 * 6).reshape(5, 3, 2)
    array = pa.array(values.tolist(), pa.list_(pa.list_(pa.int64(), 2), 3))
    (column,) = planned(written(tmp_path, {"x": array}))
    for start, stop in ((0, 5), (1, 3), (4, 5), (2, 2)):
        out = np.empty((stop - start, 3, 2), np.int64)
        column.write(array[start:stop], out)
        assert np.array_equal(out, values[start:stop])


def test_a_tensor_comes_with_its_axes_in_logical_order(tmp_path):
    # as the specification says; pyarrow's own `to_numpy_ndarray` gives other values for most permutations
    physical = np.arange(3 * 24, dtype=np.int32).reshape(3, 2, 3, 4)
    storage = pa.FixedSizeListArray.from_arrays(pa.array(physical.ravel()), 24)
    for permutation in (None, [0, 1, 2], [2, 0, 1], [1, 2, 0], [0, 2, 1]):
        kind = pa.fixed_shape_tensor(pa.int32(), [2, 3, 4], permutation=permutation)
        array = pa.ExtensionArray.from_storage(kind, storage)
        expected = physical.transpose(0, *(1 + axis for axis in permutation or [0, 1, 2]))
        path = written(tmp_path, {"x": array})
        (column,) = planned(path)
        assert column.column == Column(np.dtype(np.int32), expected.shape[1:])
        assert np.array_equal(read_column(path, column, 2), expected)
        out = np.empty((2, *expected.shape[1:]), np.int32)
        column.write(array[1:], out)
        assert np.array_equal(out, expected[1:])


def test_other_extension_types_are_what_they_are_stored_as(tmp_path):
    array = pa.ExtensionArray.from_storage(pa.bool8(), pa.array([0, 1], pa.int8()))
    assert read_array(tmp_path, array).tolist() == [0, 1]


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list, pa.list_view, pa.large_list_view], ids=lambda k: k.__name__)
def test_lists_are_ragged(tmp_path, kind):
    rows = [[1, 2], [], [3], [4, 5, 6]]
    path = written(tmp_path, {"x": pa.array(rows, kind(pa.int16()))})
    (column,) = planned(path)
    assert (column.column, column.stored) == (Column(np.dtype(np.int16), ragged=True), None)
    ragged = read_column(path, column, 3)
    assert [row.tolist() for row in ragged] == rows
    assert (ragged.values.dtype, ragged.offsets.tolist()) == (torch.int16, [0, 2, 2, 3, 6])


def test_lists_of_arrays_are_ragged_with_a_shape(tmp_path):
    rows = [[[1, 2], [3, 4]], [], [[5, 6]]]
    ragged = read_array(tmp_path, pa.array(rows, pa.list_(pa.list_(pa.float32(), 2))), batch_rows=2)
    assert [row.tolist() for row in ragged] == rows
    assert ragged[1].shape == (0, 2)


def test_lists_of_tensors_are_ragged_in_logical_order(tmp_path):
    physical = np.arange(12, dtype=np.int32).reshape(2, 2, 3)
    kind = pa.fixed_shape_tensor(pa.int32(), [2, 3], permutation=[1, 0])
    storage = pa.FixedSizeListArray.from_arrays(pa.array(physical.ravel()), 6)
    array = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), pa.ExtensionArray.from_storage(kind, storage))
    ragged = read_array(tmp_path, array)
    assert np.array_equal(ragged.values.numpy(), physical.transpose(0, 2, 1))


def test_what_no_tensor_holds_comes_as_python_objects(tmp_path):
    for values, kind in (
        ([["a", None], []], pa.list_(pa.string())),
        ([[[1], [2, None]], []], pa.list_(pa.list_(pa.int64()))),
        ([[{"a": 1, "b": None}], []], pa.list_(pa.struct([("a", pa.int64()), ("b", pa.string())]))),
        ([[("k", 1)], []], pa.map_(pa.string(), pa.int64())),
        ([["a", None], ["b", "c"]], pa.list_(pa.string(), 2)),
        ([["a"], []], pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        ([["a"], []], pa.list_view(pa.string())),
    ):
        path = written(tmp_path, {"x": pa.array(values, kind)})
        (column,) = planned(path)
        assert column.column.python_type is object
        assert read_column(path, column, 1).to_pylist() == values


def test_dictionaries_are_decoded(tmp_path):
    schema = pa.schema([("x", pa.dictionary(pa.int32(), pa.int64()))])
    (column,) = plan_columns(schema, None, ColumnOptions(), where="f")
    array = pa.DictionaryArray.from_arrays(pa.array([1, 0, 1, 1], pa.int32()), pa.array([10, 20]))
    out = np.empty(3, np.int64)
    column.write(array[1:], out)
    assert out.tolist() == [10, 20, 20]


def test_codes_are_places_in_the_vocabulary(tmp_path):
    for array in (
        pa.array(["dog", "cat", "dog"]),
        pa.array(["dog", "cat", "dog"], pa.string_view()),
        pa.array(["dog", "cat", "dog"]).dictionary_encode(),
    ):
        codes = read_array(tmp_path, array, codes=("cat", "dog"))
        assert (codes.dtype, codes.tolist()) == (np.int64, [1, 0, 1])
    assert read_array(tmp_path, pa.array([30, 10]), codes=(10, 20, 30)).tolist() == [2, 0]
    assert read_array(tmp_path, pa.array([b"b"]), codes=(b"a", b"b")).tolist() == [1]


def test_values_without_a_code_are_refused_but_a_dictionary_may_hold_unused_ones(tmp_path):
    with pytest.raises(ValueError, match=r"holds 2 values without a place in codes, such as 'emu': add them to codes"):
        read_array(tmp_path, pa.array(["cat", "emu", "yak"]), codes=("cat", "dog"))
    (column,) = planned(written(tmp_path, {"x": pa.array(["cat"])}), codes={"x": ("cat",)})
    out = np.empty(2, np.int64)
    column.write(pa.array(["emu", "cat", "cat"]).dictionary_encode()[1:], out)
    assert out.tolist() == [0, 0]


def test_a_column_of_codes_can_be_planned_before_the_codes_are_known(tmp_path):
    (column,) = planned(written(tmp_path, {"x": pa.array(["cat"])}), codes={"x": None})
    assert (column.path, column.column) == ("x", Column(np.dtype(np.int64)))


def test_lists_of_one_length_are_arrays_where_a_shape_is_given(tmp_path):
    values = np.arange(2 * 6).reshape(2, 6)
    for kind in (pa.list_(pa.int64()), pa.large_list(pa.int64()), pa.list_(pa.int64(), 6), pa.list_view(pa.int64())):
        read_back = read_array(tmp_path, pa.array(values.tolist(), kind), shape=(2, 3), batch_rows=1)
        assert np.array_equal(read_back, values.reshape(2, 2, 3))


def test_nested_lists_of_one_length_are_arrays_where_a_shape_is_given(tmp_path):
    values = np.arange(2 * 6).reshape(2, 2, 3)
    inner = pa.list_(pa.int64())
    for kind in (pa.list_(inner), pa.list_(pa.list_(pa.int64(), 3)), pa.list_(inner, 2)):
        assert np.array_equal(read_array(tmp_path, pa.array(values.tolist(), kind), shape=(2, 3)), values)


def test_lists_of_another_length_than_the_shape_are_refused(tmp_path):
    array = pa.array([[1, 2], [1], [1, 2, 3]])
    with pytest.raises(ValueError, match="holds 2 lists not of length 2, as shape says, such as one of 1"):
        read_array(tmp_path, array, shape=(2,))
    with pytest.raises(ValueError, match="holds 1 list not of length 1"):
        read_array(tmp_path, pa.array([[[1]], [[1, 2]]]), shape=(1, 1))


def test_structs_are_read_field_by_field_by_dotted_path(tmp_path):
    struct = pa.array([{"x": 1, "in": {"y": 2.5, "z": "a"}}, {"x": 3, "in": {"y": 4.5, "z": "b"}}])
    path = written(tmp_path, {"a": struct, "b": pa.array([5, 6])})
    assert [column.name for column in planned(path)] == ["a.x", "a.in.y", "a.in.z", "b"]
    assert [column.path for column in planned(path, ["b", "a.in"])] == ["b", "a.in.y", "a.in.z"]
    columns = read(path, ["a.in.y", "b", "a.x"])
    assert {name: values.tolist() for name, values in columns.items()} == {
        "a.in.y": [2.5, 4.5],
        "b": [5, 6],
        "a.x": [1, 3],
    }


class Point(pa.ExtensionType):
    """Somebody's own type; where it isn't registered, files give its storage."""

    def __init__(self):
        super().__init__(pa.struct([("x", pa.int64()), ("name", pa.string())]), "test.point")

    def __arrow_ext_serialize__(self):
        return b""


def test_structs_that_are_extension_types_are_read_field_by_field():
    array = pa.ExtensionArray.from_storage(Point(), pa.array([{"x": 1, "name": "b"}, None], Point().storage_type))
    batch = pa.record_batch({"a": array})
    options = ColumnOptions(fill={"a.x": 7}, codes={"a.name": ("a", "b")}, validity=frozenset(["a.name"]))
    written = {}
    for column in plan_columns(batch.schema, None, options, where="f"):
        written[column.name] = out = np.empty(2, column.stored.dtype)
        column.write(column.extract(batch), out)
    assert {name: values.tolist() for name, values in written.items()} == {
        "a.x": [1, 7],
        "a.name": [1, 0],
        "a.name.__valid__": [True, False],
    }


def test_names_with_dots_and_structs_are_told_apart(tmp_path):
    path = written(tmp_path, {"a.x": pa.array([1]), "a": pa.array([{"y": 2}])})
    assert {name: values.tolist() for name, values in read(path).items()} == {"a.x": [1], "a.y": [2]}
    path = written(tmp_path, {"a.x": pa.array([1]), "a": pa.array([{"x": 2}])})
    with pytest.raises(ArgumentError, match=r"columns: 'a\.x' comes twice, asked for twice or so named in x\.parquet"):
        planned(path)


def test_batches_without_rows_are_read(tmp_path):
    for array, options in (
        (pa.array([1]), {}),
        (pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)), {}),
        (pa.array([[1]]), {}),
        (pa.array([[1]]), {"shape": {"x": (1,)}, "validity": frozenset(["x"])}),
        (pa.array(["a"]), {}),
        (pa.array(["a"]), {"codes": {"x": ("a",)}}),
        (pa.array([Decimal("1.5")]), {"cast": {"x": "float64"}}),
    ):
        path = written(tmp_path, {"x": array})
        for column in planned(path, **options):
            empty = pa.array([], array.type)
            if column.stored is not None:
                column.write(empty, np.empty((0, *column.stored.shape), column.stored.dtype))
            else:
                assert len(column.finish(column.keep(empty), None)) == 0


def test_dictionaries_that_differ_between_row_groups_give_the_same_codes_and_text(tmp_path):
    words = ["dog", "cat", "emu", "cat", "yak", "dog"]
    path = written(tmp_path, {"x": pa.array(words).dictionary_encode()}, row_group_size=2)
    assert read(path, batch_rows=2)["x"].to_pylist() == words
    codes = read(path, batch_rows=3, codes={"x": ("cat", "dog", "emu", "yak")})["x"]
    assert codes.tolist() == [1, 0, 2, 0, 3, 1]


def test_old_timestamps_of_96_bits_are_int64(tmp_path):
    array = pa.array([0, 1_000], pa.timestamp("us"))
    path = written(tmp_path, {"x": array}, use_deprecated_int96_timestamps=True)
    assert read(path)["x"].tolist() == [0, 1_000_000]


def test_numbers_and_fixed_lists_are_copied_once(tmp_path):
    plain = pa.array(np.arange(1 << 17, dtype=np.float32))
    for array in (plain, pa.FixedSizeListArray.from_arrays(plain, 128)):
        (column,) = planned(written(tmp_path, {"x": array[:1]}))
        out = np.empty((len(array), *column.stored.shape), np.float32)
        tracemalloc.start()
        column.write(array, out)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak_bytes < 20_000
        assert out.ravel().tolist() == list(range(1 << 17))


def test_old_timestamps_of_96_bits_beyond_nanoseconds_are_microseconds(tmp_path):
    far = pa.array([np.datetime64("3000-01-01", "us"), np.datetime64("0001-01-01", "us")])
    path = written(tmp_path, {"x": far}, use_deprecated_int96_timestamps=True)
    read_back = ParquetSource(path).read([0, 1])["x"]
    assert read_back.view("M8[us]").tolist() == far.to_pylist()


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.struct([("at", pa.timestamp("ns"))])),
        pa.map_(pa.string(), pa.duration("ns")),
        pa.list_(pa.list_(pa.time64("ns"))),
    ],
    ids=str,
)
def test_nanoseconds_in_python_objects_are_refused_when_the_column_is_planned(tmp_path, kind):
    path = written(tmp_path, {"x": pa.array([[]], kind), "y": [1]})
    text = r"column 'x' of x\.parquet: .*can't hold the nanoseconds of .*: leave it out of columns"
    with pytest.raises(ArgumentError, match=text):
        planned(path)
    assert [column.name for column in planned(path, ["y"])] == ["y"]


def test_microseconds_in_python_objects_are_times(tmp_path):
    rows = [[[dt.datetime(2024, 1, 1)]], []]
    array = pa.array(rows, pa.list_(pa.list_(pa.timestamp("us"))))
    assert read_array(tmp_path, array).to_pylist() == rows


@pytest.mark.parametrize(
    "array",
    [
        pa.array([1, 2], pa.timestamp("us")),
        pa.array([1, 2], pa.date32()),
        pa.array([1, 2], pa.time64("ns")),
        pa.array([Decimal(1), Decimal(2)]),
        pa.ExtensionArray.from_storage(pa.opaque(pa.float64(), "f", "us"), pa.array([1.0, 2.0])),
    ],
    ids=lambda array: str(array.type),
)
def test_codes_of_other_than_text_bytes_integers_and_booleans_are_refused(tmp_path, array):
    with pytest.raises(ArgumentError, match="codes: expected a column of text, bytes, integers or booleans, got "):
        planned(written(tmp_path, {"x": array}), codes={"x": None})


@pytest.mark.parametrize(
    ("array", "values"),
    [
        (pa.array([True, False]), (False, True)),
        (
            pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"b" * 16, b"a" * 16], pa.binary(16))),
            (b"a" * 16, b"b" * 16),
        ),
        (pa.ExtensionArray.from_storage(pa.json_(), pa.array(["{}", "[]"])), ("[]", "{}")),
        (pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, 0], pa.int8())), (0, 1)),
        (pa.ExtensionArray.from_storage(pa.opaque(pa.string(), "s", "us"), pa.array(["b", "a"])), ("a", "b")),
    ],
    ids=lambda given: str(getattr(given, "type", "values")),
)
def test_codes_look_through_extension_types(tmp_path, array, values):
    path = written(tmp_path, {"x": array})
    assert read_column(path, planned(path, codes={"x": values})[0]).tolist() == [1, 0]
    source = ParquetSource(path, options=ColumnOptions(codes={"x": None}))
    assert source.read([0, 1])["x"].tolist() == [1, 0]
    assert source.categories("x") == values
