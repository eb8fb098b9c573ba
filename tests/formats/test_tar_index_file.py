"""The file of an index: what is loaded is what was saved, and what isn't right is not believed."""

import base64
import json
import pickle
import stat
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ShardError, StorageError
from headrace.formats import tar_index_file
from headrace.formats.tar_index import BadShard
from headrace.formats.tar_index_building import build_index, scan_of
from headrace.formats.tar_index_file import load_index, load_known, parse_index, save_index
from headrace.storage import StoredObject
from tests.formats.tar_files import pin
from tests.formats.tar_scans import assert_same_scan, pins, scan_made_of

UNIFORM = [[(f"{i}{j}", {"cls": 2, "npy": 700}) for j in range(5)] for i in "abc"]
MIXED = [
    [("a", {"cls": 1, "jpg": 700}), ("dir/b", {"cls": 2, "jpg": 5}), ("z", {"jpg": 3})],
    [],
    [("c", {"jpg": 9}), ("caf\udce9", {"seg.png": 0, "cls": 513}), ("d", {"cls": 1, "jpg": 2})],
]
# An index of version 1 as it was written when there was no other: one that can't be read any more needs another version
GOLDEN = """
eNqtVN1u0zAUdjuGNv6EpgohrixfR5vjpk2LxAUV06jgAk0I6Mo0uU7WZU2dyMmAbtpD8AI8Aw/A43CDxBNwhZ2/Ze4GTcGqfJLj73zf+XH6fPf1093+
s3c1AMCL7feff9VBss5Q6FPmRugxHA4R3oypQAZst1ttAyIb8siAHg8cF5oYY7RvwCEyM5CJiTUPMlMQyZlM6woQQfsShUbUUbrqkckTlmTBT3zfgBe7
OqW+H3x0C/Ch5/pOljLzIykjNUwDtsym2mwJGZBPp/2d7rS/s/1EnuMkqeNwLJ9bBiQGtDGWm9lV7LzH57CRO94MucJLYpz/ECNv+EveO9mb9T7seb3j
wdvBlsSQpJ6QxrEreJqZRJuKKdmIolUQ4dIoSBHI9/gEJeUJQWfKd4aiIyqcg4hOQz8diqUAqXfqTkeu0L0Td6a7Rn7AJnPOWZwyNpXPG/NApB1tpomi
IxodMMGapAAlPOVkWiWvnG98oZE7g1D3FZRW2iIRayqlskysWil9eVEEZ28lPVtvdTu9EyKKyy2y98+lO6YjmXuh2LS7XcvqdDudc7DUWtHszYrxq5q9
tWBcLbO3NduoqF/X7I1FAx9pAQ+r6dausQvH12rgf6y6Nr/VqnPc0N7vVIx7oMU1Fu9fvWSrrp9fyXdlX7Ev+F8aV0wha9i3+uV6itzuX+5vXueKxrcO
rhnAWqaXE97T9Dc0vb8tChxPbI3AKWCA0cMfwFnq/ub5r2vf4V1tzI0/8Cw7w6u+W/3+rmn/K78B6C/rmQ==
"""


def index_of(samples, **options):
    scans = [scan_made_of(shard, crc32=True, ignored={"link": 1}) for shard in samples]
    return build_index(pins(scans), [None] * len(scans), scans, **options)


def assert_same_index(one, other):
    assert one.shards == other.shards
    for shard in range(len(other.shards)):
        assert_same_scan(scan_of(one, shard), scan_of(other, shard))
    for name in ("codecs", "bad", "infos", "ignored", "samples", "patterns", "allowed", "head_shards", "fingerprint"):
        assert getattr(one, name) == getattr(other, name), name


@pytest.fixture(params=["uniform", "mixed"])
def index(request):
    return index_of(UNIFORM if request.param == "uniform" else MIXED)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.index"


def saved(index, path):
    save_index(path, index)
    return path.read_bytes()


@pytest.fixture
def large(monkeypatch):
    """Whatever is loaded counts as large: shards are checked when they are first used."""
    monkeypatch.setattr(tar_index_file, "_CHECKED_AT_ONCE_BYTES", 0)


def test_an_index_is_loaded_as_it_was_saved(index, path):
    save_index(path, index)
    assert_same_index(load_index(path, index.shards), index)
    assert [one.name for one in path.parent.iterdir()] == ["x.index"]


def test_an_index_in_memory_is_read_from_its_bytes(index, path):
    found, same = parse_index(saved(index, path), index.shards)
    assert all(same)
    assert_same_index(found, index)
    assert_same_index(pickle.loads(pickle.dumps(found)), index)


