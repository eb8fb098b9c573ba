"""A store's own promises, over files and memory; servers and their faults are in test_faults.py."""

import os
import pickle
import subprocess
import sys
import textwrap
import threading
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest

from headrace.errors import ArgumentError, DependencyError, StorageError
from headrace.storage import BLOCK_BYTES, RangeRead, ReadCancelled, Store, StoredObject, cancellable, reader
from headrace.storage.faults import Fault, Patience, Refused
from tests.clock import HandClock

QUICK = Patience(deadline_seconds=5.0, stall_seconds=1.0, first_pause_seconds=0.001, longest_pause_seconds=0.01)


@pytest.fixture
def data() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, 2 * BLOCK_BYTES + 1000, dtype=np.uint8)


@pytest.fixture
def memory(data):
    """A folder of fsspec's memory filesystem that holds `data` as x.bin."""
    fs = fsspec.filesystem("memory")
    fs.pipe("/store-test/x.bin", data.tobytes())
    yield fs
    fs.rm("/store-test", recursive=True)


@pytest.fixture
def local(tmp_path, data):
    data.tofile(tmp_path / "x.bin")
    return tmp_path / "x.bin"


def read(store: Store, source: StoredObject, start: int, stop: int, **options) -> np.ndarray:
    out = np.zeros(stop - start, np.uint8)
    store.read_ranges([RangeRead(source, start, out, **options)])
    return out


@pytest.mark.parametrize("place", ["local", "file", "memory"])
def test_ranges_of_any_length_come_right(place, data, local, memory):
    url = {"local": str(local), "file": f"file://{local}", "memory": "memory://store-test/x.bin"}[place]
    store = Store()
    [source] = store.open(store.expand(url))
    assert source.object_bytes == len(data)
    for start, stop in ((0, 0), (0, 1), (7, 5000), (len(data) - 1, len(data)), (5, len(data)), (0, len(data))):
        np.testing.assert_array_equal(read(store, source, start, stop), data[start:stop])


def test_many_ranges_are_filled_in_one_call_each_in_its_own_memory(data, memory):
    store = Store(max_requests=4)
    [source] = store.open(["memory://store-test/x.bin"])
    starts = np.random.default_rng(1).integers(0, len(data) - 300, 200)
    out = np.zeros((200, 300), np.uint8)
    store.read_ranges([RangeRead(source, int(start), row) for start, row in zip(starts, out, strict=True)])
    np.testing.assert_array_equal(out, data[starts[:, None] + np.arange(300)])


@pytest.mark.parametrize(
    ("offset", "length", "text"),
    [(-1, 5, "got -1..4"), (10, 3 * BLOCK_BYTES, "expected a range within its"), (2**62, 1, "expected a range within")],
)
def test_a_range_beyond_the_object_is_refused(memory, offset, length, text):
    [source] = Store().open(["memory://store-test/x.bin"])
    with pytest.raises(ArgumentError, match=text):
        RangeRead(source, offset, np.empty(length, np.uint8))


def test_memory_that_cannot_be_filled_front_to_back_is_refused(memory):
    [source] = Store().open(["memory://store-test/x.bin"])
    read_only = np.zeros(4, np.uint8)
    read_only.flags.writeable = False
    for out in (np.zeros(4, np.int8), np.zeros((2, 2), np.uint8), np.zeros(8, np.uint8)[::2], read_only):
        with pytest.raises(ArgumentError, match="out: expected a writable C-contiguous uint8 array of one dimension"):
            RangeRead(source, 0, out)


@pytest.mark.parametrize("place", ["local", "memory"])
def test_an_object_that_changed_after_it_was_opened_is_an_error_not_other_bytes(place, data, local, memory):
    store = Store(patience=QUICK)
    [source] = store.open([{"local": str(local), "memory": "memory://store-test/x.bin"}[place]])
    read(store, source, 0, 10)
    if place == "local":
        os.utime(local, ns=(1, 1))
    else:
        memory.pipe("/store-test/x.bin", data[::-1].tobytes())
    with pytest.raises(
        StorageError, match=r"cannot read bytes \[0, 10\) of .*x.bin: it has changed since it was opened"
    ):
        read(store, source, 0, 10)


@pytest.mark.parametrize("place", ["local", "memory"])
def test_an_object_that_is_deleted_is_an_error_that_is_not_retried(place, local, memory):
    store = Store(patience=QUICK)
    [source] = store.open([{"local": str(local), "memory": "memory://store-test/x.bin"}[place]])
    os.remove(local)
    memory.rm("/store-test/x.bin")
    with pytest.raises(StorageError, match=r"cannot read bytes \[0, 10\) of .*\n  gave up after 1 attempt in"):
        read(store, source, 0, 10)
    memory.pipe("/store-test/x.bin", b"")


