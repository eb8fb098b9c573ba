"""Opening shards: each is scanned once, its index kept and found again, and whatever isn't right is told."""

import builtins
import gzip
import itertools
import os
import pickle
import shutil
import threading
from pathlib import Path

import fsspec
import numpy as np
import pytest

from headrace.errors import ArgumentError, ShardError, StorageError
from headrace.formats import tar_index_file, tar_scanning, tar_shards
from headrace.formats.tar_index import TarIndex
from headrace.formats.tar_shards import index_beside, open_tar_index
from headrace.storage import RangeRead, ReadCancelled, Store, StoredObject, cancellable, check_cancelled
from headrace.storage.checksum import crc32
from headrace.storage.file_lock import take_lock
from tests.formats.stand_in_store import BASE, StandInStore
from tests.formats.tar_files import END, member, tar_bytes

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def scanned(monkeypatch):
    """Grows by the name of every shard that is scanned."""
    names = []

    def scan(self, place, codec, scan=tar_scanning.Scanning.scan):
        names.append(os.path.basename(str(place)))
        return scan(self, place, codec)

    monkeypatch.setattr(tar_scanning.Scanning, "scan", scan)
    return names


def members(shard, count=4, payload_bytes=700):
    for i in range(count):
        yield f"{shard}{i}.cls", str(i).encode()
        yield f"{shard}{i}.npy", bytes([i]) * payload_bytes


def shard_bytes(shard, **options):
    return tar_bytes(members(shard, **options))


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "data"
    path.mkdir()
    for name in "abc":
        (path / f"{name}.tar").write_bytes(shard_bytes(name))
    return path


@pytest.fixture
def bucket():
    """The URL of an empty folder of objects."""
    fs, path = fsspec.filesystem("memory"), f"/tar-shards-{next(_numbers)}"
    fs.mkdir(path)
    yield f"memory:/{path}"
    fs.rm(path, recursive=True)


def put(bucket, name, data):
    fsspec.filesystem("memory").pipe(f"{bucket}/{name}".removeprefix("memory:/"), data)


def fill(bucket, **options):
    for name in "abc":
        put(bucket, f"{name}.tar", shard_bytes(name, **options))
    return [f"{bucket}/{name}.tar" for name in "abc"]


def opened(folder, store=None, **options):
    store = store or Store()
    return open_tar_index(store.expand(f"{folder}/*.tar"), store, **options)


def keys(index: TarIndex) -> list[str]:
    return index.keys(np.arange(index.samples))


def payloads(index: TarIndex, fields, read) -> list[bytes]:
    ids = np.arange(index.samples)
    located = index.locate(ids, index.column_places(fields)).tolist()
    return [read(shard, *place) for shard, place in zip(index.shard_of(ids), located, strict=True)]


def index_files(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders if folder.exists() for path in folder.rglob("*.index"))


ALL_KEYS = [f"{name}{i}" for name in "abc" for i in range(4)]


def test_shards_are_scanned_once_and_their_index_lies_beside_them(folder, scanned, home):
    index = opened(folder)
    assert sorted(scanned) == ["a.tar", "b.tar", "c.tar"]
    again = opened(folder)
    assert len(scanned) == 3
    for one in (index, again):
        assert keys(one) == ALL_KEYS
        assert (
            payloads(
                one, ["npy"], lambda shard, at, size: (folder / f"{'abc'[shard]}.tar").read_bytes()[at : at + size]
            )
            == [bytes([i]) * 700 for i in range(4)] * 3
        )
    assert [path.parent for path in index_files(folder, home)] == [folder]
    assert index_files(folder)[0].name.startswith(".headrace-")


def test_folders_of_shards_have_an_index_in_the_users_cache(folder, scanned, home):
    (folder / "more").mkdir()
    (folder / "more" / "d.tar").write_bytes(shard_bytes("d"))
    for _ in range(2):
        index = open_tar_index([str(folder / "a.tar"), str(folder / "more" / "d.tar")], Store())
        assert keys(index) == [f"{name}{i}" for name in "ad" for i in range(4)]
    assert len(scanned) == 2
    assert [path.parent for path in index_files(folder, home)] == [home / ".cache" / "headrace" / "indexes"]


def test_an_index_is_kept_where_the_user_says(folder, scanned, home, tmp_path):
    for _ in range(2):
        opened(folder, index_dir=tmp_path / "indexes")
    assert len(scanned) == 3
    assert [path.parent for path in index_files(folder, home, tmp_path / "indexes")] == [tmp_path / "indexes"]


