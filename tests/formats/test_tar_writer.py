"""What is written as shards, and what is refused before it is."""

import errno
import gzip
import hashlib
import io
import os
import tarfile
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import ArgumentError, DependencyError, StorageError
from headrace.formats import tar_destinations, tar_writer
from headrace.formats.tar_encoding import members_of
from headrace.formats.tar_index_building import scan_of
from headrace.formats.tar_index_file import load_index
from headrace.formats.tar_scanning import Scanning
from headrace.formats.tar_shards import index_beside, open_tar_index
from headrace.formats.tar_writer import write_shards
from headrace.storage import Store
from tests.formats.tar_files import pin, write_webdataset

IMAGE = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)


def samples(count, **more):
    return [{"__key__": f"{number:05d}", "cls": number, "txt": f"é{number}", **more} for number in range(count)]


def members(path):
    with tarfile.open(path) as tar:
        return [(info.name, tar.extractfile(info).read()) for info in tar]


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def parts(folder):
    return [path.name for path in folder.iterdir() if path.name.endswith(".part")]


def read_back(paths):
    """The samples as webdataset reads them."""
    found = []
    for path in paths:
        with open(path, "rb") as file:
            files = wds.tariterators.tar_file_expander([{"url": path, "stream": file}])
            found += [sample for sample in wds.tariterators.group_by_keys(files) if "__key__" in sample]
    return found


def one(sample, tmp_path):
    [path] = write_shards([sample], f"{tmp_path}/x-%02d.tar")
    return members(path)


def test_what_is_written_is_what_webdataset_reads(tmp_path):
    given = samples(
        7,
        npy=np.arange(6.0).reshape(2, 3),
        ten=[np.arange(3, dtype=np.int32), np.ones((2, 2), np.float32)],
        npz={"a": np.arange(3), "b": np.zeros(2)},
        json={"a": [1, None, "x"]},
        png=IMAGE,
        bin=b"\0\1",
        note="written as text",
        **{"seg.txt.gz": "packed"},
    )
    paths = write_shards(given, f"{tmp_path}/x-%03d.tar", max_samples=3)
    read = list(wds.DataPipeline(lambda: read_back(paths), wds.decode("rgb8")))
    assert [sample["__key__"] for sample in read] == [sample["__key__"] for sample in given]
    for sample, wanted in zip(read, given, strict=True):
        assert (sample["cls"], sample["txt"], sample["json"]) == (wanted["cls"], wanted["txt"], wanted["json"])
        assert (sample["bin"], sample["note"], sample["seg.txt.gz"]) == (b"\0\1", b"written as text", "packed")
        np.testing.assert_array_equal(sample["npy"], wanted["npy"])
        np.testing.assert_array_equal(sample["png"], IMAGE)
        np.testing.assert_array_equal(sample["npz"]["a"], np.arange(3))
        for got, array in zip(sample["ten"], wanted["ten"], strict=True):
            np.testing.assert_array_equal(got, array)


def test_the_paths_are_absolute_and_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert write_shards(samples(5), "deep/er/x-%03d.tar", max_samples=2) == [
        f"{tmp_path}/deep/er/x-{number:03d}.tar" for number in range(3)
    ]


def test_fields_are_sorted_and_headers_hold_no_time_and_no_pax_header(tmp_path):
    [path] = write_shards([{"txt": "x", "__key__": "a", "cls": 1}], f"{tmp_path}/x-%02d.tar")
    raw = Path(path).read_bytes()
    assert len(raw) == tarfile.RECORDSIZE
    with tarfile.open(path) as tar:
        infos = tar.getmembers()
    assert [(info.name, info.offset, info.mtime, info.uname, info.uid, info.mode) for info in infos] == [
        ("a.cls", 0, 0, "bigdata", 0, 0o444),
        ("a.txt", 1024, 0, "bigdata", 0, 0o444),
    ]


