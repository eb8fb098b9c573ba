"""Ranges on their way: order, bounds, threads that end, giving up."""

import contextlib
import gc
import os
import threading
import weakref

import numpy as np
import pytest

from headrace.errors import StorageError
from headrace.storage.cancellation import ReadCancelled, cancellable
from headrace.storage.objects import RangeRead, StoredObject
from headrace.storage.ranges import split
from headrace.storage.transfers import Probe, Transfer, TransferQueue

OBJECT = StoredObject("memory://x", 1000)
SECONDS = 20.0


def transfer_of(queue, offset=0, length=10, part_bytes=1000) -> Transfer:
    out = np.zeros(length, np.uint8)
    read = RangeRead(OBJECT, offset, out)
    parts = [RangeRead(OBJECT, offset + a, out[a:b]) for a, b in split(0, length, part_bytes)]
    return Transfer(read, parts, queue)


class Gate:
    """Reads parts when it is told to, and notes what is under way."""

    def __init__(self, *, opened: bool = False) -> None:
        self.order: list[int] = []
        self.together = self.most = self.most_bytes = self.bytes = 0
        self.entered = threading.Semaphore(0)
        self._may = threading.Event()
        self._lock = threading.Lock()
        if opened:
            self._may.set()

    def open(self) -> None:
        self._may.set()

    def run(self, part) -> None:
        with self._lock:
            self.order.append(part.read.offset)
            self.together += 1
            self.bytes += len(part.read.out)
            self.most, self.most_bytes = max(self.most, self.together), max(self.most_bytes, self.bytes)
        self.entered.release()
        assert self._may.wait(SECONDS)
        part.read.out[:] = 7
        with self._lock:
            self.together -= 1
            self.bytes -= len(part.read.out)
        part.fill()
        part.release()


def join_io_threads() -> None:
    """Returns when none is left: one that ends may have started another."""
    while threads := [thread for thread in threading.enumerate() if thread.name.startswith("headrace-io")]:
        threads[0].join(SECONDS)
        assert not threads[0].is_alive()


def test_all_parts_of_a_transfer_are_read_and_no_thread_is_left():
    gate = Gate(opened=True)
    queue = TransferQueue(gate.run, max_requests=3, max_request_bytes=1000)
    transfers = [transfer_of(queue, offset, 25, part_bytes=10) for offset in range(0, 500, 100)]
    queue.put([part for transfer in transfers for part in transfer.parts], urgent=False)
    for transfer in transfers:
        transfer.wait()
        transfer.wait_released()
        assert transfer.done
        assert transfer.released
        assert not transfer.failed
        assert (transfer.read.out == 7).all()
    join_io_threads()
    assert sorted(gate.order) == [offset + cut for offset in range(0, 500, 100) for cut in (0, 10, 20)]


def test_a_range_without_bytes_is_there_at_once():
    transfer = transfer_of(TransferQueue(Gate().run, max_requests=1, max_request_bytes=1), 0, 0)
    transfer.wait()
    assert transfer.released


def test_never_more_requests_are_under_way_than_allowed():
    gate = Gate()
    queue = TransferQueue(gate.run, max_requests=4, max_request_bytes=10_000)
    transfers = [transfer_of(queue, offset) for offset in range(20)]
    queue.put([transfer.parts[0] for transfer in transfers], urgent=False)
    for _ in range(4):
        assert gate.entered.acquire(timeout=SECONDS)
    gate.open()
    for transfer in transfers:
        transfer.wait()
    assert gate.most == 4


def test_bytes_under_way_are_bounded_and_one_always_proceeds():
    gate = Gate()
    queue = TransferQueue(gate.run, max_requests=8, max_request_bytes=25)
    transfers = [transfer_of(queue, offset, 10) for offset in range(9)] + [transfer_of(queue, 500, 100)]
    queue.put([transfer.parts[0] for transfer in transfers], urgent=False)
    for _ in range(3):  # a third one begins while 20 of 25 bytes are under way
        assert gate.entered.acquire(timeout=SECONDS)
    gate.open()
    for transfer in transfers:
        transfer.wait()
    assert gate.most_bytes <= 25 + 100
    assert gate.most <= 4


