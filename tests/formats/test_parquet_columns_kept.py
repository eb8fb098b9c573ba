"""Columns that Arrow keeps until a batch is made: lists, text, payloads; and who owns their memory."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ArgumentError
from headrace.formats.decoding import PayloadError
from headrace.formats.parquet_columns import ColumnOptions, ColumnRefused, plan_columns
from headrace.formats.ragged import Pad
from headrace.formats.source import Column
from tests.formats.parquet_round_trip import Doubling, planned, read, read_array, read_column, written


def column_for(array, **options):
    options = {name: value if name in ("validity", "lists") else {"x": value} for name, value in options.items()}
    (column, *_) = plan_columns(pa.schema([("x", array.type)]), None, ColumnOptions(**options), where="f")
    return column


@given(st.lists(st.lists(st.integers(-(2**15), 2**15 - 1), max_size=5), max_size=10), st.data())
def test_lists_survive_keeping_gathering_and_finishing(rows, data):
    for kind in (pa.list_(pa.int16()), pa.large_list(pa.int16())):
        array = pa.array([[1], *rows], kind)[1:]
        column = column_for(array)
        kept = column.keep(array)
        assert column.finish(kept, None).to_list() == [] or not kept.null_count
        ids = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=10)) if rows else []
        gathered = column.finish(kept.take(pa.array(ids, pa.int64())), None)
        assert [row.tolist() for row in gathered.to_list()] == [rows[place] for place in ids]
        if rows:
            half = column.finish(kept[len(rows) // 2 :], None)
            assert [row.tolist() for row in half.to_list()] == rows[len(rows) // 2 :]


def test_lists_of_booleans_and_of_times_are_ragged(tmp_path):
    flags = [[True] * 9, [False, True], []]
    kept = column_for(pa.array(flags)).keep(pa.array(flags)[1:])
    assert [row.tolist() for row in column_for(pa.array(flags)).finish(kept, None)] == flags[1:]
    days = pa.array([[1, 2], [3]], pa.list_(pa.int32())).cast(pa.list_(pa.date32()))
    assert [row.tolist() for row in read_array(tmp_path, days)] == [[1, 2], [3]]


def test_a_batch_of_lists_never_shares_memory_with_what_is_kept():
    array = pa.array([[1, 2], [3]])
    column = column_for(array)
    kept = column.keep(array)
    column.finish(kept, None).values[:] = 7
    assert column.finish(kept, None).values.tolist() == [1, 2, 3]


def test_pieces_of_a_column_are_kept_as_one_type():
    for whole in (
        pa.array([[1, 2], None, [None, 3]]),
        pa.array([["a"], None, ["b"]]),
        pa.array(["a", None, "b"]),
        pa.array([b"ab", None, b"cd"], pa.binary(2)),
        pa.array([[[1, 2]], None, [None]], pa.list_(pa.list_(pa.int64(), 2))),
    ):
        column = column_for(whole, validity=frozenset(["x"]))
        pieces = [column.keep(whole[start : start + 1]) for start in range(3)]
        assert pa.concat_arrays(pieces) == column.keep(whole)


def test_files_whose_lists_differ_in_what_may_be_null_are_kept_as_one_type():
    array = pa.array([["a"], []])
    strict = array.cast(pa.list_(pa.field("item", pa.string(), nullable=False)))
    assert pa.concat_arrays([column_for(array).keep(part) for part in (array, strict)]).to_pylist() == [["a"], []] * 2


def test_a_small_part_of_a_large_array_does_not_keep_all_of_it():
    for large in (
        pa.array([[number] * 10 for number in range(1000)]),
        pa.array(["some words"] * 1000),
        pa.array([["some", "words"]] * 1000),
        pa.array([b"bytes"] * 1000),
        pa.array(["some words"] * 1000).dictionary_encode(),
    ):
        column = column_for(large)
        kept = column.keep(large[500:503])
        assert len(kept) == 3
        assert kept.get_total_buffer_size() <= 1000
        assert column.keep(large).get_total_buffer_size() >= 9_000


def test_text_that_is_kept_whole_is_not_copied():
    array = pa.array(["some words"] * 100)
    assert column_for(array).keep(array).buffers()[2].address == array.buffers()[2].address


def test_lists_are_padded(tmp_path):
    array = pa.array([[1, 2], [], [3, 4, 5]])
    path = written(tmp_path, {"x": array})
    (column,) = planned(path, pad_to={"x": Pad(3, value=-1)})
    assert (column.column, column.stored) == (Column(np.dtype(np.int64), (3,)), None)
    expected = [[1, 2, -1], [-1, -1, -1], [3, 4, 5]]
    assert read_column(path, column).tolist() == expected
    out = np.empty((3, 3), np.int64)
    assert column.finish(column.keep(array), out) is out
    assert out.tolist() == expected
    assert read_array(tmp_path, array, pad_to=Pad(2, truncate=True)).tolist() == [[1, 2], [0, 0], [3, 4]]
    pairs = pa.array([[[1.0, 2.0]], []], pa.list_(pa.list_(pa.float32(), 2)))
    assert read_array(tmp_path, pairs, pad_to=Pad(2)).tolist() == [[[1, 2], [0, 0]], [[0, 0], [0, 0]]]
    assert read_array(tmp_path, pa.array([[1], None]), pad_to=Pad(2, value=-1), fill=9).tolist() == [[1, -1], [-1, -1]]


def test_a_list_longer_than_the_padded_length_is_refused_by_its_place_when_a_batch_is_made(tmp_path):
    array = pa.array([[1], [1, 2, 3], [1, 2, 3, 4]])
    text = "row 1 holds 3 values, more than the length 2: give a greater length, or truncate=True to drop their ends"
    with pytest.raises(PayloadError, match=text) as caught:
        read_array(tmp_path, array, pad_to=Pad(2))
    assert caught.value.place == 1


def test_lists_can_come_as_a_list_of_tensors(tmp_path):
    (column,) = planned(written(tmp_path, {"x": pa.array([[1]])}), lists=frozenset(["x"]))
    assert column.column == Column(np.dtype(np.int64), ragged=True, as_list=True)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(2)], ids=str)
def test_payloads_are_decoded_when_a_batch_is_made(tmp_path, kind):
    path = written(tmp_path, {"x": pa.array([b"\1\2", b"\3\4", b"\5\6"], kind)})
    (column,) = planned(path, decode={"x": Doubling()})
    assert (column.column, column.stored) == (Doubling.column, None)
    assert read_column(path, column, 2).tolist() == [[2, 4], [6, 8], [10, 12]]
    kept = column.keep(pa.array([b"\1\2", b"\3\4", b"\5\6"], kind))
    out = np.empty((2, 2), np.uint8)
    assert column.finish(kept[1:], out) is out
    assert out.tolist() == [[6, 8], [10, 12]]
    assert column.finish(kept[:0], None).shape == (0, 2)


def test_an_image_as_hugging_face_writes_it_is_decoded_from_its_bytes(tmp_path):
    image = pa.array([{"bytes": b"\1\2", "path": "a.png"}, {"bytes": b"\3\4", "path": None}])
    path = written(tmp_path, {"image": image, "label": pa.array([0, 1])})
    decode = {"image": Doubling()}
    assert [(column.name, column.path) for column in planned(path, decode=decode)] == [
        ("image", "image.bytes"),
        ("label", "label"),
    ]
    assert read(path, ["image"], decode=decode)["image"].tolist() == [[2, 4], [6, 8]]
    columns = read(path, ["image.path", "image"], decode=decode, fill={"image.path": "?"})
    assert columns["image.path"].to_pylist() == ["a.png", "?"]
    assert [column.name for column in planned(path, ["image"])] == ["image.bytes", "image.path"]
    (decoded, _) = planned(path, ["image"], decode={"image.bytes": Doubling()})
    assert (decoded.name, decoded.column) == ("image.bytes", Doubling.column)


def test_null_payloads_are_refused_or_filled(tmp_path):
    image = pa.array([None, {"bytes": b"\3\4", "path": None}, {"bytes": None, "path": "b.png"}])
    path = written(tmp_path, {"image": image})
    with pytest.raises(ColumnRefused, match=r"holds 2 nulls: give fill={'image': ...}"):
        read(path, decode={"image": Doubling()})
    columns = read(path, decode={"image": Doubling()}, validity=frozenset(["image"]))
    assert columns["image"].tolist() == [[0, 0], [6, 8], [0, 0]]
    assert columns["image.__valid__"].tolist() == [False, True, False]
    filled = read(path, decode={"image": Doubling()}, fill={"image": [7, 9]})["image"]
    assert filled.tolist() == [[7, 9], [6, 8], [7, 9]]


def test_a_payload_that_can_not_be_decoded_is_named_by_its_place_in_the_batch():
    array = pa.array([None, b"\1\2", None, b"\1"])
    column = column_for(array, decode=Doubling(), fill=0)
    with pytest.raises(PayloadError, match="expected 2 bytes, got 1") as error:
        column.finish(column.keep(array), None)
    assert error.value.place == 3


def test_each_kind_of_column_says_what_it_does_not_do():
    fixed, kept = column_for(pa.array([1])), column_for(pa.array(["a"]))
    with pytest.raises(NotImplementedError, match="FixedColumn stores fixed rows: call write"):
        fixed.keep(pa.array([1]))
    with pytest.raises(NotImplementedError, match="FixedColumn stores fixed rows: gather them"):
        fixed.finish(pa.array([1]), None)
    with pytest.raises(NotImplementedError, match="ObjectColumn keeps Arrow's arrays: call keep"):
        kept.write(pa.array(["a"]), np.empty(1))


PLAN = {
    "label": pa.array([1]),
    "text": pa.array(["a"]),
    "tokens": pa.array([[1]]),
    "pixels": pa.array([[1, 2]], pa.list_(pa.uint8(), 2)),
    "meta": pa.array([{"lang": "en", "score": 1.0}]),
    "png": pa.array([b"a"]),
    "words": pa.array([["a"]]),
    "grid": pa.array([[[1, 2]]], pa.list_(pa.list_(pa.int64(), 2))),
    "Score": pa.array([1.0]),
}


@pytest.mark.parametrize(
    ("names", "options", "text"),
    [
        (["lable"], {}, r"^columns: no column 'lable' in x\.parquet: did you mean 'label'\?$"),
        (["LABEL"], {}, r"did you mean 'label'\?"),
        (["meta.long"], {}, r"did you mean 'meta\.lang' or "),
        (["lang"], {}, r"did you mean 'meta\.lang'\?"),
        (["metta"], {}, r"did you mean 'meta'"),
        (["qqq"], {}, r"no column 'qqq' in x.parquet; there is 'label', 'text', .* and 2 more"),
        (["text."], {}, r"did you mean 'text'"),
        (["text", "text"], {}, "columns: 'text' comes twice, asked for twice"),
        (["meta", "meta.lang"], {}, "columns: 'meta.lang' comes twice"),
        ([], {}, "columns: expected at least one name of a column of x.parquet, got none"),
        ("text", {}, "columns: expected a list of names, got 'text'"),
        ([1], {}, r"columns: expected a list of names, got \[1\]"),
        (
            ["text"],
            {"fill": {"label": 1}},
            "fill: column 'label' is not read: add it to columns, or leave the option out",
        ),
        (None, {"cast": {"lable": "int8"}}, r"cast: no column 'lable' in x\.parquet: did you mean 'label'"),
        (
            None,
            {"validity": frozenset(["meta"])},
            "validity: 'meta' is a struct: name its fields, 'meta.lang', 'meta.sc",
        ),
        (
            None,
            {"decode": {"meta": Doubling()}},
            "decode: 'meta' is a struct without a field 'bytes': name one of 'meta",
        ),
        (
            None,
            {"decode": {"text": Doubling()}},
            "column 'text' of x.parquet: decode: expected binary, or a struct with",
        ),
        (None, {"decode": {"png": 224}}, r"decode: expected a decoder such as hr\.image\(224\), got 224"),
        (None, {"decode": {"png": Doubling()}, "cast": {"png": "int8"}}, "cast makes no sense together with decode"),
        (None, {"decode": {"png": Doubling()}, "codes": {"png": (b"a",)}}, "codes makes no sense together with decode"),
        (None, {"pad_to": {"label": Pad(2)}}, "pad_to makes no sense for int64: leave it out"),
        (None, {"pad_to": {"words": Pad(2)}}, "pad_to makes no sense for list<"),
        (None, {"pad_to": {"tokens": 5}}, r"pad_to: expected hr\.Pad\(length\), got 5"),
        (None, {"pad_to": {"tokens": Pad(5, value=0.5)}}, "pad_to: expected a value that int64 can hold, got 0.5"),
        (
            None,
            {"pad_to": {"tokens": Pad(2)}, "lists": frozenset(["tokens"])},
            "lists makes no sense together with pad",
        ),
        (None, {"pad_to": {"tokens": Pad(2)}, "shape": {"tokens": (2,)}}, "pad_to makes no sense together with shape"),
        (None, {"lists": frozenset(["pixels"])}, "lists makes no sense for fixed_size_list<"),
        (None, {"lists": frozenset(["text"])}, "lists makes no sense for string"),
        (
            None,
            {"shape": {"pixels": (3,)}},
            r"shape=\(3,\) does not fit fixed_size_list<.*: give one of as many numbers",
        ),
        (None, {"shape": {"grid": (3,)}}, r"shape=\(3,\) does not fit list<"),
        (None, {"shape": {"grid": (3, 3)}}, r"shape=\(3, 3\) does not fit list<"),
        (None, {"shape": {"text": (3,)}}, "shape makes no sense for string"),
        (None, {"shape": {"tokens": 3}}, "shape: expected a tuple of lengths above 0, got 3"),
        (None, {"shape": {"tokens": (0, 2)}}, "shape: expected a tuple of lengths above 0"),
        (
            None,
            {"codes": {"Score": (1.0,)}},
            "codes: expected a column of text, bytes, integers or booleans, got double",
        ),
        (None, {"codes": {"tokens": (1,)}}, "codes: expected a column of text, bytes, integers or booleans, got list<"),
        (None, {"codes": {"text": (1,)}}, "codes: expected values of type string: "),
        (None, {"codes": {"text": "ab"}}, "codes: expected a tuple of values, got 'ab'"),
        (None, {"codes": {"text": ()}}, "codes: expected values, each once"),
        (None, {"codes": {"text": ("a", "a")}}, "codes: expected values, each once and none of them None"),
        (None, {"codes": {"text": ("a", None)}}, "codes: expected values, each once and none of them None"),
        (
            None,
            {"codes": {"text": ("a",)}, "fill": {"text": "a"}},
            "fill: expected a value that int64 can hold, got 'a'",
        ),
    ],
)
def test_plans_that_can_not_work_are_refused(tmp_path, names, options, text):
    with pytest.raises(ArgumentError, match=text):
        planned(written(tmp_path, PLAN), names, **options)


def test_a_validity_column_can_not_have_the_name_of_another(tmp_path):
    path = written(tmp_path, {"x": pa.array([1]), "x.__valid__": pa.array([1])})
    with pytest.raises(ArgumentError, match=r"columns: 'x\.__valid__' comes twice"):
        planned(path, validity=frozenset(["x"]))


def test_what_only_arrow_has_comes_as_python_objects_too():
    kinds, offsets = pa.array([0, 1], pa.int8()), pa.array([0, 0], pa.int32())
    values = [pa.array([1]), pa.array(["a"])]
    for array in (
        pa.UnionArray.from_dense(kinds, offsets, values),
        pa.UnionArray.from_sparse(kinds, [pa.array([1, 2]), pa.array(["b", "a"])]),
    ):
        column = column_for(array, validity=frozenset(["x"]))
        assert column.finish(column.keep(array), None).to_pylist() == [1, "a"]
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([2, 3]), pa.array(["a", "b"]))
    column = column_for(runs)
    assert column.finish(column.keep(runs), None).to_pylist() == ["a", "a", "b"]


def test_dictionaries_that_hold_nulls_have_nulls_where_these_are_used():
    array = pa.DictionaryArray.from_arrays(pa.array([0, 1, None], pa.int8()), pa.array(["a", None]))
    column = column_for(array, fill="?")
    assert column.finish(column.keep(array), None).to_pylist() == ["a", "?", "?"]
    column, out = column_for(array, codes=("a",), fill=-1), np.empty(3, np.int64)
    column.write(array, out)
    assert out.tolist() == [0, -1, -1]


def test_text_that_is_not_utf_8_is_refused_when_it_is_kept():
    array = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"\xff\xfe"]).buffers())
    with pytest.raises(ValueError, match=r"holds what its type large_string doesn't allow: Invalid UTF8"):
        column_for(array).keep(array)


def test_text_of_a_batch_may_take_more_than_32_bits_count():
    for array, kind in ((pa.array(["a"]), pa.large_string()), (pa.array([b"a"], pa.binary(1)), pa.large_binary())):
        assert column_for(array).keep(array).type == kind
    decoded = column_for(pa.array([b"ab"]), decode=Doubling())
    assert decoded.keep(pa.array([b"ab"])).type == pa.large_binary()