def test_the_bytes_are_those_that_webdataset_writes_without_a_time(tmp_path):
    given = samples(20, npy=np.arange(9), json={"a": 1}, png=IMAGE)
    [path] = write_shards(given, f"{tmp_path}/x-%02d.tar")
    assert Path(path).read_bytes() == write_webdataset(tmp_path / "theirs.tar", given, mtime=0).read_bytes()


def test_the_bytes_are_the_same_whenever_they_are_written(tmp_path, monkeypatch):
    given = samples(20, **{"npy": np.arange(5, dtype="<i8"), "json.gz": {"a": 1}, "b": b"x" * 700})
    given.append({"__key__": "d" * 150 + "/ключ", "txt": "long and not ASCII"})
    first = write_shards(given, f"{tmp_path}/a-%02d.tar", max_samples=8)
    monkeypatch.setattr(time, "time", lambda: 12345.678)
    second = write_shards(given, f"{tmp_path}/b-%02d.tar", max_samples=8)
    digests = [[hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths] for paths in (first, second)]
    assert digests[0] == digests[1]


def test_the_bytes_are_those_of_the_golden_shard(tmp_path):
    given = [
        {"__key__": "a/0", "cls": 7, "npy": np.arange(4, dtype="<f4"), "txt": "é"},
        {"__key__": "ключ", "bin": bytes(range(256)) * 3},
    ]
    [path] = write_shards(given, f"{tmp_path}/x-%06d.tar")
    assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == GOLDEN


GOLDEN = "8eb635c012cb68616025e100de20234008e8212f9ab82ac3cc87636cc584670c"


@settings(max_examples=30)  # each opens what it has written
@given(
    st.lists(st.tuples(st.integers(0, 3000), st.sampled_from(["k", "é", "d/" * 60])), min_size=1, max_size=30),
    st.integers(1, 60_000),
)
def test_no_shard_is_larger_than_allowed_unless_it_has_one_sample(tmp_path_factory, spec, max_bytes):
    folder = tmp_path_factory.mktemp("shards")
    given = [{"__key__": f"{name}{number}", "bin": bytes(size)} for number, (size, name) in enumerate(spec)]
    paths = write_shards(given, f"{folder}/x-%04d.tar", max_bytes=max_bytes)
    found = [members(path) for path in paths]
    assert [(f"{sample['__key__']}.bin", sample["bin"]) for sample in given] == [
        pair for inside in found for pair in inside
    ]
    for path, inside in zip(paths, found, strict=True):
        assert os.path.getsize(path) <= max_bytes or len(inside) == 1
    for path, following in zip(paths, found[1:], strict=False):
        # no shard ends early: with the next sample it would have been too large
        with tarfile.open(path) as tar:
            tar.getmembers()
            used = tar.offset
        name, payload = following[0]
        with_next = used + tar_writer._member_bytes(name, len(payload)) + 2 * tarfile.BLOCKSIZE
        assert -(-with_next // tarfile.RECORDSIZE) * tarfile.RECORDSIZE > max_bytes


def test_a_name_of_100_kb_can_be_written(tmp_path):
    key = "k" * 100_000
    assert one({"__key__": key, "txt": "x"}, tmp_path) == [(f"{key}.txt", b"x")]


KEYS = {
    "": "expected a name, got an empty one",
    "a/": "got none after the last '/'",
    ".": "expected no dot",
    "a.b": "expected no dot after the last '/', got 'a.b': readers end the key at the first dot",
    ".hidden": "expected no dot",
    "d/.hidden": "expected no dot",
    "a\0b": "expected no NUL",
    "/abs": "without a leading '/'",
    "../up": "without '..'",
    "__meta__/x": "readers skip",
    "d.x\n/a": "remove line breaks",
    "\udce9": "expected text that UTF-8 can hold",
    "k" * (1 << 20): "expected at most 524288 bytes",
    3: "'__key__': expected text, got int: 3",
    None: "'__key__': expected text, got NoneType",
}


@pytest.mark.parametrize("key", KEYS, ids=lambda key: repr(key)[:20])
def test_a_key_that_would_not_be_read_as_it_is_written_is_refused(tmp_path, key):
    with pytest.raises(ArgumentError) as caught:
        write_shards([*samples(2), {"__key__": key, "txt": "x"}], f"{tmp_path}/x-%02d.tar")
    assert "sample 2" in str(caught.value)
    assert KEYS[key] in str(caught.value)
    assert len(str(caught.value)) < 400
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "key", ["a", "dir.d/a", "./a", "__meta__", "a b", "ключ", "d//a", "a\nb", "2024-01-01T10:00:00"]
)
def test_other_keys_are_read_as_they_are_written(tmp_path, key):
    [path] = write_shards([{"__key__": key, "txt": "x"}], f"{tmp_path}/x-%02d.tar")
    [sample] = read_back([path])
    assert (sample["__key__"], sample["txt"]) == (key, b"x")