def test_urgent_ranges_come_before_those_that_were_queued_and_hurrying_moves_one():
    gate = Gate()
    queue = TransferQueue(gate.run, max_requests=1, max_request_bytes=1000)
    transfers = [transfer_of(queue, offset) for offset in range(5)]
    queue.put([transfer.parts[0] for transfer in transfers], urgent=False)
    assert gate.entered.acquire(timeout=SECONDS)  # offset 0 is being read
    urgent = transfer_of(queue, 100)
    queue.put(urgent.parts, urgent=True)
    transfers[4].hurry()
    gate.open()
    for transfer in [*transfers, urgent]:
        transfer.wait()
    assert gate.order == [0, 100, 4, 1, 2, 3]  # each once


def test_an_error_comes_to_all_who_wait_and_gives_the_other_parts_up():
    def run(part):
        part.release(StorageError("no such bytes"))

    queue = TransferQueue(run, max_requests=1, max_request_bytes=1000)
    transfer = transfer_of(queue, 0, 30, part_bytes=10)
    queue.put(transfer.parts, urgent=False)
    for _ in range(2):
        with pytest.raises(StorageError, match="no such bytes"):
            transfer.wait()
    transfer.wait_released()
    assert transfer.failed


def test_what_is_given_up_before_it_began_is_released_at_once_and_never_read():
    gate = Gate()
    queue = TransferQueue(gate.run, max_requests=1, max_request_bytes=1000)
    first, second = transfer_of(queue, 0), transfer_of(queue, 10)
    queue.put([*first.parts, *second.parts], urgent=False)
    assert gate.entered.acquire(timeout=SECONDS)
    second.cancel()
    assert second.released
    with pytest.raises(ReadCancelled):
        second.wait()
    gate.open()
    first.wait()
    first.cancel()  # nothing happens to what is there
    first.wait()
    assert gate.order == [0]


def test_giving_up_ends_a_request_that_is_under_way():
    begun, aborted = threading.Event(), threading.Event()

    def run(part):
        try:
            with part.abortable(aborted.set):
                begun.set()
                assert aborted.wait(SECONDS)
                part.check()
        except BaseException as error:  # noqa: BLE001 (as the reader does)
            part.release(error)

    queue = TransferQueue(run, max_requests=1, max_request_bytes=1000)
    transfer = transfer_of(queue)
    queue.put(transfer.parts, urgent=False)
    assert begun.wait(SECONDS)
    transfer.cancel()
    transfer.wait_released()
    with pytest.raises(ReadCancelled):
        transfer.wait()


def test_a_pause_ends_when_its_part_is_given_up():
    pausing = threading.Event()

    def run(part):
        try:
            pausing.set()
            part.pause(10 * SECONDS)
        except BaseException as error:  # noqa: BLE001 (as the reader does)
            part.release(error)

    queue = TransferQueue(run, max_requests=1, max_request_bytes=1000)
    transfer = transfer_of(queue)
    queue.put(transfer.parts, urgent=False)
    assert pausing.wait(SECONDS)
    transfer.cancel()
    transfer.wait_released()


def test_what_a_slow_client_brings_after_giving_up_does_not_touch_the_memory():
    begun, late = threading.Event(), threading.Event()
    ended = threading.Event()

    def run(part):
        try:
            with part.abortable(lambda: part.release(ReadCancelled())):
                begun.set()
                assert late.wait(SECONDS)
            part.write(b"\xff" * len(part.read.out))
        except BaseException as error:  # noqa: BLE001 (as the reader does)
            part.release(error)
        finally:
            ended.set()

    queue = TransferQueue(run, max_requests=1, max_request_bytes=1000)
    transfer = transfer_of(queue)
    queue.put(transfer.parts, urgent=False)
    assert begun.wait(SECONDS)
    transfer.cancel()
    transfer.wait_released()  # though the client still works
    late.set()
    assert ended.wait(SECONDS)
    assert not transfer.read.out.any()


