"""The disk cache: blocks fetched once, read with their checksum, within a budget, whatever happens to the disk."""

import errno
import json
import os
import subprocess
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import StorageError
from headrace.storage import cache as cache_module
from headrace.storage.cache_block import HEADER_BYTES
from headrace.storage.checksum import crc32
from headrace.storage.file_lock import LockPatience, take_lock
from tests.storage.checked_cache import (
    BLOCK,
    OCCUPIED,
    Cache,
    files,
    occupied,
    only_file,
    part_of,
    payload,
    run_threads,
    used_bytes,
)


@pytest.fixture(autouse=True)
def small_budgets(monkeypatch):
    monkeypatch.setattr(cache_module, "LEAST_BUDGET_BYTES", OCCUPIED)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def cache(folder):
    return Cache(folder)


@pytest.mark.parametrize("compute", [crc32, zlib.crc32])
@given(st.binary(max_size=300), st.binary(max_size=300))
def test_the_checksum_is_zlibs_whoever_computes_it(compute, before, data):
    assert crc32(data, compute(before)) == zlib.crc32(before + data)
    assert crc32(np.frombuffer(data, np.uint8)) == zlib.crc32(data)


def test_a_block_is_fetched_once_and_then_read_from_disk_by_other_caches_of_the_folder_too(cache, folder):
    cache.read("a")
    cache.read("a")
    other = Cache(folder)
    other.read("a")
    assert (cache.fetched, other.fetched) == (["a"], [])
    assert cache.counts == {"cache_misses": 1, "cache_hits": 1}


def test_blocks_of_any_length_are_kept(folder):
    cache = Cache(folder).disk
    for length in (0, 1, HEADER_BYTES, (1 << 20) - 1, 1 << 20, (1 << 20) + 1):
        data = np.random.default_rng(length).integers(0, 256, length, np.uint8)
        for _ in range(2):
            out = np.zeros(length, np.uint8)
            cache.read_through(f"block {length}", out, lambda: out.__setitem__(slice(None), data))  # noqa: B023
            np.testing.assert_array_equal(out, data)
    assert cache.budget_bytes == 1000 * OCCUPIED


def test_filled_is_called_once_and_before_the_block_is_written(cache, folder):
    calls = []
    cache.read("a", filled=lambda: calls.append(len(list((folder / "blocks").rglob("*")))))
    cache.read("a", filled=lambda: calls.append("hit"))
    assert calls == [0, "hit"]


def test_memory_that_is_reused_while_it_is_written_does_no_harm(cache):
    out = np.zeros(BLOCK, np.uint8)

    def fetch():
        out[:] = payload("a")

    cache.disk.read_through("a", out, fetch, filled=lambda: out.fill(0))
    cache.read("a")
    assert cache.fetched == ["a"]
    assert cache.counts == {"cache_misses": 2, "cache_altered": 1}


def test_a_failed_fetch_raises_its_own_error_leaves_nothing_and_may_be_tried_again(cache, folder):
    def fail():
        raise StorageError("the store is down")

    with pytest.raises(StorageError, match=r"^the store is down$"):
        cache.disk.read_through("a", np.zeros(BLOCK, np.uint8), fail)
    assert files(folder) == []
    cache.read("a")
    assert cache.counts == {"cache_misses": 1}


@pytest.mark.parametrize("position", [0, 7, 8, 15, 16, 47, 48, 59, 60, 63, 64, 5000, HEADER_BYTES + BLOCK - 1])
def test_a_changed_byte_anywhere_is_noticed_and_the_block_fetched_again(cache, folder, position):
    cache.read("a")
    path = only_file(folder)
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    cache.read("a")
    cache.read("a")
    assert cache.fetched == ["a", "a"]
    assert cache.counts == {"cache_misses": 2, "cache_altered": 1, "cache_hits": 1}
    assert used_bytes(folder) == occupied(folder) == OCCUPIED


@pytest.mark.parametrize("length", [0, 10, HEADER_BYTES, HEADER_BYTES + BLOCK - 1, HEADER_BYTES + BLOCK + 1])
def test_a_file_of_another_length_is_noticed(cache, folder, length):
    cache.read("a")
    os.truncate(only_file(folder), length)
    cache.read("a")
    assert cache.counts == {"cache_misses": 2, "cache_altered": 1}


def test_a_block_in_the_place_of_another_is_noticed(cache, folder):
    cache.read("a")
    place = only_file(folder)
    place.rename(folder / "moved")
    cache.read("b")
    only_file(folder).rename(place)
    cache.read("a")
    assert cache.fetched == ["a", "b", "a"]
    assert cache.counts["cache_altered"] == 1


def test_an_unreadable_block_is_fetched_again(cache, folder, monkeypatch):
    cache.read("a")
    whole = os.preadv

    def broken(fd, views, offset):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    cache.read("a")
    monkeypatch.setattr(os, "preadv", whole)
    cache.read("a")
    assert cache.counts == {"cache_misses": 2, "cache_altered": 1, "cache_hits": 1}


