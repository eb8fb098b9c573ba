"""The disk cache between processes: killed at any moment, forked, short of room, and never a wrong byte."""

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from pathlib import Path

import pytest

from headrace.storage import cache as cache_module
from headrace.storage import cache_block, cache_budget, file_lock
from headrace.storage.cache import LEAST_BUDGET_BYTES
from headrace.storage.file_lock import take_lock
from tests.storage.checked_cache import OCCUPIED, Cache, files, occupied, only_file, part_of, run_threads, used_bytes

KILLS = 20
STEPS_A_KILL = 40
STORM_KEYS = 400
STORM_BLOCK_BYTES = 60_000

# Each step takes a byte from the pipe on standard input, so that the kills, not the processes' speed, decide how far
# they get; the pipe's end is the end.
STORM = """
import os, random, sys
from pathlib import Path
import numpy as np
from headrace.storage.cache import DiskCache

folder, log_path, budget, keys, block_bytes, seed = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
log = os.open(log_path, os.O_WRONLY | os.O_APPEND)
rng = random.Random(seed)
out = np.empty(block_bytes, np.uint8)

def say(word, key):
    os.write(log, f"{word} {key} {os.getpid()}\\n".encode())

def fetch():
    say("fetch", key)
    out[:] = expected

cache = DiskCache(Path(folder), budget)
while os.read(0, 1):
    key = rng.randrange(keys)
    expected = np.random.default_rng(key).integers(0, 256, block_bytes, np.uint8)
    cache.read_through(f"block {key}", out, fetch)
    say("right" if np.array_equal(out, expected) else "WRONG", key)
"""


def wait_until(condition, what: str, seconds: float = 100.0) -> None:
    """Looks every millisecond whether other processes have got so far."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain until {what}"
        time.sleep(0.001)


def stored_bytes(folder: Path) -> int:
    """What the disk holds for the cache's parts and blocks, at one moment: under the lock nothing grows or leaves."""
    taken = []
    wait_until(lambda: taken.append(take_lock(str(folder / "usage"))) or taken[-1], "the account is free")
    found = {}
    with taken[-1]:
        for path in files(folder):
            with contextlib.suppress(FileNotFoundError):  # a part that has become a block is found there
                stat = path.stat()
                found[stat.st_ino] = 512 * stat.st_blocks
    return sum(found.values())


@pytest.mark.parametrize("share", [None, 1 / 3], ids=["everything-fits", "a-third-fits"])
def test_processes_killed_at_random_leave_no_wrong_byte_keep_to_the_budget_and_fetch_nothing_twice(
    tmp_path, environment, share
):
    rng = random.Random(7)
    folder, log = tmp_path / "cache", tmp_path / "log"
    log.touch()
    whole = cache_budget.occupied_bytes(STORM_BLOCK_BYTES + cache_block.HEADER_BYTES) * STORM_KEYS
    budget = max(int(whole * share), LEAST_BUDGET_BYTES) if share else 2 * whole
    arguments = [str(folder), str(log), str(budget), str(STORM_KEYS), str(STORM_BLOCK_BYTES)]
    seeds = itertools.count()
    steps, give = os.pipe()
    killed, running = set(), []

    def start() -> None:
        command = [sys.executable, "-c", STORM, *arguments, str(next(seeds))]
        running.append(subprocess.Popen(command, env=environment, stdin=steps))

    def lines() -> list[list[str]]:
        whole_lines, _, _ = log.read_text().rpartition("\n")
        return [line.split() for line in whole_lines.splitlines()]

    try:
        for _ in range(4):
            start()
        for number in range(KILLS):
            so_far = len(lines()) + rng.randrange(1, STEPS_A_KILL)
            os.write(give, bytes(STEPS_A_KILL))
            wait_until(lambda: len(lines()) >= so_far, "steps are done")  # noqa: B023
            at_it = {pid for _, _, pid in lines()}
            victim = rng.choice([process for process in running if str(process.pid) in at_it])
            victim.kill()
            victim.wait()
            running.remove(victim)
            killed.add(str(victim.pid))
            assert stored_bytes(folder) <= budget, f"after {number + 1} kills"
            start()
        os.write(give, bytes(STEPS_A_KILL))
        os.close(give)
        assert [process.wait(timeout=100) for process in running] == [0] * 4
    finally:
        os.close(steps)
        for process in running:
            process.kill()
            process.wait()

    said = lines()
    assert {word for word, _, _ in said} == {"fetch", "right"}
    assert stored_bytes(folder) <= budget
    Cache(folder, budget / OCCUPIED).read("one more")
    assert used_bytes(folder) == occupied(folder) <= budget
    fetched = Counter(key for word, key, _ in said if word == "fetch")
    assert sum(fetched.values()) > KILLS
    if share is None:
        last = {pid: (word, key) for word, key, pid in said}
        in_flight = Counter(key for pid, (word, key) in last.items() if pid in killed and word == "fetch")
        assert max((fetched - in_flight).values()) == 1


