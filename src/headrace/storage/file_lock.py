"""Locks between threads and processes: files, whose locks the kernel frees when a process dies, however it dies.

Guarantees:
    - One holder at a time among all threads and processes of the machine: each lock has an open file of its own, and
      `flock` lets open files, not processes, exclude each other. It is never waited for inside the kernel.
    - Fork: a child's copy of a descriptor would keep its dead parent's lock for as long as the child lives. Each
      descriptor is opened and registered in one step that no fork interrupts, and the child closes all registered
      ones first of all. Other programs that are started never have them (close on exec).
    - The one lock in memory guards that step. The thread that forks holds it, so the child finds it in order.
"""

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

# Opening and closing takes microseconds. Reentrant, for signal handlers that fork.
_opening = threading.RLock()
_open: set["FileLock"] = set()

# A block takes about 20 ms to fetch from a store nearby, and some seconds from one that is in trouble.
_FIRST_PAUSE_SECONDS = 0.005
_LONGEST_PAUSE_SECONDS = 0.05


def _let_go_in_child() -> None:
    for lock in _open:
        os.close(lock.fd)
    _open.clear()
    _opening.release()


os.register_at_fork(before=_opening.acquire, after_in_parent=_opening.release, after_in_child=_let_go_in_child)


class FileLock:
    """A file, open and locked until `close`, or until the process ends.

    Attributes:
        fd: Its descriptor, for reading and writing.
    """

    def __init__(self, path: str, *, create: bool) -> None:
        with _opening:
            self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600)
            _open.add(self)

    def close(self) -> None:
        """Unlocks and closes it; in a forked child, where it is closed already, does nothing."""
        with _opening:
            if self in _open:
                _open.remove(self)
                # Closing alone would unlock nothing while a child that was forked without Python's hooks has a copy.
                with contextlib.suppress(OSError):
                    fcntl.flock(self.fd, fcntl.LOCK_UN)
                os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def take_lock(path: str, *, create: bool = True) -> FileLock | None:
    """Returns the lock of the file that is at `path`, None where another has it, and doesn't wait.

    Args:
        path: The file.
        create: Whether to make it where it isn't there.

    Raises:
        OSError: It cannot be opened or locked.
    """
    lock = FileLock(path, create=create)
    taken = False
    try:
        fcntl.flock(lock.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between opening and locking, its former holder may have renamed or deleted it: a lock on what is no longer at
        # the path excludes nobody.
        taken = os.path.samestat(os.fstat(lock.fd), os.stat(path))
    except (BlockingIOError, FileNotFoundError):
        pass
    finally:
        if not taken:
            lock.close()
    return lock if taken else None


@dataclass(frozen=True)
class LockPatience:
    """How to wait for another process: by looking again, after 5 ms at first and every 50 ms later.

    Attributes:
        patience_seconds: How long in all.
        wait: Waits for so many seconds.
    """

    patience_seconds: float = 60.0
    wait: Callable[[float], object] = time.sleep

    def attempts(self, check: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Yields for each look, the first one at once; ends when the time is used up.

        Args:
            check: Called before each pause; raises to give up.
        """
        waited_seconds, pause_seconds = 0.0, _FIRST_PAUSE_SECONDS
        yield
        while waited_seconds < self.patience_seconds:
            check()
            self.wait(pause_seconds)
            waited_seconds += pause_seconds
            pause_seconds = min(2 * pause_seconds, _LONGEST_PAUSE_SECONDS)
            yield
