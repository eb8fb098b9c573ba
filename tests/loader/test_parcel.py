"""What workers start with: packed once, mapped by each, and of the same classes when it comes back."""

import enum
import os
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from headrace.errors import ArgumentError
from headrace.loader.channel import Channel
from headrace.loader.parcel import Parcel, pack, unpack
from tests.loader.descriptors import descriptors, opened_since


def there_and_back(obj: Any) -> tuple[Any, Parcel]:
    parcel = pack(obj, "dataset")
    return unpack(parcel.fd), parcel


def test_each_worker_maps_one_copy_of_the_arrays_and_writes_into_its_own():
    parcel = pack({"images": np.arange(100_000), "labels": torch.arange(50_000)}, "dataset")
    assert os.fstat(parcel.fd).st_size == parcel.nbytes
    one, other = unpack(parcel.fd), unpack(parcel.fd)
    one["images"][0] = one["labels"][0] = -1
    assert other["images"][0] == other["labels"][0] == 0
    assert unpack(parcel.fd)["images"].tolist() == list(range(100_000))


def test_arrays_outlive_the_parcel_and_its_descriptor_is_closed():
    before = descriptors()
    back, parcel = there_and_back(np.arange(10_000))
    assert len(opened_since(before)) == 1
    parcel.close()
    parcel.close()
    assert opened_since(before) == set()
    assert back.sum() == 49_995_000
    there_and_back(1)  # one that is dropped
    assert opened_since(before) == set()


def test_what_cannot_be_pickled_is_named_with_the_reason_and_what_to_do():
    dataset = SimpleNamespace(root="/data", reader=SimpleNamespace(files=[1, 2, threading.Lock()]))
    with pytest.raises(ArgumentError) as caught:
        pack(dataset, "dataset")
    assert str(caught.value) == (
        "dataset: expected something that can be pickled for worker processes, but dataset.reader.files[2] can't: "
        "cannot pickle '_thread.lock' object; make it where it is first used, or use worker_type=\"thread\" or "
        "num_workers=0"
    )
    lock = threading.Lock()
    with pytest.raises(ArgumentError, match=r"but lock can't: cannot pickle '_thread\.lock'"):
        pack(lambda sample: (sample, lock), "transform")


@pytest.fixture
def mapped(tmp_path):
    path = tmp_path / "numbers"
    np.arange(20_000, dtype=np.int32).tofile(path)
    return lambda mode: np.memmap(path, np.int32, mode, offset=4004)  # on no page's begin


@pytest.mark.parametrize(
    "cut",
    [
        lambda whole: whole,
        lambda whole: whole[100:200:2],
        lambda whole: whole[5000:][::-1],
        lambda whole: whole[:4000].reshape(-1, 2).T,
        lambda whole: np.asarray(whole)[10:12],
        lambda whole: whole[3:4],
        lambda whole: whole.view([("a", "i2"), ("b", "i2")])[7:],
    ],
)
def test_a_mapped_file_is_mapped_anew(mapped, cut):
    given = cut(mapped("r"))
    back, parcel = there_and_back([given])
    assert parcel.nbytes < 2000
    assert type(back[0]) is type(given)
    assert back[0].dtype == given.dtype
    np.testing.assert_array_equal(back[0], given)
    again, _ = there_and_back(back)  # a worker may send it on
    np.testing.assert_array_equal(again[0], given)


def test_a_worker_never_writes_into_a_mapped_file(mapped):
    for mode, is_writable in (("r", False), ("r+", True), ("c", True)):
        back, parcel = there_and_back(mapped(mode))
        assert parcel.nbytes < 2000
        assert back.flags.writeable == is_writable
        if is_writable:
            back[0] = 7
            assert mapped("r")[0] == 1001


def test_a_map_that_was_written_into_or_whose_file_is_gone_is_packed_with_its_bytes(mapped):
    private = mapped("c")
    private[0] = 7
    back, parcel = there_and_back(private)
    assert parcel.nbytes > private.nbytes
    assert back[:2].tolist() == [7, 1002]
    shared = mapped("r")
    os.unlink(shared.filename)
    back, _ = there_and_back(shared)
    assert back.tolist() == shared.tolist()


WORKER = """
import os, socket, sys
sys.path[:] = {path!r}
from headrace.loader.channel import Channel
from headrace.loader.parcel import unpack

work = unpack({parcel})
os.close({parcel})
channel = Channel(socket.socket(fileno={sock}))
while True:
    try:
        job = channel.receive()
    except EOFError:
        break
    channel.send(work(job))
"""


def test_a_process_sends_back_instances_of_the_classes_that_it_was_given():
    # classes of a function can't be imported, as those of a script can't
    class Colour(enum.Enum):
        RED = 1

    class Point:
        count = 0

        def __init__(self, place: Any) -> None:
            self.place = place

        def doubled(self) -> Any:
            return self.place * 2

    class Both(NamedTuple):
        point: Any
        colour: Any

    def work(job: int) -> Any:
        Point.count += 1
        return Both(Point(torch.full((30_000,), job)), Colour.RED), os.getpid()

    method = Point.doubled
    parcel = pack(work, "transform")
    ours, theirs = socket.socketpair()
    code = WORKER.format(path=sys.path, parcel=parcel.fd, sock=theirs.fileno())
    process = subprocess.Popen([sys.executable, "-c", code], pass_fds=[parcel.fd, theirs.fileno()])
    theirs.close()
    channel = Channel(ours)
    for job in range(20):
        channel.send(job)
        both, pid = channel.receive()
        assert pid == process.pid
        assert type(both) is Both
        assert type(both.point) is Point
        assert both.colour is Colour.RED
        assert both.point.doubled()[-1] == 2 * job
    assert Point.doubled is method
    assert Point.count == 0
    channel.close()
    assert process.wait(30) == 0
    parcel.close()