def test_a_key_that_occurs_twice_in_a_shard_is_refused_wherever(tmp_path):
    twice = [{"__key__": key, "txt": "x"} for key in "aba"]
    with pytest.raises(ArgumentError, match="sample 2: key 'a': expected one that no other sample of its shard has"):
        write_shards(twice, f"{tmp_path}/x-%02d.tar")
    assert not list(tmp_path.iterdir())
    assert len(write_shards(twice, f"{tmp_path}/x-%02d.tar", max_samples=2)) == 2


def test_a_sample_without_a_key_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match=r"sample 0: expected a '__key__', .*, got 'txt'"):
        write_shards([{"txt": "x"}], f"{tmp_path}/x-%02d.tar")
    with pytest.raises(ArgumentError, match="sample 0: expected a mapping with a '__key__', got tuple"):
        write_shards([("a", "x")], f"{tmp_path}/x-%02d.tar")
    with pytest.raises(ArgumentError, match="expected at least one field besides '__key__', got none"):
        write_shards([{"__key__": "a", "__url__": "x"}], f"{tmp_path}/x-%02d.tar")


FIELDS = {
    "": "expected a name such as 'jpg', got an empty one",
    ".jpg": "expected a name without the leading dot, such as 'jpg'",
    "a/b": "expected no '/'",
    "a\0": "expected no '/' and no NUL",
    "_meta": "names that begin with '_'",
    "__bad__": "names that begin with '_'",
    "\udce9": "expected text that UTF-8 can hold",
    7: "expected text such as 'jpg', got int",
}


@pytest.mark.parametrize("field", FIELDS, ids=repr)
def test_a_field_that_would_not_be_read_as_it_is_written_is_refused(tmp_path, field):
    with pytest.raises(ArgumentError) as caught:
        write_shards([{"__key__": "a", "txt": "x", field: b"x"}], f"{tmp_path}/x-%02d.tar")
    assert "sample 0 (key 'a'): field" in str(caught.value)
    assert FIELDS[field] in str(caught.value)


def test_fields_that_differ_in_case_only_are_refused(tmp_path):
    with pytest.raises(ArgumentError, match="the fields 'JPG' and 'jpg' are one to readers"):
        write_shards([{"__key__": "a", "JPG": b"x", "jpg": b"y"}], f"{tmp_path}/x-%02d.tar")
    assert one({"__key__": "a", "JPG": b"x"}, tmp_path) == [("a.JPG", b"x")]


def test_what_readers_add_is_left_out(tmp_path):
    [path] = write_shards(samples(2), f"{tmp_path}/x-%02d.tar")
    again = write_shards(read_back([path]), f"{tmp_path}/again-%02d.tar")
    assert Path(again[0]).read_bytes() == Path(path).read_bytes()


@pytest.mark.parametrize(
    ("field", "value", "payload"),
    [
        ("cls", 7, b"7"),
        ("cls", np.int32(7), b"7"),
        ("cls", torch.tensor(7), b"7"),
        ("cls", True, b"1"),
        ("cls", " 7", b"7"),
        ("a.b.id", -(2**63), b"-9223372036854775808"),
        ("cls", b"anything", b"anything"),
        ("txt", "é", "é".encode()),
        ("whatever", "é", "é".encode()),
        ("json", None, b"null"),
        ("bin", bytearray(b"x"), b"x"),
        ("bin", memoryview(b"xyz")[1:], b"yz"),
        ("pyd", b"as it is", b"as it is"),
        ("pth", b"as it is", b"as it is"),
    ],
)
def test_a_value_becomes_these_bytes(field, value, payload):
    assert members_of({"__key__": "a", field: value}, 0) == ("a", {field: payload})


