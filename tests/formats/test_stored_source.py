"""NumPy files in a store: the contract, and the same data, blocks and fingerprint as where they are local files."""

import os
import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ArgumentError, FormatError, StorageError
from headrace.formats import NumpySource, Raw, numpy_source, source, stored_column, stored_memory, stored_rows
from headrace.storage import Store
from tests.formats.contract import SourceContract, assert_same
from tests.formats.files import SAVERS, N, X, Y, below, fortran_beside_c, many_files, raw, structured
from tests.formats.stand_in_store import BASE, stored


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of at most 64 bytes, so that a few rows make many."""
    monkeypatch.setattr(source, "_BLOCK_BYTES", 64)
    monkeypatch.setattr(stored_memory, "_LARGE_BLOCK_BYTES", 64)
    monkeypatch.setattr(stored_memory, "_SMALL_BLOCK_BYTES", 16)
    monkeypatch.setattr(stored_column, "_VALUES_BLOCK_BYTES", 128)
    monkeypatch.setattr(stored_column, "_VALUES_AT_ONCE", 40)
    monkeypatch.setattr(stored_rows, "GAP_BYTES", 16)


@pytest.fixture(params=SAVERS, ids=lambda saver: saver.__name__.replace("_", " "))
def saved(request, tmp_path):
    return request.param(tmp_path)


@pytest.fixture
def columns(saved):
    return saved[1]


class TestEveryStoredSource(SourceContract):
    @pytest.fixture
    def source(self, tmp_path, saved):
        for path in tmp_path.iterdir():
            fsspec.filesystem("memory").pipe(f"/{tmp_path.name}/{path.name}", path.read_bytes())
        return NumpySource(below(f"memory://{tmp_path.name}", saved[0]))


class TestEveryStoredSourceOfManyBlocks(SourceContract):
    """The same with blocks of a few rows, of which all, some, or hardly any fit into memory."""

    @pytest.fixture(params=[many_files, fortran_beside_c, structured, raw], ids=lambda saver: saver.__name__)
    def saved(self, request, tmp_path):
        return request.param(tmp_path)

    @pytest.fixture(
        params=[(1, False), (256, False), (256, True), (1 << 20, False)],
        ids=["a block or two", "some blocks", "some blocks, and a disk cache", "all blocks"],
    )
    def source(self, request, tmp_path, saved, small_blocks):
        memory_bytes, has_cache = request.param
        store = stored(tmp_path, has_cache=has_cache)
        return NumpySource(below(BASE, saved[0]), store, memory_bytes=memory_bytes)


class TestLocalAndStoredColumnsTogether(SourceContract):
    @pytest.fixture
    def columns(self):
        return {"x": X, "y": Y, "z": X}

    @pytest.fixture
    def source(self, tmp_path):
        (tmp_path / "stored").mkdir()
        np.save(tmp_path / "stored" / "y.npy", Y)
        np.save(tmp_path / "stored" / "z.npy", X)
        np.save(tmp_path / "x.npy", X)
        spec = {"x": tmp_path / "x.npy", "y": f"{BASE}/y.npy", "z": f"{BASE}/z.npy"}
        return NumpySource(spec, stored(tmp_path / "stored"))


def test_it_is_the_same_dataset_as_that_of_the_local_files(saved, tmp_path, small_blocks):
    local = NumpySource(below(tmp_path, saved[0]))
    remote = NumpySource(below(BASE, saved[0]), stored(tmp_path))
    assert remote.fingerprint == local.fingerprint
    assert remote.blocks.lengths.tolist() == local.blocks.lengths.tolist()
    assert remote.blocks.bytes.tolist() == local.blocks.bytes.tolist()
    assert remote.schema == local.schema
    assert (local.random_access, remote.random_access) == (True, False)
    assert (local.read_ahead_bytes, remote.read_ahead_bytes > 0) == (0, True)


def test_the_fingerprint_of_local_and_stored_columns_is_that_of_files_in_one_folder(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    local = NumpySource({"x": tmp_path / "x.npy", "y": tmp_path / "y.npy"})
    mixed = NumpySource({"x": tmp_path / "x.npy", "y": f"{BASE}/y.npy"}, stored(tmp_path))
    assert mixed.fingerprint == local.fingerprint
    assert not mixed.random_access


def test_credentials_and_queries_are_no_part_of_the_fingerprint(tmp_path):
    np.save(tmp_path / "x.npy", X)
    store = stored(tmp_path)
    data = store.objects[f"{BASE}/x.npy"]
    urls = ["https://host/a/x.npy", "https://me:secret@host/a/x.npy?Signature=1f", "zip://a/x.npy::s3://bucket/z.zip"]
    store.objects.update(dict.fromkeys(urls, data))
    fingerprints = {NumpySource({"x": [url]}, store).fingerprint for url in urls}
    assert fingerprints == {NumpySource({"x": tmp_path / "x.npy"}).fingerprint}
    assert "secret" not in NumpySource({"x": [urls[1]]}, store).where(0)


def test_blocks_never_cross_a_file_of_the_column_with_the_most_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "_BLOCK_BYTES", 4 * 16)
    for number, part in enumerate(np.split(np.zeros((20, 3), "f4"), [7, 9, 10])):
        np.save(tmp_path / f"x-{number}.npy", part)
    for number, part in enumerate(np.split(np.zeros(20, "f4"), [11])):
        np.save(tmp_path / f"y-{number}.npy", part)
    spec = {"x": tmp_path / "x-*.npy", "y": tmp_path / "y-*.npy"}
    assert NumpySource(spec).blocks.lengths.tolist() == [4, 3, 2, 1, 4, 4, 2]
    assert NumpySource(dict(reversed(spec.items()))).blocks.lengths.tolist() == [4, 3, 2, 1, 4, 4, 2]


def test_of_columns_with_equally_many_bytes_the_order_does_not_decide_about_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "_BLOCK_BYTES", 4 * 8)
    for number, part in enumerate(np.split(np.zeros(10, "f4"), [3])):
        np.save(tmp_path / f"x-{number}.npy", part)
    for number, part in enumerate(np.split(np.zeros(10, "f4"), [5])):
        np.save(tmp_path / f"y-{number}.npy", part)
    spec = {"x": tmp_path / "x-*.npy", "y": tmp_path / "y-*.npy"}
    assert NumpySource(spec).blocks.lengths.tolist() == [3, 4, 3]
    assert NumpySource(dict(reversed(spec.items()))).blocks.lengths.tolist() == [3, 4, 3]


@given(data=st.data())
def test_any_ids_read_in_any_order_give_what_numpy_gives(tmp_path_factory, data):
    draw = data.draw
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    array = np.arange(sum(lengths) * 3, dtype=draw(st.sampled_from(["<i4", ">i4"]))).reshape(-1, 3)
    folder = tmp_path_factory.mktemp("parts")
    for number, part in enumerate(np.split(array, np.cumsum(lengths)[:-1])):
        np.save(folder / f"{number:03}.npy", np.asfortranarray(part) if draw(st.booleans()) else part)
    np.save(folder / "y.npy", np.arange(len(array)))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(source, "_BLOCK_BYTES", draw(st.sampled_from([1, 24, 50, 1000])))
        monkeypatch.setattr(stored_rows, "GAP_BYTES", draw(st.sampled_from([0, 12, 30])))
        monkeypatch.setattr(stored_column, "_RANGES_AT_ONCE_BYTES", draw(st.sampled_from([1, 40])))
        monkeypatch.setattr(stored_column, "_VALUES_BLOCK_BYTES", 40)
        spec = {"x": f"{BASE}/0*.npy", "y": f"{BASE}/y.npy"}
        remote = NumpySource(spec, stored(folder), memory_bytes=draw(st.sampled_from([1, 100, 10_000])))
        for _ in range(draw(st.integers(1, 4))):
            ids = np.array(draw(st.lists(st.integers(0, len(array) - 1), max_size=20)), np.int64)
            action = draw(st.sampled_from(["read", "prefetch", "end"]))
            if action == "prefetch":
                remote.prefetch(ids)
            elif action == "end":
                remote.end_prefetch()
            assert_same(remote.read(ids), {"x": array.astype("i4")[ids], "y": ids})


def test_headers_of_all_files_are_asked_for_at_once_and_long_ones_once_more(tmp_path, monkeypatch):
    fields = [(f"a_field_with_a_long_name_{i}", "f4") for i in range(200)]
    np.save(tmp_path / "wide.npy", np.zeros(3, fields))
    np.save(tmp_path / "x.npy", np.zeros(3))
    np.save(tmp_path / "y.npy", np.zeros((3, 1000)))
    store = stored(tmp_path)
    calls = []
    read_ranges = store.read_ranges
    monkeypatch.setattr(
        store, "read_ranges", lambda reads: calls.append([str(read) for read in reads]) or read_ranges(reads)
    )
    remote = NumpySource({name: f"{BASE}/{name}.npy" for name in ("x", "wide", "y")}, store)
    header_bytes = remote._files["wide"][0].offset
    assert header_bytes > 4096
    assert calls == [
        [f"bytes [0, 152) of {BASE}/x.npy", f"bytes [0, 4096) of {BASE}/wide.npy", f"bytes [0, 4096) of {BASE}/y.npy"],
        [f"bytes [0, {header_bytes}) of {BASE}/wide.npy"],
    ]


@pytest.mark.parametrize(
    ("spec", "error", "text"),
    [
        ({"x": f"{BASE}/none.npy"}, StorageError, "cannot open stand-in://bucket/none.npy"),
        ({"x": f"{BASE}/none-*.npy"}, ArgumentError, r"column 'x': no object matches 'stand-in://bucket/none-\*\.npy'"),
        ({"x": f"{BASE}/empty.npy"}, FormatError, r"stand-in://bucket/empty\.npy is empty \(0 bytes\): write it again"),
        ({"x": f"{BASE}/text.npy"}, FormatError, r"bucket/text\.npy is not a \.npy file: expected it to begin with"),
        ({"x": f"{BASE}/cut.npy"}, FormatError, r"cut\.npy is not a sound .*: the file ends within its header"),
        ({"x": f"{BASE}/short.npy"}, FormatError, r"bucket/short\.npy is truncated: shape"),
        ({"x": [f"{BASE}/x.npy", f"{BASE}/y.npy"]}, FormatError, r"(?s)x\.npy: float32 rows.*y\.npy: int64"),
        ({"x": Raw(f"{BASE}/x.npy", dtype="f4", shape=(-1, 7))}, FormatError, "expected a multiple of 28 bytes"),
        ({"x": [f"{BASE}/x.npy", "y.npy"]}, ArgumentError, "column 'x': expected local files only, or URLs"),
    ],
)
def test_stored_files_that_can_not_be_columns_are_refused(tmp_path, spec, error, text):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    data = (tmp_path / "x.npy").read_bytes()
    for name, content in (("empty", b""), ("text", b"no array at all"), ("cut", data[:60]), ("short", data[:-1])):
        (tmp_path / f"{name}.npy").write_bytes(content)
    with pytest.raises(error, match=text):
        NumpySource(spec, stored(tmp_path))


@pytest.mark.parametrize("memory_bytes", [0, -1, True, 1e9, "1GB"])
def test_a_budget_that_is_no_number_of_bytes_is_refused(tmp_path, memory_bytes):
    np.save(tmp_path / "x.npy", X)
    text = f"memory_bytes: expected a number of bytes, an int of 1 or more, got {memory_bytes!r}"
    with pytest.raises(ArgumentError, match=re.escape(text)):
        NumpySource({"x": f"{BASE}/x.npy"}, stored(tmp_path), memory_bytes=memory_bytes)


@pytest.mark.parametrize("store", ["s3", {"anon": True}, Store])
def test_a_store_that_is_none_is_refused(store):
    with pytest.raises(ArgumentError, match=r"store: expected a Store, as headrace\.Store\(\.\.\.\) makes it, got "):
        NumpySource({"x": f"{BASE}/x.npy"}, store)


def test_beside_large_local_columns_no_more_is_announced_than_fits_and_little_of_it_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(numpy_source, "_LOCAL_SAMPLES_AHEAD", 3)
    (tmp_path / "stored").mkdir()
    np.save(tmp_path / "stored" / "y.npy", np.zeros(50, "u1"))
    np.save(tmp_path / "x.npy", np.zeros((50, 1000), "u1"))
    spec = {"x": tmp_path / "x.npy", "y": f"{BASE}/y.npy"}
    mixed = NumpySource(spec, stored(tmp_path / "stored"), memory_bytes=40_000)
    assert mixed.read_ahead_bytes == 10_000
    expected: list[int] = []
    monkeypatch.setattr(mixed._residency, "expect", lambda ids, locate: expected.extend(ids.tolist()))
    mixed.prefetch(np.arange(10))
    assert expected == [0, 1, 2]


def test_patterns_with_braces_name_local_files_unless_one_has_that_very_name(tmp_path):
    for number in range(3):
        np.save(tmp_path / f"x-{number:02}.npy", X[number : number + 1])
    pattern = str(tmp_path / "x-{00..02}.npy")
    np.testing.assert_array_equal(NumpySource({"x": pattern}).read([0, 1, 2])["x"], X[:3])
    np.testing.assert_array_equal(NumpySource({"x": f"file://{pattern}"}).read([2])["x"], X[2:3])
    assert NumpySource({"x": f"file://{pattern}"}).random_access
    np.save(pattern, X)
    assert len(NumpySource({"x": pattern})) == N


def test_a_pickle_holds_headers_and_the_store_s_options_but_no_data(tmp_path, small_blocks):
    np.save(tmp_path / "x.npy", X)
    remote = NumpySource({"x": f"{BASE}/x.npy"}, stored(tmp_path))
    assert_same(remote.read(np.arange(N)), {"x": X})
    remote._store.objects["stand-in://bucket/large"] = bytes(1)
    again = pickle.loads(pickle.dumps(remote))
    assert again._store.asked == []
    assert_same(again.read(np.arange(N)[::-1]), {"x": X[::-1]})
    fsspec.filesystem("memory").pipe("/pickled/x.npy", (tmp_path / "x.npy").read_bytes())
    assert len(pickle.dumps(NumpySource({"x": "memory://pickled/x.npy"}))) < 1500


def test_a_pickle_of_local_files_has_no_store_in_it(tmp_path):
    np.save(tmp_path / "x.npy", X)
    store = Store(storage_options={"secret": "not to be passed on"})
    assert b"passed on" not in pickle.dumps(NumpySource({"x": tmp_path / "x.npy"}, store))


FORK = """
import os, sys, threading
import numpy as np
from headrace.formats import NumpySource
from pathlib import Path
from tests.formats.stand_in_store import BASE, stored
x = np.load(Path(sys.argv[1]) / "x.npy")
store = stored(Path(sys.argv[1]))
source = NumpySource({"x": BASE + "/x.npy"}, store)
source.read([0])
store.hold()
source.prefetch(np.arange(len(x)))
column = source._columns["x"]
column._memory().arena._lock.acquire()  # as though another thread held it
child = os.fork()
if child == 0:
    store.answer()
    store.forget_asked()
    right = bool((source.read(np.arange(len(x)))["x"] == x).all())
    os._exit(0 if right and store.asked and len(column._memories) == 1 else 1)
