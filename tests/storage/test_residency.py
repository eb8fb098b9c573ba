"""When rows are asked for ahead, when files are read through, when nothing is done; a stub tells what is resident."""

import gc
import threading

import numpy as np
import pytest

from headrace.storage import Residency, residency

IDS = np.array([5, 1, 9, 3])


class Stub:
    """A file whose data is in memory or not, as told; it notes what is asked of it."""

    def __init__(self, resident):
        self.resident = resident
        self.asked: list[object] = []

    def is_resident(self, offset):
        return self.resident

    def will_need(self, offsets, length_bytes):
        self.asked.append(offsets.tolist())

    def read_ahead(self, *, wanted):
        self.asked.append(wanted)


class Scene:
    """A Residency over one stub, with counters in place of the kernel's."""

    def __init__(self, resident, available=0, paths=("nothing",)):
        self.file = Stub(resident)
        self.faults = 0
        self.located = 0
        self.residency = Residency(
            dict.fromkeys(paths, 1000), 100, major_faults=lambda: self.faults, available=lambda: available
        )

    def locate(self, ids):
        self.located += 1
        return [(self.file, ids * 10, 10)]

    def expect(self, ids=IDS):
        """Returns what was asked of the file for these samples."""
        self.file.asked.clear()
        self.residency.expect(np.asarray(ids), self.locate)
        return list(self.file.asked)

    def different_batches(self, count):
        for number in range(count):
            self.expect([number, 50, 99 - number])


def test_hot_data_is_never_asked_for_and_seldom_looked_at():
    scene = Scene(resident=True)
    for _ in range(320):
        assert scene.expect() == []
    assert scene.located == 1


def test_scattered_cold_rows_are_asked_for_with_read_ahead_off():
    assert Scene(resident=False).expect([5, 1, 9, 3]) == [False, [50, 10, 90, 30]]


def test_consecutive_cold_rows_are_left_to_the_kernel_s_read_ahead():
    assert Scene(resident=False).expect([3, 4, 5]) == [True]


@pytest.mark.parametrize("ids", [[3, 5, 4, 6], [6, 5, 4, 3], [3, 3, 5], [3, 4, 6]])
def test_rows_that_only_lie_close_together_are_scattered(ids):
    assert Scene(resident=False).expect(ids)[0] is False


def test_what_prefetch_asked_for_is_not_asked_for_again_by_the_read():
    scene = Scene(resident=False)
    assert scene.expect([5, 1]) != []
    assert scene.expect([2, 7]) != []
    assert scene.expect([5, 1]) == []
    assert scene.expect([2, 7]) == []


def test_what_was_asked_for_long_ago_is_asked_for_again():
    scene = Scene(resident=False)
    scene.expect()
    scene.different_batches(100)
    assert scene.expect() != []
    assert len(scene.residency._asked) <= 64


def test_data_that_became_hot_is_not_asked_for_any_more():
    scene = Scene(resident=False)
    scene.expect()
    scene.file.resident = True
    scene.different_batches(20)
    assert not scene.residency.cold
    assert scene.expect() == []


def test_data_that_was_dropped_from_memory_is_noticed_by_looking():
    scene = Scene(resident=True)
    scene.different_batches(100)
    scene.file.resident = False
    scene.different_batches(600)
    assert scene.residency.cold


def test_data_that_was_dropped_from_memory_is_noticed_by_its_faults_where_nobody_can_look():
    scene = Scene(resident=None)
    scene.different_batches(100)
    assert not scene.residency.cold
    scene.faults += 1000
    scene.different_batches(40)
    assert scene.residency.cold


def test_where_nobody_can_look_a_batch_is_tried_without_asking_now_and_then():
    scene = Scene(resident=None)
    cold = []
    for number in range(400):
        scene.expect([number, 5])
        cold.append(scene.residency.cold)
        scene.faults += 0 if scene.residency.cold else 200  # what is not asked for faults
    tail = cold[40:]
    assert 0.9 < sum(tail) / len(tail) < 1.0


def test_an_empty_read_is_nothing_to_decide_on():
    scene = Scene(resident=False)
    assert scene.expect([]) == []
    assert scene.expect() != []


def threads():
    return [thread for thread in threading.enumerate() if thread.name == residency._READER_NAME]


@pytest.fixture
def started(monkeypatch):
    """What would be read through, in place of reading it."""
    starts = []
    monkeypatch.setattr(residency, "start_reading_through", lambda _, files, __: starts.append(list(files)) or True)
    return starts


def test_files_that_fit_into_memory_are_read_through_once(started):
    scene = Scene(resident=False, available=1 << 40, paths=("a", "b"))
    scene.different_batches(50)
    assert started == [["a", "b"]]


def test_files_that_do_not_fit_are_not_read_through(started):
    Scene(resident=False, available=1 << 20).different_batches(50)
    assert started == []


def test_hot_files_are_not_read_through(started):
    Scene(resident=True, available=1 << 40).different_batches(50)
    assert started == []


def test_a_look_at_a_few_samples_of_many_does_not_read_the_files_through(started):
    scene = Scene(resident=False, available=1 << 40)
    scene.residency._samples = 10**6
    scene.expect()
    assert started == []


def test_files_that_were_dropped_from_memory_are_read_through_again(started):
    scene = Scene(resident=False, available=1 << 40)
    for resident in (False, True, False):
        scene.file.resident = resident
        scene.different_batches(600)
    assert len(started) == 2


def test_reading_through_reads_every_file_to_its_end_in_one_thread(tmp_path):
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_bytes(bytes(3 << 20))
    scene = Scene(resident=False, available=1 << 40, paths=paths)
    assert threads() == []
    scene.different_batches(10)
    assert len(threads()) <= 1
    for thread in threads():
        assert thread.daemon
        thread.join()


class Pausing:
    """Memory that is reported only when the test says so: the reader stands still until then."""

    def __init__(self):
        self.asked, self.answer = threading.Event(), threading.Event()
        self.looks = 0

    def __call__(self):
        if threading.current_thread().name == residency._READER_NAME:
            self.looks += 1
            self.asked.set()
            assert self.answer.wait(60)
        return 1 << 40


@pytest.fixture
def pausing(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(bytes(4 << 20))
    return path, Pausing()


def test_only_one_file_set_is_read_through_at_a_time(pausing):
    path, available = pausing
    first, second = (Residency({path: 1}, 1, available=available) for _ in range(2))
    assert residency.start_reading_through(first, {path: 1}, available)
    assert available.asked.wait(60)
    assert not residency.start_reading_through(second, {path: 1}, available)
    available.answer.set()
    threads_then = threads()
    for thread in threads_then:
        thread.join(60)
    assert threads() == []


def test_reading_through_ends_when_its_owner_is_collected(pausing, monkeypatch):
    path, available = pausing
    owner = Residency({path: 1}, 1, available=available)
    monkeypatch.setattr(residency, "_PIECES_BETWEEN_LOOKS", 1)
    assert residency.start_reading_through(owner, {path: 1}, available)
    assert available.asked.wait(60)
    del owner
    gc.collect()
    stopped = threads()
    available.answer.set()
    for thread in stopped:
        thread.join(60)
    assert threads() == []
    assert available.looks == 1  # there is one before each of four pieces


def test_reading_through_stops_when_memory_runs_short(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(bytes(1 << 20))
    looks = []
    residency.read_through([path, tmp_path / "never"], threading.Event(), lambda: looks.append(1) or 0)
    assert len(looks) == 1


def test_reading_through_a_file_that_is_gone_is_no_error(tmp_path):
    residency.read_through([tmp_path / "gone"], threading.Event(), lambda: 1 << 40)