def test_an_index_beside_the_shards_moves_with_their_folder(folder, scanned, tmp_path):
    opened(folder)
    folder.rename(tmp_path / "moved")
    assert keys(opened(tmp_path / "moved")) == ALL_KEYS
    assert len(scanned) == 3


def test_an_index_that_cannot_be_kept_beside_the_shards_is_kept_elsewhere(folder, scanned, home, monkeypatch):
    save = tar_shards.save_index

    def only_elsewhere(path, index):
        if path.parent == folder:
            raise PermissionError(13, "Permission denied")
        save(path, index)

    monkeypatch.setattr(tar_shards, "save_index", only_elsewhere)
    for _ in range(2):
        assert keys(opened(folder)) == ALL_KEYS
    assert len(scanned) == 3
    assert [path.parent for path in index_files(folder, home)] == [home / ".cache" / "headrace" / "indexes"]


def test_an_index_that_cannot_be_kept_anywhere_is_in_memory(folder, scanned, monkeypatch, caplog):
    def nowhere(path, index):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tar_shards, "save_index", nowhere)
    for _ in range(2):
        index = opened(folder)
        assert keys(index) == keys(pickle.loads(pickle.dumps(index))) == ALL_KEYS
    assert len(scanned) == 6
    assert "the index of 3 tar shards is kept nowhere" in caplog.text


def test_a_folder_that_cannot_be_looked_into_has_no_index(folder, scanned, tmp_path, monkeypatch):
    closed = tmp_path / "closed"

    def guarded(real):
        def call(path, *rest, **options):
            if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(str(closed)):
                raise PermissionError(13, "Permission denied")
            return real(path, *rest, **options)

        return call

    for module, name in ((os, "stat"), (os, "mkdir"), (builtins, "open")):
        monkeypatch.setattr(module, name, guarded(getattr(module, name)))
    for _ in range(2):
        assert keys(opened(folder, index_dir=closed / "indexes")) == ALL_KEYS
    assert len(scanned) == 3
    assert len(index_files(folder)) == 1


def test_only_shards_that_have_changed_are_scanned_again(folder, scanned):
    before = opened(folder)
    (folder / "b.tar").write_bytes(shard_bytes("x", count=2))
    scanned.clear()
    index = opened(folder)
    assert scanned == ["b.tar"]
    assert keys(index) == [*ALL_KEYS[:4], "x0", "x1", *ALL_KEYS[8:]]
    assert index.fingerprint != before.fingerprint
    shutil.copytree(folder, folder.parent / "copy", ignore=shutil.ignore_patterns(".*"))
    fresh = opened(folder.parent / "copy")
    assert fresh.infos == index.infos
    assert fresh.fingerprint == index.fingerprint
    assert fresh.arrays.members.tolist() == index.arrays.members.tolist()


def test_a_shard_that_now_has_the_first_payload_of_a_field_is_scanned_again(folder, scanned):
    opened(folder)
    (folder / "a.tar").write_bytes(tar_bytes([("a0.cls", b"7")]))
    scanned.clear()
    index = opened(folder)
    assert scanned == ["a.tar", "b.tar"]
    assert index.infos["npy"].head == bytes(700)
    assert index.infos["npy"].count == 8
    assert index.infos["cls"].head == b"7"


def test_a_shard_that_was_replaced_by_another_of_its_size_and_time_is_scanned_again(folder, scanned):
    opened(folder)
    status = (folder / "b.tar").stat()
    (folder / "new").write_bytes(shard_bytes("y"))
    os.utime(folder / "new", ns=(status.st_atime_ns, status.st_mtime_ns))
    (folder / "new").rename(folder / "b.tar")
    assert keys(opened(folder))[4:8] == ["y0", "y1", "y2", "y3"]


def test_other_shards_of_the_folder_have_another_index(folder, scanned):
    opened(folder)
    assert keys(open_tar_index([str(folder / "b.tar")], Store())) == ALL_KEYS[4:8]
    reverse = open_tar_index([str(folder / f"{name}.tar") for name in "cba"], Store())
    assert keys(reverse) == [*ALL_KEYS[8:], *ALL_KEYS[4:8], *ALL_KEYS[:4]]
    assert len(index_files(folder)) == 3


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty", "text"])
def test_a_damaged_index_is_made_anew(folder, scanned, harm, caplog):
    opened(folder)
    [path] = index_files(folder)
    data = path.read_bytes()
    path.write_bytes(
        {"cut": data[:-1], "flipped": data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], "empty": b"", "text": b"hello"}[
            harm
        ]
    )
    assert keys(opened(folder)) == ALL_KEYS
    assert len(scanned) == 6
    assert "it is made anew" in caplog.text
    assert path.read_bytes() == data


