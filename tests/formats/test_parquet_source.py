"""Parquet as a source: the contract, locally and from a store, under any memory; only what is needed is read."""

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ArgumentError, FormatError, SampleError, StorageError
from headrace.formats import parquet_layout
from headrace.formats.parquet_options import ColumnOptions
from headrace.formats.parquet_source import ParquetSource
from tests.formats.contract import SourceContract, assert_same
from tests.formats.stand_in_store import BASE, StandInStore, stored

N = 97
IDS = np.arange(N)
X = (np.arange(N * 6, dtype=np.float32) / 3).reshape(N, 3, 2)
TEXT = [f"text {i}" * (i % 4) for i in range(N)]
TOKENS = [list(range(i % 5)) for i in range(N)]


def table(start: int = 0, stop: int = N) -> pa.Table:
    x = pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(pa.array(X[start:stop].ravel()), 2), 3)
    return pa.table(
        {
            "id": IDS[start:stop],
            "x": x,
            "text": TEXT[start:stop],
            "tokens": pa.array(TOKENS[start:stop], pa.list_(pa.int32())),
        }
    )


def write(folder: Path, *, cuts=(0, 40, 41, N), row_group_size: int = 7, **options) -> str:
    folder.mkdir(exist_ok=True)
    for number, (start, stop) in enumerate(pairwise(cuts)):
        pq.write_table(table(start, stop), folder / f"part-{number}.parquet", row_group_size=row_group_size, **options)
    return f"{folder}/*.parquet"


@pytest.fixture
def small_slices(monkeypatch):
    """Slices of 64 bytes, so that every row group is decoded in several."""
    monkeypatch.setattr(parquet_layout, "_PIECE_BYTES", 64)


FIXED = {"id": IDS, "x": X}


class TestLocalFiles(SourceContract):
    @pytest.fixture
    def source(self, tmp_path):
        return ParquetSource(write(tmp_path / "files"), ["id", "x"])

    @pytest.fixture
    def columns(self):
        return FIXED

    def test_its_blocks_sum_to_its_length_and_bytes(self, source, columns):
        """The bytes are those of all columns, as the footers state them, whatever is read."""
        blocks = source.blocks
        assert blocks.lengths.dtype == blocks.bytes.dtype == np.int64
        assert blocks.lengths.sum() == len(source)
        assert (blocks.lengths > 0).all()
        assert blocks.bytes.sum() > sum(array.nbytes for array in columns.values()) or len(source) < N


class TestSlicesInHardlyAnyMemory(TestLocalFiles):
    @pytest.fixture(params=[1, 200, 1500, 1 << 20])
    def source(self, request, tmp_path, small_slices):
        return ParquetSource(write(tmp_path / "files", row_group_size=30), ["id", "x"], memory_bytes=request.param)


class TestStoredFiles(TestLocalFiles):
    @pytest.fixture(params=[1, 2000, 1 << 20])
    def source(self, request, tmp_path):
        write(tmp_path / "files")
        for path in (tmp_path / "files").iterdir():
            fsspec.filesystem("memory").pipe(f"/{tmp_path.name}/{path.name}", path.read_bytes())
        return ParquetSource(f"memory://{tmp_path.name}/*.parquet", ["id", "x"], memory_bytes=request.param)


class TestFilteredRows(TestLocalFiles):
    @pytest.fixture
    def source(self, tmp_path):
        return ParquetSource(write(tmp_path / "files"), ["id", "x"], row_filter=pc.field("id").isin(IDS[1::2].tolist()))

    @pytest.fixture
    def columns(self):
        return {"id": IDS[1::2], "x": X[1::2]}


@pytest.fixture(params=["local", "stored", "slices"])
def mixed(request, tmp_path):
    """All kinds of columns."""
    pattern = write(tmp_path / "files", row_group_size=20)
    if request.param == "stored":
        return ParquetSource(f"{BASE}/*.parquet", None, stored(tmp_path / "files"), memory_bytes=3000)
    return ParquetSource(pattern, memory_bytes=1 if request.param == "slices" else None)


