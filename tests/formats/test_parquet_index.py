"""The index of footers: opening again reads one footer, and an index that isn't right is as good as none."""

import json
import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.formats import parquet_files, parquet_index
from headrace.formats.parquet_files import open_parquet
from headrace.storage import Store
from tests.formats.stand_in_store import BASE, StandInStore


def table(rows, start=0):
    return pa.table({"x": range(start, start + rows), "y": [f"s{i}" for i in range(rows)]})


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    for i in range(3):
        pq.write_table(table(10 + i, 100 * i), tmp_path / "data" / f"{i}.parquet", row_group_size=4)
    return tmp_path / "data"


@pytest.fixture
def index_dir(tmp_path):
    return tmp_path / "index"


@pytest.fixture
def footers_read(monkeypatch):
    """Grows by the number of every footer that is read at opening."""
    read, read_footers = [], parquet_files.read_footers

    def counted(places, store, use):
        read.extend(str(place)[-9:] for place in places)
        return read_footers(places, store, use)

    monkeypatch.setattr(parquet_files, "read_footers", counted)
    return read


def opened(folder, index_dir, names=("x",)):
    return open_parquet(f"{folder}/*.parquet", Store(), paths_of=lambda _: names, index_dir=index_dir)


def assert_same_files(one, other):
    for name in ("group_file", "group_number", "group_rows", "group_bytes"):
        left, right = getattr(one, name), getattr(other, name)
        assert left.dtype == right.dtype
        assert left.tolist() == right.tolist()
    left, right = one.chunks(one.schema.names), other.chunks(other.schema.names)
    assert left.leaves == right.leaves
    for name in ("offsets", "compressed", "decoded"):
        assert getattr(left, name).tolist() == getattr(right, name).tolist()
    assert one.fingerprint() == other.fingerprint()
    assert one.metadata(2).num_rows == other.metadata(2).num_rows


def test_opening_again_reads_the_first_footer_only(folder, index_dir, footers_read):
    fresh = opened(folder, index_dir)
    assert footers_read == ["0.parquet", "1.parquet", "2.parquet"]
    footers_read.clear()
    again = opened(folder, index_dir)
    assert footers_read == ["0.parquet"]
    assert_same_files(fresh, again)
    assert_same_files(fresh, opened(folder, None))


def test_other_columns_have_an_index_of_their_own(folder, index_dir, footers_read):
    opened(folder, index_dir)
    footers_read.clear()
    assert opened(folder, index_dir, ("x", "y")).chunks(["y"]).offsets.shape == (9, 1)
    assert len(footers_read) == 3
    assert len(os.listdir(index_dir)) == 2


@pytest.mark.parametrize("change", ["rows", "time", "order", "one file less"])
def test_files_that_have_changed_are_read_again(folder, index_dir, footers_read, change):
    opened(folder, index_dir)
    footers_read.clear()
    if change == "rows":
        pq.write_table(table(5), folder / "1.parquet")
    elif change == "time":
        os.utime(folder / "2.parquet", ns=(1, 1))
    elif change == "one file less":
        (folder / "2.parquet").unlink()
    else:
        (folder / "0.parquet").rename(folder / "9.parquet")
    files = opened(folder, index_dir)
    assert len(footers_read) == len(files.files)
    assert_same_files_by_rows(files, folder)


def assert_same_files_by_rows(files, folder):
    expected = sum(pq.read_metadata(path).num_rows for path in folder.glob("*.parquet"))
    assert files.group_rows.sum() == expected


def the_index(index_dir):
    [name] = os.listdir(index_dir)
    return index_dir / name


@pytest.mark.parametrize("part", range(20))
def test_an_index_cut_short_is_made_again(folder, index_dir, footers_read, part):
    fresh = opened(folder, index_dir)
    path = the_index(index_dir)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * part // 20])
    footers_read.clear()
    assert_same_files(fresh, opened(folder, index_dir))
    assert len(footers_read) == 3
    assert path.read_bytes() == whole


def test_an_index_with_any_byte_flipped_is_made_again_or_says_the_same(folder, index_dir):
    fresh = opened(folder, index_dir)
    path = the_index(index_dir)
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        assert opened(folder, index_dir).group_rows.tolist() == fresh.group_rows.tolist()
        assert path.read_bytes() == whole


