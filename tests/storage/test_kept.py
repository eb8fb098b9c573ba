"""What a caller has read already, or made of what it read, and puts into the disk cache."""

import fsspec
import numpy as np
import pytest

from headrace.errors import ArgumentError, StorageError
from headrace.storage import BLOCK_BYTES, RangeRead, ReadCancelled, Store, StoredObject, cache, cancellable
from headrace.storage.checksum import crc32

DATA = np.random.default_rng(0).integers(0, 256, BLOCK_BYTES + 5000, dtype=np.uint8)


@pytest.fixture
def url():
    fs = fsspec.filesystem("memory")
    fs.pipe("/kept-test/x.bin", DATA.tobytes())
    yield "memory://kept-test/x.bin"
    fs.rm("/kept-test", recursive=True)


@pytest.fixture
def store(tmp_path):
    return Store(cache_dir=tmp_path / "cache", cache_bytes=256 << 20)


def part(source, start, stop, **options):
    return RangeRead(source, start, DATA[start:stop].copy(), keep=True, **options)


def is_asked(store, source, start, stop, **options):
    """Whether it takes requests to read a range, which must come right."""
    before = store.counts().get("requests", 0)
    out = np.zeros(stop - start, np.uint8)
    store.read_ranges([RangeRead(source, start, out, keep=True, **options)])
    assert np.array_equal(out, DATA[start:stop])
    return store.counts().get("requests", 0) > before


@pytest.mark.parametrize("known", [True, False])
def test_what_was_kept_is_not_asked_for_again(url, store, known):
    [source] = store.open([url])
    crc = {"crc32": crc32(DATA[7:5000])} if known else {}
    store.keep(part(source, 7, 5000, **crc))
    assert not is_asked(store, source, 7, 5000, **crc)
    assert is_asked(store, source, 8, 5000)


def test_a_range_of_several_requests_is_kept_as_it_is_read(url, store):
    [source] = store.open([url])
    store.keep(part(source, 0, len(DATA)))
    assert not is_asked(store, source, 0, len(DATA))


def test_what_was_kept_with_another_checksum_is_not_taken(url, store):
    [source] = store.open([url])
    store.keep(part(source, 7, 5000, crc32=1))
    assert is_asked(store, source, 7, 5000, crc32=crc32(DATA[7:5000]))


def test_keeping_leaves_the_callers_memory_alone_though_the_block_in_the_cache_is_damaged(url, store, tmp_path):
    [source] = store.open([url])
    store.keep(part(source, 0, 5000))
    [block] = [path for path in (tmp_path / "cache" / "blocks").rglob("*") if path.is_file()]
    block.write_bytes(block.read_bytes()[:-1] + bytes([DATA[4999] ^ 1]))
    read = part(source, 0, 5000)
    store.keep(read)
    assert np.array_equal(read.out, DATA[:5000])
    assert not is_asked(store, source, 0, 5000)


def test_without_a_cache_or_a_version_nothing_is_kept(url, store):
    [source] = store.open([url])
    Store().keep(part(source, 0, 5000))
    unknown = StoredObject(source.url, source.object_bytes)
    store.keep(part(unknown, 0, 5000))
    store.keep(RangeRead(source, 0, DATA[:5000].copy()))
    assert is_asked(store, source, 0, 5000)


def test_what_was_made_of_stored_bytes_is_made_once(store):
    made = []

    def make():
        made.append(1)
        out[:] = 7

    for _ in range(2):
        out = np.zeros(1000, np.uint8)
        store.read_through("sevens", out, make)
        assert (out == 7).all()
    assert made == [1]
    store.read_through("others", np.zeros(1000, np.uint8), make)
    assert made == [1, 1]


def test_what_cannot_be_made_is_an_error_and_not_kept(store):
    def fail():
        raise StorageError("as the test wants it")

    out = np.zeros(10, np.uint8)
    with pytest.raises(StorageError, match="as the test wants it"):
        store.read_through("x", out, fail)
    store.read_through("x", out, lambda: out.fill(3))
    assert (out == 3).all()


@pytest.mark.parametrize("verb", ["keep", "read_through"])
def test_whoever_waits_for_a_process_that_is_at_the_block_can_be_cancelled(url, tmp_path, monkeypatch, verb):
    # With a deadline: else it goes on without the block, after a minute.
    store = Store(cache_dir=tmp_path / "cache", cache_bytes=256 << 20, deadline_seconds=2)
    [source] = store.open([url])
    monkeypatch.setattr(cache, "take_lock", lambda _path: None)  # always another's
    wait = {
        "keep": lambda: store.keep(part(source, 0, 5000)),
        "read_through": lambda: store.read_through("x", np.zeros(5000, np.uint8), lambda: None),
    }
    looks = iter([False, False])
    with cancellable(lambda: next(looks, True)), pytest.raises(ReadCancelled):
        wait[verb]()


def test_reading_through_needs_a_cache():
    with pytest.raises(ArgumentError, match=r"expected a store with a cache, got none: give Store\(cache_dir="):
        Store().read_through("x", np.zeros(10, np.uint8), lambda: None)


def test_the_caches_budget_is_known(tmp_path):
    assert Store(cache_dir=tmp_path / "cache", cache_bytes=20 << 20).cache_budget_bytes == 20 << 20
    assert Store().cache_budget_bytes == 0