def test_an_index_is_saved_with_what_was_left_out_and_allowed(path):
    whole = pins([scan_made_of(shard) for shard in [*UNIFORM, *UNIFORM]])
    whole[1], whole[5] = (replace(whole[i], path=f"/shards/{i}.{suffix}") for i, suffix in ((1, "tgz"), (5, "tzst")))
    bad = [BadShard(0, whole[0], "it is garbage"), BadShard(2, whole[2], "cut at byte 7")]
    scans = [scan_made_of(UNIFORM[i % 3]) for i in (1, 3, 4, 5)]
    places = [whole[i] for i in (1, 3, 4, 5)]
    index = build_index(places, ["gz", None, None, "zst"], scans, bad=bad, allowed={"no_end", "bad_shards"})
    save_index(path, index)
    assert_same_index(load_index(path, whole), index)
    assert load_index(path, whole).bad_shards == (
        ("/shards/0.tar", "it is garbage"),
        ("/shards/2.tar", "cut at byte 7"),
    )
    assert load_index(path, places) is None


def test_an_index_file_never_changes_its_bytes_within_a_version(path):
    golden = zlib.decompress(base64.b64decode(GOLDEN))
    assert saved(index_of(MIXED), path) == golden
    path.write_bytes(golden)
    assert_same_index(load_index(path, index_of(MIXED).shards), index_of(MIXED))


@pytest.mark.parametrize("change", [{"file_bytes": 10}, {"mtime_ns": 8}, {"inode": 5}])
def test_only_the_shards_that_are_still_the_same_count(index, path, change):
    save_index(path, index)
    places = [index.shards[0], replace(index.shards[1], **change), index.shards[2]]
    assert load_index(path, places) is None
    assert load_known(path, places)[1] == [True, False, True]


@pytest.mark.parametrize("order", [(0, 1), (1, 0, 2), (0, 1, 2, 2)])
def test_an_index_of_other_shards_counts_as_missing(index, path, order):
    save_index(path, index)
    assert load_known(path, [index.shards[i] for i in order]) is None


def test_objects_are_told_by_their_etags(path):
    scans = [scan_made_of(shard) for shard in UNIFORM]
    objects = [StoredObject(f"s3://b/{i}.tar", scan.file_bytes, f'ETag "{i}"') for i, scan in enumerate(scans)]
    index = build_index(objects, [None] * 3, scans)
    save_index(path, index)
    assert_same_index(load_index(path, objects), index)
    objects[1] = replace(objects[1], version='ETag "x"')
    assert load_known(path, objects)[1] == [True, False, True]
    objects[1] = replace(objects[1], version="")
    assert load_known(path, objects)[1] == [True, False, True]


def test_a_missing_or_empty_file_is_no_index(index, path):
    assert load_index(path, index.shards) is None
    path.touch()
    assert load_index(path, index.shards) is None
    assert load_index(path.parent, index.shards) is None


def test_no_flipped_byte_is_believed(index, path):
    data = saved(index, path)
    for at in range(len(data)):
        altered = bytearray(data)
        altered[at] ^= 1 << at % 8
        assert parse_index(bytes(altered), index.shards) is None, at


def test_no_file_that_was_cut_or_grew_is_believed(index, path):
    data = saved(index, path)
    for length in range(len(data)):
        assert parse_index(data[:length], index.shards) is None, length
    assert parse_index(data + b"\0", index.shards) is None


@given(st.binary(max_size=200))
def test_garbage_is_no_index(data):
    head = struct.pack("<8sIIQ", b"HRTARIDX", 1, zlib.crc32(data), len(data))
    shards = index_of(UNIFORM).shards
    assert parse_index(data, shards) is None
    assert parse_index(head + data, shards) is None


@given(
    st.dictionaries(
        st.sampled_from(
            ["places", "bad", "codecs", "allowed", "fields", "patterns", "reasons", "arrays", "tables_crc32"]
        ),
        st.recursive(
            st.none() | st.integers(-3, 2**70) | st.text(max_size=3),
            lambda one: st.lists(one, max_size=3),
            max_leaves=5,
        ),
        min_size=1,
    )
)
def test_a_head_that_says_what_cannot_be_is_no_index(changes):
    index = index_of(MIXED)
    data = b"".join(tar_index_file._pieces(index))
    head_bytes = struct.unpack_from("<Q", data, 16)[0]
    told = json.loads(data[24 : 24 + head_bytes])
    changes = {name: value for name, value in changes.items() if value != told[name]}
    raw = json.dumps({**told, **changes}).encode()
    rest = data[24 + head_bytes :]
    found = parse_index(struct.pack("<8sIIQ", b"HRTARIDX", 1, zlib.crc32(raw), len(raw)) + raw + rest, index.shards)
    assert found is None or changes.keys() <= {"bad", "reasons", "allowed"}