@pytest.mark.parametrize(
    "value", [np.arange(6).reshape(2, 3), np.float32(3), torch.arange(4.0), np.arange(3, dtype=">i2")]
)
def test_arrays_and_tensors_become_npy_without_pickle(value):
    _, fields = members_of({"__key__": "a", "npy": value}, 0)
    np.testing.assert_array_equal(np.load(io.BytesIO(fields["npy"]), allow_pickle=False), np.asarray(value))


@pytest.mark.parametrize(
    "array", [np.arange(6, dtype="<f4").reshape(2, 3).T, np.arange(6, dtype=">f4"), np.arange(9)[::2]]
)
def test_arrays_in_any_memory_order_become_the_same_tensors(array):
    _, fields = members_of({"__key__": "a", "ten": array}, 0)
    [got] = wds.tenbin.decode_buffer(fields["ten"])
    np.testing.assert_array_equal(got, array)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("cls", None, "expected a whole number from -2\\*\\*63 to 2\\*\\*63 - 1, or bytes, got NoneType"),
        ("cls", 1.5, "expected a whole number .*, got float: 1.5"),
        ("cls", "cat", "expected a whole number .*, got str: 'cat'"),
        ("cls", 2**63, "expected a whole number"),
        ("cls", torch.arange(2), "expected a whole number .*, got Tensor of torch.int64 and shape \\(2,\\)"),
        ("txt", 3, "expected text, or bytes, got int: 3"),
        ("txt", "\udce9", "expected text that UTF-8 can hold"),
        ("npy", "text", "expected an array of numbers or a tensor"),
        ("npy", [1, 2], "expected an array of numbers or a tensor, or bytes, got list of 2"),
        ("npy", np.array([{}], object), "expected an array of numbers .*, got ndarray of object and shape"),
        ("npy", torch.zeros(2, dtype=torch.bfloat16), "a dtype that NumPy has"),
        ("npz", {"a": np.array([None])}, "expected arrays of numbers, or tensors"),
        ("npz", np.zeros(3), "expected a dict of arrays by name"),
        ("ten", np.array(["x"]), "can't be encoded: ValueError: unsupported array type"),
        ("json", "text", "text could be that value or its encoding"),
        ("json", {"a": np.zeros(2)}, "can't be encoded: TypeError"),
        ("jpg", "text", "a value that 'jpg' can hold"),
        ("jpg", np.full((2, 2), 3.0), "can't be encoded: ValueError: image values out of range"),
        ("pyd", {"a": 1}, "what is pickled runs code when it is read"),
        ("pkl", {"a": 1}, "what is pickled runs code"),
        ("pth", torch.zeros(2), "what is pickled runs code"),
        ("pt.gz", torch.zeros(2), "what is pickled runs code"),
        ("bin", None, "expected a value"),
        ("bin", 3, "expected text, since values are encoded for cbor, class, cls"),
    ],
)
def test_a_value_that_its_field_cannot_hold_is_refused(field, value, text):
    with pytest.raises(ArgumentError, match=f"(?s)sample 4 \\(key 'a'\\), field '{field}': .*{text}"):
        members_of({"__key__": "a", field: value}, 4)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "msgpack", None)
    with pytest.raises(DependencyError, match=r"field 'mp': .*: pip install msgpack"):
        members_of({"__key__": "a", "mp": {"a": 1}}, 0)


def test_a_gz_field_is_compressed_once():
    packed = gzip.compress(b"text")
    _, fields = members_of({"__key__": "a", "txt.gz": packed, "json.gz": {}, "bin.gz": b"raw", "TXT.GZ2": "plain"}, 0)
    assert fields["txt.gz"] == packed
    assert gzip.decompress(fields["json.gz"]) == b"{}"
    assert gzip.decompress(fields["bin.gz"]) == b"raw"
    assert fields["TXT.GZ2"] == b"plain"


