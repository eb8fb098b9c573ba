"""Sources that fetch ahead of the reading: what they are told, when, and that a pass ends though they stall."""

import gc
import logging
import os
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest

import headrace as hr
from headrace.datasets import read_ahead
from headrace.datasets.mapstyle import MapDataset
from headrace.errors import StalePassError
from headrace.storage.cancellation import check_cancelled
from tests.conftest import threads_left_after
from tests.loader.stand_ins import WAITING_SECONDS, Numbers, delivered, flat, ids_of
from tests.loader.works import wait_until

WORKERS = pytest.mark.parametrize("num_workers", [0, 3])


class Fetched(Numbers):
    """Numbers of 8 bytes each, told of ahead; a read that stalls can be given up.

    Attributes:
        read_ahead_bytes: How far ahead it wants to know of samples.
        ended: How often what was begun has been given up.
        announcing: How many threads announce at this moment.
        most: The most that have done so at once.
    """

    def __init__(self, samples: int, read_ahead_bytes: int, **options: Any) -> None:
        super().__init__(samples, **options)
        self.read_ahead_bytes = read_ahead_bytes
        self.ended, self.announcing, self.most = 0, 0, 0
        self.stalls = False

    def read(self, sample_ids: Any, out: Any = None) -> dict[str, Any]:
        if self.stalls:
            self.entered.release()
            for _ in range(int(WAITING_SECONDS * 100)):
                check_cancelled()
                if self.gate.wait(0.01):
                    break
        return super().read(sample_ids, out)

    def prefetch(self, sample_ids: Any) -> None:
        self.announcing += 1
        self.most = max(self.most, self.announcing)
        os.sched_yield()  # others may come
        super().prefetch(sample_ids)
        self.announcing -= 1

    def end_prefetch(self) -> None:
        self.ended += 1


def loader_of(source: Fetched, *, as_part: bool = False, **options: Any) -> hr.DataLoader:
    dataset = MapDataset(source)
    return hr.DataLoader(dataset.take(len(dataset)) if as_part else dataset, **options)


# -- announcing -------------------------------------------------------------------------------------------------------


@WORKERS
@pytest.mark.parametrize("as_part", [False, True], ids=["whole", "part"])
@pytest.mark.parametrize("shuffle", [False, "global", "window"])
def test_all_samples_are_announced_once_in_the_order_of_need_by_one_thread_at_a_time(num_workers, as_part, shuffle):
    source = Fetched(3000, 8 * 200)
    loader = loader_of(source, as_part=as_part, batch_size=20, num_workers=num_workers, shuffle=shuffle, seed=5)
    assert flat(delivered(loader)) == flat(source.announced)
    assert len(source.announced) > 1
    assert source.most == 1