column._memory().arena._lock.release()
_, status = os.waitpid(child, 0)
store.answer()
assert (source.read(np.arange(len(x)))["x"] == x).all()
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_a_forked_child_fetches_for_itself_though_its_parent_was_in_the_middle_of_it(tmp_path, environment):
    np.save(tmp_path / "x.npy", X)
    command = [sys.executable, "-c", FORK, str(tmp_path)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=150)
    assert (run.returncode, run.stderr) == (0, "")


def test_eight_threads_read_through_a_memory_that_holds_two_blocks(tmp_path, small_blocks):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "z.npy", -X)
    remote = NumpySource({"x": f"{BASE}/x.npy", "z": f"{BASE}/z.npy"}, stored(tmp_path, has_cache=True), memory_bytes=1)
    assert {column.slots for column in remote._stored.values()} == {2}

    def hammer(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for i in range(40):
            ids = rng.integers(0, N, 5)
            if i % 3 == 0:
                remote.prefetch(rng.integers(0, N, 5))
            if i % 17 == 0:
                remote.end_prefetch()
            assert_same(remote.read(ids), {"x": X[ids], "z": -X[ids]})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hammer, range(8)))
    for column in remote._stored.values():
        assert not column._memory().arena._pins.any()


def test_dropping_a_source_frees_its_memory_at_once(tmp_path):
    np.save(tmp_path / "x.npy", X)
    remote = NumpySource({"x": f"{BASE}/x.npy"}, stored(tmp_path))
    remote.read([0])
    arena = remote._columns["x"]._memory().arena
    references = sys.getrefcount(arena)
    remote._columns["x"]._memories.clear()
    assert sys.getrefcount(arena) == references - 1
    assert os.getpid() not in remote._columns["x"]._memories