@pytest.mark.parametrize(
    "pattern",
    [
        "x.tar",
        "x-{:06d}.tar",
        "x-{000..003}.tar",
        "x-%d.tar",
        "x-%6d.tar",
        "x-%06d-%06d.tar",
        "x-%s.tar",
        "x%%-%02d.tar",
        "%02d/x.tar",
        "%02d/x-%02d.tar",
        "x-%02d.tar.gz",
        "x-%02d.tgz",
        "x-%02d",
        "x-*-%02d.tar",
        "s3://bucket/x.tar",
    ],
)
def test_a_pattern_without_one_padded_number_in_a_tars_name_is_refused(tmp_path, monkeypatch, pattern):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError, match=r"pattern: expected .* such as 'train-%06d.tar'"):
        write_shards(samples(1), pattern)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", ["https://host/x-%02d.tar", "zip://x-%02d.tar::s3://bucket/x.zip"])
def test_a_url_that_cannot_be_written_to_is_refused(url):
    with pytest.raises(ArgumentError, match="expected a local path, or the URL of a store that can be written to"):
        write_shards(samples(1), url)


@pytest.mark.parametrize(
    ("pattern", "scheme", "instead"),
    [
        ("file:/data/x-%02d.tar", "file:", "/data/x-%02d.tar"),
        ("file:x-%02d.tar", "file:", "x-%02d.tar"),
        ("FILE:/data/x-%02d.tar", "FILE:", "/data/x-%02d.tar"),
        (Path("s3://bucket/x-%02d.tar"), "s3:", "s3://bucket/x-%02d.tar"),
        (Path("s3://me:secret@bucket/x-%02d.tar"), "s3:", "s3://bucket/x-%02d.tar"),
    ],
)
def test_a_url_that_lacks_slashes_makes_no_folder_of_its_scheme(tmp_path, monkeypatch, pattern, scheme, instead):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError) as caught:
        write_shards(samples(1), pattern)
    assert str(caught.value) == (
        f"pattern: expected a local path, or a URL with '://', got one with {scheme!r} alone: write {instead!r} "
        "(a str: pathlib drops a slash of URLs), or begin with './' where that is a name"
    )
    assert not list(tmp_path.iterdir())


def test_colons_are_as_good_as_others_in_names_of_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for pattern in ("./file:/x-%02d.tar", "run:1/x-%02d.tar", "run-10:30-%02d.tar"):
        assert write_shards(samples(1), pattern) == [f"{tmp_path}/{pattern.removeprefix('./') % 0}"]


@pytest.mark.parametrize("options", [{"max_bytes": 0}, {"max_samples": 0}, {"max_bytes": True}, {"max_samples": 1.5}])
def test_bounds_that_make_no_sense_are_refused(tmp_path, options):
    [name] = options
    with pytest.raises(ArgumentError, match=f"{name}: expected a whole number, 1 or more"):
        write_shards(samples(1), f"{tmp_path}/x-%02d.tar", **options)


@pytest.mark.parametrize(
    ("given", "got"),
    [
        (5, "int: 5"),
        (None, "NoneType: None"),
        (samples, "function: <function samples at"),
        ({"__key__": "a", "txt": "x"}, "dict of 2"),
        ("a.txt", "str: 'a.txt'"),
        (b"a.txt", "bytes of 5"),
    ],
    ids=lambda one: type(one).__name__,
)
def test_what_is_no_iterable_of_samples_is_refused(tmp_path, given, got):
    with pytest.raises(ArgumentError) as caught:
        write_shards(given, f"{tmp_path}/deep/x-%02d.tar")
    expected = "samples: expected an iterable of samples, dicts with a '__key__' each, got "
    assert str(caught.value).startswith(expected + got)
    assert not list(tmp_path.iterdir())


