"""Locks: one holder among all threads and processes, none that outlives its process."""

import contextlib
import itertools
import os

import pytest

from headrace.storage.file_lock import FileLock, LockPatience, take_lock
from tests.storage.checked_cache import run_threads


def test_a_lock_has_one_holder_among_threads(tmp_path):
    path, holders, most = str(tmp_path / "lock"), [], []

    def work(number):
        for _ in range(200):
            lock = take_lock(path)
            if lock is not None:
                holders.append(number)
                most.append(len(holders))
                holders.remove(number)
                lock.close()

    run_threads(4, work)
    assert set(most) == {1}


@pytest.mark.parametrize("replace", [False, True])
def test_a_lock_on_a_file_that_has_left_its_path_is_none(tmp_path, monkeypatch, replace):
    path = tmp_path / "lock"
    opened = FileLock.__init__

    def open_and_lose(self, *arguments, **options):
        opened(self, *arguments, **options)
        path.unlink()
        if replace:
            path.touch()

    with monkeypatch.context() as patch:
        patch.setattr(FileLock, "__init__", open_and_lose)
        assert take_lock(str(path)) is None
    with take_lock(str(path)) as lock:
        assert lock is not None


def test_locks_are_closed_in_the_end_and_never_given_to_other_programs(tmp_path):
    with contextlib.ExitStack() as stack:
        locks = [stack.enter_context(take_lock(str(tmp_path / str(number)))) for number in range(3)]
        assert not any(os.get_inheritable(lock.fd) for lock in locks)
    for lock in locks:
        lock.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(lock.fd)


def test_patience_looks_once_at_least():
    assert list(itertools.islice(LockPatience(patience_seconds=0).attempts(), 5)) == [None]
