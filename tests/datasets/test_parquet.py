"""ParquetDataset: what its arguments make of columns, in samples and batches."""

import datetime as dt
import pickle
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

import headrace as hr
from headrace.errors import ArgumentError, FormatError

ROWS = 10


@pytest.fixture
def path(tmp_path):
    days = [dt.date(2024, 1, 1 + i) for i in range(ROWS)]
    columns = {
        "id": pa.array(range(ROWS), pa.int32()),
        "price": pa.array([Decimal(i) / 4 for i in range(ROWS)], pa.decimal128(10, 2)),
        "tokens": pa.array([list(range(i % 4)) for i in range(ROWS)], pa.list_(pa.int64())),
        "vector": pa.array([[float(i), 0.5] for i in range(ROWS)], pa.list_(pa.float32())),
        "label": pa.array(["ab"[i % 2] for i in range(ROWS)]),
        "score": pa.array([None if i == 3 else i / 2 for i in range(ROWS)], pa.float64()),
        "day": pa.array(days),
        "where": pa.array([{"city": f"c{i}", "at": {"x": i}} for i in range(ROWS)]),
        "words": pa.array([["w"] * (i % 3) for i in range(ROWS)]),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=4)
    return tmp_path / "a.parquet"


def test_columns_come_in_the_order_that_they_are_asked_for(path):
    dataset = hr.ParquetDataset(path, ["day", "id"])
    assert list(dataset[1]) == ["day", "id"]
    assert dataset[1]["day"] == (dt.date(2024, 1, 2) - dt.date(1970, 1, 1)).days
    assert hr.ParquetDataset(path, ["id", "day"], as_tuple=True)[1][0] == 1


def test_fields_of_structs_are_columns(path):
    dataset = hr.ParquetDataset(path, ["where.city", "where.at.x"])
    assert dataset[[2, 0]] == {"where.city": ["c2", "c0"], "where.at.x": pytest.approx(torch.tensor([2, 0]))}
    assert list(hr.ParquetDataset(path, ["where"]).schema) == ["where.city", "where.at.x"]


def test_ragged_columns_are_padded_or_lists_where_asked_for(path):
    assert hr.ParquetDataset(path, ["tokens"])[[3, 1]]["tokens"].lengths.tolist() == [3, 1]
    padded = hr.ParquetDataset(path, ["tokens"], pad_to={"tokens": 4})
    assert padded.schema["tokens"].shape == (4,)
    assert padded[[3, 1]]["tokens"].tolist() == [[0, 1, 2, 0], [0, 0, 0, 0]]
    other = hr.ParquetDataset(path, ["tokens"], pad_to={"tokens": hr.Pad(2, value=-1, truncate=True)})
    assert other[[3, 1]]["tokens"].tolist() == [[0, 1], [0, -1]]
    listed = hr.ParquetDataset(path, ["tokens"], lists="tokens")[[3, 1]]["tokens"]
    assert [row.tolist() for row in listed] == [[0, 1, 2], [0]]


def test_ragged_rows_that_were_read_apart_make_one_batch(monkeypatch, path):
    monkeypatch.setattr("headrace.datasets.iterable._SAMPLES_AT_ONCE", 3)
    stream = hr.ParquetDataset(path, ["id", "tokens", "words"]).to_iterable_dataset()
    batches = list(DataLoader(stream, batch_size=4))
    assert [[tokens.tolist() for tokens in batch["tokens"]] for batch in batches] == [
        [list(range(i % 4)) for i in range(start, min(start + 4, ROWS))] for start in (0, 4, 8)
    ]
    assert {type(batch["tokens"]) for batch in batches} == {hr.Ragged}
    assert [words for batch in batches for words in batch["words"]] == [["w"] * (i % 3) for i in range(ROWS)]


def test_a_list_that_is_too_long_to_be_padded_names_its_sample(path):
    with pytest.raises(hr.SampleError, match=r"(?s)column 'tokens': .*holds 3 values.*sample 7: row 3 in .*group 1"):
        hr.ParquetDataset(path, ["tokens"], pad_to={"tokens": 2})[[0, 7]]


def test_lists_of_one_length_are_arrays_where_the_user_says_so(path):
    dataset = hr.ParquetDataset(path, ["vector"], shape={"vector": 2})
    assert dataset[[5]]["vector"].tolist() == [[5.0, 0.5]]
    with pytest.raises(FormatError, match="row group 0: column 'tokens'"):
        hr.ParquetDataset(path, ["tokens"], shape={"tokens": [2]})[0]


def test_text_becomes_class_numbers(path):
    for codes in ("label", ["label"], {"label": None}, {"label": ["a", "b"]}):
        dataset = hr.ParquetDataset(path, ["label"], codes=codes)
        assert dataset[[1, 2]]["label"].tolist() == [1, 0]
        assert dataset.source.categories("label") == ("a", "b")
    with pytest.raises(FormatError, match=r"row group 0: column 'label'.*'b'"):
        hr.ParquetDataset(path, ["label"], codes={"label": ["a"]})[[0, 1]]