def test_samples_come_from_whatever_can_be_iterated_over(tmp_path):
    class Numbered:
        def __getitem__(self, number):
            return samples(3)[number]

    for name, some in (("a", iter(samples(3))), ("b", Numbered()), ("c", tuple(samples(3)))):
        [path] = write_shards(some, f"{tmp_path}/{name}-%02d.tar")
        assert len(members(path)) == 6


def test_no_samples_are_an_error_and_leave_nothing(tmp_path):
    with pytest.raises(ArgumentError, match="expected at least one sample to write, got none"):
        write_shards([], f"{tmp_path}/x-%02d.tar")
    assert not list(tmp_path.iterdir())


def test_more_shards_than_the_pattern_has_numbers_for_are_an_error(tmp_path):
    with pytest.raises(ArgumentError, match="expected at most 10 shards, which have numbers of 1 digits") as caught:
        write_shards(samples(11), f"{tmp_path}/x-%01d.tar", max_samples=1)
    assert "10 finished shards stay where they are" in caught.value.__notes__[0]


def test_shards_that_are_there_are_refused_before_anything_is_written(tmp_path):
    (tmp_path / "x-07.tar").write_bytes(b"precious")

    def never():
        raise AssertionError("a sample was asked for")
        yield

    with pytest.raises(ArgumentError, match=r"expected no such shards, got 1: .*x-07.tar, .*overwrite=True"):
        write_shards(never(), f"{tmp_path}/x-%02d.tar")
    assert (tmp_path / "x-07.tar").read_bytes() == b"precious"
    assert write_shards(samples(1), f"{tmp_path}/x-%03d.tar")  # other names


def test_overwrite_replaces_the_whole_set(tmp_path):
    pattern = f"{tmp_path}/x-%02d.tar"
    write_shards(samples(6), pattern, max_samples=1)
    (tmp_path / "x-5.tar").write_bytes(b"of no such set")
    paths = write_shards(samples(3), pattern, max_samples=2, overwrite=True)
    assert visible(tmp_path) == ["x-00.tar", "x-01.tar", "x-5.tar"]
    assert [len(members(path)) for path in paths] == [4, 2]


def hidden(names):
    return [name for name in names if name.rpartition("/")[2].startswith(".")]


@pytest.mark.parametrize("counts", [(6, 3), (3, 6), (4, 4)])
def test_overwrite_leaves_one_index(tmp_path, counts):
    fs = fsspec.filesystem("memory")
    for pattern in (f"{tmp_path}/x-%02d.tar", "memory://one-index/x-%02d.tar"):
        for count in counts:
            write_shards(samples(count), pattern, max_samples=1, overwrite=True)
    assert len(hidden(os.listdir(tmp_path))) == 1
    assert len(hidden(fs.ls("/one-index", detail=False))) == 1
    fs.rm("/one-index", recursive=True)


def test_an_error_while_overwriting_names_what_is_left_of_the_former_shards(tmp_path):
    def failing():
        yield from samples(2)
        raise ZeroDivisionError

    pattern = f"{tmp_path}/x-%02d.tar"
    write_shards(samples(4), pattern, max_samples=1)
    with pytest.raises(ZeroDivisionError) as caught:
        write_shards(failing(), pattern, max_samples=1, overwrite=True)
    former = f"3 of the former shards: {tmp_path}/x-01.tar to {tmp_path}/x-03.tar"
    assert caught.value.__notes__[1:] == [
        f"beside them are still {former}: write all of them again before they are read"
    ]


def test_a_shard_that_appears_meanwhile_is_not_replaced(tmp_path):
    def interfering():
        yield from samples(1)
        (tmp_path / "x-00.tar").write_bytes(b"another's")

    with pytest.raises(ArgumentError, match="do several processes write to the same pattern"):
        write_shards(interfering(), f"{tmp_path}/x-%02d.tar")
    assert (tmp_path / "x-00.tar").read_bytes() == b"another's"
    assert visible(tmp_path) == ["x-00.tar"]
    assert not parts(tmp_path)