def rows_of(columns) -> list[tuple]:
    tokens = columns["tokens"]
    return list(
        zip(
            columns["id"].tolist(),
            columns["x"].reshape(-1, 6).tolist(),
            columns["text"].to_pylist(),
            [row.tolist() for row in tokens.to_list()],
            strict=True,
        )
    )


def expected_rows(ids) -> list[tuple]:
    return [(int(IDS[i]), X[i].ravel().tolist(), TEXT[i], TOKENS[i]) for i in ids]


@pytest.mark.parametrize("ids", [range(N), [5], [96, 0, 0, 50, 41, 40, 39], range(30, 60)], ids=str)
def test_strings_and_lists_come_with_the_rows_that_they_belong_to(mixed, ids):
    assert rows_of(mixed.read(list(ids))) == expected_rows(ids)


def test_no_samples_are_columns_of_the_right_kinds(mixed):
    read = mixed.read([])
    assert read["x"].shape == (0, 3, 2)
    assert len(read["text"]) == len(read["tokens"]) == 0
    assert read["text"].type == mixed.read([0])["text"].type
    assert read["tokens"].values.dtype == mixed.read([4])["tokens"].values.dtype


@given(data=st.data())
def test_any_ids_give_their_rows_in_their_order(data, tmp_path_factory):
    if not hasattr(test_any_ids_give_their_rows_in_their_order, "source"):
        folder = tmp_path_factory.mktemp("any")
        test_any_ids_give_their_rows_in_their_order.source = ParquetSource(write(folder), memory_bytes=2500)
    source = test_any_ids_give_their_rows_in_their_order.source
    ids = data.draw(st.lists(st.integers(0, N - 1), min_size=1, max_size=40))
    if data.draw(st.booleans()):
        source.prefetch(ids)
    assert rows_of(source.read(ids)) == expected_rows(ids)


def test_what_is_read_is_no_part_of_what_is_kept(tmp_path):
    source = ParquetSource(write(tmp_path / "files"))
    read = source.read(range(N))
    read["x"][...] = 0
    read["tokens"].values[...] = -1
    assert rows_of(source.read(range(N))) == expected_rows(range(N))


def test_blocks_are_the_row_groups_whatever_the_columns(tmp_path):
    pattern = write(tmp_path / "files")
    source, other = ParquetSource(pattern, ["id"]), ParquetSource(pattern, ["x", "text"])
    assert source.blocks.lengths.tolist() == [7] * 5 + [5] + [1] + [7] * 8
    np.testing.assert_array_equal(source.blocks.lengths, other.blocks.lengths)
    np.testing.assert_array_equal(source.blocks.bytes, other.blocks.bytes)
    assert source.fingerprint == other.fingerprint


def test_a_copy_in_a_store_has_the_same_fingerprint_and_blocks(tmp_path):
    local = ParquetSource(write(tmp_path / "files"), ["id"])
    there = ParquetSource(f"{BASE}/*.parquet", ["id"], stored(tmp_path / "files"))
    assert there.fingerprint == local.fingerprint
    np.testing.assert_array_equal(there.blocks.bytes, local.blocks.bytes)


def test_only_the_bytes_of_the_columns_are_fetched(tmp_path):
    write(tmp_path / "files", cuts=(0, N), row_group_size=N)
    store = stored(tmp_path / "files")
    source = ParquetSource(f"{BASE}/*.parquet", ["id"], store)
    store.forget_asked()
    source.read(range(N))
    chunk = pq.read_metadata(tmp_path / "files/part-0.parquet").row_group(0).column(0)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    assert store.asked == [(f"{BASE}/part-0.parquet", start, start + chunk.total_compressed_size, True)]


