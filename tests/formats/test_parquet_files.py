"""Parquet files opened as far as their footers: what is found, and that nothing in a footer is believed unchecked."""

import base64
import io
import os
import pickle
import re

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest

from headrace.errors import ArgumentError, FormatError, StorageError
from headrace.formats import parquet_files, parquet_footers, pinning
from headrace.formats.parquet_files import LocalPin, open_parquet
from headrace.formats.parquet_filter import RowFilter
from headrace.storage import Store, StoredObject
from tests.formats.stand_in_store import BASE, StandInStore, stored


def table(rows=100, start=0):
    numbers = range(start, start + rows)
    return pa.table(
        {
            "id": pa.array(numbers, pa.int64()),
            "features": pa.array([[i, i + 0.5] for i in numbers], pa.list_(pa.float32(), 2)),
            "person": pa.array([{"name": f"n{i}", "age": i} for i in numbers]),
            "tags": pa.array([["a"] * (i % 3) for i in numbers]),
            "kind": pa.array([f"k{i % 3}" for i in numbers]).dictionary_encode(),
        }
    )


def opened(paths, store=None, names=None, **options):
    return open_parquet(paths, store or Store(), paths_of=lambda schema: names or schema.names, **options)


def payload(of, **options):
    sink = io.BytesIO()
    pq.write_table(of, sink, **options)
    return sink.getvalue()


@pytest.fixture
def folder(tmp_path):
    for i, rows in enumerate((100, 30, 65)):
        pq.write_table(table(rows, 1000 * i), tmp_path / f"{i}.parquet", row_group_size=30)
    return tmp_path


def assert_right(files, folder):
    """What was found is what pyarrow says of the local files of the same names."""
    group = 0
    chunks = files.chunks(files.schema.names)
    for number, place in enumerate(files.files):
        metadata = pq.read_metadata(folder / str(place).rpartition("/")[2])
        assert files.metadata(number).num_rows == metadata.num_rows
        assert files.groups_of(number) == slice(group, group + metadata.num_row_groups)
        for i in range(metadata.num_row_groups):
            told = metadata.row_group(i)
            assert (files.group_file[group], files.group_number[group]) == (number, i)
            assert (files.group_rows[group], files.group_bytes[group]) == (told.num_rows, told.total_byte_size)
            for leaf, path in enumerate(chunks.leaves):
                [column] = [told.column(j) for j in range(told.num_columns) if told.column(j).path_in_schema == path]
                start = min(column.data_page_offset, column.dictionary_page_offset or column.data_page_offset)
                assert chunks.offsets[group, leaf] == start
                assert chunks.compressed[group, leaf] == column.total_compressed_size
                assert chunks.decoded[group, leaf] >= column.total_uncompressed_size
            group += 1
    assert len(files.group_rows) == group
    assert len(files) == files.group_rows.sum()


def test_row_groups_and_chunks_are_those_of_the_footers(folder):
    files = opened(folder)
    assert [str(file) for file in files.files] == [f"{folder}/{i}.parquet" for i in range(3)]
    assert files.schema.equals(table().schema)
    assert files.group_rows.tolist() == [30, 30, 30, 10, 30, 30, 30, 5]
    assert_right(files, folder)
    dtypes = [array.dtype for array in (files.group_file, files.group_number, files.group_rows, files.group_bytes)]
    assert dtypes == [np.int32, np.int32, np.int64, np.int64]


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "none"},
        {"compression": "zstd", "use_dictionary": False, "write_statistics": False},
        {"compression": "gzip", "version": "1.0", "store_schema": False},
        {"compression": "lz4", "data_page_version": "2.0", "write_page_index": True, "write_page_checksum": True},
        {"compression": "brotli", "write_page_index": True, "store_decimal_as_integer": True},
    ],
    ids=str,
)
def test_whatever_options_files_are_written_with_their_chunks_are_found(tmp_path, options):
    pq.write_table(table(200), tmp_path / "x.parquet", row_group_size=40, **options)
    assert_right(opened(tmp_path), tmp_path)


def test_only_chunks_of_what_is_asked_for_are_kept(folder):
    files = opened(folder, names=["person.age", "tags"])
    assert files.chunks(["person.age", "tags"]).leaves == ("person.age", "tags.list.element")
    assert files.chunks(["tags"]).offsets.shape == (8, 1)
    assert files.chunks(["person"]).leaves == ("person.age",)
    assert files.chunks([]).offsets.shape == (8, 0)
    assert opened(folder, names=["person"]).chunks(["person.name"]).leaves == ("person.name",)