def test_casts_and_nulls_are_asked_for(path):
    with pytest.raises(ArgumentError, match=r"(?s)price.*cast="):
        hr.ParquetDataset(path, ["price"])
    assert hr.ParquetDataset(path, ["price"], cast={"price": "float64"})[5]["price"] == 1.25
    with pytest.raises(FormatError, match=r"row group 0: column 'score'.*1 null"):
        hr.ParquetDataset(path, ["score"])[[0, 3]]
    dataset = hr.ParquetDataset(path, ["score"], fill={"score": -1.0}, validity="score")
    assert dataset[[3, 4]]["score"].tolist() == [-1.0, 2.0]
    assert dataset[[3, 4]]["score.__valid__"].tolist() == [False, True]


def test_whatever_no_tensor_holds_comes_as_python_objects(path):
    assert hr.ParquetDataset(path, ["words"])[[2, 0]]["words"] == [["w", "w"], []]


def test_a_filter_gives_the_rows_for_which_it_is_true(path):
    dataset = hr.ParquetDataset(path, ["id"], row_filter=(pc.field("label") == "b") & (pc.field("score") > 2))
    assert len(dataset) == 3
    assert dataset[:]["id"].tolist() == [5, 7, 9]
    loader = hr.DataLoader(dataset, batch_size=2, shuffle=True)
    assert sorted(i for batch in loader for i in batch["id"].tolist()) == [5, 7, 9]


def test_an_unknown_column_is_refused_with_names_like_it(path):
    with pytest.raises(ArgumentError, match=r"(?s)'lable'.*'label'"):
        hr.ParquetDataset(path, ["lable"])


def test_a_store_and_its_options_are_not_given_both(path):
    with pytest.raises(ArgumentError, match="expected store= or storage_options=, got both"):
        hr.ParquetDataset(path, store=hr.Store(), storage_options={})


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_reference_model_s_batches_come_from_torch_s_loader_too(path, num_workers):
    dataset = hr.ParquetDataset(path, ["vector", "id"], shape={"vector": 2}, as_tuple=True)
    for x, y in DataLoader(dataset, batch_size=5, shuffle=True, num_workers=num_workers):
        assert x.dtype == torch.float32
        assert x[:, 0].tolist() == y.tolist()


def test_random_crops_depend_on_seed_epoch_and_row_alone(tmp_path):
    import io

    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(np.linspace(0, 255, 60).astype(np.uint8)[None, :, None].repeat(30, 0).repeat(3, 2)).save(
        sink, "PNG"
    )
    rows = pa.table({"image": [sink.getvalue()] * 8, "label": range(8)})
    pq.write_table(rows, tmp_path / "i.parquet", row_group_size=3)
    crop = hr.image(8, mode="random_resized_crop")
    dataset = hr.ParquetDataset(tmp_path / "i.parquet", ["image", "label"], decode={"image": crop})

    def crops(items):
        rows = [zip(item["label"].reshape(-1), item["image"].reshape(-1, 3, 8, 8), strict=True) for item in items]
        return {int(label): str(image.tolist()) for pairs in rows for label, image in pairs}

    loader = hr.DataLoader(dataset, batch_size=3, shuffle=True, seed=5)
    first, second = crops(loader), crops(loader)
    assert all(first[i] != second[i] for i in range(8))
    view = dataset.to_iterable_dataset(seed=5)
    assert [crops(view), crops(view)] == [first, second]
    fixed = crops([dataset[:]])
    assert len(set(fixed.values())) > 4
    assert crops(pickle.loads(pickle.dumps(dataset))[i] for i in range(8)) == fixed
    assert crops([dataset.select([6, 2])[:]]) == {i: fixed[i] for i in (6, 2)}
    assert dataset.source.counts()["decoded_samples"] == 8  # all passes share what is in memory