def test_announced_row_groups_are_fetched_ahead_in_their_order_and_once(tmp_path):
    write(tmp_path / "files", cuts=(0, N), row_group_size=10)
    store = stored(tmp_path / "files")
    source = ParquetSource(f"{BASE}/*.parquet", ["x"], store)
    store.forget_asked()
    ids = np.array([95, 5, 30, 31, 6])
    source.prefetch(ids)
    metadata = pq.read_metadata(tmp_path / "files/part-0.parquet")
    chunks = [metadata.row_group(group).column(1) for group in (9, 0, 3)]
    assert [asked[1] for asked in store.asked] == [
        chunk.dictionary_page_offset or chunk.data_page_offset for chunk in chunks
    ]
    source.read(ids)
    assert len(store.asked) == 3
    source.read(ids)
    assert len(store.asked) == 3


def test_the_end_of_announcements_gives_up_what_nobody_waits_for(tmp_path):
    write(tmp_path / "files", cuts=(0, N), row_group_size=10)
    store = stored(tmp_path / "files")
    source = ParquetSource(f"{BASE}/*.parquet", ["x"], store)
    store.hold()
    source.prefetch(range(N))
    source.end_prefetch()
    store.answer()
    assert_same(source.read(range(N)), {"x": X})


def test_a_row_group_that_is_too_large_to_be_fetched_at_once_is_fetched_in_parts(tmp_path, small_slices):
    big = np.random.default_rng(0).integers(0, 2**62, 400_000)
    pq.write_table(pa.table({"id": big}), tmp_path / "big.parquet", compression=None, use_dictionary=False)
    store = StandInStore({f"{BASE}/big.parquet": (tmp_path / "big.parquet").read_bytes()})
    source = ParquetSource(f"{BASE}/big.parquet", None, store, memory_bytes=1 << 20)
    store.forget_asked()
    for start in range(0, 400_000, 100_000):
        np.testing.assert_array_equal(source.read(range(start, start + 1000))["id"], big[start : start + 1000])
    asked = [stop - start for _, start, stop, _ in store.asked]
    assert sum(asked) < 4 << 20


def test_the_rows_of_a_filter_are_counted_once_and_those_ruled_out_not_read(tmp_path):
    write(tmp_path / "files", cuts=(0, N), row_group_size=10)
    store = stored(tmp_path / "files")
    source = ParquetSource(f"{BASE}/*.parquet", ["x", "text"], store, row_filter=pc.field("id") >= 75)
    store.forget_asked()
    assert len(source) == 22
    assert len(store.asked) == 4  # the footer, for its statistics, and three of ten row groups
    assert source.blocks.lengths.tolist() == [5, 10, 7]
    store.forget_asked()
    read = source.read([21, 0])
    assert read["text"].to_pylist() == [TEXT[96], TEXT[75]]
    assert len(source) == 22
    assert "row 0 of those that row_filter keeps" in source.where(0)
    assert source.fingerprint != ParquetSource(f"{BASE}/*.parquet", ["x"], store).fingerprint


def test_a_filter_that_keeps_nothing_is_refused(tmp_path):
    source = ParquetSource(write(tmp_path / "files"), row_filter=pc.field("id") > 1000)
    with pytest.raises(ArgumentError, match="row_filter: expected a filter that keeps at least one row"):
        len(source)


def test_folders_give_columns(tmp_path):
    for year in (2024, 2025):
        write(tmp_path / f"year={year}", cuts=(0, 40) if year == 2024 else (40, N))
    source = ParquetSource(tmp_path, ["year", "id"], row_filter=pc.field("year") == 2025)
    assert len(source) == N - 40
    read = source.read([0, 56])
    assert read["year"].tolist() == [2025, 2025]
    assert read["id"].tolist() == [40, 96]
    assert ParquetSource(tmp_path, ["year"]).read(range(N))["year"].tolist() == [2024] * 40 + [2025] * (N - 40)


def test_categories_are_found_by_reading_the_column_once(tmp_path):
    kinds = ["dog", "cat", "owl"]
    pq.write_table(pa.table({"kind": [kinds[i % 3] for i in range(30)]}), tmp_path / "a.parquet", row_group_size=4)
    source = ParquetSource(tmp_path / "a.parquet", options=ColumnOptions(codes={"kind": None}))
    assert source.schema["kind"].dtype == np.int64
    assert source.read([0, 1, 2])["kind"].tolist() == [1, 0, 2]
    assert source.categories("kind") == ("cat", "dog", "owl")
    assert pickle.loads(pickle.dumps(source)).categories("kind") == ("cat", "dog", "owl")
    with pytest.raises(ArgumentError, match="expected a column that comes as codes, got 'id'"):
        source.categories("id")


