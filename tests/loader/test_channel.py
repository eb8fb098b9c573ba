"""Both ends of a channel: what arrives, which memory it is in, and what happens when one end is gone."""

import errno
import gc
import os
import resource
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from headrace.loader.channel import Channel
from headrace.loader.slots import rounded_up
from headrace.metrics import Meter, metering
from tests.loader.descriptors import descriptors, opened_since

LARGE = 100_000  # bytes that travel in a slot


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    before = descriptors()
    ours, theirs = (Channel(sock) for sock in socket.socketpair())
    yield ours, theirs
    ours.close()
    theirs.close()
    assert opened_since(before) == set()


def large(value: int, nbytes: int = LARGE) -> np.ndarray:
    return np.full(nbytes, value, np.uint8)


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def notify(sender: Channel, receiver: Channel) -> None:
    """Lets the receiver's next message say which slots are free."""
    receiver.send(None)
    assert sender.receive(10) is None


class Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("not this one")


class FailsOnArrival:
    def __reduce__(self) -> Any:
        return int, ("not a number", 10)


def test_objects_arrive_whole_and_in_order_both_ways(ends):
    for sender, receiver in (ends, ends[::-1]):
        given = [None, 1, "ä" * 50_000, {"a": [1, 2]}, b"b" * 200_000, large(3), torch.arange(5)]
        for obj in given:
            sender.send(obj)
        for obj in given[:5]:
            assert receiver.receive(10) == obj
        assert receiver.receive(10).tolist() == given[5].tolist()
        assert receiver.receive(10).tolist() == [0, 1, 2, 3, 4]
        assert sender.bytes_sent == receiver.bytes_received > 400_000


def test_making_and_taking_apart_what_travels_is_counted_as_copying(ends):
    ours, theirs = ends
    meter = Meter()
    with metering(meter):
        ours.send(large(1))
    sent = meter.totals().seconds["copy"]
    with metering(meter):
        theirs.receive(10)
    received = meter.totals().seconds
    assert 0 < sent < received["copy"] == sum(received.values())


def test_small_objects_need_no_shared_memory(ends):
    ours, theirs = ends
    for _ in range(100):
        ours.send(np.arange(1000))
        received = theirs.receive(10)
        received[0] = 1
    assert ours.slots_bytes == theirs.slots_bytes == 0


def test_a_slot_is_used_again_when_its_last_view_is_gone_and_not_before(ends):
    ours, theirs = ends
    ours.send({"a": large(1), "b": torch.ones(LARGE)})
    received = theirs.receive(10)
    kept = received["b"][5:].view(-1, 5)[0].numpy()[::2]  # a view of a view of another kind
    place = address(received["a"])
    del received
    notify(ours, theirs)
    ours.send({"a": large(2), "b": torch.zeros(LARGE)})
    second = theirs.receive(10)
    assert address(second["a"]) != place
    assert kept.tolist() == [1, 1, 1]
    del kept
    notify(ours, theirs)
    ours.send({"a": large(3), "b": torch.zeros(LARGE)})
    assert address(theirs.receive(10)["a"]) == place
    assert second["a"].tolist() == large(2).tolist()


def test_what_arrives_may_be_written_into_and_outlives_the_channel(ends):
    ours, theirs = ends
    ours.send([large(1), torch.zeros(LARGE)])
    array, tensor = theirs.receive(10)
    array += 1
    tensor += 1
    ours.close()
    theirs.close()
    del ours, theirs
    gc.collect()
    assert array.sum() == 2 * LARGE
    assert tensor.sum() == LARGE


def test_who_keeps_everything_has_copies_and_slots_stay_few(ends):
    ours, theirs = ends
    kept = []
    for i in range(50):
        ours.send(large(i))
        kept.append(theirs.receive(10))
        notify(ours, theirs)
    assert [int(array[-1]) for array in kept] == list(range(50))
    assert theirs.slots_bytes == ours.slots_bytes <= 5 * rounded_up(2 * LARGE)


def test_a_large_array_goes_back_though_the_rest_of_its_message_is_kept(ends):
    ours, theirs = ends
    kept = []
    for i in range(20):
        ours.send([{"x": large(i, 4 << 20), "y": np.full(5000, i)} for _ in range(2)])
        received = theirs.receive(10)
        assert [int(batch["x"][-1]) for batch in received] == [i, i]
        kept.append(received[1]["y"])
        del received
        notify(ours, theirs)
    assert [int(y[0]) for y in kept] == list(range(20))
    assert ours.slots_bytes <= 2 * rounded_up((4 << 20) + 64) + 5 * rounded_up(2 * 40_100)