@pytest.mark.parametrize("url", ["memory://store-test/absent.bin", "/absent/x.bin"])
def test_an_object_that_does_not_exist_is_named_when_it_is_opened(memory, url):
    with pytest.raises(StorageError, match=f"cannot open {url}: "):
        Store().open([url])
    with pytest.raises(StorageError, match=f"cannot open {url}: "):
        Store().open([url] * 5)


def test_a_known_checksum_that_fits_is_required(data, memory):
    import zlib

    store = Store(patience=QUICK)
    [source] = store.open(["memory://store-test/x.bin"])
    right = zlib.crc32(data[5:50])
    np.testing.assert_array_equal(read(store, source, 5, 50, crc32=right), data[5:50])
    with pytest.raises(StorageError, match=rf"expected CRC32 {right ^ 1:08x}, got {right:08x}\n  gave up after 5"):
        read(store, source, 5, 50, crc32=right ^ 1)


class Flaky:
    """In place of a way to read: fails as told, then fills with 7; `begins` is called before each attempt."""

    def __init__(self, *failures: BaseException) -> None:
        self.failures = list(failures)
        self.calls = 0
        self.begins = lambda: None

    def read(self, part) -> None:
        self.calls += 1
        self.begins()
        if self.failures:
            raise self.failures.pop(0)
        part.write(b"\x07" * len(part.read.out))


def flaky_store(*failures: BaseException, **options) -> tuple[Store, Flaky, StoredObject]:
    store = Store(patience=options.pop("patience", QUICK), **options)
    flaky = Flaky(*failures)
    store._reader._general = flaky
    return store, flaky, StoredObject("memory://x", 100, "v1")


def test_faults_are_retried_and_counted_by_kind():
    store, flaky, source = flaky_store(Fault("ended-early", "short"), Fault("http-503", "busy", throttled=True))
    assert (read(store, source, 0, 10) == 7).all()
    assert flaky.calls == 3
    assert store.counts() == {"retries": 2, "retries_ended-early": 1, "retries_http-503": 1}


def test_what_would_fail_again_is_not_retried():
    store, flaky, source = flaky_store(Refused("no permission to read it: HTTP 403"))
    with pytest.raises(StorageError) as caught:
        read(store, source, 3, 10)
    assert flaky.calls == 1
    assert "cannot read bytes [3, 10) of memory://x: no permission to read it: HTTP 403" in str(caught.value)


@pytest.fixture
def clock(monkeypatch) -> HandClock:
    """What attempts are timed by."""
    clock = HandClock()
    monkeypatch.setattr(reader, "time", SimpleNamespace(monotonic=clock))
    return clock


def test_the_deadline_ends_attempts_and_the_error_tells_them_all(clock):
    patience = Patience(deadline_seconds=10.0, first_pause_seconds=0.001, longest_pause_seconds=0.001)
    store, flaky, source = flaky_store(*[Fault("http-500", "HTTP 500 broken")] * 10_000, patience=patience)
    flaky.begins = lambda: clock.pass_(3.0)
    with pytest.raises(StorageError, match=r"memory://x: HTTP 500 broken\n  gave up after 4 attempts in 12\.0 s"):
        read(store, source, 0, 10)
    assert flaky.calls == 4


def test_what_happens_too_often_in_a_row_to_be_an_accident_ends_before_the_deadline():
    store, _, source = flaky_store(*[Fault("range-ignored", "no ranges", at_most=3)] * 9)
    with pytest.raises(StorageError, match="no ranges\n  gave up after 3 attempts"):
        read(store, source, 0, 10)


def test_a_reading_that_goes_on_for_long_is_told_in_the_log(caplog):
    store, _, source = flaky_store(*[Fault("http-500", "HTTP 500 broken")] * 7)
    read(store, source, 0, 10)
    [told] = caplog.records
    assert told.getMessage() == "cannot read bytes [0, 10) of memory://x so far, going on: HTTP 500 broken"


def test_confirmed_reads_go_on_until_two_answers_agree():
    answers = [b"\x01" * 10, b"\x02" * 10, b"\x01" * 10]

    class Lying:
        def read(self, part) -> None:
            part.write(answers.pop(0))

    store = Store(confirm=True)
    store._reader._general = Lying()
    assert (read(store, StoredObject("memory://x", 100), 0, 10) == 1).all()
    assert answers == []
    assert store.counts() == {"retries": 1, "retries_disagreement": 1}