def test_names_that_hold_dots_or_begin_alike_are_not_mixed_up(tmp_path):
    of = pa.table({"a": [1], "a.b": [2], "ab": [3], "s": [{"x.y": 1, "x": {"y": "t"}}]})
    pq.write_table(of, tmp_path / "0.parquet")
    pq.write_table(of.append_column("z", pa.array([1])), tmp_path / "1.parquet")
    files = opened(tmp_path, names=["a.b", "ab", "s.x.y"])
    assert files.chunks(["ab"]).leaves == ("ab",)
    assert files.chunks(["a.b"]).leaves == ("a.b",)
    assert files.chunks(["a.b", "ab", "s.x.y"]).offsets.shape == (2, 4)


def test_files_may_hold_more_columns_in_another_order_and_lists_named_otherwise(tmp_path):
    of = table(10).select(["id", "tags", "kind"])
    pq.write_table(of, tmp_path / "0.parquet")
    other = of.select(["kind", "tags", "id"]).add_column(0, "more", pa.array(range(10)))
    kind = pa.array(["z"] * 10).dictionary_encode().cast(pa.dictionary(pa.int8(), pa.string()))
    other = other.set_column(1, "kind", kind)
    pq.write_table(other, tmp_path / "1.parquet", use_compliant_nested_type=False)
    files = opened(tmp_path, names=["tags", "id", "kind"])
    metadata = files.metadata(1)
    offsets = {metadata.row_group(0).column(i).path_in_schema: i for i in range(metadata.num_columns)}
    chunks = files.chunks(["tags", "id"])
    assert chunks.leaves == ("id", "tags.list.element")
    for leaf, path in enumerate(["id", "tags.list.item"]):
        column = metadata.row_group(0).column(offsets[path])
        assert chunks.offsets[1, leaf] == (column.dictionary_page_offset or column.data_page_offset)


@pytest.mark.parametrize(
    ("other", "names", "theirs"),
    [
        ({"x": ["a"], "y": [1]}, ["x"], "string"),
        ({"y": [1]}, ["x"], "no such column"),
        pytest.param({"x": pa.array([1], pa.int32()), "y": [1]}, ["x"], "int32", id="x of int32"),
        ({"x": [[1]], "y": [1]}, ["x"], "list<element: int64>"),
        ({"x": [1], "s": [{"a": 1.5}]}, ["s.a"], "double"),
        ({"x": [1], "s": [{"b": 1}]}, ["s.a"], "no such column"),
        ({"x": [1], "s": [{"a": 1, "b": 2}]}, ["s"], "struct<a: int64, b: int64>"),
        ({"x": [1], "s": [1]}, ["s.a"], "no such column"),
    ],
    ids=str,
)
def test_files_that_differ_in_what_is_read_are_refused_with_both_names(tmp_path, other, names, theirs):
    pq.write_table(pa.table({"x": [1], "y": [1], "s": [{"a": 1}]}), tmp_path / "0.parquet")
    pq.write_table(pa.table(other), tmp_path / "1.parquet")
    ours = {"x": "int64", "s.a": "int64", "s": "struct<a: int64>"}[names[0]]
    text = (
        f"column {names[0]!r} must be of one type in all files\n"
        f"  {tmp_path}/0.parquet: {ours}\n  {tmp_path}/1.parquet: {theirs}"
    )
    with pytest.raises(FormatError, match=f"^{re.escape(text)}$"):
        opened(tmp_path, names=names)
    if "y" in other:
        assert len(opened(tmp_path, names=["y"])) == 2


def test_two_columns_of_one_name_are_refused_where_they_are_read(tmp_path):
    pq.write_table(pa.Table.from_arrays([pa.array([1])] * 3, ["x", "y", "x"]), tmp_path / "x.parquet")
    assert len(opened(tmp_path, names=["y"])) == 1
    with pytest.raises(FormatError, match=r"x\.parquet: expected one column 'x', got 2"):
        opened(tmp_path, names=["x"])