def lying(name, change, samples=MIXED):
    """An index with sound checksums of arrays that are not so."""
    index = index_of(samples)
    array = getattr(index.arrays, name).copy()
    change(array)
    index.arrays = replace(index.arrays, **{name: array})
    return index


def put(at, value):
    def change(array):
        array.reshape(-1)[at] = value

    return change


LIES = [
    ("shard_samples", put(1, 4)),
    ("shard_samples", put(0, -1)),
    ("shard_members", put(1, 6)),
    ("shard_keys", put(1, 2)),
    ("shard_keys", put(-1, 10**6)),
    ("shard_blocks", put(1, 3)),
    ("shard_bytes", put(0, 10**9)),
    ("ignored", put(0, -1)),
    ("has_crc32", put(0, 2)),
    ("block_samples", put(1, 0)),
    ("block_samples", put(1, 3)),
    ("block_samples", put(-1, 7)),
    ("block_starts", put(0, -512)),
    ("block_starts", put(1, 0)),
    ("block_starts", put(0, 1024)),
    ("block_stops", put(0, 2**62)),
    ("block_stops", put(-1, 512)),
    ("members", put(0, -512)),
    ("members", put(0, 0)),
    ("members", put(0, 2**62)),
    ("members", put(1, 2**63 - 1)),
    ("members", put(1, -1)),
    ("members", put(1, 600)),
    ("members", put(-1, 600)),
    ("members", put(-2, 512)),
    ("key_starts", put(1, 1)),
    ("key_starts", put(1, -5)),
    ("key_starts", put(1, 10**6)),
    ("key_starts", put(-1, 0)),
    ("patterns", put(0, 9)),
    ("patterns", put(0, 1)),
    ("first_members", put(1, 1)),
    ("first_members", put(1, 10**6)),
    ("first_members", put(-1, 3)),
]


@pytest.mark.parametrize(("name", "change"), LIES, ids=[f"{i}-{name}" for i, (name, _) in enumerate(LIES)])
def test_no_index_that_lies_is_believed(name, change, path):
    index = lying(name, change)
    data = b"".join(tar_index_file._pieces(index))
    assert parse_index(data, index.shards) is None


@pytest.mark.parametrize("codecs", [["gz", None, None], [None, None], [], [None, None, ""]])
def test_no_other_compression_is_believed_than_the_names_tell(codecs):
    index = index_of(UNIFORM)
    index.codecs = codecs
    assert parse_index(b"".join(tar_index_file._pieces(index)), index.shards) is None


@pytest.mark.parametrize("at", [0, 1, 2, -2])
def test_no_member_of_one_pattern_may_lie_elsewhere(at):
    index = lying("members", put(at, 10**6), UNIFORM)
    assert parse_index(b"".join(tar_index_file._pieces(index)), index.shards) is None


@pytest.mark.parametrize("patterns", [[[0, 0]], [[]], [], [[0, 7]], [[-1, 0]], [[0, 1], [0, 1]], [[0]]])
def test_no_pattern_may_lie(patterns, path):
    index = index_of(UNIFORM)
    index.patterns = patterns
    assert parse_index(b"".join(tar_index_file._pieces(index)), index.shards) is None


def test_of_a_large_index_each_shard_is_checked_when_it_is_first_used(index, path, large):
    data = bytearray(saved(index, path))
    keys_of_last = data.rindex(b"d\0" if b"dir/b" in data else b"c4\0")
    data[keys_of_last] ^= 1
    path.write_bytes(data)
    found = load_index(path, index.shards)
    found.check(np.array([0, 1]))
    with pytest.raises(ShardError, match=r"the index .*x\.index is damaged: the part of shard 2 has another CRC32"):
        found.check(np.array([0, 2]))
    with pytest.raises(ShardError, match="delete it, and it is built again"):
        found.check(np.array([2]))


KEYS = [[(f"{shard}{i}", {"cls": 2}) for i in range(4)] for shard in "abcd"]


@pytest.mark.parametrize(
    ("of", "to"), [(b"c2\0", b"cX\0"), (b"c2\0", b"\0\0\0"), (b"c3\0", b"c3x")], ids=["another", "none", "longer"]
)
@pytest.mark.parametrize("searched_bytes", [1, 5, 4 << 20])
def test_no_key_is_sought_in_a_part_of_a_large_index_that_was_not_checked(
    path, large, monkeypatch, of, to, searched_bytes
):
    monkeypatch.setattr("headrace.formats.tar_index._SEARCHED_BYTES", searched_bytes)
    index = index_of(KEYS)
    path.write_bytes(saved(index, path).replace(of, to))
    for key in ("c2", "c3", "d1", "gone"):
        with pytest.raises(ShardError, match=r"x\.index is damaged: the part of shard 2 has another CRC32.*delete it"):
            load_index(path, index.shards).find(key)
    if searched_bytes == 1:  # what comes before it is sound
        assert load_index(path, index.shards).find("b1") == 5


