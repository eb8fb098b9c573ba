"""NumPy files: paths, many files as one array, hostile changes under our feet, pickles, small address spaces."""

import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ArgumentError, FormatError, StorageError
from headrace.formats import NumpySource, Raw
from headrace.formats.file_column import rows_by_file
from tests.open_files import descriptors_of

X = np.arange(60, dtype=np.float32).reshape(20, 3)


@pytest.fixture
def x_npy(tmp_path):
    np.save(tmp_path / "x.npy", X)
    return tmp_path / "x.npy"


def save_parts(folder, lengths):
    total = np.arange(sum(lengths) * 2).reshape(-1, 2)
    for number, part in enumerate(np.split(total, np.cumsum(lengths)[:-1])):
        np.save(folder / f"{number:03}.npy", part)
    return total


@given(data=st.data(), lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12), limit=st.integers(1, 4))
def test_many_files_read_as_one_array(tmp_path_factory, data, lengths, limit):
    folder = tmp_path_factory.mktemp("parts")
    total = save_parts(folder, lengths)
    ids = np.array(data.draw(st.lists(st.integers(0, len(total) - 1), max_size=30)), np.int64)
    source = NumpySource({"x": folder / "*.npy"})
    source._columns["x"]._opened._limit = limit
    np.testing.assert_array_equal(source.read(ids)["x"], total[ids])
    assert len(source._columns["x"]._opened) <= limit