def test_a_narrowed_source_reads_fewer_columns_of_the_same_samples(tmp_path):
    source = ParquetSource(write(tmp_path / "files"), row_filter=pc.field("id").isin(IDS[::3].tolist()))
    narrowed = source.narrowed(["tokens"])
    assert list(narrowed.schema) == ["tokens"]
    assert len(narrowed) == len(source)
    assert narrowed.fingerprint == source.fingerprint
    assert narrowed.read([2])["tokens"].to_list()[0].tolist() == TOKENS[6]
    assert source.narrowed(list(source.schema)) is source


def test_a_pickle_holds_no_data_and_reads_the_same(tmp_path):
    big = np.zeros(200_000)
    pq.write_table(pa.table({"id": big}), tmp_path / "big.parquet")
    source = ParquetSource(tmp_path / "big.parquet")
    source.read(range(200_000))
    pickled = pickle.dumps(source)
    assert len(pickled) < 20_000
    assert pickle.loads(pickled).read([199_999])["id"].tolist() == [0.0]


def test_a_forked_child_reads_for_itself(tmp_path):
    write(tmp_path / "files")
    program = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from headrace.formats.parquet_source import ParquetSource
source = ParquetSource({str(tmp_path / "files")!r}, ["id"], memory_bytes=500)
source.read(range(97))
child = os.fork()
if child == 0:
    os._exit(0 if source.read(range(97))["id"].tolist() == list(range(97)) else 3)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=150, env=dict(os.environ))


def test_eight_threads_read_all_kinds_of_columns_under_little_memory(mixed):
    def hammer(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(10):
            ids = rng.integers(0, N, 9)
            mixed.prefetch(ids)
            assert rows_of(mixed.read(ids)) == expected_rows(ids)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hammer, range(8)))


def test_a_file_that_is_replaced_while_it_is_read_is_an_error(tmp_path):
    source = ParquetSource(write(tmp_path / "files", cuts=(0, N)), ["id"], memory_bytes=1)
    source.read([0])
    pq.write_table(table().slice(1), tmp_path / "new.parquet", row_group_size=7)
    os.replace(tmp_path / "new.parquet", tmp_path / "files/part-0.parquet")
    with pytest.raises(StorageError, match=r"part-0.parquet was replaced while it was being read"):
        source.read([50])


def test_a_damaged_page_is_an_error_that_names_file_row_group_and_column(tmp_path):
    path = tmp_path / "a.parquet"
    columns = {"id": np.arange(3000), "x": np.random.default_rng(0).standard_normal(3000)}
    pq.write_table(pa.table(columns), path, row_group_size=1000, write_page_checksum=True)
    chunk = pq.read_metadata(path).row_group(1).column(1)
    content = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start + chunk.total_compressed_size // 2] ^= 1
    path.write_bytes(content)
    source = ParquetSource(path)
    for _ in range(2):
        with pytest.raises(FormatError, match=r"a\.parquet: row group 1: column 'x': cannot be decoded: .*CRC"):
            source.read([0, 1500])
    assert source.read([0, 2999])["id"].tolist() == [0, 2999]
    assert ParquetSource(path, ["id"]).read([1500])["id"].tolist() == [1500]


def test_nulls_are_an_error_that_counts_them(tmp_path):
    values = [1.0, None, 3.0, None]
    pq.write_table(pa.table({"x": values}), tmp_path / "a.parquet", row_group_size=2)
    with pytest.raises(FormatError, match=r"a\.parquet: row group 0: column 'x' .*1 null"):
        ParquetSource(tmp_path / "a.parquet").read([0, 1])
    filled = ParquetSource(
        tmp_path / "a.parquet", options=ColumnOptions(fill={"x": -1.0}, validity=frozenset(["x"]))
    ).read(range(4))
    assert filled["x"].tolist() == [1.0, -1.0, 3.0, -1.0]
    assert filled["x.__valid__"].tolist() == [True, False, True, False]