def test_each_batch_is_announced_about_so_many_bytes_before_it_is_read():
    source = Fetched(3000, 8 * 1500)
    loader = loader_of(source, batch_size=10, num_workers=0)
    group = loader._pipeline._grouping.steps * 10
    passing = iter(loader)
    assert source.announced == []  # planning costs nothing before the first batch is asked for
    for read in range(0, 3000, 10):
        next(passing)
        handed_out = read // group * group
        assert len(flat(source.announced)) == min(3000, handed_out + 1500 // group * group + group)


def test_from_a_resumed_position_on_announcing_begins_there():
    source = Fetched(1000, 8 * 100)
    loader = loader_of(source, batch_size=10)
    loader.seek(epoch=0, step=30)
    assert ids_of(next(iter(loader))) == list(range(300, 310))
    assert flat(source.announced)[:10] == list(range(300, 310))


def test_two_groups_are_announced_ahead_at_least():
    source = Fetched(1000, 1)
    loader = loader_of(source, batch_size=100, collate_fn=len)  # a group is one step
    next(iter(loader))
    assert flat(source.announced) == list(range(300))


def test_tiny_samples_are_announced_in_a_bounded_number(monkeypatch):
    monkeypatch.setattr(read_ahead, "_MOST_SAMPLES", 500)
    source = Fetched(10_000, 1 << 40)
    next(iter(loader_of(source, batch_size=100, collate_fn=len)))
    assert flat(source.announced) == list(range(600))


def test_an_epoch_shorter_than_what_the_source_wants_to_know_is_announced_at_once():
    source = Fetched(50, 1 << 40)
    assert flat(delivered(loader_of(source, batch_size=20))) == list(range(50))
    assert source.announced == [list(range(50))]


def test_a_source_that_does_not_ask_for_it_is_not_told_of_the_first_samples():
    source = Numbers(20_000)
    loader = hr.DataLoader(MapDataset(source), batch_size=100)
    assert len(flat(delivered(loader))) == 20_000
    assert flat(source.announced)[0] >= 1024


# -- the end of a pass ------------------------------------------------------------------------------------------------


@WORKERS
def test_what_was_begun_is_given_up_once_when_a_pass_has_come_to_its_end(num_workers):
    source = Fetched(100, 80)
    loader = loader_of(source, as_part=True, batch_size=10, num_workers=num_workers)
    for passes in (1, 2):
        assert len(list(loader)) == 10
        assert source.ended == passes


@WORKERS
def test_what_was_begun_is_given_up_once_when_a_pass_is_dropped_replaced_or_fails(num_workers):
    source = Fetched(100, 80, bad=[55])
    loader = loader_of(source, batch_size=10, num_workers=num_workers)
    for _ in loader:
        break
    gc.collect()
    assert source.ended == 1
    outlived = iter(loader)
    next(outlived)
    passing = iter(loader)
    assert source.ended == 2
    with pytest.raises(StalePassError):
        next(outlived)
    with pytest.raises(OSError, match="on fire"):
        list(passing)
    assert source.ended == 3


@WORKERS
def test_a_source_that_fails_to_give_up_does_not_fail_the_pass(num_workers):
    class Stubborn(Fetched):
        def end_prefetch(self) -> None:
            raise OSError("no")

    assert len(list(loader_of(Stubborn(100, 80), batch_size=10, num_workers=num_workers))) == 10


def test_a_pass_ends_at_once_though_the_reads_of_its_threads_stall(caplog):
    source = Fetched(1000, 80)
    loader = loader_of(source, batch_size=10, num_workers=3, prefetch_factor=1)
    passing = iter(loader)
    next(passing)
    wait_until(lambda: passing._batches.depth()[1] == 0)  # no thread is amid a read, nor has one before it
    source.stalls = True
    source.gate.clear()
    ended = threading.Event()

    def consume() -> None:
        with pytest.raises(StalePassError):
            list(passing)
        ended.set()

    consumer = threading.Thread(target=consume)
    consumer.start()
    source.wait_for_reads(source.reads + 3)
    with caplog.at_level(logging.WARNING, "headrace"):
        loader.seek(epoch=0)
    assert caplog.text == ""
    assert source.ended == 1
    consumer.join(WAITING_SECONDS)
    assert ended.is_set()
    assert threads_left_after() == []
    source.stalls = False
    source.gate.set()
    assert flat(delivered(loader)) == list(range(1000))


INTERRUPTED = """
import signal
from tests.loader.test_read_ahead import Fetched, loader_of
from tests.conftest import threads_left_after

class Stalled(Fetched):
    def read(self, sample_ids, out=None):
        if 55 in sample_ids:
            print("stalled", flush=True)
        return super().read(sample_ids, out)

signal.signal(signal.SIGINT, signal.default_int_handler)
source = Stalled(1000, 80)
source.stalls = True
source.gate.clear()
loader = loader_of(source, batch_size=100, num_workers=2)
try:
    list(loader)
except KeyboardInterrupt:
    print(loader.position, source.ended, threads_left_after(), flush=True)
"""


def test_an_interrupt_ends_the_pass_at_once_though_the_reads_of_its_threads_stall(environment, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", INTERRUPTED],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert process.stdout.readline() == "stalled\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=WAITING_SECONDS * 2)
    assert (process.returncode, out, err) == (0, "0 1 []\n", "")