def test_a_shard_that_appears_meanwhile_in_a_store_is_not_replaced():
    def interfering():
        yield from samples(1)
        fs.pipe("/meanwhile/x-00.tar", b"another's")

    fs = fsspec.filesystem("memory")
    with pytest.raises(ArgumentError, match=r"meanwhile/x-00.tar: expected no such file.*do several processes"):
        write_shards(interfering(), "memory://meanwhile/x-%02d.tar")
    assert fs.cat_file("/meanwhile/x-00.tar") == b"another's"
    assert fs.find("/meanwhile") == ["/meanwhile/x-00.tar"]


def test_the_index_does_not_tell_of_a_shard_that_another_put_in_its_place(tmp_path, monkeypatch):
    def interfering():
        yield from samples(2)
        fs.pipe("/replaced/x-00.tar", Path(theirs).read_bytes())

    fs = fsspec.filesystem("memory")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    [theirs] = write_shards([{**samples(1)[0], "__key__": "their"}], tmp_path / "x-%02d.tar")
    urls = write_shards(interfering(), "memory://replaced/x-%02d.tar", max_samples=1)
    index = open_tar_index(urls, Store())
    assert index.keys(np.arange(index.samples)) == ["their", "00001"]


def test_a_file_system_without_links_will_do(tmp_path, monkeypatch):
    def link(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    assert len(write_shards(samples(4), f"{tmp_path}/x-%02d.tar", max_samples=2)) == 2
    assert not parts(tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ZeroDivisionError("by the samples"), OSError(5, "theirs")])
def test_an_error_leaves_whole_shards_only_and_names_them(tmp_path, error):
    seen = []

    def failing():
        yield from samples(5)
        seen.extend(visible(tmp_path))
        assert len(parts(tmp_path)) == 1
        raise error

    with pytest.raises(type(error)) as caught:
        write_shards(failing(), f"{tmp_path}/x-%02d.tar", max_samples=2)
    assert caught.value is error
    assert seen == visible(tmp_path) == ["x-00.tar", "x-01.tar"]
    assert not parts(tmp_path)
    assert [len(members(tmp_path / name)) for name in seen] == [4, 4]
    [note] = error.__notes__
    assert note == f"2 finished shards stay where they are: {tmp_path}/x-00.tar to {tmp_path}/x-01.tar"


def test_a_full_disk_is_a_storage_error_and_leaves_nothing(tmp_path, monkeypatch):
    def fsync(_fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tar_writer.os, "fsync", fsync)
    with pytest.raises(StorageError, match=r"cannot write .*x-00.tar: No space left on device"):
        write_shards(samples(3), f"{tmp_path}/x-%02d.tar")
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_no_folder_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match=r"cannot write .*file"):
        write_shards(samples(1), f"{tmp_path}/file/x-%02d.tar")


def test_shards_are_for_those_whom_other_files_are_for(tmp_path):
    before = os.umask(0o027)
    try:
        [path] = write_shards(samples(1), f"{tmp_path}/x-%02d.tar")
    finally:
        os.umask(before)
    assert os.stat(path).st_mode & 0o777 == 0o640


def test_shards_go_to_any_store(tmp_path):
    local = write_shards(samples(5), f"{tmp_path}/x-%02d.tar", max_samples=2)
    fs = fsspec.filesystem("memory")
    for _ in range(2):
        urls = write_shards(samples(5), "memory://shards/any/x-%02d.tar", max_samples=2, overwrite=True)
        assert urls == [f"memory://shards/any/x-{number:02d}.tar" for number in range(3)]
        assert [fs.cat_file(url) for url in urls] == [Path(path).read_bytes() for path in local]
        assert not [name for name in fs.ls("/shards/any", detail=False) if name.endswith(".part")]
    with pytest.raises(ArgumentError, match=r"expected no such shards, got 3: memory://shards/any/x-00.tar"):
        write_shards(samples(1), "memory://shards/any/x-%02d.tar")
    write_shards(samples(1), "memory://shards/any/x-%02d.tar", overwrite=True)
    assert len(fs.glob("/shards/any/*.tar")) == 1


