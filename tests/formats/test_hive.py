"""Which files paths and folders stand for, and the columns that the names of folders make."""

import os
import re

import fsspec
import pyarrow as pa
import pytest

from headrace.errors import ArgumentError, FormatError, StorageError
from headrace.formats.hive import list_files, partition_values
from headrace.storage import Store
from tests.formats.stand_in_store import BASE, StandInStore

NAMES = ["b.parquet", "a.parquet", "sub/c.parquet", "sub/B.parquet"]
HIDDEN = ["_SUCCESS", "_metadata.parquet", ".a.parquet.crc", "_temporary/x.parquet", ".git/x.parquet", "notes.txt"]


@pytest.fixture
def folder(tmp_path):
    for name in [*NAMES, *HIDDEN]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def names(listing, folder):
    return [os.path.relpath(place, folder) for place in listing.places]


def test_a_folder_stands_for_the_files_below_it_in_the_order_of_code_points(folder):
    assert names(list_files(folder, Store(), ".parquet"), folder) == sorted(NAMES)
    assert names(list_files(f"file://{folder}/", Store(), ".parquet"), folder) == sorted(NAMES)


def test_a_url_that_ends_with_a_slash_stands_for_the_files_below_it(folder):
    for name in [*NAMES, *HIDDEN]:
        fsspec.filesystem("memory").pipe(f"/{folder.name}/{name}", b"x")
    listing = list_files(f"memory://{folder.name}/", Store(), ".parquet")
    assert listing.places == [f"memory:///{folder.name}/{name}" for name in sorted(NAMES)]
    assert listing.folders == [(), (), ("sub",), ("sub",)]


def test_lists_keep_their_order_and_patterns_are_sorted(folder):
    listing = list_files([folder / "sub" / "c.parquet", f"{folder}/*.parquet"], Store(), ".parquet")
    assert names(listing, folder) == ["sub/c.parquet", "_metadata.parquet", "a.parquet", "b.parquet"]
    listing = list_files([[f"{folder}/{{b,a}}.parquet"], folder / "a.parquet"], Store(), ".parquet")
    assert names(listing, folder) == ["b.parquet", "a.parquet", "a.parquet"]


def test_folders_that_a_pattern_finds_stand_for_their_files(folder):
    assert names(list_files(f"{folder}/s*", Store(), ".parquet"), folder) == ["sub/B.parquet", "sub/c.parquet"]


@pytest.mark.parametrize("name", ["a*b", "a[1]", "a{1,2}", "a?", "a b", "a%20b", "ü#", "a'b\"", "a\nb"])
def test_folders_with_odd_names_are_found(tmp_path, name):
    (tmp_path / name / "k=1").mkdir(parents=True)
    (tmp_path / name / "k=1" / f"{name}.parquet").write_bytes(b"x")
    listing = list_files(tmp_path / name, Store(), ".parquet")
    assert listing.places == [str(tmp_path / name / "k=1" / f"{name}.parquet")]
    assert listing.folders == [("k=1",)]


def test_links_to_folders_are_followed_and_each_folder_is_read_once(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "d.parquet").write_bytes(b"x")
    (folder / "round").symlink_to(folder)
    (folder / "linked").symlink_to(elsewhere)
    (folder / "sub" / "again").symlink_to(elsewhere)
    assert names(list_files(folder, Store(), ".parquet"), folder) == sorted([*NAMES, "linked/d.parquet"])


def test_a_folder_that_cannot_be_listed_is_no_empty_one(folder, monkeypatch):
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(StorageError, match=r"cannot list .*/sub: Permission denied"):
        list_files(folder, Store(), ".parquet")


def test_folders_named_like_a_key_are_meant_even_where_they_begin_with_an_underscore(tmp_path):
    (tmp_path / "_k=1").mkdir()
    (tmp_path / "_k=1" / "x.parquet").write_bytes(b"x")
    assert list_files(tmp_path, Store(), ".parquet").folders == [("_k=1",)]


def test_a_folder_without_such_files_is_refused(tmp_path):
    (tmp_path / "_hidden.parquet").write_bytes(b"x")
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "parquet").write_bytes(b"x")
    with pytest.raises(ArgumentError, match=re.escape(f"no file *.parquet below {tmp_path}")):
        list_files(tmp_path, Store(), ".parquet")
    fsspec.filesystem("memory").pipe(f"/{tmp_path.name}/x.txt", b"x")
    with pytest.raises(ArgumentError, match=re.escape(f"no file *.parquet below 'memory://{tmp_path.name}/'")):
        list_files(f"memory://{tmp_path.name}/", Store(), ".parquet")


def test_no_path_and_a_pattern_of_nothing_are_refused(tmp_path):
    with pytest.raises(ArgumentError, match="expected at least one path or URL, got an empty list"):
        list_files([], Store(), ".parquet")
    with pytest.raises(ArgumentError, match="no file matches"):
        list_files(f"{tmp_path}/*.parquet", Store(), ".parquet")