def test_answers_that_never_agree_end_in_an_error():
    numbers = iter(range(1, 256))

    class Lying:
        def read(self, part) -> None:
            part.write(bytes([next(numbers)]) * 10)

    store = Store(confirm=True, patience=QUICK)
    store._reader._general = Lying()
    with pytest.raises(StorageError, match="got other bytes in each of 6 answers\n  gave up after 5 attempts"):
        read(store, StoredObject("memory://x", 100), 0, 10)


def test_waiting_for_a_turn_while_the_server_throttles_does_not_count_for_the_deadline(clock):
    failures = [Fault("http-503", "busy", throttled=True)] * 3
    store, flaky, source = flaky_store(*failures)
    server = store._reader._server("memory://x")
    server.limit = 1.0
    out = np.zeros(10, np.uint8)
    with server.slot(lambda: None):
        [transfer] = store.start([RangeRead(source, 0, out)])
        while not server._waiting:
            transfer._done.wait(0.001)
        clock.pass_(2 * QUICK.deadline_seconds)
        assert not transfer.done
    transfer.wait()
    assert flaky.calls == 4


def test_what_was_given_up_counts_as_no_retry():
    begun, go_on = threading.Event(), threading.Event()

    class Slow:
        def read(self, part) -> None:
            begun.set()
            assert go_on.wait(20)
            raise Fault("connection", "aborted")

    store = Store(patience=QUICK)
    store._reader._general = Slow()
    [transfer] = store.start([RangeRead(StoredObject("memory://x", 100), 0, np.zeros(10, np.uint8))])
    assert begun.wait(20)
    transfer.cancel()
    go_on.set()
    transfer.wait_released()
    assert store.counts() == {}


class Stalled:
    """In place of a way to open: only what is absent is told, and that when another look has begun."""

    def __init__(self) -> None:
        self.begun, self.given_up = threading.Event(), threading.Event()

    def probe(self, probe):
        if probe.url.endswith("absent"):
            assert self.begun.wait(20)
            raise Refused("there is no such object")
        with probe.abortable(self.given_up.set):
            self.begun.set()
            assert self.given_up.wait(20)
            probe.check()


@pytest.mark.parametrize("urls", [1, 5])
def test_opening_can_be_given_up_and_one_error_ends_the_others(urls):
    store = Store(patience=QUICK)
    store._reader._general = stalled = Stalled()
    with pytest.raises(ReadCancelled), cancellable(stalled.begun.is_set):
        store.open([f"memory://x{i}" for i in range(urls)])
    assert stalled.given_up.wait(20)
    store._reader._general = stalled = Stalled()
    with pytest.raises(StorageError, match="there is no such object"):
        store.open(["memory://absent", *(f"memory://x{i}" for i in range(urls))])
    assert stalled.given_up.wait(20)


def test_interrupting_read_ranges_leaves_its_memory_alone_and_the_store_working(data, memory, monkeypatch):
    store = Store(patience=QUICK, max_requests=4)
    [source] = store.open(["memory://store-test/x.bin"])
    start = threading.Thread.start
    calls = iter(range(1000))

    def interrupted(thread):
        start(thread)
        if threading.current_thread() is threading.main_thread() and next(calls) % 3 == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    interrupts = 0
    for _ in range(10):
        out = np.zeros((20, 1000), np.uint8)
        try:
            store.read_ranges([RangeRead(source, 0, row) for row in out])
        except KeyboardInterrupt:
            interrupts += 1
            left = out.copy()
            out[:] = 1  # the caller's again
            read(Store(), source, 0, 10)
            assert (out == 1).all(), left
    assert interrupts
    monkeypatch.undo()
    np.testing.assert_array_equal(read(store, source, 0, 1000), data[:1000])


def test_names_are_listed_by_code_point_and_lists_keep_their_order(tmp_path, memory):
    for name in ("b.npy", "B.npy", "a10.npy", "a9.npy"):
        (tmp_path / name).touch()
        memory.pipe(f"/store-test/{name}", b"")
    store = Store()
    assert store.expand("memory://store-test/*.npy") == [
        f"memory:///store-test/{name}" for name in ("B.npy", "a10.npy", "a9.npy", "b.npy")
    ]
    assert store.expand(tmp_path / "*.npy") == [
        f"{tmp_path}/{name}" for name in ("B.npy", "a10.npy", "a9.npy", "b.npy")
    ]
    assert store.expand("s3://b/x-{08..10}.npy") == [f"s3://b/x-{number}.npy" for number in ("08", "09", "10")]
    assert store.expand(["s3://b/z", str(tmp_path / "a9.npy"), "s3://b/a"]) == [
        "s3://b/z",
        f"{tmp_path}/a9.npy",
        "s3://b/a",
    ]
    assert store.open(store.expand("memory://store-test/b.npy"))[0].object_bytes == 0