def test_a_payload_that_cannot_be_decoded_names_its_sample(tmp_path):
    import headrace as hr

    pq.write_table(pa.table({"image": [b"no image"] * 3}), tmp_path / "a.parquet", row_group_size=2)
    source = ParquetSource(tmp_path / "a.parquet", options=ColumnOptions(decode={"image": hr.image(8)}))
    with pytest.raises(SampleError, match=r"(?s)column 'image': .*sample 2: row 0 in .*a\.parquet: row group 1"):
        source.read([2, 0])


def test_reading_twice_what_does_not_fit_is_advised_against_once(tmp_path, caplog):
    source = ParquetSource(write(tmp_path / "files"), ["x"], memory_bytes=300)
    rng = np.random.default_rng(0)
    for _ in range(100):
        source.read(rng.integers(0, N, 2))
    assert len(caplog.records) == 1
    counts = source.counts()
    assert counts["decoded_samples"] > 2 * counts["read_samples"]


@pytest.mark.parametrize("wrong", [0, -1, True, 2.5, "1"])
def test_memory_is_a_number_of_bytes(tmp_path, wrong):
    with pytest.raises(ArgumentError, match="memory_bytes: expected a number of bytes"):
        ParquetSource(write(tmp_path / "files"), memory_bytes=wrong)


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="store: expected a Store"):
        ParquetSource(write(tmp_path / "files"), None, object())


def test_the_rows_of_a_filter_are_kept_with_the_index(tmp_path):
    write(tmp_path / "files", cuts=(0, N), row_group_size=10)
    store = stored(tmp_path / "files")

    def filtered(rows: int) -> ParquetSource:
        row_filter = pc.field("id") >= N - rows
        return ParquetSource(f"{BASE}/*.parquet", ["x"], store, row_filter=row_filter, index_dir=tmp_path / "index")

    assert len(filtered(22)) == 22
    again = filtered(22)
    store.forget_asked()
    assert len(again) == 22
    assert store.asked == []
    assert len(filtered(20)) == 20
    for kept in (tmp_path / "index").glob("*.rows"):
        kept.write_bytes(kept.read_bytes()[:-8] + (1 << 40).to_bytes(8, "little"))
    assert len(filtered(22)) == 22


@pytest.mark.parametrize("row_filter", [None, pc.field("s") != "b"], ids=["all", "filtered"])
def test_views_of_text_and_bytes_are_read_at_any_depth(tmp_path, row_filter):
    columns = {
        "s": pa.array(["a", "b", "c"], pa.string_view()),
        "words": pa.array([["x"], [], ["y", "z"]], pa.list_(pa.string_view())),
        "st": pa.array(
            [{"b": bytes([i]), "n": i} for i in range(3)], pa.struct({"b": pa.binary_view(), "n": pa.int8()})
        ),
        "map": pa.array([[("k", "v")], [], []], pa.map_(pa.string_view(), pa.string_view())),
    }
    pq.write_table(pa.table(columns), tmp_path / "views.parquet")
    read = ParquetSource(tmp_path / "views.parquet", row_filter=row_filter).read(
        [0, -1 + (3 if row_filter is None else 2)]
    )
    assert read["s"].to_pylist() == ["a", "c"]
    assert read["words"].to_pylist() == [["x"], ["y", "z"]]
    assert read["st.b"].to_pylist() == [b"\0", b"\2"]
    assert read["map"].to_pylist() == [[("k", "v")], []]


def test_filters_that_pyarrow_prints_alike_are_counted_and_named_apart(tmp_path):
    paths = write(tmp_path / "files")
    first, other = (
        ParquetSource(paths, ["id"], row_filter=pc.field("id").isin(kept), index_dir=tmp_path / "index")
        for kept in ([*range(50), 60, *range(70, 97)], [*range(50), 61, *range(70, 97)])
    )
    assert 60 in first.read(range(len(first)))["id"]
    assert 61 in other.read(range(len(other)))["id"]
    assert first.fingerprint != other.fingerprint