CALLS = {
    os: ["open", "close", "fstat", "stat", "pread", "preadv", "pwrite", "ftruncate", "rename", "makedirs", "unlink"],
    file_lock.fcntl: ["flock"],
}


def die_before_call(number: int, monkeypatch) -> None:
    """Makes this process kill itself before its system call `number`."""
    calls = itertools.count()

    def counted(whole):
        def call(*arguments, **options):
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return whole(*arguments, **options)

        return call

    for module, names in CALLS.items():
        for name in names:
            monkeypatch.setattr(module, name, counted(getattr(module, name)))


def outcome_in_child(work) -> int:
    """Runs `work` in a forked process; returns how it ended: 0, or minus the signal."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - a child must not go on as a second pytest
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_process_killed_before_any_of_its_system_calls_harms_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "LEAST_BUDGET_BYTES", OCCUPIED)

    def work(folder, number):
        with pytest.MonkeyPatch.context() as patch:
            die_before_call(number, patch)
            cache = Cache(folder, blocks=3)
            for key in ("altered", "hit", "new", "newer", "newest"):  # of these five, three fit
                cache.read(key)

    for number in itertools.count():
        folder = tmp_path / str(number)
        if number % 2:  # else the folder is new
            earlier = Cache(folder, blocks=3)
            earlier.read("altered")
            data = only_file(folder).read_bytes()
            only_file(folder).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
            earlier.read("hit")
        ended = outcome_in_child(lambda: work(folder, number))  # noqa: B023
        assert ended in (0, -signal.SIGKILL)
        assert occupied(folder) <= min(3 * OCCUPIED, used_bytes(folder))
        later = Cache(folder, blocks=3)
        for key in ("newest", "altered", "hit", "new", "newer"):
            later.read(key)
            assert used_bytes(folder) >= occupied(folder)
            assert occupied(folder) <= 3 * OCCUPIED
        assert used_bytes(folder) == occupied(folder)
        assert list((folder / "parts").iterdir()) == []
        assert later.counts["cache_unwritten"] == 0
        if ended == 0:
            break
    assert number > 100


IDLE_CHILD = """
import os, sys
from headrace.storage.file_lock import take_lock

lock = take_lock(sys.argv[1])
if os.fork() == 0:
    print("forked", os.getpid(), flush=True)
    sys.stdin.read()
    os._exit(0)
os.wait()
"""


def test_the_claim_of_a_process_that_was_killed_is_not_kept_by_its_forked_child(tmp_path, environment):
    path = str(tmp_path / "claim")
    command = [sys.executable, "-c", IDLE_CHILD, path]
    parent = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with parent.stdin, parent.stdout:
        assert parent.stdout.readline().startswith("forked")
        assert take_lock(path) is None
        parent.kill()
        parent.wait()
        with take_lock(path) as lock:  # the child lives on: its standard input is still open
            assert lock is not None


def test_a_fork_while_threads_hold_claims_leaves_the_child_without_them_and_able_to_use_the_cache(tmp_path):
    folder = tmp_path / "cache"
    cache = Cache(folder)
    reached, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with take_lock(part_of(folder, "held")):
            reached.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    reached.wait()

    def work() -> None:
        assert file_lock._open == set()
        run_threads(2, lambda number: cache.read("a"))  # threads other than the one that forked
        assert take_lock(part_of(folder, "held")) is None

    assert outcome_in_child(work) == 0
    assert take_lock(part_of(folder, "held")) is None
    leave.set()
    thread.join()
    with take_lock(part_of(folder, "held")) as lock:
        assert lock is not None
    cache.read("a")
    assert cache.counts == {"cache_hits": 1}


def test_forks_at_any_moment_of_busy_threads_leave_children_that_work(tmp_path):
    cache = Cache(tmp_path / "cache", blocks=1000)
    done = threading.Event()

    def busy(number: int) -> None:
        for step in itertools.count():
            if done.is_set():
                return
            cache.read(f"thread {number} step {step % 100}")

    threads = [threading.Thread(target=busy, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        ended = [outcome_in_child(lambda: cache.read(f"child {number}")) for number in range(20)]  # noqa: B023
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert ended == [0] * 20
    assert cache.counts["cache_unwritten"] == 0