def test_a_damaged_part_of_a_large_index_is_not_taken_over(folder, scanned, monkeypatch):
    opened(folder)
    [path] = index_files(folder)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"\0c1\0", b"\0x1\0"))
    (folder / "a.tar").write_bytes(shard_bytes("a", count=3))
    monkeypatch.setattr(tar_index_file, "_CHECKED_AT_ONCE_BYTES", 0)
    scanned.clear()
    assert keys(opened(folder)) == [*ALL_KEYS[:3], *ALL_KEYS[4:]]
    assert sorted(scanned) == ["a.tar", "c.tar"]


def test_an_index_lies_where_write_shards_puts_it(folder, bucket):
    opened(folder)
    pins = opened(folder).shards
    assert index_beside(pins) == str(index_files(folder)[0])
    objects = Store().open(fill(bucket))
    assert index_beside(objects) == f"{bucket}/{os.path.basename(index_beside(pins))}"
    assert index_beside(objects[:1]) != index_beside(objects)
    elsewhere = Store().open([objects[0].url])
    assert index_beside([*elsewhere, *Store().open([_other_bucket(bucket)])]) is None


def _other_bucket(bucket):
    fsspec.filesystem("memory").pipe("/elsewhere/z.tar", b"z")
    return "memory://elsewhere/z.tar"


# What was allowed


def test_what_somebody_allowed_holds_for_nobody_else(folder, scanned):
    (folder / "b.tar").write_bytes(shard_bytes("b").rstrip(b"\0") + bytes(-len(shard_bytes("b").rstrip(b"\0")) % 512))
    for _ in range(2):
        assert keys(opened(folder, allow=["no_end"])) == ALL_KEYS
    assert len(scanned) == 3
    with pytest.raises(ShardError, match=r"b\.tar.*no_end"):
        opened(folder)
    with pytest.raises(ShardError, match=r"b\.tar.*no_end"):
        opened(folder, allow=["recurring_keys"])


def test_an_index_that_nothing_was_allowed_for_is_for_all(folder, scanned):
    opened(folder)
    opened(folder, allow=["no_end", "bad_shards", "missing_fields"])
    assert len(scanned) == 3


def test_what_was_allowed_of_samples_does_not_matter(folder, scanned):
    opened(folder, allow=["missing_fields", "duplicate_fields", "bad_shards"])
    opened(folder)
    assert len(scanned) == 3


def test_a_damaged_shard_is_an_error_that_says_how_to_leave_it_out(folder):
    (folder / "b.tar").write_bytes(b"garbage" * 1000)
    with pytest.raises(ShardError, match=r"b\.tar") as caught:
        opened(folder)
    assert caught.value.__notes__ == ['allow=["bad_shards"] leaves damaged shards out']
    assert index_files(folder) == []


def test_of_several_damaged_shards_the_first_is_named(folder):
    for name in "bc":
        (folder / f"{name}.tar").write_bytes(b"")
    with pytest.raises(ShardError, match=r"b\.tar"):
        opened(folder)


def test_damaged_shards_are_left_out_where_that_is_allowed(folder, scanned, caplog):
    (folder / "b.tar").write_bytes(b"garbage" * 1000)
    for _ in range(2):
        caplog.clear()
        index = opened(folder, allow=["bad_shards"])
        assert keys(index) == [*ALL_KEYS[:4], *ALL_KEYS[8:]]
        assert [name for name, _ in index.bad_shards] == [str(folder / "b.tar")]
        assert "b.tar" in index.bad_shards[0][1]
        assert f"left out {folder / 'b.tar'}, which is damaged" in caplog.text
        assert index.shard_of(np.array([4])).tolist() == [1]
        assert str(index.shards[1]) == str(folder / "c.tar")
    assert len(scanned) == 3
    with pytest.raises(ShardError, match=r"b\.tar"):
        opened(folder)
    (folder / "b.tar").write_bytes(shard_bytes("b"))
    assert keys(opened(folder, allow=["bad_shards"])) == ALL_KEYS
    assert keys(opened(folder)) == ALL_KEYS