def test_a_store_that_fails_leaves_no_part(monkeypatch):
    fs = fsspec.filesystem("memory")
    monkeypatch.setattr(type(fs), "mv", lambda *_: 1 / 0)
    with pytest.raises(StorageError, match=r"cannot write memory://failing/x-00.tar: ZeroDivisionError"):
        write_shards(samples(1), "memory://failing/x-%02d.tar")
    assert not fs.find("/failing")


def test_shards_go_to_s3_as_one_object_each(s3, tmp_path):
    local = write_shards(samples(5), f"{tmp_path}/x-%02d.tar", max_samples=2)
    pattern = "s3://data/tar-writer/x-%02d.tar"
    urls = write_shards(samples(5), pattern, max_samples=2, storage_options=s3.storage_options)
    store = Store(storage_options=s3.storage_options)
    assert store.expand("s3://data/tar-writer/*.tar") == urls
    assert [pin.object_bytes for pin in store.open(urls)] == [os.path.getsize(path) for path in local]
    with pytest.raises(ArgumentError, match=r"expected no such shards, got 3: s3://data/tar-writer/x-00.tar"):
        write_shards(samples(5), pattern, storage_options=s3.storage_options)


def test_the_index_is_beside_local_shards(tmp_path):
    pattern = f"{tmp_path}/x-%02d.tar"
    write_shards(samples(9), pattern, max_samples=2)
    paths = write_shards(samples(5), pattern, max_samples=2, overwrite=True)
    places = [pin(path) for path in paths]
    index = load_index(Path(index_beside(places)), places)
    assert index is not None
    assert index.keys(np.arange(index.samples)) == [sample["__key__"] for sample in samples(5)]
    assert list(index.infos) == ["cls", "txt"]


def test_the_index_is_beside_stored_shards_and_serves_whoever_opens_them(s3, tmp_path):
    given = samples(5, bin=bytes(300_000))
    pattern = "s3://data/tar-writer-index/x-%02d.tar"
    urls = write_shards(given, pattern, max_samples=2, storage_options=s3.storage_options)
    store = Store(storage_options=s3.storage_options, cache_dir=tmp_path / "cache", cache_bytes=64 << 20)
    index = open_tar_index(urls, store)
    assert store.counts()["received_bytes"] < 100_000  # nothing was scanned
    assert index.keys(np.arange(index.samples)) == [sample["__key__"] for sample in given]
    assert index.has_crc32.all()
    for shard, place in enumerate(index.shards):
        known, found = scan_of(index, shard), Scanning(store).scan(place, None)
        assert (known.keys, known.fields, known.file_bytes) == (found.keys, found.fields, found.file_bytes)
        for name in ("offsets", "sizes", "field_ids", "block_starts", "block_stops", "block_crc32"):
            np.testing.assert_array_equal(getattr(known, name), getattr(found, name))


def test_an_index_that_cannot_be_uploaded_is_an_error_that_names_the_shards(monkeypatch):
    def upload(self, path, url, **options):
        if url.endswith(".index"):
            raise StorageError(f"cannot write {url}")
        real(self, path, url, **options)

    real = tar_destinations.StoredDestination._upload
    monkeypatch.setattr(tar_destinations.StoredDestination, "_upload", upload)
    with pytest.raises(StorageError, match=r"cannot write memory://no-index/\.headrace-") as caught:
        write_shards(samples(1), "memory://no-index/x-%02d.tar", overwrite=True)
    assert caught.value.__notes__ == ["a finished shard stays where it is: memory://no-index/x-00.tar"]


def test_an_upload_that_is_not_allowed_is_a_storage_error_without_secrets(s3):
    options = {**s3.storage_options, "secret": "not/the+secret"}
    with pytest.raises(StorageError, match=r"cannot (write|list) s3://data/") as caught:
        write_shards(samples(1), "s3://data/refused/x-%02d.tar", storage_options=options)
    assert "not/the+secret" not in str(caught.value)


def test_temporary_files_of_uploads_are_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_destinations.tempfile, "tempdir", str(tmp_path))
    write_shards(samples(1), "memory://temporary/x-%02d.tar", overwrite=True)
    assert not list(tmp_path.iterdir())