LIES = {
    "chunks": [("chunks", (0, 0, 0), 1 << 40), ("chunks", (0, 0, 0), -5), ("chunks", (1, 8, 0), 1 << 62)],
    "rows": [("group_rows", 0, -1), ("group_rows", 0, 0)],
    "files": [("group_file", 8, 3), ("group_file", 0, 2), ("group_number", 1, 0)],
    "footers": [("footer_length", 0, 1 << 40), ("footer_length", 2, 0)],
}


@pytest.mark.parametrize(("name", "at", "value"), [lie for lies in LIES.values() for lie in lies])
def test_an_index_that_says_what_cannot_be_is_made_again(folder, index_dir, footers_read, name, at, value):
    fresh = opened(folder, index_dir)
    path = the_index(index_dir)
    head, _, body = path.read_bytes().partition(b"\n")
    told = json.loads(head)
    arrays, start = {}, 0
    for key, shape in told["shapes"].items():
        dtype = "<i4" if key in {"group_file", "group_number"} else "<i8"
        arrays[key] = np.frombuffer(body, dtype, int(np.prod(shape)), start).reshape(shape).copy()
        start += arrays[key].nbytes
    arrays[name][at] = value
    body = b"".join(array.tobytes() for array in arrays.values())
    told["digest"] = parquet_index._digest(body)
    path.write_bytes(json.dumps(told).encode() + b"\n" + body)
    footers_read.clear()
    assert_same_files(fresh, opened(folder, index_dir))
    assert len(footers_read) == 3


@pytest.mark.parametrize("head", [b"", b"[]", b"{}", b"null", b"1", b"[" * 100_000, b'{"format": 1}', b"\xff"])
def test_a_file_that_is_no_index_is_written_over(folder, index_dir, head):
    fresh = opened(folder, index_dir)
    path = the_index(index_dir)
    whole = path.read_bytes()
    path.write_bytes(head + b"\n" + b"x" * 100)
    assert_same_files(fresh, opened(folder, index_dir))
    assert path.read_bytes() == whole


@pytest.mark.parametrize("shape", [[1 << 62], [-1], [1 << 70], ["a"], [None], [3, 3, 3], {}, 5, None])
def test_shapes_that_make_no_sense_allocate_nothing(folder, index_dir, shape):
    fresh = opened(folder, index_dir)
    path = the_index(index_dir)
    head, _, body = path.read_bytes().partition(b"\n")
    told = json.loads(head)
    told["shapes"]["group_rows"] = shape
    path.write_bytes(json.dumps(told).encode() + b"\n" + body)
    assert_same_files(fresh, opened(folder, index_dir))


def test_the_index_of_another_set_of_files_is_not_used(folder, index_dir):
    opened(folder, index_dir)
    foreign = the_index(index_dir)
    pq.write_table(table(50), folder / "1.parquet")
    files = opened(folder, index_dir)
    [own] = set(index_dir.iterdir()) - {foreign}
    own.write_bytes(foreign.read_bytes())
    assert opened(folder, index_dir).group_rows.tolist() == files.group_rows.tolist()


def test_a_folder_that_takes_no_index_is_no_reason_not_to_open(folder, tmp_path, caplog):
    (tmp_path / "file").write_bytes(b"")
    assert len(opened(folder, tmp_path / "file" / "below").files) == 3
    assert "cannot keep the index of Parquet files" in caplog.text


def test_stored_files_have_an_index_where_the_store_tells_versions(folder, index_dir):
    store = StandInStore({f"{BASE}/{path.name}": path.read_bytes() for path in folder.iterdir()})

    def opened():
        store.forget_asked()
        return open_parquet([f"{BASE}/*.parquet"], store, paths_of=lambda _: ["x"], index_dir=index_dir)

    fresh = opened()
    assert len(store.asked) == 3
    again = opened()
    assert len(store.asked) == 1
    assert_same_files(fresh, again)
    assert_same_files(fresh, pickle.loads(pickle.dumps(again)))

    tell = store.open
    store.open = lambda urls: [type(one)(one.url, one.object_bytes) for one in tell(urls)]
    opened()
    opened()
    assert len(store.asked) == 3
    assert len(os.listdir(index_dir)) == 1