@pytest.mark.parametrize("more", ["no_end", "duplicate_fields"])
def test_a_shard_that_was_left_out_is_back_where_what_is_wrong_with_it_is_allowed(folder, scanned, more):
    wrong = {
        "no_end": b"".join(member(name, payload) for name, payload in members("b")),
        "duplicate_fields": tar_bytes([*members("b"), ("b3.npy", b"again")]),
    }
    (folder / "b.tar").write_bytes(wrong[more])
    assert keys(opened(folder, allow=["bad_shards"])) == [*ALL_KEYS[:4], *ALL_KEYS[8:]]
    scanned.clear()
    index = opened(folder, allow=["bad_shards", more])
    assert (keys(index), index.bad_shards) == (ALL_KEYS, ())
    assert scanned == ["b.tar"]
    assert keys(opened(folder, allow=["bad_shards"])) == [*ALL_KEYS[:4], *ALL_KEYS[8:]]


def test_what_another_process_puts_in_place_meanwhile_counts_only_if_it_has_all_that_is_asked_for(folder, monkeypatch):
    other = opened(folder, allow=["recurring_keys"])
    for path in index_files(folder):
        path.unlink()

    def outrun(path, index, save_index=tar_shards.save_index):
        save_index(path, index)
        save_index(path, other)

    monkeypatch.setattr(tar_shards, "save_index", outrun)
    index = opened(folder, verify=True)
    assert index.has_crc32.all()
    assert index.allowed == set()
    assert keys(index) == ALL_KEYS


# What is asked for wrongly


@pytest.mark.parametrize("kind", ["local", "stored"])
def test_a_shard_that_is_listed_twice_is_refused_by_name(folder, bucket, kind):
    names = [str(folder / "a.tar"), f"{folder}/./a.tar"] if kind == "local" else [f"{bucket}/a.tar"] * 2
    with pytest.raises(ArgumentError, match=r"expected each shard once, got .*a\.tar twice"):
        open_tar_index(names, Store())


@pytest.mark.parametrize("again", ["link.tar", "../data/a.tar"])
def test_a_shard_that_is_listed_by_two_paths_is_refused_by_both(folder, again):
    (folder / "link.tar").symlink_to(folder / "a.tar")
    paths = [str(folder / "a.tar"), str(folder / "b.tar"), f"{folder}/{again}"]
    with pytest.raises(ArgumentError, match=r"expected each shard once, got .*/a\.tar and .*, which are one file"):
        open_tar_index(paths, Store())


def test_hard_links_and_copies_are_shards_of_their_own(folder):
    os.link(folder / "a.tar", folder / "d.tar")
    shutil.copy2(folder / "a.tar", folder / "e.tar")
    assert opened(folder).samples == len(ALL_KEYS) + 8


def test_local_and_stored_shards_at_once_are_refused(folder, bucket):
    with pytest.raises(ArgumentError, match="expected local files only, or URLs only"):
        open_tar_index([str(folder / "a.tar"), f"{bucket}/a.tar"], Store())


def test_no_shard_is_refused():
    with pytest.raises(ArgumentError, match="expected at least one shard, got an empty list"):
        open_tar_index([], Store())


def test_shards_without_a_sample_are_refused(folder):
    (folder / "a.tar").write_bytes(bytes(10240))
    (folder / "b.tar").write_bytes(tar_bytes([("README", b"hello"), ("__meta__", b"x")]))
    assert keys(opened(folder)) == ALL_KEYS[8:]
    with pytest.raises(
        ArgumentError, match=r"expected at least one sample, got none in 2 shards: .*a\.tar, \.\.\.; .*1 no_field"
    ):
        open_tar_index([str(folder / "a.tar"), str(folder / "b.tar")], Store())
    (folder / "a.tar").write_bytes(b"")
    with pytest.raises(ArgumentError, match=r"got none in 1 shard: [^,]*a\.tar; damaged shards: 1;"):
        open_tar_index([str(folder / "a.tar")], Store(), allow=["bad_shards"])


def test_what_is_not_known_cannot_be_allowed(folder):
    with pytest.raises(ArgumentError, match=r"allow: expected some of no_end, .*, got 'everything'"):
        opened(folder, allow=["everything"])


@pytest.mark.parametrize("missing", ["gone", "folder"])
def test_a_shard_that_cannot_be_opened_is_named(folder, missing):
    (folder / "b.tar").unlink()
    if missing == "folder":
        (folder / "b.tar").mkdir()
    with pytest.raises(StorageError, match=r"cannot open .*b\.tar"):
        open_tar_index([str(folder / f"{name}.tar") for name in "abc"], Store())


# Shards that change, and passes that end, meanwhile