def test_a_message_of_any_arrays_takes_few_slots(ends):
    ours, theirs = ends
    for sizes in (
        [1 << 20] * 100,
        [3 << 19, 9] * 50,
        [1 << 19] * 200,
        [70_000] * 1000,
        [1 << 20, 1 << 25, 1 << 10] * 2,
    ):
        ours.send([large(i % 251, nbytes) for i, nbytes in enumerate(sizes)])
        received = theirs.receive(10)
        assert [(int(array[0]), array.nbytes) for array in received] == [(i % 251, n) for i, n in enumerate(sizes)]
        assert len({address(array.base.base) for array in received}) <= 34
        del received
        notify(ours, theirs)


def test_arrays_are_aligned_whatever_else_their_message_tells(ends):
    ours, theirs = ends
    for nbytes in (1, 4000, 1 << 20, 3 << 20):
        for _ in range(2):
            ours.send([b"x" * 5, large(1, nbytes), np.arange(3, dtype=np.complex128), torch.arange(5.0).double()])
            _, array, numbers, tensor = theirs.receive(10)
            assert numbers.flags.aligned
            assert tensor.data_ptr() % 8 == 0
            del array
            theirs.send(np.arange(3.0))  # with notice of a slot that is free again
            assert ours.receive(10).flags.aligned


def test_larger_messages_take_the_place_of_smaller_slots(ends):
    ours, theirs = ends
    for nbytes in range(LARGE, 40 * LARGE, LARGE):
        ours.send(large(1, nbytes))
        theirs.receive(10)
        notify(ours, theirs)
    assert ours.slots_bytes == theirs.slots_bytes <= rounded_up(41 * LARGE)


def test_parts_that_grow_leave_no_slots_behind_whatever_else_their_messages_hold(ends):
    ours, theirs = ends
    for mebibytes in range(10, 40, 2):
        ours.send([large(1, mebibytes << 20), large(2, 1 << 20)])
        assert [int(array[-1]) for array in theirs.receive(10)] == [1, 2]
        notify(ours, theirs)
    assert ours.slots_bytes == theirs.slots_bytes <= rounded_up(40 << 20) + rounded_up(2 << 20)


def test_large_slots_go_when_messages_have_become_small(ends):
    ours, theirs = ends
    ours.send([large(1, 20 << 20), large(2, 2 << 20)])
    theirs.receive(10)
    for _ in range(120):
        notify(ours, theirs)
        ours.send(large(1))
        theirs.receive(10)
    assert ours.slots_bytes == theirs.slots_bytes <= 2 * rounded_up(LARGE)


def test_a_burst_of_messages_does_not_keep_its_slots(ends):
    ours, theirs = ends
    for i in range(40):
        ours.send(large(i))
    assert ours.slots_bytes == 40 * rounded_up(LARGE)
    for i in range(40):
        assert theirs.receive(10)[0] == i
    for _ in range(2):
        notify(ours, theirs)
        ours.send(large(1))
        theirs.receive(10)
    assert ours.slots_bytes == theirs.slots_bytes <= 9 * rounded_up(LARGE)


def test_no_page_is_touched_for_the_first_time_after_warm_up_and_no_descriptor_is_kept(ends):
    ours, theirs = ends
    batch = torch.ones(1 << 20)

    def deliver(times: int) -> int:
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        for _ in range(times):
            ours.send(batch)
            theirs.receive(10)
            notify(ours, theirs)
        return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before

    open_before = descriptors()
    deliver(5)
    assert deliver(20) < 20 * 1024 / 10  # a batch has 1024 pages
    assert opened_since(open_before) == set()


def test_views_may_be_dropped_in_any_thread_and_by_the_collector(ends):
    ours, theirs = ends
    gc.collect()
    gc.freeze()  # what is there already takes long to look through
    try:
        for i in range(20):
            ours.send(large(i))
            cycle: list[Any] = [theirs.receive(10)]
            cycle.append(cycle)
            thread = threading.Thread(target=cycle.clear if i % 2 else gc.collect)
            del cycle
            thread.start()
            thread.join()
            del thread
            gc.collect()
            notify(ours, theirs)
    finally:
        gc.unfreeze()
    assert ours.slots_bytes <= 2 * rounded_up(LARGE)