@pytest.mark.parametrize(
    ("paths", "text"),
    [
        (5, "expected a path, a URL, a pattern or a list of them, got 5"),
        (None, "a list of them, got None"),
        (["a.parquet", 5], "a list of them, got 5"),
        (b"a.parquet", "a list of them, got b'a.parquet'"),
        ("a\0b", r"one that holds a null character: 'a\\x00b'"),
    ],
)
def test_what_is_no_path_is_refused(paths, text):
    with pytest.raises(ArgumentError, match=text):
        list_files(paths, Store(), ".parquet")


def test_local_files_and_stored_ones_are_not_mixed(tmp_path):
    store = StandInStore({f"{BASE}/x.parquet": b"x"})
    text = "expected local files only, or URLs only, got both: /a/x.parquet and stand-in://"
    with pytest.raises(ArgumentError, match=re.escape(text)):
        list_files([f"{BASE}/x.parquet", "/a/x.parquet"], store, ".parquet")


@pytest.mark.parametrize(
    ("pattern", "folders"),
    [
        ("", [("year=1", "m=2"), ("year=3", "m=4")]),
        ("year=*/m=*/x.parquet", [("year=1", "m=2"), ("year=3", "m=4")]),
        ("year=1/m=*/x.parquet", [("m=2",)]),
        ("year=1", [("m=2",)]),
        ("year=[1]", [("year=1", "m=2")]),
        ("year={1,3}", [("year=1", "m=2"), ("year=3", "m=4")]),
        ("**/x.parquet", [("year=1", "m=2"), ("year=3", "m=4")]),
        (["year=1/m=2/x.parquet", "year=3/m=4/x.parquet"], [("year=1", "m=2"), ("year=3", "m=4")]),
        ("year=1/m=2/x.parquet", [()]),
    ],
    ids=str,
)
def test_folders_count_below_the_folder_or_the_fixed_part_of_a_pattern(tmp_path, pattern, folders):
    for name in ("year=1/m=2", "year=3/m=4"):
        (tmp_path / "run=7" / name).mkdir(parents=True)
        (tmp_path / "run=7" / name / "x.parquet").write_bytes(b"x")
    patterns = pattern if isinstance(pattern, list) else [pattern]
    assert list_files([tmp_path / "run=7" / one for one in patterns], Store(), ".parquet").folders == folders


def test_folders_of_urls_count_likewise():
    fs = fsspec.filesystem("memory")
    for name in ("k=1/x.parquet", "k=a%2Fb/x.parquet"):
        fs.pipe(f"/hive-urls/{name}", b"x")
    for pattern in (
        "memory://hive-urls/",
        "memory://hive-urls/*/x.parquet",
        "memory://hive-urls/k={1,a%2Fb}/x.parquet",
    ):
        assert list_files(pattern, Store(), ".parquet").folders == [("k=1",), ("k=a%2Fb",)]


@pytest.mark.parametrize(
    ("texts", "values", "kind"),
    [
        (["1", "02", "-3"], [1, 2, -3], pa.int64()),
        (["1", "__HIVE_DEFAULT_PARTITION__"], [1, None], pa.int64()),
        (["__HIVE_DEFAULT_PARTITION__"], [None], pa.string()),
        (["9223372036854775807"], [2**63 - 1], pa.int64()),
        (["9223372036854775808"], ["9223372036854775808"], pa.string()),
        (["1", "a"], ["1", "a"], pa.string()),
        (["1_000", "1"], ["1_000", "1"], pa.string()),
        (["٣"], ["٣"], pa.string()),
        (["1.5", ""], ["1.5", ""], pa.string()),
        (["a%20b%2Fc=d", "%C3%A9"], ["a b/c=d", "é"], pa.string()),
    ],
)
def test_values_are_whole_numbers_where_all_are_and_else_strings(texts, values, kind):
    found = partition_values([(f"k={text}",) for text in texts], ["x"] * len(texts))
    assert found["k"].to_pylist() == values
    assert found["k"].type == kind


def test_keys_are_unquoted_and_other_folders_are_none():
    found = partition_values([("a%20b=1", "sub", "=x", "c=")], ["x"])
    assert {key: values.to_pylist() for key, values in found.items()} == {"a b": [1], "c": [""]}


def test_a_file_that_lacks_a_key_has_a_null():
    found = partition_values([("k=1", "l=a"), ("l=b",), ()], ["x", "y", "z"])
    assert {key: values.to_pylist() for key, values in found.items()} == {"k": [1, None, None], "l": ["a", "b", None]}


def test_a_key_that_comes_twice_is_refused():
    with pytest.raises(FormatError, match=re.escape("y: expected each key once in the names of its folders, got 'k'")):
        partition_values([("k=1",), ("k=1", "k=2")], ["x", "y"])