def test_a_local_file_by_the_very_name_of_a_pattern_is_meant_by_it(tmp_path):
    (tmp_path / "x[1]{2}.npy").touch()
    assert Store().expand(tmp_path / "x[1]{2}.npy") == [f"{tmp_path}/x[1]{{2}}.npy"]


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("memory://store-test/nothing-*.npy", "no object matches 'memory://store-test/nothing-"),
        ("nothing-*.npy", r"no file matches 'nothing-\*.npy' in /"),
        ([], "expected at least one path or URL, got an empty list"),
    ],
)
def test_a_pattern_that_stands_for_nothing_is_refused_by_name(memory, pattern, text):
    with pytest.raises(ArgumentError, match=text):
        Store().expand(pattern)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_requests": 0}, "max_requests: expected a whole number, 1 or more, got 0"),
        ({"max_requests": True}, "max_requests: expected a whole number"),
        ({"max_request_bytes": 1.5}, "max_request_bytes: expected a whole number, 1 or more, got 1.5"),
        ({"deadline_seconds": 0}, "deadline_seconds: expected more than 0 seconds, got 0"),
        ({"stall_seconds": float("nan")}, "stall_seconds: expected more than 0 seconds, got nan"),
        ({"cache_bytes": 1 << 30}, "cache_bytes: expected a cache_dir= to go with it"),
        ({"storage_options": "secret"}, r"storage_options: expected a dict of options by name, got str$"),
        ({"storage_options": ["secret"]}, r"storage_options: expected a dict of options by name, got list$"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, text):
    with pytest.raises(ArgumentError, match=text):
        Store(**options)


def test_an_unknown_protocol_is_named():
    with pytest.raises(StorageError, match="cannot open nosuch://bucket/x"):
        Store().open(["nosuch://bucket/x"])


def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    for url in ("s3://bucket/x.npy", "s3://bucket/*.npy"):
        store = Store()
        with pytest.raises(DependencyError, match=r'pip install "headrace\[s3\]"'):
            store.open(store.expand(url))


def test_neither_text_nor_pickle_of_a_store_shows_more_than_it_must():
    store = Store(storage_options={"key": "AKIA-secret", "secret": "very-secret"})
    assert "secret'" not in repr(store)
    assert "very-secret" not in repr(store)
    copy = pickle.loads(pickle.dumps(store))
    assert copy._options == store._options


def test_making_a_store_starts_no_thread_and_loads_no_filesystem(environment):
    script = """
        import sys, threading
        from headrace.storage import Store
        store = Store(storage_options={"anon": True})
        print(threading.active_count(), sorted({"fsspec", "s3fs", "aiohttp"} & set(sys.modules)))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split(maxsplit=1) == ["1", "[]\n"]


def test_blocks_are_kept_on_disk_and_found_by_another_store(data, memory, tmp_path):
    first, second = (Store(cache_dir=tmp_path / "cache", cache_bytes=100 << 20) for _ in range(2))
    for store in (first, second):
        [source] = store.open(["memory://store-test/x.bin"])
        np.testing.assert_array_equal(read(store, source, 0, len(data), keep=True), data)
    assert first.counts()["cache_misses"] == second.counts()["cache_hits"] == 3
    assert second.counts().get("received_bytes", 0) == 0


def test_an_object_without_a_version_is_not_kept_on_disk(tmp_path):
    store, flaky, _ = flaky_store(cache_dir=tmp_path / "cache", cache_bytes=100 << 20)
    source = StoredObject("memory://x", 100)
    for _ in range(2):
        read(store, source, 0, 10, keep=True)
    assert flaky.calls == 2


def test_a_changed_object_is_never_served_from_the_cache(data, memory, tmp_path):
    store = Store(cache_dir=tmp_path / "cache", cache_bytes=100 << 20)
    for version in (data, data[::-1]):
        memory.pipe("/store-test/x.bin", version.tobytes())
        [source] = store.open(["memory://store-test/x.bin"])
        np.testing.assert_array_equal(read(store, source, 0, 1000, keep=True), version[:1000])