def test_several_threads_may_send(ends):
    ours, theirs = ends

    def send(value: int) -> None:
        for _ in range(30):
            ours.send([value, large(value, 20_000 * value)])

    threads = [threading.Thread(target=send, args=(value,)) for value in (1, 2, 3)]
    for thread in threads:
        thread.start()
    received = [0, 0, 0]
    for _ in range(90):
        value, array = theirs.receive(10)
        assert array.tolist() == [value] * (20_000 * value)
        received[value - 1] += 1
    for thread in threads:
        thread.join()
    assert received == [30, 30, 30]


def test_a_wait_ends_in_time_and_loses_nothing():
    raw, sock = socket.socketpair()
    theirs = Channel(sock)
    with pytest.raises(TimeoutError, match=r"within 0\.01 seconds"):
        theirs.receive(0.01)
    parts, recording = socket.socketpair()
    Channel(recording).send("in two pieces")
    message = parts.recv(1000)
    raw.sendall(message[:20])
    with pytest.raises(TimeoutError):
        theirs.receive(0)
    raw.sendall(message[20:] + message)
    assert [theirs.receive(10), theirs.receive(10)] == ["in two pieces"] * 2
    for each in (raw, parts, recording, theirs):
        each.close()


def test_an_end_that_is_gone_shows_at_the_other(ends):
    ours, theirs = ends
    ours.send("last words")
    ours.close()
    ours.close()
    assert theirs.receive(10) == "last words"
    with pytest.raises(EOFError, match="gone"):
        theirs.receive(10)
    with pytest.raises(EOFError, match="closed"):
        theirs.send(1)
    with pytest.raises(EOFError, match="closed"):
        ours.receive(10)


def test_sending_to_an_end_that_is_gone_raises(ends):
    ours, theirs = ends
    theirs.close()
    with pytest.raises(EOFError, match="gone"):
        ours.send(large(1))
    ours.close()
    assert ours.slots_bytes == 0


def test_what_an_end_sent_before_it_went_is_received_though_sending_to_it_fails(ends):
    ours, theirs = ends
    for number in range(3):
        theirs.send(number)
    theirs.close()
    for _ in range(2):
        with pytest.raises(EOFError, match="gone"):
            ours.send("too late")
    assert [ours.receive() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(EOFError, match="gone"):
        ours.receive()


def test_an_end_that_dies_in_the_middle_of_a_message_shows():
    raw, sock = socket.socketpair()
    theirs = Channel(sock)
    raw.sendall(b"\0" * 10)
    raw.close()
    with pytest.raises(EOFError, match="in the middle of a message"):
        theirs.receive(10)


def test_closing_ends_a_wait_in_another_thread(ends):
    _, theirs = ends
    outcome: list[Exception] = []

    def receive() -> None:
        try:
            theirs.receive()
        except EOFError as error:
            outcome.append(error)

    thread = threading.Thread(target=receive)
    thread.start()
    theirs.close()
    thread.join()
    assert [type(error) for error in outcome] == [EOFError]


def test_an_object_that_cannot_travel_raises_and_the_next_one_does(ends):
    ours, theirs = ends
    with pytest.raises(TypeError, match="not this one"):
        ours.send([large(1), Unpicklable()])
    ours.send([large(1), FailsOnArrival()])
    ours.send(2)
    with pytest.raises(ValueError, match="not a number"):
        theirs.receive(10)
    assert theirs.receive(10) == 2


def test_where_no_more_descriptors_are_passed_a_message_goes_through_the_socket(ends, monkeypatch):
    ours, theirs = ends
    kept = [large(9, 300_000)]
    theirs.send(kept)
    ours.receive(10)
    given = [large(1), np.arange(300_000), large(2, 1 << 20), torch.ones(LARGE)]

    def refused(*_: Any) -> int:
        raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))

    with monkeypatch.context() as patched:
        patched.setattr(socket, "send_fds", refused)
        sender = threading.Thread(target=ours.send, args=(given,))
        sender.start()
        received = theirs.receive(10)
        sender.join()
        assert [array.tolist() for array in received] == [array.tolist() for array in given]
        assert ours._sent.nbytes == theirs._lent.nbytes == 0
        theirs.send(kept)  # into the slot that the message has given back
        assert ours.receive(10)[0].tolist() == kept[0].tolist()
    ours.send(given)
    assert theirs.receive(10)[2].tolist() == given[2].tolist()
    assert ours.bytes_sent == theirs.bytes_received
    assert ours._sent.nbytes == theirs._lent.nbytes > 1 << 20