def test_short_reads_and_writes_go_on_where_they_stopped(cache, monkeypatch):
    read, write = os.preadv, os.pwrite
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: read(fd, [memoryview(views[0])[:700]], offset))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: write(fd, data[:900], offset))
    cache.read("a")
    cache.read("a")
    assert cache.counts == {"cache_misses": 1, "cache_hits": 1}


def test_of_many_threads_one_fetches_each_block(cache):
    keys = [f"block {number}" for number in range(20)]
    run_threads(8, lambda number: [cache.read(key) for key in keys[number:] + keys[:number]])
    assert sorted(cache.fetched) == sorted(keys)
    assert cache.counts["cache_hits"] == 7 * len(keys)


def test_of_many_threads_that_find_a_block_altered_one_fetches_it(cache, folder):
    cache.read("a")
    data = only_file(folder).read_bytes()
    for _ in range(20):
        only_file(folder).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        cache.fetched.clear()
        run_threads(4, lambda number: cache.read("a"))
        assert cache.fetched == ["a"]
    assert cache.counts["cache_altered"] == 20


def test_who_waits_for_another_looks_again_in_growing_pauses_until_the_block_is_there(folder):
    pauses, checks = [], []
    holder = Cache(folder)

    def wait(seconds):
        pauses.append(seconds)
        if len(pauses) == 6:
            claim.close()
            holder.read("a")

    cache = Cache(folder, patience=LockPatience(wait=wait))
    claim = take_lock(part_of(folder, "a"))
    cache.read("a", check=lambda: checks.append(len(pauses)))
    assert pauses == [0.005, 0.01, 0.02, 0.04, 0.05, 0.05]
    assert checks == [0, 1, 2, 3, 4, 5]
    assert (holder.fetched, cache.fetched) == (["a"], [])


def test_who_waits_fetches_the_block_when_its_holder_has_failed(folder):
    cache = Cache(folder, patience=LockPatience(wait=lambda seconds: claim.close()))
    claim = take_lock(part_of(folder, "a"))
    cache.read("a")
    cache.read("a")
    assert cache.counts == {"cache_misses": 1, "cache_hits": 1}


def test_who_waits_may_give_up(cache, folder):
    class GivenUp(BaseException): ...

    def check():
        raise GivenUp

    with take_lock(part_of(folder, "a")), pytest.raises(GivenUp):
        cache.read("a", check=check)
    assert cache.fetched == []


def test_patience_has_an_end_after_which_the_block_is_fetched_and_not_kept(folder, caplog):
    pauses = []
    cache = Cache(folder, patience=LockPatience(patience_seconds=0.1, wait=pauses.append))
    filled = []
    with take_lock(part_of(folder, "a")):
        cache.read("a", filled=lambda: filled.append(True))
    assert sum(pauses) == pytest.approx(0.125)
    assert filled == [True]
    assert cache.counts == {"cache_misses": 1, "cache_unwritten": 1}
    assert "another has been at it for 0.1 s" in caplog.text


def test_a_process_that_is_stuck_is_waited_for_once_and_not_for_every_block(folder):
    pauses = []
    cache = Cache(folder, patience=LockPatience(patience_seconds=0.1, wait=pauses.append))
    with take_lock(part_of(folder, "a")), take_lock(part_of(folder, "b")):
        cache.read("a")
        waited = sum(pauses)
        cache.read("b")  # another that it is at
        assert sum(pauses) == waited
    cache.read("c")  # what nobody is at is kept
    cache.read("c")
    assert cache.counts == {"cache_misses": 3, "cache_unwritten": 2, "cache_hits": 1}


def test_an_account_that_is_held_by_a_stuck_process_is_waited_for_once(folder):
    pauses = []
    cache = Cache(folder, patience=LockPatience(patience_seconds=0.1, wait=pauses.append))
    with take_lock(f"{folder}/usage"):
        cache.read("a")
        waited = sum(pauses)
        assert waited > 0
        cache.read("b")
        assert sum(pauses) < 2 * waited + 0.1  # only for giving back what was reserved for it
    assert cache.counts == {"cache_misses": 2, "cache_unwritten": 2}


def test_the_part_of_a_process_that_died_is_taken_over(cache, folder):
    cache.read("b")
    with take_lock(part_of(folder, "a")) as claim:
        cache.disk._budget.reserve(claim, HEADER_BYTES + BLOCK)
        os.pwrite(claim.fd, b"half a block", 0)
    cache.read("a")
    cache.read("a")
    assert cache.counts == {"cache_misses": 2, "cache_hits": 1}
    assert used_bytes(folder) == occupied(folder) == 2 * OCCUPIED