def test_a_shard_that_is_replaced_while_it_is_scanned_is_an_error(folder, monkeypatch):
    scan_file = tar_scanning.scan_file

    def scan(pin, allow):
        found = scan_file(pin, allow)
        if pin.path.endswith("b.tar"):
            (folder / "new").write_bytes(shard_bytes("z"))
            (folder / "new").rename(pin.path)
        return found

    monkeypatch.setattr(tar_scanning, "scan_file", scan)
    with pytest.raises(StorageError, match=r"b\.tar was replaced while it was being read"):
        opened(folder)
    assert index_files(folder) == []


def test_an_object_that_is_replaced_while_it_is_scanned_is_an_error(bucket, monkeypatch):
    names = fill(bucket)
    scan = tar_scanning.Scanning.scan

    def replaced(self, place, codec):
        put(bucket, "b.tar", shard_bytes("b", count=9))
        return scan(self, place, codec)

    monkeypatch.setattr(tar_scanning.Scanning, "scan", replaced)
    with pytest.raises(StorageError, match=r"b\.tar"):
        open_tar_index(names, Store())


def test_an_interrupted_scan_leaves_no_thread_and_no_index(folder, monkeypatch):
    begun = threading.Event()
    feed = tar_scanning.scan_file

    def scan(pin, allow):
        begun.set()
        return feed(pin, allow)

    def interrupted(future):
        assert begun.wait(20)
        raise KeyboardInterrupt

    monkeypatch.setattr(tar_scanning, "scan_file", scan)
    monkeypatch.setattr(tar_scanning, "_result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opened(folder)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("headrace-scan")]
    assert index_files(folder) == []


def test_an_opening_that_nobody_wants_any_more_ends_while_the_store_is_silent():
    store = StandInStore({f"{BASE}/{name}.tar": shard_bytes(name) for name in "abc"})
    store.hold()
    with pytest.raises(ReadCancelled), cancellable(lambda: len(store.transfers) == 3):
        open_tar_index([f"{BASE}/{name}.tar" for name in "abc"], store)
    assert all(transfer.released for transfer in store.transfers)


# Stored shards


def test_stored_shards_stream_by_once_and_the_index_is_in_the_users_cache(bucket, scanned, home):
    names = fill(bucket)
    for _ in range(2):
        store = Store()
        index = open_tar_index(names, store)
        assert keys(index) == ALL_KEYS
        assert index.has_crc32.all()
    assert len(scanned) == 3
    assert [path.parent for path in index_files(home)] == [home / ".cache" / "headrace" / "indexes"]


def blocks(index: TarIndex) -> list[tuple[int, int, int, int]]:
    columns = (index.block_shards, index.block_starts, index.block_stops, index.block_crc32)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_of_many_that_open_stored_shards_at_once_one_streams_them(bucket, scanned, home):
    fill(bucket)
    [paths] = [Store().expand(f"{bucket}/*.tar")]
    name = tar_shards._files([StoredObject(path, 1, "v") for path in paths], Store(), None)[-1]
    name.parent.mkdir(parents=True)
    lock = take_lock(str(name.with_suffix(".lock")))
    found = []
    threads = [threading.Thread(target=lambda: found.append(keys(opened(bucket)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert scanned == []
    lock.close()
    for thread in threads:
        thread.join()
    assert found == [ALL_KEYS] * 4
    assert sorted(scanned) == ["a.tar", "b.tar", "c.tar"]
    assert [path.suffix for path in name.parent.iterdir()] == [".index"]


def test_stored_shards_are_scanned_where_no_lock_can_be_had(bucket, scanned, monkeypatch):
    def refused(path):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(tar_shards, "take_lock", refused)
    fill(bucket)
    assert keys(opened(bucket)) == ALL_KEYS
    assert len(scanned) == 3


def test_stored_shards_are_scanned_where_there_is_no_home(bucket, monkeypatch):
    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(tar_shards.Path, "expanduser", homeless)
    fill(bucket)
    assert keys(opened(bucket)) == ALL_KEYS


def test_the_checksums_are_those_of_the_blocks(bucket, monkeypatch):
    monkeypatch.setattr(tar_scanning, "BLOCK_BYTES", 300_001)
    names = fill(bucket, count=30, payload_bytes=1 << 20)
    index = open_tar_index(names, Store())
    assert len(blocks(index)) > 20
    for shard, start, stop, crc in blocks(index):
        assert crc32(fsspec.filesystem("memory").cat(names[shard])[start:stop]) == crc


def test_blocks_larger_than_what_is_held_are_read_again_for_their_checksums(bucket, monkeypatch):
    names = fill(bucket, count=3, payload_bytes=3 << 20)
    whole = open_tar_index(names, Store())
    monkeypatch.setattr(tar_scanning, "BLOCK_BYTES", 1 << 20)
    monkeypatch.setattr(tar_scanning, "_MOST_HELD_BYTES", 2 << 20)
    put(bucket, "a.tar", fsspec.filesystem("memory").cat(names[0]))  # another version: it is scanned again
    assert blocks(open_tar_index(names, Store())) == blocks(whole)


def test_blocks_that_streamed_by_are_in_the_disk_cache(bucket, tmp_path):
    names = fill(bucket, count=8, payload_bytes=1 << 20)
    store = Store(cache_dir=tmp_path / "cache", cache_bytes=256 << 20)
    index = open_tar_index(names, store)
    assert index_files(tmp_path / "cache")
    before = store.counts()
    for shard, start, stop, crc in blocks(index):
        out = np.empty(stop - start, np.uint8)
        store.read_ranges([RangeRead(index.shards[shard], start, out, keep=True, crc32=crc)])
        assert crc32(out) == crc
    after = store.counts()
    assert after["cache_hits"] - before.get("cache_hits", 0) == len(index.block_crc32) > 3
    assert after["requests"] == before["requests"]


def test_a_block_larger_than_a_request_is_in_the_disk_cache_too(bucket, tmp_path):
    put(bucket, "big.tar", shard_bytes("x", count=2, payload_bytes=9 << 20))
    store = Store(cache_dir=tmp_path / "cache", cache_bytes=256 << 20)
    index = open_tar_index([f"{bucket}/big.tar"], store)
    before = store.counts()
    for shard, start, stop, crc in blocks(index):
        out = np.empty(stop - start, np.uint8)
        store.read_ranges([RangeRead(index.shards[shard], start, out, keep=True)])
        assert crc32(out) == crc
    assert store.counts()["requests"] == before["requests"]


def test_an_object_that_has_changed_is_scanned_again_and_the_others_are_not(bucket, scanned):
    names = fill(bucket)
    open_tar_index(names, Store())
    put(bucket, "b.tar", shard_bytes("y"))
    scanned.clear()
    assert keys(open_tar_index(names, Store())) == [*ALL_KEYS[:4], "y0", "y1", "y2", "y3", *ALL_KEYS[8:]]
    assert scanned == ["b.tar"]


def with_index_beside(bucket, home) -> list[str]:
    names = fill(bucket)
    index = open_tar_index(names, Store())
    [path] = index_files(home)
    put(bucket, os.path.basename(index_beside(index.shards)), path.read_bytes())
    path.unlink()
    return names


def test_an_index_that_lies_beside_stored_shards_is_used(bucket, scanned, home):
    names = with_index_beside(bucket, home)
    scanned.clear()
    index = open_tar_index(names, Store())
    assert keys(index) == ALL_KEYS
    assert scanned == []
    assert len(index_files(home)) == 1
    assert index.block_crc32.tolist() == open_tar_index(names, Store()).block_crc32.tolist()


def test_of_an_index_beside_only_what_is_still_so_is_used(bucket, scanned, home):
    names = with_index_beside(bucket, home)
    put(bucket, "c.tar", shard_bytes("y"))
    scanned.clear()
    assert keys(open_tar_index(names, Store())) == [*ALL_KEYS[:8], "y0", "y1", "y2", "y3"]
    assert scanned == ["c.tar"]


@pytest.mark.parametrize("harm", ["flipped", "huge", "garbage"])
def test_a_damaged_index_beside_stored_shards_is_left_aside(bucket, scanned, home, harm, monkeypatch):
    names = with_index_beside(bucket, home)
    url = index_beside(Store().open(names))
    data = bytearray(fsspec.filesystem("memory").cat(url))
    data[-9] ^= 1
    monkeypatch.setattr(tar_shards, "_SMALL_INDEX_BYTES", 1000)
    put(bucket, os.path.basename(url), {"flipped": bytes(data), "huge": bytes(1 << 20), "garbage": b"x"}[harm])
    scanned.clear()
    assert keys(open_tar_index(names, Store())) == ALL_KEYS
    assert len(scanned) == 3


def test_objects_whose_store_tells_no_versions_are_scanned_whenever_they_are_opened(scanned, home, caplog):
    class Versionless(StandInStore):
        def open(self, urls):
            return [type(one)(one.url, one.object_bytes) for one in super().open(urls)]

    store = Versionless({f"{BASE}/{name}.tar": shard_bytes(name) for name in "abc"})
    for _ in range(2):
        assert keys(open_tar_index([f"{BASE}/{name}.tar" for name in "abc"], store)) == ALL_KEYS
    assert len(scanned) == 6
    assert index_files(home) == []
    assert "their store tells no versions" in caplog.text


def test_the_index_of_objects_is_that_of_files(bucket, folder):
    stored, local = open_tar_index(fill(bucket), Store()), opened(folder, verify=True)
    for name in ("members", "keys", "key_starts", "block_samples", "block_starts", "block_stops", "block_crc32"):
        assert getattr(stored.arrays, name).tolist() == getattr(local.arrays, name).tolist()
    assert stored.infos == local.infos
    assert stored.fingerprint == local.fingerprint


def test_a_cut_object_is_an_error(bucket):
    names = fill(bucket)
    put(bucket, "b.tar", shard_bytes("b")[:3000])
    with pytest.raises(ShardError, match=r"b\.tar"):
        open_tar_index(names, Store())
    index = open_tar_index(names, Store(), allow=["bad_shards"])
    assert keys(index) == [*ALL_KEYS[:4], *ALL_KEYS[8:]]


def test_shards_come_from_an_s3_server(s3, tmp_path):
    urls = [s3.put("data", f"tar-shards/{name}.tar", shard_bytes(name, payload_bytes=100_000)) for name in "abc"]
    store, another = (
        Store(storage_options=s3.storage_options, cache_dir=tmp_path / "cache", cache_bytes=256 << 20) for _ in range(2)
    )
    index = open_tar_index(urls, store)
    assert keys(index) == ALL_KEYS
    before = store.counts()["requests"]
    assert keys(open_tar_index(urls, another)) == ALL_KEYS
    shard, start, stop, crc = blocks(index)[0]
    out = np.empty(stop - start, np.uint8)
    store.read_ranges([RangeRead(index.shards[shard], start, out, keep=True, crc32=crc)])
    assert store.counts()["requests"] == before


# Checksums of local shards


def test_local_shards_get_checksums_where_that_is_asked_for(folder, scanned):
    assert not opened(folder).has_crc32.any()
    index = opened(folder, verify=True)
    assert len(scanned) == 6
    assert index.has_crc32.all()
    for shard, start, stop, crc in blocks(index):
        assert crc32((folder / f"{'abc'[shard]}.tar").read_bytes()[start:stop]) == crc
    opened(folder)
    opened(folder, verify=True)
    assert len(scanned) == 6


def test_checksums_that_only_some_local_shards_have_are_made_for_the_others(folder, scanned):
    opened(folder, verify=True)
    (folder / "c.tar").write_bytes(shard_bytes("c", payload_bytes=600))
    assert opened(folder).has_crc32.tolist() == [True, True, False]
    (folder / "a.tar").write_bytes(shard_bytes("a", payload_bytes=600))
    scanned.clear()
    assert opened(folder, verify=True).has_crc32.all()
    assert sorted(scanned) == ["a.tar", "c.tar"]


def test_a_local_shard_that_cannot_be_read_for_its_checksums_is_named(folder, monkeypatch):
    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(tar_scanning, "_crc32_between", broken)
    with pytest.raises(StorageError, match=r"cannot read .*a\.tar: Input/output error"):
        opened(folder, verify=True)


# Compressed shards


def compress(folder, payload_bytes=1 << 20):
    for name in "abc":
        (folder / f"{name}.tar.gz").write_bytes(gzip.compress(shard_bytes(name, payload_bytes=payload_bytes)))
    return [str(folder / f"{name}.tar.gz") for name in "abc"]


def test_compressed_shards_without_a_cache_are_refused_with_both_ways_out(folder):
    with pytest.raises(ArgumentError, match=r"cache_dir=.*compressed=\"stream\""):
        open_tar_index(compress(folder), Store())


def test_compressed_shards_are_decompressed_into_the_cache_while_they_are_scanned(folder, tmp_path, scanned):
    names = compress(folder)
    store = Store(cache_dir=tmp_path / "cache", cache_bytes=256 << 20)
    for _ in range(2):
        index = open_tar_index(names, store)
        assert keys(index) == ALL_KEYS
        assert index.codecs == ("gz",) * 3
        assert index.has_crc32.all()
    assert len(scanned) == 3
    assert store.counts()["cache_misses"] == len(index.block_crc32)
    for shard, start, stop, crc in blocks(index):
        assert crc32(shard_bytes("abc"[shard], payload_bytes=1 << 20)[start:stop]) == crc


def test_large_blocks_of_compressed_shards_are_decompressed_again_for_their_checksums(folder, monkeypatch):
    names = compress(folder)
    whole = open_tar_index(names, Store(), compressed="stream")
    monkeypatch.setattr(tar_scanning, "_MOST_HELD_BYTES", 1 << 20)
    compress(folder)  # other files: they are scanned again
    assert blocks(open_tar_index(names, Store(), compressed="stream")) == blocks(whole)


def test_compressed_shards_are_not_kept_where_they_are_streamed(folder, tmp_path):
    names = compress(folder)
    store = Store(cache_dir=tmp_path / "cache", cache_bytes=256 << 20)
    assert keys(open_tar_index(names, store, compressed="stream")) == ALL_KEYS
    assert store.counts().get("cache_misses", 0) == 0


def test_compressed_shards_that_do_not_fit_the_cache_are_refused(folder, tmp_path):
    names = compress(folder)
    store = Store(cache_dir=tmp_path / "cache", cache_bytes=9 << 20)
    for _ in range(2):
        with pytest.raises(StorageError, match=r"expected a disk cache with room for 12\d+ bytes.*got 9437184"):
            open_tar_index(names, store)


def test_compressed_shards_that_do_not_fit_the_cache_are_refused_before_all_are_scanned(folder, tmp_path, monkeypatch):
    def scan(self, place, codec, scan=tar_scanning.Scanning.scan):
        while place.path.endswith("c.tar.gz"):
            check_cancelled()
        return scan(self, place, codec)

    names = compress(folder, payload_bytes=1_300_000)
    monkeypatch.setattr(tar_scanning.Scanning, "scan", scan)
    store = Store(cache_dir=tmp_path / "cache", cache_bytes=9 << 20)
    with pytest.raises(StorageError, match=r"expected a disk cache with room for 10\d+ bytes or more.*got 9437184"):
        open_tar_index(names, store)


def test_the_headers_of_blocks_count_where_compressed_shards_just_fit_the_cache(folder, tmp_path):
    names = compress(folder)
    index = open_tar_index(names, Store(), compressed="stream")
    block_bytes = int((index.block_stops - index.block_starts).sum())
    with pytest.raises(StorageError, match=rf"with room for 12\d+ bytes or more.*got {block_bytes} in"):
        open_tar_index(names, Store(cache_dir=tmp_path / "cache", cache_bytes=block_bytes))
    enough = block_bytes + 8192 * len(index.block_starts)
    assert keys(open_tar_index(names, Store(cache_dir=tmp_path / "cache", cache_bytes=enough))) == ALL_KEYS


def test_a_cut_compressed_shard_is_an_error(folder):
    names = compress(folder)
    Path(names[1]).write_bytes(Path(names[1]).read_bytes()[:-20])
    with pytest.raises(ShardError, match=r"b\.tar\.gz"):
        open_tar_index(names, Store(), compressed="stream")


@pytest.mark.parametrize("name", ["a.tar.bz2", "a.tar.xz", "a.zip", "a.tar.lz4"])
def test_other_compressions_are_refused_by_name(folder, name):
    with pytest.raises(ArgumentError, match=name):
        open_tar_index([str(folder / name)], Store())


def write_numbered_tar(path, count):
    """`count` empty members `0000000.x`, `0000001.x`, ..., written 100 000 at a time."""
    header = np.frombuffer(tar_bytes([("0000000.x", b"")])[:512], np.uint8)
    headers = np.tile(header, (min(count, 100_000), 1))
    # as if the checksum were spaces, and all digits of the name 0
    checksum = int(header.sum(dtype=np.int64)) - int(header[148:156].sum(dtype=np.int64)) + 8 * 32
    with open(path, "wb") as file:
        for first in range(0, count, len(headers)):
            digits = np.arange(first, first + len(headers))[:, None] // 10 ** np.arange(6, -1, -1) % 10
            headers[:, :7] = digits + ord("0")
            headers[:, 148:154] = (checksum + digits.sum(axis=1))[:, None] // 8 ** np.arange(5, -1, -1) % 8 + ord("0")
            headers[:, 154:156] = (0, 32)
            file.write(headers.data)
        file.write(END)


def test_a_shard_of_a_million_members_is_opened_with_two_integers_each(tmp_path):
    count = 1_000_000
    write_numbered_tar(tmp_path / "million.tar", count)
    index = open_tar_index([str(tmp_path / "million.tar")], Store())
    assert index.samples == count
    assert index.find("0765432") == 765_432
    assert index.arrays.members.shape == (count, 2)
    [path] = index_files(tmp_path)
    assert path.stat().st_size < 33 * count + 100_000  # of each a key of 8 bytes and where it begins
    (tmp_path / "million.tar").unlink()