def test_images_as_hugging_face_writes_them_are_decoded(tmp_path):
    import io

    from PIL import Image

    def encoded(value: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(np.full((20, 30, 3), value, np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()

    rows = [{"bytes": encoded(i * 40), "path": f"{i}.png"} for i in range(4)]
    pq.write_table(pa.table({"image": rows, "label": range(4)}), tmp_path / "i.parquet", row_group_size=3)
    dataset = hr.ParquetDataset(tmp_path / "i.parquet", ["image", "label"], decode={"image": hr.image(8)})
    batch = next(iter(hr.DataLoader(dataset, batch_size=4, num_workers=1)))
    assert batch["image"].shape == (4, 3, 8, 8)
    assert batch["image"].dtype == torch.uint8
    assert batch["image"][:, 0, 0, 0].tolist() == [0, 40, 80, 120]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"columns": 5}, "columns: expected a list of names, got 5"),
        pytest.param({"columns": iter(["id"])}, "columns: expected a list of names, got <list_iterator", id="iterator"),
        ({"columns": {"id"}}, "columns: expected a list of names, got {'id'}"),
        ({"cast": ["id"]}, r"cast: expected a dict by column name, got \['id'\]"),
        ({"fill": 0}, "fill: expected a dict by column name, got 0"),
        ({"decode": "label"}, "decode: expected a dict by column name, got 'label'"),
        ({"cast": {1: "int8"}}, "cast: expected a dict by column name, got {1: 'int8'}"),
        ({"cast": {"id": np.zeros(2)}}, "cast: expected one of bool, "),
        ({"validity": True}, "validity: expected a list of column names, got True"),
        ({"lists": [1]}, r"lists: expected a list of column names, got \[1\]"),
        ({"codes": 5}, "codes: expected a list of column names, got 5"),
        ({"codes": {"label": {"a"}}}, "codes: expected for column 'label' a list of values .*, got set"),
        ({"codes": {"label": {"a": 0}}}, "codes: expected for column 'label' a list of values .*, got dict"),
        ({"codes": {"label": "ab"}}, "codes: expected for column 'label' a list of values .*, got str"),
        ({"shape": {"vector": -1}}, "shape: expected for column 'vector' lengths of 1 or more, got -1"),
        ({"shape": {"vector": "2"}}, "shape: expected for column 'vector' lengths of 1 or more, got '2'"),
        ({"shape": {"vector": (1 << 40, 1 << 40)}}, "shape: expected for column 'vector' at most 2147483647 values"),
        ({"pad_to": {"tokens": "3"}}, r"pad_to: expected for column 'tokens' a length or headrace\.Pad\(length\)"),
        ({"pad_to": {"tokens": 1 << 60}}, "Pad: expected a length of 1 to 2147483647, got 1152921504606846976"),
        ({"index_dir": 5}, "index_dir: expected a folder's path, got 5"),
        ({"index_dir": b"i"}, "index_dir: expected a folder's path, got b'i'"),
        ({"as_tuple": "no"}, "as_tuple: expected True or False, got 'no'"),
        ({"storage_options": [1]}, "storage_options: expected a dict of options by name, got list"),
        ({"storage_options": "key"}, "storage_options: expected a dict of options by name, got str"),
    ],
    ids=str,
)
def test_arguments_of_the_wrong_kind_are_refused_by_name(path, options, text):
    with pytest.raises(ArgumentError, match=text):
        hr.ParquetDataset(path, **{"columns": ["id", "label", "vector", "tokens"], **options})


def test_lengths_may_be_numpy_s_integers(path):
    dataset = hr.ParquetDataset(
        path, ["vector", "tokens"], shape={"vector": np.int64(2)}, pad_to={"tokens": np.int64(3)}
    )
    assert [tuple(column.shape) for column in dataset.schema.values()] == [(2,), (3,)]


@pytest.mark.parametrize("paths", [5, None, [5], b"a.parquet", "a\0.parquet", []], ids=str)
def test_what_is_no_path_is_refused(paths):
    with pytest.raises(ArgumentError, match=r"^expected "):
        hr.ParquetDataset(paths)


def test_categories_are_those_of_the_whole_dataset_in_each_of_its_parts(path):
    dataset = hr.ParquetDataset(path, ["label"], codes=["label"])
    parts = [dataset.take(1), dataset.select([1, 3]), *dataset.split({"a": 0.5, "b": 0.5}).values()]
    for part in (dataset, *parts, parts[-1].take(2)):
        assert part.categories("label") == ("a", "b")
    with pytest.raises(ArgumentError, match="categories: expected a column that comes as codes, got 'id'"):
        parts[0].categories("id")


def test_its_text_names_rows_columns_and_the_first_file(path):
    dataset = hr.ParquetDataset(path, ["id", "label"])
    assert repr(dataset) == f"ParquetDataset(10 rows of 'id', 'label' in {path})"
    assert repr(dataset.take(3)) == f"ParquetDataset(3 rows of 'id', 'label' in {path})"
    filtered = hr.ParquetDataset(path, ["id"], row_filter=pc.field("id") > 6)
    assert repr(filtered) == f"ParquetDataset(some of 10 rows of 'id' in {path})"


def test_it_counts_what_is_decoded_for_all_of_its_parts(path):
    dataset = hr.ParquetDataset(path, ["id"])
    dataset.take(3)[[0, 2]]
    counts = dataset.split({"a": 0.5, "b": 0.5})["b"].counts()
    assert counts == dataset.counts()
    assert (counts["read_samples"], counts["decoded_samples"]) == (2, 4)