def test_a_block_that_is_deleted_while_it_is_read_is_read_to_its_end(cache, folder, monkeypatch):
    cache.read("a")
    whole = os.preadv

    def delete_first(fd, views, offset):
        only_file(folder).unlink(missing_ok=True) if files(folder) else None
        return whole(fd, views, offset)

    monkeypatch.setattr(os, "preadv", delete_first)
    cache.read("a")
    assert cache.fetched == ["a"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("call", ["pwrite", "ftruncate", "rename"])
def test_a_disk_that_fails_costs_the_block_only(folder, monkeypatch, caplog, number, call):
    cache = Cache(folder)
    whole, filled = getattr(os, call), []

    def fail(*arguments):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        for key in "abc":
            cache.read(key, filled=lambda: filled.append(True))
    assert cache.counts == {"cache_misses": 3, "cache_unwritten": 3}
    assert len(caplog.records) == 1
    assert os.strerror(number) in caplog.text
    assert len(filled) == 3
    assert getattr(os, call) is whole
    cache.read("a")
    assert len(list((folder / "blocks").rglob("*"))) == 2
    assert used_bytes(folder) >= occupied(folder)
    Cache(folder).read("b")
    assert used_bytes(folder) == occupied(folder) == 2 * OCCUPIED


def test_a_cache_that_is_deleted_under_its_users_costs_the_blocks_only(cache, folder, caplog):
    cache.read("a")
    folder.rename(folder.with_name("deleted"))
    cache.read("a")
    assert cache.counts == {"cache_misses": 2, "cache_unwritten": 1}
    assert "No such file or directory" in caplog.text


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB, and how to make it read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"may not mount a file system here: {error}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_real_full_disk_costs_the_blocks_that_do_not_fit(small_disk, caplog):
    cache = Cache(small_disk / "cache")
    for key in "abcdefgh" * 2:
        cache.read(key)
    assert cache.counts["cache_unwritten"] > 0
    assert cache.counts["cache_hits"] > 0
    assert len(caplog.records) == 1
    assert used_bytes(small_disk / "cache") == occupied(small_disk / "cache")


def test_a_disk_that_has_become_read_only_is_still_read(small_disk, caplog):
    cache = Cache(small_disk)
    cache.read("a")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    cache.read("a")
    cache.read("b")
    assert cache.counts == {"cache_misses": 2, "cache_hits": 1, "cache_unwritten": 1}
    with pytest.raises(StorageError, match=r"cannot keep a cache in .*: Read-only file system"):
        Cache(small_disk)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_folders_and_files_are_for_their_user_only_whatever_the_umask(folder, umask):
    before = os.umask(umask)
    try:
        cache = Cache(folder)
        modes = []
        cache.read("a", filled=lambda: modes.append(only_file(folder).stat().st_mode & 0o777))
    finally:
        os.umask(before)
    assert modes == [0o600]
    for path in [folder, *folder.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_another_layout_is_refused_and_left_alone(folder):
    folder.mkdir()
    marker = folder / "headrace-cache.json"
    marker.write_text('{"layout": 2}')
    with pytest.raises(StorageError, match=r"cannot use the cache in .*cache: expected layout 1, got 2 in headrace-c"):
        Cache(folder)
    marker.write_text("[3]")
    with pytest.raises(StorageError, match=r"got '\[3\]' in headrace-cache\.json: give another cache_dir, or delete"):
        Cache(folder)
    assert list(folder.iterdir()) == [marker]


def test_a_marker_whose_writer_was_killed_is_written_again(folder):
    folder.mkdir()
    (folder / "headrace-cache.json").touch()
    Cache(folder).read("a")
    assert json.loads((folder / "headrace-cache.json").read_text()) == {"layout": 1}


def test_a_folder_of_other_things_is_refused(folder):
    (folder / "blocks").mkdir(parents=True)
    with pytest.raises(StorageError, match="expected an empty folder or a cache, got 'blocks' without headrace-cache"):
        Cache(folder)
    assert [path.name for path in folder.iterdir()] == ["blocks"]


def test_a_folder_that_can_not_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"cannot keep a cache in .*file: File exists: .* give another cache_dir"):
        Cache(tmp_path / "file")
    with pytest.raises(StorageError, match=r"cannot keep a cache in .*inside: Not a directory"):
        Cache(tmp_path / "file" / "inside")


@pytest.mark.skipif(os.geteuid() == 0, reason="modes do not bind root")
def test_a_folder_that_may_not_be_written_to_is_refused(folder):
    folder.mkdir(mode=0o500)
    with pytest.raises(StorageError, match=r"cannot keep a cache in .*: Permission denied"):
        Cache(folder)


def test_a_cache_of_another_user_is_refused(cache, folder, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(StorageError, match=r"cannot keep a cache in .*parts may not be written to"):
        Cache(folder)


def test_a_file_system_without_locks_is_refused(folder, monkeypatch):
    def fail(fd, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", fail)
    with pytest.raises(StorageError, match=r"Function not implemented: .* on a file system with locks"):
        Cache(folder)