@given(data=st.data(), lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_a_batch_is_sorted_into_one_gather_a_file(data, lengths):
    starts = np.concatenate(([0], np.cumsum(lengths)))
    ids = np.array(data.draw(st.lists(st.integers(0, int(starts[-1]) - 1), max_size=30)), np.int64)
    rows = rows_by_file(starts, ids)
    assert len({number for number, _, _ in rows}) == len(rows)
    seen = np.full(len(ids), -1)
    for number, places, file_rows in rows:
        seen[slice(None) if places is None else places] = starts[number] + file_rows
    np.testing.assert_array_equal(seen, ids)


def test_a_glob_sorts_by_code_point_and_a_list_keeps_its_order(tmp_path):
    for name, value in (("a-10", 1), ("a-2", 2), ("B", 0)):
        np.save(tmp_path / f"{name}.npy", np.array([value]))
    assert NumpySource({"x": str(tmp_path / "*.npy")}).read([0, 1, 2])["x"].tolist() == [0, 1, 2]
    paths = [tmp_path / "a-2.npy", str(tmp_path / "B.npy")]
    assert NumpySource({"x": paths}).read([0, 1])["x"].tolist() == [2, 0]


def test_a_file_whose_name_looks_like_a_glob_is_found(tmp_path):
    np.save(tmp_path / "x[1].npy", X)
    assert len(NumpySource({"x": tmp_path / "x[1].npy"})) == 20


def test_a_tilde_is_the_user_s_home(tmp_path, monkeypatch, x_npy):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(NumpySource({"x": "~/x.npy"})) == 20
    assert len(NumpySource({"x": "~/*.npy"})) == 20


def test_relative_paths_stay_valid_when_the_folder_changes(tmp_path, monkeypatch, x_npy):
    monkeypatch.chdir(tmp_path)
    source = NumpySource({"x": "x.npy"})
    monkeypatch.chdir("/")
    assert source.read([19])["x"][0, 0] == 57


def test_nothing_is_mapped_before_the_first_read(x_npy):
    source = NumpySource({"x": x_npy})
    assert len(source._columns["x"]._opened) == 0
    source.read([0])
    assert len(source._columns["x"]._opened) == 1


def test_where_names_file_and_row_of_every_column(tmp_path):
    save_parts(tmp_path, [3, 4])
    np.save(tmp_path / "y.npy", np.zeros(7))
    source = NumpySource({"x": tmp_path / "0*.npy", "y": tmp_path / "y.npy"})
    assert source.where(5) == f"row 2 of {tmp_path}/001.npy, row 5 of {tmp_path}/y.npy"


@pytest.mark.parametrize(
    ("columns", "error", "text"),
    [
        ({}, ArgumentError, "expected at least one column, got none"),
        ({"x": "nothing-*.npy"}, ArgumentError, r"column 'x': no file matches 'nothing-\*\.npy' in /"),
        ({"x": []}, ArgumentError, "column 'x': expected at least one path, got an empty list"),
        ({"x": "nothing.npy"}, StorageError, r"cannot read /.*/nothing\.npy: No such file or directory"),
        ({"x": ["x.npy", "f8.npy"]}, FormatError, r"(?s)column 'x'.*x\.npy: float32 rows.*f8\.npy: float64 rows"),
        ({"x": ["x.npy", "wide.npy"]}, FormatError, r"(?s)x\.npy: .* shape \(3,\).*wide\.npy: .* shape \(4,\)"),
        ({"x": "x.npy", "y": "short.npy"}, ArgumentError, "'x' has 20, 'y' has 4"),
        ({"x": Raw("empty.bin", dtype="f4")}, FormatError, r"empty\.bin: expected a multiple of 4 bytes .* got 0"),
        ({"x": Raw("x.npy", dtype="f4", shape=(-1, 7))}, FormatError, r"a multiple of 28 bytes \(rows of shape \(7,\)"),
        ({"x": Raw("x.npy", dtype="f4", shape=(2, 7))}, FormatError, "goes on after its data: .* needs 56 bytes"),
        ({"x": Raw("x.npy", dtype="O", shape=(2, 7))}, ArgumentError, "Raw: object holds Python objects"),
        ({"x": Raw("x.npy", dtype="f4", shape=())}, ArgumentError, "Raw: expected a shape of positive lengths"),
        ({"x": Raw("x.npy", dtype="f4", shape=(-1, -1))}, ArgumentError, "Raw: expected a shape of positive lengths"),
        ({"x": Raw("none.bin", dtype="f4")}, StorageError, r"cannot read /.*/none\.bin"),
    ],
)
def test_files_that_can_not_be_columns_are_refused(tmp_path, monkeypatch, x_npy, columns, error, text):
    monkeypatch.chdir(tmp_path)
    np.save("f8.npy", X.astype("f8"))
    np.save("wide.npy", np.zeros((2, 4), "f4"))
    np.save("short.npy", X[:4])
    open("empty.bin", "w").close()
    with pytest.raises(error, match=text):
        NumpySource(columns)


def test_each_raw_file_holds_a_run_of_rows(tmp_path):
    X[:5].tofile(tmp_path / "0.bin")
    X[5:].tofile(tmp_path / "1.bin")
    source = NumpySource({"x": Raw([tmp_path / "0.bin", tmp_path / "1.bin"], dtype="f4", shape=(-1, 3))})
    np.testing.assert_array_equal(source.read(np.arange(20)[::-1])["x"], X[::-1])


@pytest.mark.parametrize("fortran", [False, True])
def test_a_file_that_shrank_after_opening_is_an_error_and_no_crash(x_npy, fortran):
    if fortran:
        np.save(x_npy, np.asfortranarray(X))
    source = NumpySource({"x": x_npy})
    source.read([0])
    os.truncate(x_npy, 200)
    with pytest.raises(StorageError, match=r"x\.npy shrank after it was opened: expected 368 bytes, got 200: don't"):
        source.read([19])


def test_a_file_that_changed_before_it_was_opened_is_an_error(x_npy):
    source = NumpySource({"x": x_npy})
    np.save(x_npy, X[:10])
    with pytest.raises(FormatError, match=r"x\.npy is truncated"):
        source.read([0])
    np.save(x_npy, X.view(np.int32))
    with pytest.raises(FormatError, match=r"x\.npy has another header than when the dataset was made"):
        source.read([0])


def test_a_file_that_was_replaced_by_renaming_is_read_on_as_it_was(x_npy, tmp_path):
    source = NumpySource({"x": x_npy})
    source.read([0])
    np.save(tmp_path / "new.npy", -X)
    os.rename(tmp_path / "new.npy", x_npy)
    np.testing.assert_array_equal(source.read([19])["x"], X[19:])


def test_a_pickle_holds_paths_and_headers_only_and_is_checked_when_first_read(x_npy):
    source = NumpySource({"x": x_npy, "y": [x_npy]})
    source.read([0])
    pickled = pickle.dumps(source)
    assert len(pickled) < 1000
    again = pickle.loads(pickled)
    assert (again.fingerprint, again.schema) == (source.fingerprint, source.schema)
    np.testing.assert_array_equal(again.read([3, 1])["y"], X[[3, 1]])
    np.save(x_npy, X.astype("f8"))
    with pytest.raises(FormatError, match="goes on after its data"):
        pickle.loads(pickled).read([0])


def test_its_fingerprint_is_of_names_sizes_and_rows_wherever_the_files_lie(tmp_path):
    def save(folder, x, name="x.npy"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / name, x)
        np.save(tmp_path / folder / "y.npy", np.zeros(len(x)))
        return NumpySource({"x": tmp_path / folder / name, "y": tmp_path / folder / "y.npy"})

    first = save("a", X)
    assert save("b", -X).fingerprint == first.fingerprint
    assert (
        NumpySource({"y": tmp_path / "a" / "y.npy", "any name": tmp_path / "a" / "x.npy"}).fingerprint
        == first.fingerprint
    )
    others = [save("c", X[:5]), save("d", X.reshape(20, 3, 1)[:, :2]), save("e", X, "z.npy")]
    assert len({first.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_dropping_a_source_closes_its_files(x_npy):
    source = NumpySource({"x": x_npy})
    read = source.read([1])
    assert descriptors_of(x_npy) > 0
    del source
    assert descriptors_of(x_npy) == 0
    np.testing.assert_array_equal(read["x"], X[1:2])


def test_files_that_are_closed_while_others_read_them_stay_mapped_until_the_gather_is_done(tmp_path):
    total = save_parts(tmp_path, [50] * 20)
    source = NumpySource({"x": tmp_path / "*.npy"})
    source._columns["x"]._opened._limit = 1
    wrong = []

    def hammer(seed):
        rng = np.random.default_rng(seed)
        for _ in range(50):
            ids = rng.integers(0, len(total), 40)
            if not (source.read(ids)["x"] == total[ids]).all():
                wrong.append(ids)

    threads = [threading.Thread(target=hammer, args=[seed]) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


STREAM_UNDER_A_LIMIT = """
import resource, sys
import numpy as np
from headrace.formats import NumpySource, Raw
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20),) * 2)
source = NumpySource({"x": Raw(sys.argv[1], dtype="u1", shape=(-1, 4096))})
for start in range(0, len(source), 16384):
    assert not source.read(np.arange(start, min(len(source), start + 256)))["x"].any()
ids = np.random.default_rng(0).integers(0, len(source) - 1, 2000)
assert not source.read(ids)["x"].any()
assert source.read([len(source) - 1])["x"][0, -1] == 7
print(len(source), "read")
"""


def test_a_file_larger_than_the_address_space_is_read_at_positions(tmp_path, environment):
    sparse = tmp_path / "sparse.bin"
    with open(sparse, "wb") as file:
        file.seek((2 << 30) - 1)
        file.write(b"\7")
    command = [sys.executable, "-W", "error", "-c", STREAM_UNDER_A_LIMIT, str(sparse)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "524288 read\n"), run.stderr