def test_a_wait_ends_when_the_waiting_threads_work_is_no_longer_wanted():
    gate = Gate()
    queue = TransferQueue(gate.run, max_requests=1, max_request_bytes=1000)
    transfer = transfer_of(queue)
    queue.put(transfer.parts, urgent=False)
    with pytest.raises(ReadCancelled), cancellable(gate.order.__len__):
        transfer.wait()
    gate.open()
    transfer.wait()  # the transfer itself goes on


def test_an_interrupt_while_a_thread_starts_leaves_a_queue_that_works(monkeypatch):
    gate = Gate(opened=True)
    queue = TransferQueue(gate.run, max_requests=2, max_request_bytes=1000)
    start = threading.Thread.start

    def interrupted(thread):
        start(thread)
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    first = transfer_of(queue)
    with pytest.raises(KeyboardInterrupt):
        queue.put(first.parts, urgent=True)
    monkeypatch.undo()
    second = transfer_of(queue)
    queue.put(second.parts, urgent=True)
    for transfer in (first, second):
        transfer.wait()
    join_io_threads()
    assert queue._threads == queue._bytes == 0


def test_where_no_thread_can_be_started_reads_fail_and_the_next_ones_work(monkeypatch):
    gate = Gate(opened=True)
    queue = TransferQueue(gate.run, max_requests=2, max_request_bytes=1000)
    start = threading.Thread.start

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    transfer = transfer_of(queue)
    queue.put(transfer.parts, urgent=False)
    with pytest.raises(StorageError, match="no thread can be started: can't start new thread"):
        transfer.wait()
    transfer.wait_released()
    monkeypatch.setattr(threading.Thread, "start", start)
    transfer = transfer_of(queue)
    queue.put(transfer.parts, urgent=False)
    transfer.wait()


def test_a_forked_child_is_told_that_its_parents_transfer_is_not_its_own():
    gate = Gate()
    queue = TransferQueue(gate.run, max_requests=1, max_request_bytes=1000)
    transfer = transfer_of(queue)
    queue.put(transfer.parts, urgent=False)
    pid = os.fork()
    if pid == 0:
        try:
            transfer.wait()
        except StorageError as error:
            os._exit(0 if "belongs to the process that forked this one" in str(error) else 2)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    gate.open()
    transfer.wait()


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def _no_collector():
    gc.disable()
    yield
    gc.enable()


def failing(work) -> None:
    try:
        raise StorageError(f"cannot {work}: the disk is on fire")
    except StorageError as error:
        error.add_note("in the cellar")
        work.release(error)


def raised_by(wait) -> StorageError:
    with pytest.raises(StorageError, match="the disk is on fire") as caught:
        wait()
    return caught.value


def test_each_that_waits_for_what_failed_gets_an_error_of_its_own_that_says_the_same():
    queue = TransferQueue(failing, max_requests=1, max_request_bytes=1000)
    transfer = transfer_of(queue)
    queue.put(transfer.parts, urgent=True)
    first, second = raised_by(transfer.wait), raised_by(transfer.wait)
    first.add_note("while reading sample 3")
    assert (str(first), first.__notes__[:1]) == (str(second), second.__notes__)
    assert len(first.__notes__) == 2


@pytest.mark.usefixtures("_no_collector")
def test_what_failed_is_gone_with_its_memory_once_its_error_was_seen():
    queue = TransferQueue(failing, max_requests=1, max_request_bytes=1000)

    def fail() -> list[weakref.ref]:
        transfer, probe = transfer_of(queue), Probe("memory://x")
        queue.put([*transfer.parts, probe], urgent=True)
        for wait in (transfer.wait, probe.wait):
            with contextlib.suppress(StorageError):
                wait()
        join_io_threads()
        return [weakref.ref(thing) for thing in (transfer, transfer.read.out, probe)]

    assert [reference() for reference in fail()] == [None] * 3