HEADER, SLOT = struct.Struct("<QIIII"), struct.Struct("<IQQ")
NOWHERE = struct.pack("<2QB", 1, 1, 0).ljust(65, b"\0")  # one part, at byte 64, which says where no part is


@pytest.mark.parametrize(
    ("header", "slots"),
    [
        ((2**40, 0, 0, 0, 0), []),  # more bytes than ever go through the socket
        ((len(NOWHERE), 34, 0, 0, 0), []),  # more slots than a message has
        ((len(NOWHERE), 1, 0, 0, 0), [(5, 8, 0)]),  # an unknown slot
        ((len(NOWHERE), 1, 0, 0, 0), [(5, 8, 2**40)]),  # a slot larger than its memory
        ((len(NOWHERE), 1, 0, 0, 0), [(5, 2**13, 4096)]),  # an object larger than its slot
        ((len(NOWHERE), 2, 0, 0, 0), [(5, 8, 4096), (6, 8, 4096)]),  # a new slot without a descriptor
        ((len(NOWHERE), 0, 2**31, 0, 0), []),  # more slots given back than there can be
    ],
)
def test_a_message_that_makes_no_sense_ends_the_channel(header, slots):
    before = descriptors()
    raw, sock = socket.socketpair()
    theirs = Channel(sock)
    fd = os.memfd_create("test")
    os.ftruncate(fd, 4096)
    message = HEADER.pack(*header) + b"".join(SLOT.pack(*slot) for slot in slots) + NOWHERE
    socket.send_fds(raw, [message], [fd])
    os.close(fd)
    with pytest.raises(ConnectionError, match="doesn't speak as this one does"):
        theirs.receive(10)
    with pytest.raises(EOFError):
        theirs.receive(10)
    raw.close()
    assert opened_since(before) == set()


def test_a_slot_that_finds_no_free_descriptor_is_an_error_that_says_so(ends):
    ours, theirs = ends
    ours.send(large(1))
    gc.collect()  # else what others left behind may be closed amid this
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 2, hard))
    fillers: list[int] = []
    try:
        with pytest.raises(OSError, match="Too many open files"):
            fillers.extend(iter(lambda: os.open(os.devnull, os.O_RDONLY), None))
        with pytest.raises(OSError, match="too many open files: ulimit -n"):
            theirs.receive(10)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fillers:
            os.close(fd)


def in_forked_child(check: Any) -> Any:
    """Runs `check` in a forked child when the function that this gives is called; that gives the exit status."""
    waits, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        os.close(go)
        try:
            os.read(waits, 1)  # or the end of the parent
            check()
            status = 0
        finally:
            os._exit(status)

    def finish() -> int:
        os.write(go, b"g")
        os.close(waits)
        os.close(go)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    return finish


def test_arrays_that_a_forked_child_has_are_never_written_again(ends):
    ours, theirs = ends
    ours.send(large(1))
    received = theirs.receive(10)

    def check() -> None:
        nonlocal received
        assert received.tolist() == [1] * LARGE
        received = None

    finish = in_forked_child(check)
    del received
    notify(ours, theirs)
    for value in (2, 3):
        ours.send(large(value))
        assert theirs.receive(10)[-1] == value
        notify(ours, theirs)
    assert finish() == 0
    with pytest.raises(TimeoutError):  # the child, which dropped its array, has said nothing
        ours.receive(0)
    assert ours.slots_bytes == theirs.slots_bytes == rounded_up(LARGE)


def test_a_forked_child_cannot_use_the_channel_nor_end_it(ends):
    ours, theirs = ends

    def check() -> None:
        with pytest.raises(RuntimeError, match="was forked from it"):
            ours.send(1)
        with pytest.raises(RuntimeError, match="was forked from it"):
            ours.receive()
        ours.close()

    assert in_forked_child(check)() == 0
    ours.send(1)
    assert theirs.receive(10) == 1


def test_closing_reaches_the_other_end_though_a_forked_child_has_the_socket(ends):
    ours, theirs = ends
    finish = in_forked_child(lambda: None)
    ours.close()
    with pytest.raises(EOFError):
        theirs.receive(10)
    assert finish() == 0