def test_files_that_hold_text_in_other_ways_are_read_as_one(tmp_path):
    arrays = (pa.array(["a", "b"]), pa.array(["c"], pa.large_string()), pa.array(["d"]).dictionary_encode())
    for number, array in enumerate(arrays):
        pq.write_table(pa.table({"s": array}), tmp_path / f"{number}.parquet")
    read = ParquetSource(tmp_path).read(range(4))["s"]
    assert read.to_pylist() == ["a", "b", "c", "d"]
    source = ParquetSource(tmp_path, options=ColumnOptions(codes={"s": None}))
    assert source.read(range(4))["s"].tolist() == [0, 1, 2, 3]


def test_text_that_is_not_utf_8_names_file_row_group_and_column(tmp_path):
    wrong = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"\xff\xfe"]).buffers())
    pq.write_table(pa.table({"s": wrong}), tmp_path / "a.parquet", row_group_size=1)
    text = r"a\.parquet: row group 1: column 's' holds what its type \w+ doesn't allow: Invalid UTF8"
    with pytest.raises(FormatError, match=text):
        ParquetSource(tmp_path / "a.parquet").read([0, 1])
    with pytest.raises(FormatError, match=text):
        ParquetSource(tmp_path / "a.parquet", options=ColumnOptions(codes={"s": None})).read([0])
    listed = ParquetSource(tmp_path / "a.parquet", options=ColumnOptions(codes={"s": ("ok",)}))
    with pytest.raises(FormatError, match=r"row group 1: column 's' holds 1 value without .*, such as b'\\xff\\xfe'"):
        listed.read([1])


def test_a_column_of_nulls_has_no_codes_to_find(tmp_path):
    pq.write_table(pa.table({"s": pa.array([None, None], pa.string())}), tmp_path / "a.parquet")
    source = ParquetSource(tmp_path / "a.parquet", options=ColumnOptions(codes={"s": None}, fill={"s": -1}))
    with pytest.raises(ArgumentError, match="codes: column 's' holds only nulls, so there are no codes to find"):
        source.read([0])


def test_a_column_beside_one_named_like_a_field_of_it_is_read_from_a_store_too(tmp_path):
    pq.write_table(pa.table({"a": [1], "a.b": [7], "id": [3]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"a": [2], "id": [4]}), tmp_path / "1.parquet")
    for paths, store in ((tmp_path, None), (f"{BASE}/*.parquet", stored(tmp_path))):
        assert ParquetSource(paths, ["a"], store).read([0, 1])["a"].tolist() == [1, 2]


def test_columns_of_one_name_do_not_keep_others_from_being_filtered(tmp_path):
    columns = [pa.array([1, 2]), pa.array([3, 4]), pa.array([5, 6])]
    pq.write_table(pa.Table.from_arrays(columns, names=["x", "x", "y"]), tmp_path / "a.parquet")
    source = ParquetSource(tmp_path / "a.parquet", ["y"], row_filter=pc.field("y") > 5)
    assert source.read([0])["y"].tolist() == [6]


def test_errors_name_a_path_even_where_paths_come_one_by_one(tmp_path):
    write(tmp_path / "files")
    with pytest.raises(ArgumentError, match=r"no column 'q' in .*part-0\.parquet"):
        ParquetSource(iter(sorted((tmp_path / "files").iterdir())), ["q"])


def test_its_text_names_rows_columns_and_the_first_file_and_reads_nothing(tmp_path):
    paths = write(tmp_path / "files")
    assert repr(ParquetSource(paths, ["id", "x"])) == (
        f"ParquetSource(97 rows of 'id', 'x' in {tmp_path}/files/part-0.parquet and 2 more)"
    )
    filtered = ParquetSource(paths, ["id"], row_filter=pc.field("id") > 90)
    assert repr(filtered).startswith("ParquetSource(some of 97 rows of 'id' in ")
    assert len(filtered) == 6
    assert repr(filtered).startswith("ParquetSource(6 rows of 'id' in ")