def test_the_first_of_several_wrong_files_is_named_however_many_threads_read(tmp_path):
    for i in range(60):
        pq.write_table(pa.table({"x": [i]}), tmp_path / f"{i:02}.parquet")
    files = opened(tmp_path)
    assert [files.metadata(i).row_group(0).num_rows for i in range(60)] == [1] * 60
    assert files.group_file.tolist() == list(range(60))
    for i in (37, 21, 59):
        (tmp_path / f"{i}.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(FormatError, match=r"21\.parquet is not a sound Parquet file"):
        opened(tmp_path)


def test_partition_columns_follow_those_of_the_files(tmp_path):
    for year, month in ((2023, "a%20b"), (2024, "c")):
        (tmp_path / f"year={year}" / f"month={month}" / "id=7").mkdir(parents=True)
        pq.write_table(table(5), tmp_path / f"year={year}" / f"month={month}" / "id=7" / "x.parquet")
    seen = []
    files = open_parquet(tmp_path, Store(), paths_of=lambda schema: seen.append(schema) or ["id", "year"])
    assert files.schema.names == [*table().schema.names, "year", "month"]
    assert seen == [files.schema]
    assert files.schema.field("year").type == pa.int64()
    assert {key: values.to_pylist() for key, values in files.partitions.items()} == {
        "year": [2023, 2024],
        "month": ["a b", "c"],
    }
    assert files.partition_row(1) == {"year": pa.scalar(2024), "month": pa.scalar("c")}
    assert files.chunks(["id", "year"]).leaves == ("id",)


def test_the_fingerprint_is_of_names_bytes_and_rows_below_the_common_folder(folder, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy")
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
        fsspec.filesystem("memory").pipe(f"/{copy.name}/{path.name}", path.read_bytes())
    files = opened(folder)
    assert opened(copy).fingerprint() == files.fingerprint()
    assert opened(f"memory://{copy.name}/").fingerprint() == files.fingerprint()
    assert opened(copy, names=["id"]).fingerprint() == files.fingerprint()
    reversed_files = opened([copy / f"{i}.parquet" for i in (2, 1, 0)])
    assert reversed_files.fingerprint() != files.fingerprint()
    (copy / "1.parquet").rename(copy / "4.parquet")
    assert opened(copy).fingerprint() != files.fingerprint()


def test_a_file_given_twice_counts_twice(folder):
    files = opened([folder / "1.parquet"] * 2)
    assert files.group_rows.tolist() == [30, 30]
    assert files.group_file.tolist() == [0, 1]
    assert len(files.fingerprint()) == 32


@pytest.mark.parametrize("name", ["a b", "a%20b", "ü", "a*b", "a[0]", "{1,2}", "a#b?c=d", "a\nb", "\udcff"])
def test_files_of_odd_names_are_opened(tmp_path, name):
    pq.write_table(table(3), tmp_path / "x.parquet")
    path = tmp_path / f"{name}.parquet"
    (tmp_path / "x.parquet").rename(path)
    for given in (path, tmp_path):
        files = opened(given)
        assert files.files[0].path == str(path)
        assert len(files.fingerprint()) == 32
        assert files.metadata(0).num_rows == 3


def test_row_groups_without_rows_are_left_out(tmp_path):
    with pq.ParquetWriter(tmp_path / "x.parquet", pa.schema({"x": pa.int64()})) as writer:
        for rows in (0, 3, 0, 2):
            writer.write_table(pa.table({"x": pa.array(range(rows), pa.int64())}))
    files = opened(tmp_path)
    assert (files.group_number.tolist(), files.group_rows.tolist()) == ([1, 3], [3, 2])
    pq.write_table(pa.table({"x": pa.array([], pa.int64())}), tmp_path / "y.parquet")
    assert opened(tmp_path).group_file.tolist() == [0, 0]


def test_files_without_rows_are_refused(tmp_path):
    pq.write_table(pa.table({"x": pa.array([], pa.int64())}), tmp_path / "0.parquet")
    pq.ParquetWriter(tmp_path / "1.parquet", pa.schema({"x": pa.int64()})).close()
    with pytest.raises(ArgumentError, match=r"expected at least one row, got none in 2 files: .*0\.parquet"):
        opened(tmp_path)


def test_a_file_that_is_missing_or_no_file_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match=re.escape(f"cannot open {tmp_path}/x.parquet: No such file or directory")):
        opened(tmp_path / "x.parquet")
    os.mkfifo(tmp_path / "x.parquet")
    with pytest.raises(StorageError, match="it is not a regular file"):
        opened(tmp_path / "x.parquet")


# ---- in a store


def test_stored_files_are_found_as_local_ones_are(folder):
    store = stored(folder)
    files = opened([f"{BASE}/*.parquet"], store)
    assert_right(files, folder)
    assert len(store.asked) == 3
    assert all(isinstance(file, StoredObject) for file in files.files)


def test_only_the_ends_of_stored_files_are_read_and_no_cache_keeps_them(tmp_path):
    pq.write_table(pa.table({"x": np.random.default_rng(0).random(100_000)}), tmp_path / "x.parquet")
    store = stored(tmp_path, has_cache=True)
    opened([f"{BASE}/x.parquet"], store)
    file_bytes = (tmp_path / "x.parquet").stat().st_size
    assert store.asked == [(f"{BASE}/x.parquet", file_bytes - 65536, file_bytes, False)]


def test_footers_longer_than_one_read_are_read_in_two(tmp_path):
    of = pa.table({f"column {i}": [1, 2, 3] for i in range(400)})
    pq.write_table(of, tmp_path / "x.parquet", row_group_size=1)
    metadata = pq.read_metadata(tmp_path / "x.parquet")
    assert metadata.serialized_size > 1 << 17
    assert_right(opened(tmp_path), tmp_path)
    store = stored(tmp_path)
    files = opened([f"{BASE}/x.parquet"], store)
    assert_right(files, tmp_path)
    file_bytes = (tmp_path / "x.parquet").stat().st_size
    start, middle = file_bytes - 8 - metadata.serialized_size, file_bytes - 65536
    assert [asked[1:3] for asked in store.asked[:2]] == [(middle, file_bytes), (start, middle)]


def test_footers_are_read_again_when_they_are_needed_and_not_kept(folder, monkeypatch):
    store = stored(folder)
    files = opened([f"{BASE}/*.parquet"], store)
    store.forget_asked()
    assert [files.metadata(i).num_rows for i in range(3)] == [100, 30, 65]
    assert store.asked == []  # kept from the opening
    again = pickle.loads(pickle.dumps(files))
    for _ in range(3):
        assert [again.metadata(i).num_rows for i in range(3)] == [100, 30, 65]
    monkeypatch.setattr(parquet_files, "_KEPT_BYTES", 1)
    files._kept.clear()
    store.forget_asked()
    for i in (0, 1, 0, 0):
        assert files.metadata(i).num_rows == (100, 30)[i]
    assert len(store.asked) == 3
    assert len(files._kept) == 1


def test_a_url_of_a_folder_opens_its_files(folder):
    for path in folder.iterdir():
        fsspec.filesystem("memory").pipe(f"/opened/k=1/{path.name}", path.read_bytes())
    files = opened("memory://opened/")
    assert files.partitions["k"].to_pylist() == [1, 1, 1]
    assert_right(files, folder)


def test_files_on_a_real_server_are_opened_and_those_replaced_are_noticed(s3, folder):
    for path in folder.iterdir():
        s3.put("data", f"parquet-files/k=a%20b/{path.name}", path.read_bytes())
    store = Store(storage_options=s3.storage_options)
    files = opened("s3://data/parquet-files/", store)
    assert files.partitions["k"].to_pylist() == ["a b"] * 3
    assert_right(files, folder)
    files._kept.clear()
    s3.put("data", "parquet-files/k=a%20b/1.parquet", payload(table(30, 7), row_group_size=30))
    with pytest.raises(StorageError, match="changed"):
        files.metadata(1)


def test_pickles_are_small_and_hold_no_footers(folder):
    files = opened(folder, names=["id"])
    files.metadata(0)
    pickled = pickle.dumps(files)
    assert len(pickled) < 4000
    again = pickle.loads(pickled)
    assert again.fingerprint() == files.fingerprint()
    assert again.schema.equals(files.schema)
    assert_right(again, folder)


# ---- files that change


@pytest.mark.parametrize("change", ["another file", "written to", "longer", "gone", "another footer"])
def test_a_local_file_replaced_after_it_was_opened_is_noticed(folder, change):
    files = opened(folder)
    pin = files.files[1]
    pin.check()
    path = folder / "1.parquet"
    if change == "another file":
        (folder / "new").write_bytes(path.read_bytes())
        os.utime(folder / "new", ns=(pin.mtime_ns, pin.mtime_ns))
        (folder / "new").rename(path)
    elif change == "written to":
        os.utime(path, ns=(1, 1))
    elif change == "longer":
        path.write_bytes(path.read_bytes() + b"x")
        os.utime(path, ns=(pin.mtime_ns, pin.mtime_ns))
    elif change == "gone":
        path.unlink()
    else:  # in place, and the clock set back: the checksum tells
        damaged = bytearray(path.read_bytes())
        damaged[-100] ^= 1
        path.write_bytes(damaged)
        os.utime(path, ns=(pin.mtime_ns, pin.mtime_ns))
    files._kept.clear()
    with pytest.raises(StorageError, match=r"1\.parquet"):
        files.metadata(1)
    assert files.metadata(0).num_rows == 100


def test_a_pin_says_what_was_expected_and_what_is_there(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    pin = LocalPin.of(str(tmp_path / "x"), os.stat(tmp_path / "x"))
    assert str(pin) == str(tmp_path / "x")
    (tmp_path / "x").write_bytes(b"abcd")
    with pytest.raises(StorageError, match=r"x was replaced while it was being read: expected 3 bytes .*, got 4 bytes"):
        pin.check()


# ---- files that lie


def refused(path, text, names=None):
    with pytest.raises(FormatError, match=text) as caught:
        opened(path, names=names)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("part", range(20))
def test_a_file_cut_short_is_refused(tmp_path, part):
    whole = payload(table())
    path = tmp_path / "x.parquet"
    path.write_bytes(whole[: len(whole) * part // 20])
    refused(path, "is not a sound Parquet file: expected .* \\(is it truncated\\?\\); write it again")
    store = stored(tmp_path)
    with pytest.raises(FormatError, match=r"x\.parquet is not a sound Parquet file"):
        opened([f"{BASE}/x.parquet"], store)


def test_a_file_that_goes_on_after_its_end_is_refused(tmp_path):
    (tmp_path / "x.parquet").write_bytes(payload(table()) + b"\0" * 10)
    refused(tmp_path / "x.parquet", "expected it to end with b'PAR1'")


@pytest.mark.parametrize("length", [0, 1, 100, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1])
def test_a_footer_of_another_length_than_it_claims_is_refused(tmp_path, length):
    whole = payload(table())
    (tmp_path / "x.parquet").write_bytes(whole[:-8] + length.to_bytes(4, "little") + b"PAR1")
    refused(tmp_path / "x.parquet", "its footer")


def test_a_footer_that_claims_more_than_the_file_is_refused(tmp_path):
    whole = payload(table())
    footer_bytes = int.from_bytes(whole[-8:-4], "little")
    (tmp_path / "x.parquet").write_bytes(whole[:4] + whole[-8 - footer_bytes :])
    refused(tmp_path / "x.parquet", r"row group 0: column '.*' claims \d+ bytes at byte \d+, .* \(is it truncated\?\)")


def changed(whole, old, new):
    assert whole.count(old) == 1
    assert len(old) == len(new)
    return whole.replace(old, new)


# What follows the path of column "x" in the footer, as zigzag varints: codec (15 02: snappy), values (16 06: 3)
PATH = b"\x19\x18\x01x"


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (PATH + b"\x15\x02", PATH + b"\x15\x06", "row group 0: column 'x' is compressed with LZO, which this pyarrow"),
        (PATH + b"\x15\x02", PATH + b"\x15\x3e", "row group 0: column 'x' is compressed with codec 31, which this"),
        (PATH + b"\x15\x02\x16\x06", PATH + b"\x15\x02\x16\x08", "row group 0: column 'x' claims 4 values for 3 rows"),
        (PATH + b"\x15\x02\x16\x06", PATH + b"\x15\x02\x16\x05", "row group 0: column 'x' claims -3 values for 3 rows"),
    ],
)
def test_what_a_footer_says_of_a_chunk_must_fit(tmp_path, old, new, text):
    whole = payload(pa.table({"x": [1, 2, 3], "y": [1, 2, 3]}))
    (tmp_path / "x.parquet").write_bytes(changed(whole, old, new))
    refused(tmp_path / "x.parquet", re.escape(text), names=["x"])
    assert len(opened(tmp_path / "x.parquet", names=["y"])) == 3


def test_data_that_lies_in_another_file_is_refused(tmp_path):
    pq.write_table(table(3), tmp_path / "x.parquet")
    metadata = pq.read_metadata(tmp_path / "x.parquet")
    metadata.set_file_path("x.parquet")
    metadata.write_metadata_file(tmp_path / "_metadata")
    refused(tmp_path / "_metadata", "row group 0: column 'id' lies in another file, 'x.parquet'")


def test_a_flipped_byte_in_a_footer_never_ends_the_process_or_gives_places_outside_the_file(tmp_path):
    whole = payload(table(60), row_group_size=30)
    footer_bytes = int.from_bytes(whole[-8:-4], "little")
    path = tmp_path / "x.parquet"
    path.write_bytes(whole)

    def outcome() -> str:
        try:
            files = opened(path)
        except (FormatError, ArgumentError) as error:
            assert str(path) in str(error)  # noqa: PT017 (any outcome may come)
            return "refused"
        chunks = files.chunks(files.schema.names)
        assert (chunks.offsets >= 4).all()
        assert (chunks.offsets + chunks.compressed <= len(whole)).all()
        if "id" in files.schema.names:
            RowFilter(pc.field("id").is_valid(), files.schema).matching(files)
        return "opened"

    outcomes = set()
    with open(path, "r+b", buffering=0) as file:
        for at in range(len(whole) - 8 - footer_bytes, len(whole)):
            os.pwrite(file.fileno(), bytes([whole[at] ^ 1 << at % 8]), at)
            outcomes.add(outcome())
            os.pwrite(file.fileno(), whole[at : at + 1], at)
    assert outcomes == {"refused", "opened"}


class Keys(pe.KmsClient):
    def __init__(self, _configuration):
        super().__init__()

    def wrap_key(self, key_bytes, _master_key):
        return base64.b64encode(key_bytes)

    def unwrap_key(self, wrapped_key, _master_key):
        return base64.b64decode(wrapped_key)


@pytest.mark.parametrize("plaintext_footer", [False, True])
@pytest.mark.parametrize("names", [["y"], ["x", "y"]])
def test_an_encrypted_file_is_refused(tmp_path, plaintext_footer, names):
    how = pe.EncryptionConfiguration(footer_key="f", column_keys={"c": ["x"]}, plaintext_footer=plaintext_footer)
    keys = pe.CryptoFactory(Keys).file_encryption_properties(pe.KmsConnectionConfig(), how)
    of = pa.table({"x": [1], "y": [2]})
    with pq.ParquetWriter(tmp_path / "x.parquet", of.schema, encryption_properties=keys) as writer:
        writer.write_table(of)
    text = "is encrypted, which headrace does not read: write it again without encryption"
    refused(tmp_path / "x.parquet", text, names=names)
    with pytest.raises(FormatError, match=text):
        opened([f"{BASE}/x.parquet"], stored(tmp_path), names=names)


def test_waiting_for_footers_is_told_of(folder, monkeypatch):
    told = []

    class Told(parquet_footers.Progress):
        def __init__(self, total, what):
            super().__init__(total, what)
            told.append([what, total, 0])

        def add(self, count):
            told[-1][2] += count

    monkeypatch.setattr(parquet_footers, "Progress", Told)
    monkeypatch.setattr(pinning, "Progress", Told)
    opened(folder)
    opened([f"{BASE}/*.parquet"], StandInStore({f"{BASE}/{p.name}": p.read_bytes() for p in folder.iterdir()}))
    expected = [["opening files", 3, 3], ["reading footers", 1, 1], ["reading footers", 2, 2]]
    assert told == expected * 2


def test_a_column_with_a_dot_in_its_name_is_not_below_the_one_before_the_dot(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"a": [1], "a.b": [2]}), tmp_path / "1.parquet")
    assert opened(tmp_path, names=["a"]).chunks(["a"]).leaves == ("a",)
    files = opened([tmp_path / "1.parquet", tmp_path / "0.parquet"], names=["a"])
    assert files.chunks(["a"]).leaves == ("a",)


def test_files_may_differ_in_dictionaries_and_in_the_width_of_text_and_bytes(tmp_path):
    for number, array in enumerate((pa.array(["a"]), pa.array(["a"], pa.large_string()), ["a"])):
        table = pa.table({"s": array, "b": pa.array([b"a"], [pa.binary(), pa.large_binary(), pa.binary()][number])})
        table = table if number < 2 else table.set_column(0, "s", pa.array(array).dictionary_encode())
        pq.write_table(table, tmp_path / f"{number}.parquet")
    assert len(opened(tmp_path)) == 3


def test_files_with_tensors_of_permuted_axes_are_opened(tmp_path):
    kind = pa.fixed_shape_tensor(pa.float32(), (2, 3), permutation=[1, 0])
    storage = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(12, dtype=np.float32)), 6)
    table = pa.table({"x": pa.ExtensionArray.from_storage(kind, storage), "y": [0, 1]})
    pq.write_table(table, tmp_path / "0.parquet")
    assert opened(tmp_path / "0.parquet").schema.field("x").type == kind
