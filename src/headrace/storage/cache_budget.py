"""The disk cache's budget: how many bytes its files have, in one account for all processes, and who has to leave.

Guarantees:
    - The files never have more bytes than the budget, at any moment: a file gets its full length under the lock, after
      its bytes were added to `usage`, and only then is it written to.
    - Killed between any two system calls, a process may leave `usage` too high, never too low: bytes are added before a
      file grows, and subtracted after it has gone. Counting all files puts that right; each process does so before it
      keeps its first block, and whenever the budget seems used up.
    - Counting is exact though other processes rename parts to blocks meanwhile: parts are listed first, so that a file
      that has left `parts` is found in `blocks`. One that is found twice makes `usage` too high until the next time.
    - Parts of processes that died are deleted when files are counted: only who holds a part's lock may delete it.
    - A block that another reads while it is deleted stays readable to that one; deleting never waits.
    - Nothing waits while holding the lock of `usage`, so whoever waits for it, holding a part's lock, gets it.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from headrace.storage.file_lock import FileLock, LockPatience, take_lock

# The account is held for milliseconds, or for seconds while a large cache is counted.
_USAGE_SECONDS = 10.0
# Files are counted in whole pages, as file systems store them.
_PAGE_BYTES = 4096
# Counting costs about 3 us a file: making room for a tenth of the budget at once spreads that over many blocks.
_KEPT_SHARE = 0.9


def occupied_bytes(file_bytes: int) -> int:
    """What a file of this length takes of the budget.

    >>> occupied_bytes(0), occupied_bytes(1), occupied_bytes(4096)
    (0, 4096, 4096)
    """
    return -(-file_bytes // _PAGE_BYTES) * _PAGE_BYTES


class CacheBudget:
    """Keeps the files of one cache folder within a number of bytes, together with all other processes that use it.

    Args:
        folder: The cache's folder; `parts` and `blocks` are there.
        budget_bytes: The most that all files together may have.
        evicted: Called with how many blocks were deleted to make room.
        patience: How long to wait for another process that counts or deletes.
    """

    def __init__(self, folder: Path, budget_bytes: int, evicted: Callable[[int], None], patience: LockPatience) -> None:
        self.budget_bytes = budget_bytes
        self._usage, self._parts, self._blocks = (f"{folder}/{name}" for name in ("usage", "parts", "blocks"))
        self._evicted = evicted
        self._patience = replace(patience, patience_seconds=min(patience.patience_seconds, _USAGE_SECONDS))
        self._counted_by = 0

    def reserve(self, part: FileLock, file_bytes: int) -> None:
        """Gives a part its full length, within the budget; the least recently used blocks leave where they must.

        Raises:
            OSError: There is no room, or the disk failed.
        """
        with self._locked() as usage:
            # A part of a process that died has its length already.
            more_bytes = max(0, occupied_bytes(file_bytes) - occupied_bytes(os.fstat(part.fd).st_size))
            used_bytes = read_usage(usage.fd)
            if self._counted_by != os.getpid() or used_bytes + more_bytes > self.budget_bytes:
                used_bytes = self._make_room(more_bytes)
                self._counted_by = os.getpid()
                write_usage(usage.fd, used_bytes)
            if used_bytes + more_bytes > self.budget_bytes:
                raise OSError(errno.ENOSPC, f"its budget of {self.budget_bytes} bytes is taken by blocks being written")
            write_usage(usage.fd, used_bytes + more_bytes)
            os.ftruncate(part.fd, file_bytes)

    def remove(self, path: str) -> None:
        """Deletes a file that nobody else puts another in the place of, and gives its bytes back.

        Raises:
            OSError: It isn't there, or the disk failed.
        """
        file_bytes = os.stat(path).st_size
        if not file_bytes:
            os.unlink(path)
            return
        # All under the lock: had another counted in between, the bytes would be subtracted twice.
        with self._locked() as usage:
            os.unlink(path)
            write_usage(usage.fd, max(0, read_usage(usage.fd) - occupied_bytes(file_bytes)))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[FileLock]:
        for _ in self._patience.attempts():
            usage = take_lock(self._usage)
            if usage is not None:
                with usage:
                    yield usage
                return
        raise TimeoutError(f"another process holds {self._usage} for {self._patience.patience_seconds:g} s")

    def _make_room(self, more_bytes: int) -> int:
        """Counts all files, and deletes blocks where `more_bytes` do not fit; returns the bytes that there are then."""
        used_bytes = self._count_parts()
        blocks = sorted(self._list_blocks())
        used_bytes += sum(block_bytes for _, block_bytes, _ in blocks)
        if used_bytes + more_bytes <= self.budget_bytes:
            return used_bytes
        evicted = 0
        for _, block_bytes, path in blocks:
            if used_bytes + more_bytes <= _KEPT_SHARE * self.budget_bytes:
                break
            with contextlib.suppress(FileNotFoundError):  # only a person deletes without the lock
                os.unlink(path)
            used_bytes -= block_bytes
            evicted += 1
        if evicted:
            self._evicted(evicted)
        return used_bytes

    def _count_parts(self) -> int:
        """Deletes the parts that nobody is at, and returns what the others occupy."""
        used_bytes = 0
        for entry in os.scandir(self._parts):
            with contextlib.suppress(FileNotFoundError):  # it has become a block, or was given up
                part = take_lock(entry.path, create=False)
                if part is None:
                    used_bytes += occupied_bytes(os.stat(entry.path).st_size)
                    continue
                with part:
                    os.unlink(entry.path)
        return used_bytes

    def _list_blocks(self) -> Iterator[tuple[int, int, str]]:
        """Yields when each block was last used, what it occupies, and its path."""
        for folder in os.scandir(self._blocks):
            for entry in os.scandir(folder):
                with contextlib.suppress(FileNotFoundError):
                    stat = entry.stat()
                    yield stat.st_mtime_ns, occupied_bytes(stat.st_size), entry.path


def read_usage(fd: int) -> int:
    """The bytes that a `usage` file tells of; 0 where it is new."""
    return int.from_bytes(os.pread(fd, 8, 0), "little")


def write_usage(fd: int, used_bytes: int) -> None:
    """Writes what `read_usage` reads."""
    os.pwrite(fd, used_bytes.to_bytes(8, "little"), 0)