def test_where_keys_begin_is_not_believed_of_parts_that_were_not_checked(path, large, monkeypatch):
    monkeypatch.setattr("headrace.formats.tar_index._SEARCHED_BYTES", 1)
    index = index_of(KEYS)
    starts = index.arrays.key_starts.tobytes()
    wild = starts.replace(struct.pack("<q", index.arrays.key_starts[9]), struct.pack("<q", 2))
    path.write_bytes(saved(index, path).replace(starts, wild))
    found = load_index(path, index.shards)
    assert [found.find(key) for key in ("a0", "a3", "b0", "b3")] == [0, 3, 4, 7]
    with pytest.raises(ShardError, match="the part of shard 2 has another CRC32"):
        found.find("d0")


def test_each_part_of_a_large_index_is_checked_once_however_often_keys_are_sought(path, large, monkeypatch):
    checked = []

    def parts_lie(arrays, widths, start, stop, part_crc32):
        checked.extend(range(start, stop))
        return real(arrays, widths, start, stop, part_crc32)

    real = tar_index_file.parts_lie
    monkeypatch.setattr(tar_index_file, "parts_lie", parts_lie)
    monkeypatch.setattr("headrace.formats.tar_index._SEARCHED_BYTES", 5)
    index = index_of([*KEYS[:2], [], *KEYS[2:]])
    save_index(path, index)
    found = load_index(path, index.shards)
    assert [found.find(key) for key in ("a0", "a1")] == [0, 1]
    assert checked == [0]
    for _ in range(2):
        assert [found.find(f"{shard}{i}") for shard in "abcd" for i in range(4)] == list(range(16))
        with pytest.raises(KeyError):
            found.find("gone")
    assert len(checked) == len(set(checked))
    assert set(checked) >= {0, 1, 3, 4}


def test_a_large_index_that_lies_is_noticed_when_the_shard_is_first_used(path, large):
    index = lying("members", put(-1, 10**5))
    save_index(path, index)
    found = load_index(path, index.shards)
    found.check(np.array([0, 1]))
    with pytest.raises(ShardError, match="a member lies outside of its shard; delete it"):
        found.check(np.array([2]))


def test_another_process_maps_the_same_file(index, path):
    save_index(path, index)
    mapped = load_index(path, index.shards)
    data = pickle.dumps(mapped)
    assert len(data) < 2000
    assert_same_index(pickle.loads(data), index)


def test_another_process_takes_no_other_file_for_it(index, path):
    save_index(path, index)
    data = pickle.dumps(load_index(path, index.shards))
    save_index(path, index_of(UNIFORM[::-1]))
    with pytest.raises(StorageError, match=r"x\.index has gone or was replaced since the dataset was opened"):
        pickle.loads(data)
    path.unlink()
    with pytest.raises(StorageError, match="open the dataset again"):
        pickle.loads(data)


def test_another_process_takes_no_file_that_lacks_checksums_for_one_that_has_them(path):
    scans = [scan_made_of(shard, crc32=True) for shard in UNIFORM]
    places = pins(scans)
    checked, unchecked = (
        build_index(places, [None] * 3, some) for some in (scans, [replace(one, block_crc32=None) for one in scans])
    )
    save_index(path, checked)
    data = pickle.dumps(load_index(path, places))
    save_index(path, unchecked)
    with pytest.raises(StorageError, match="was replaced"):
        pickle.loads(data)
    data = pickle.dumps(load_index(path, places))
    save_index(path, checked)
    assert pickle.loads(data).has_crc32.all()


@pytest.mark.parametrize(("modes", "expected"), [((0o666, 0o444), 0o644), ((0o644, 0o640), 0o640), ((0o400,), 0o600)])
def test_an_index_is_for_those_who_may_read_all_its_shards(modes, expected, tmp_path):
    scans = [scan_made_of([(f"{i}", {"txt": 5})]) for i in range(len(modes))]
    places = []
    for i, mode in enumerate(modes):
        shard = tmp_path / f"{i}.tar"
        shard.touch()
        shard.chmod(mode)
        places.append(pin(shard))
    path = tmp_path / "x.index"
    save_index(path, build_index(places, [None] * len(places), scans))
    assert stat.S_IMODE(path.stat().st_mode) == expected


def test_nothing_is_left_where_an_index_cannot_be_written(index, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tar_index_file.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        save_index(tmp_path / "x.index", index)
    assert list(tmp_path.iterdir()) == []
