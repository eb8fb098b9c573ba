"""Objects that change, servers and processes that come and go: the right bytes, or an error that says what happened."""

import json
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

from headrace.errors import StorageError
from headrace.storage import BLOCK_BYTES, RangeRead, ReadCancelled, cancellable
from headrace.storage.faults import Patience
from tests.storage.ways import BYTES, START, STOP, patience, read

SECONDS = 20.0


# ---- objects that change ----


def test_an_object_overwritten_between_two_requests_of_one_read_is_an_error_not_a_mixture(way):
    old = np.zeros(BLOCK_BYTES + 1_000, np.uint8)
    way.write(old)
    store, source = way.open(max_requests=1)
    way.proxy.before_forwarding(lambda: way.write(old + 1), after=1)
    out = np.zeros(len(old), np.uint8)
    with pytest.raises(StorageError, match="it has changed since it was opened"):
        store.read_ranges([RangeRead(source, 0, out)])
    assert not out.any()


def test_an_object_overwritten_before_a_resume_is_an_error_not_a_mixture(way):
    store, source = way.open()
    way.proxy.inject("close-in-body")
    way.proxy.before_forwarding(lambda: way.write(BYTES[::-1]), after=1)
    with pytest.raises(StorageError, match="it has changed since it was opened"):
        read(store, source)


@pytest.mark.parametrize("length", [len(BYTES) - 100, STOP - 10, 10])
def test_an_object_that_became_shorter_is_an_error(way, length):
    store, source = way.open(patience=patience(deadline_seconds=8.0))
    way.write(BYTES[:length])
    with pytest.raises(StorageError, match=r"it has changed since|it is shorter than"):
        read(store, source)


def test_an_object_deleted_in_mid_epoch_is_an_error_that_names_it(way):
    store, source = way.open()
    np.testing.assert_array_equal(read(store, source), BYTES[START:STOP])
    way.delete()
    with pytest.raises(StorageError, match=rf"cannot read bytes \[{START}, {STOP}\) of {source}: there is no such"):
        read(store, source)


# ---- servers and processes that come and go ----


class Watched(Patience):
    """Tells when the first attempt has failed."""

    def pause_seconds(self, attempts: int) -> float:
        failed.set()
        return super().pause_seconds(attempts)


failed = threading.Event()


def test_a_server_that_is_stopped_and_started_again_is_waited_for(way):
    failed.clear()
    watched = Watched(deadline_seconds=60.0, stall_seconds=1.0, first_pause_seconds=0.001, longest_pause_seconds=0.05)
    store, source = way.open(patience=watched)
    np.testing.assert_array_equal(read(store, source), BYTES[START:STOP])  # over a connection that will be dead
    way.proxy.refuse_connections()
    out = np.zeros(STOP - START, np.uint8)
    [transfer] = store.start([RangeRead(source, START, out)])
    assert failed.wait(SECONDS)
    way.proxy.accept_connections()
    transfer.wait()
    np.testing.assert_array_equal(out, BYTES[START:STOP])


def test_a_server_that_is_gone_is_an_error_when_the_deadline_is_over(way):
    store, source = way.open(patience=patience(deadline_seconds=0.3, stall_seconds=1.0))
    way.proxy.refuse_connections()
    with pytest.raises(
        StorageError, match=rf"cannot read bytes \[{START}, {STOP}\) of .*\n  gave up after \d+ attempt"
    ):
        read(store, source)


@pytest.mark.parametrize("fault", ["late-first-byte", "stall-in-body"])
def test_a_wait_for_a_stalled_server_ends_as_soon_as_nobody_wants_the_bytes(way, fault):
    store, source = way.open(patience=Patience())
    way.proxy.inject(fault, times=None)
    with pytest.raises(ReadCancelled), cancellable(lambda: bool(way.faults())):
        read(store, source)


def test_a_fork_with_reads_in_flight_leaves_both_processes_their_own_right_bytes(way, environment, tmp_path):
    way.write(BYTES)
    script = """
        import json, os, sys
        import numpy as np
        from headrace.storage import RangeRead, Store

        given = json.loads(sys.argv[1])
        store = Store(storage_options=given["options"], direct=given["direct"])
        [source] = store.open([given["url"]])
        expected = np.fromfile(given["expected"], np.uint8)
        out = np.zeros((4, 5_000), np.uint8)
        transfers = store.start([RangeRead(source, 5_000 * i, row) for i, row in enumerate(out)])
        sys.stdin.readline()  # they are all in flight
        child = os.fork()
        if child == 0:
            mine = np.zeros((9, 5_000), np.uint8)
            store.read_ranges([RangeRead(source, 5_000 * i, row) for i, row in enumerate(mine)])
            os._exit(0 if (mine.ravel() == expected[:45_000]).all() and not out.any() else 1)
        print("child", os.waitpid(child, 0)[1], flush=True)
        for transfer in transfers:
            transfer.wait()
        print("parent", int((out.ravel() != expected[:20_000]).sum()), flush=True)
    """
    BYTES.tofile(tmp_path / "expected")
    given = {
        "options": way.options,
        "direct": way.is_fast,
        "url": way.url,
        "expected": str(tmp_path / "expected"),
    }
    release = threading.Event()
    way.proxy.inject("late-first-byte", times=4, after=1 if way.is_fast else 0, release=release)
    command = [sys.executable, "-c", textwrap.dedent(script), json.dumps(given)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        try:
            assert way.proxy.wait_for(lambda log: len(way.faults()) == 4)
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "child 0\n"
            release.set()
            assert process.stdout.readline() == "parent 0\n"
        finally:
            release.set()
            process.kill()
