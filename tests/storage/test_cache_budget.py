"""The disk cache's budget: never exceeded, exact after every count, and the least recently used blocks leave first."""

import logging
import os
from pathlib import Path

import pytest

from headrace.errors import ArgumentError, StorageError
from headrace.storage import cache as cache_module
from headrace.storage.cache import LEAST_BUDGET_BYTES, DiskCache
from headrace.storage.cache_block import CachedBlock
from headrace.storage.file_lock import take_lock
from tests.storage.checked_cache import BLOCK, OCCUPIED, Cache, files, occupied, part_of, run_threads, used_bytes


@pytest.fixture(autouse=True)
def small_budgets(monkeypatch):
    monkeypatch.setattr(cache_module, "LEAST_BUDGET_BYTES", OCCUPIED)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def cache(folder):
    return Cache(folder)


def test_threads_that_exceed_the_budget_together_get_right_bytes_and_keep_to_it(folder):
    cache = Cache(folder, blocks=5)
    run_threads(4, lambda number: [cache.read(f"block {(7 * number + step) % 12}") for step in range(60)])
    assert used_bytes(folder) == occupied(folder) <= 5 * OCCUPIED
    assert cache.counts["cache_unwritten"] == 0


def test_the_least_recently_used_blocks_leave_first(folder):
    cache = Cache(folder, blocks=4)
    for age, key in enumerate("abcd"):
        cache.read(key)
        block = CachedBlock.of(folder, key, BLOCK)
        os.utime(block.path, (1000 + age, 1000 + age))
    cache.read("a")
    cache.read("e")
    cache.fetched.clear()
    for key in "ade":
        cache.read(key)
    assert cache.fetched == []
    assert cache.counts["cache_evicted"] == 2  # down to nine tenths: three blocks of four
    assert used_bytes(folder) == occupied(folder) == 3 * OCCUPIED


def test_a_working_set_beyond_the_budget_keeps_to_it_at_every_step(folder):
    cache = Cache(folder, blocks=3.5)
    for step in range(40):
        cache.read(f"block {step % 7}", filled=lambda: None)
        assert used_bytes(folder) == occupied(folder) <= 3.5 * OCCUPIED
    assert cache.counts["cache_unwritten"] == 0


def test_folders_are_listed_only_by_a_caches_first_block_and_when_the_budget_is_used_up(folder, monkeypatch):
    cache, listed = Cache(folder, blocks=20), []
    whole = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or whole(path))
    cache.read("first")
    listed.clear()
    for number in range(19):
        cache.read(f"block {number}")
    assert listed == []
    cache.read("one more")
    assert listed != []


def test_an_account_that_kills_have_left_too_high_is_put_right_before_the_first_block(cache, folder):
    cache.read("a")
    (folder / "usage").write_bytes((10**15).to_bytes(8, "little"))
    Path(part_of(folder, "left over")).write_bytes(bytes(BLOCK))
    other = Cache(folder)
    other.read("b")
    assert used_bytes(folder) == occupied(folder) == 2 * OCCUPIED
    assert other.counts == {"cache_misses": 1}


def test_parts_of_others_count_and_stay(folder):
    cache = Cache(folder, blocks=3)
    with take_lock(part_of(folder, "b")) as claim:
        os.ftruncate(claim.fd, 2 * OCCUPIED)
        cache.read("a")
        cache.read("c")
        assert used_bytes(folder) == occupied(folder) == 3 * OCCUPIED
    assert cache.counts["cache_evicted"] == 1


def test_blocks_that_find_no_room_are_not_kept_and_one_warning_says_so(folder, caplog):
    cache = Cache(folder, blocks=2)
    with take_lock(part_of(folder, "z")) as claim:
        os.ftruncate(claim.fd, 2 * OCCUPIED)
        for key in "abc":
            cache.read(key)
        assert len(files(folder)) == 1
    assert cache.counts == {"cache_misses": 3, "cache_unwritten": 3}
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"its budget of {2 * OCCUPIED} bytes is taken by blocks being written" in record.getMessage()


def test_a_budget_of_less_than_a_block_is_refused(folder, monkeypatch):
    monkeypatch.setattr(cache_module, "LEAST_BUDGET_BYTES", LEAST_BUDGET_BYTES)
    with pytest.raises(ArgumentError, match=r"cache_bytes: expected at least 8392704 \(a block and its header\), got"):
        DiskCache(folder, 8 << 20)
    assert not folder.exists()


def test_the_default_budget_is_half_of_what_is_free_or_used_and_never_the_last_5_gb(folder, cache):
    cache.read("a")
    for free_bytes, expected in [(10**12, (10**12 + OCCUPIED) // 2), (6 * 10**9, 10**9 + OCCUPIED)]:
        assert DiskCache(folder, free_bytes=lambda path: free_bytes).budget_bytes == expected  # noqa: B023
    text = rf"no room for a cache in .*: expected {5 * 10**9 + OCCUPIED} free bytes .* got 7 free and {OCCUPIED} in the"
    with pytest.raises(StorageError, match=text):
        DiskCache(folder, free_bytes=lambda path: 7)
    assert DiskCache(folder, free_bytes=lambda path: 10**11).budget_bytes > 0
