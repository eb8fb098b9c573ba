"""A cache on disk that all processes of a machine share: each block is fetched once, and read with its checksum.

    <folder>/headrace-cache.json  the layout's version
    <folder>/usage                int64, the bytes of all parts and blocks
    <folder>/parts/<name>         a block being fetched or written, locked by whoever is at it
    <folder>/blocks/<2>/<name>    a whole block

Who wants a block that isn't there claims it by locking its part, fetches it, writes it there and renames the part.
Others look again, in growing pauses, until the block is there, or until the claim is free because its holder failed or
died. `cache_block` is one block's file, `cache_budget` says who has to leave.

Guarantees:
    - Any number of threads and processes, forked ones too. No state but files; nothing of them stays open or locked
      after `read_through` has returned, and nothing is ever mapped: a damaged file is an error to handle, not a signal.
    - Killed between any two system calls, a process leaves whole blocks only. Its part stays, unlocked; the next one
      that wants the block takes it over, and counting the budget deletes it.
    - Only the holder of a claim makes, replaces or discards its block (making room aside), and it looks again after it
      has the claim: a block that another has kept meanwhile is read, not fetched; one that several find altered is
      discarded once, never its sound successor.
    - What is read has the length, key and CRC32 that were written; anything else is counted, discarded and fetched
      again. So nothing is forced to disk: a power cut costs blocks, not bytes that are wrong.
    - The CRC32 is computed before `filled` is called: `out` may be changed from then on, and a block that was written
      from changed memory is found by its checksum.
    - Whatever goes wrong with the disk, the caller gets its bytes; after `filled`, nothing is raised.
"""

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headrace.errors import ArgumentError, StorageError
from headrace.storage.cache_block import HEADER_BYTES, CachedBlock
from headrace.storage.cache_budget import CacheBudget, occupied_bytes, read_usage
from headrace.storage.checksum import crc32
from headrace.storage.file_lock import FileLock, LockPatience, take_lock
from headrace.storage.ranges import BLOCK_BYTES

_log = logging.getLogger("headrace")

LAYOUT = 1
_MARKER_NAME = "headrace-cache.json"
LEAST_BUDGET_BYTES = occupied_bytes(HEADER_BYTES + BLOCK_BYTES)
# When another process was waited for in vain, stopped perhaps, no block waits for one again for so long.
_STUCK_SECONDS = 60.0
# What the default budget leaves to others, who may have reckoned with it
_SPARE_BYTES = 5 * 10**9


def _nothing() -> None:
    pass


class DiskCache:
    """Blocks on disk, shared by all processes that name the same folder.

    The folder must be on a file system with `flock`, and is for one user: files get mode 0600, folders 0700.

    Args:
        folder: Where the files are; made where it isn't there.
        budget_bytes: The most that all files together may have; the least recently used blocks leave first. None: half
            of what is free or in the cache already, and never the last 5 GB.
        count: Called with a name and a number: `cache_hits`, `cache_misses` (fetched), `cache_altered` (of those, found
            damaged), `cache_evicted`, `cache_unwritten` (fetched, not kept).
        free_bytes: Returns how many bytes a folder's disk has left for this user.
        patience: How long to wait for a process that is at a block, before fetching it too without keeping it.

    Raises:
        ArgumentError: The budget is less than one block.
        StorageError: The folder cannot be written to, is of another layout, or its disk has no room for the default.
    """

    def __init__(
        self,
        folder: Path,
        budget_bytes: int | None = None,
        *,
        count: Callable[[str, int], None] = lambda _name, _number: None,
        free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
        patience: LockPatience = LockPatience(),  # noqa: B008 - frozen
    ) -> None:
        if budget_bytes is not None and budget_bytes < LEAST_BUDGET_BYTES:
            raise ArgumentError(
                f"cache_bytes: expected at least {LEAST_BUDGET_BYTES} (a block and its header), got {budget_bytes}"
            )
        self.folder = folder
        try:
            used_bytes = open_folder(folder)
            if budget_bytes is None:
                budget_bytes = default_budget_bytes(folder, used_bytes, free_bytes(folder))
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(
                f"cannot keep a cache in {folder}: {error.strerror or error}: expected a folder that this process may "
                "write to, on a file system with locks: give another cache_dir"
            ) from error
        self._count = count
        self._patience = patience
        self._budget = CacheBudget(folder, budget_bytes, lambda blocks: count("cache_evicted", blocks), patience)
        self._warned_in = 0
        self._claims_are_stuck_until = self._account_is_stuck_until = float("-inf")

    @property
    def budget_bytes(self) -> int:
        """The most that all files together may have."""
        return self._budget.budget_bytes

    def read_through(
        self,
        key: str,
        out: npt.NDArray[np.uint8],
        fetch: Callable[[], None],
        *,
        filled: Callable[[], None] = _nothing,
        check: Callable[[], None] = _nothing,
    ) -> None:
        """Fills `out` with a block: from the cache where it is there and sound, else by `fetch`, and then keeps it.

        Args:
            key: Names the block and its content: another version of it has another key.
            out: uint8 (bytes,), C-contiguous.
            fetch: Fills `out`. No other process does so for this key meanwhile, unless patience has ended. Its errors
                pass through, and the next one that wants the block may try.
            filled: Called once, as soon as `out` holds the block, before it is written to the disk.
            check: Called while waiting for another process; raises to give up.
        """
        block = CachedBlock.of(self.folder, key, len(out))
        for _ in self._patience.attempts(check):
            if block.read(out):
                self._count("cache_hits", 1)
                return filled()
            try:
                claim = take_lock(block.part)
            except OSError as error:
                return self._fetch_only(error, fetch, filled)
            if claim is not None:
                with claim:
                    return self._fill(claim, block, out, fetch, filled)
            if time.monotonic() < self._claims_are_stuck_until:
                break
        else:
            self._claims_are_stuck_until = time.monotonic() + _STUCK_SECONDS
        seconds = self._patience.patience_seconds
        return self._fetch_only(TimeoutError(f"another has been at it for {seconds:g} s"), fetch, filled)

    def _fill(
        self,
        claim: FileLock,
        block: CachedBlock,
        out: npt.NDArray[np.uint8],
        fetch: Callable[[], None],
        filled: Callable[[], None],
    ) -> None:
        """Does what `read_through` promises, with the claim, which it leaves without a part."""
        kept = False
        try:
            # Since the look that made us claim it, another may have kept it and ended its claim.
            sound = block.read(out)
            if sound:
                self._count("cache_hits", 1)
                filled()
                return
            if sound is False:
                self._count("cache_altered", 1)
                self._discard(block.path)
            fetch()
            self._count("cache_misses", 1)
            crc = crc32(out)
            filled()
            kept = self._keep(claim, block, out, crc)
        finally:
            if not kept:
                self._discard(block.part)

    def _fetch_only(self, reason: OSError, fetch: Callable[[], None], filled: Callable[[], None]) -> None:
        fetch()
        self._count("cache_misses", 1)
        filled()
        self._note_unwritten(reason)

    def _keep(self, claim: FileLock, block: CachedBlock, out: npt.NDArray[np.uint8], crc: int) -> bool:
        """Whether the block could be written to the claim's part and put in its place."""
        if time.monotonic() < self._account_is_stuck_until:
            self._count("cache_unwritten", 1)
            return False
        try:
            self._budget.reserve(claim, HEADER_BYTES + len(out))
            block.write(claim.fd, out, crc)
        except OSError as error:
            if isinstance(error, TimeoutError):
                self._account_is_stuck_until = time.monotonic() + _STUCK_SECONDS
            self._note_unwritten(error)
            return False
        return True

    def _discard(self, path: str) -> None:
        """Deletes a file that the claim's holder alone may delete; one that can't be is left to the next holder."""
        with contextlib.suppress(OSError):
            self._budget.remove(path)

    def _note_unwritten(self, error: OSError) -> None:
        self._count("cache_unwritten", 1)
        if self._warned_in != os.getpid():
            self._warned_in = os.getpid()
            _log.warning(
                "a block could not be kept in the cache %s: %s. Its bytes are right, but will be fetched again. "
                "Further such blocks are only counted (cache_unwritten)",
                self.folder,
                error.strerror or error,
            )


def kept_bytes(block_bytes: int) -> int:
    """What a block takes of the budget, with its header.

    >>> kept_bytes(1), kept_bytes(8 << 20)
    (4096, 8392704)
    """
    return occupied_bytes(HEADER_BYTES + block_bytes)


def open_folder(folder: Path) -> int:
    """Makes a cache's folders and files where they aren't there; returns the bytes of its files, by its own account.

    Raises:
        StorageError: It is of another layout.
        OSError: It cannot be written to, or not be locked.
    """
    os.makedirs(folder, 0o700, exist_ok=True)
    # In this order: who makes `blocks` has written the marker before.
    if os.path.lexists(folder / "blocks") and not os.path.lexists(folder / _MARKER_NAME):
        raise StorageError(
            f"cannot keep a cache in {folder}: expected an empty folder or a cache, got 'blocks' without "
            f"{_MARKER_NAME}: give another cache_dir"
        )
    fd = os.open(folder / _MARKER_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        text = os.pread(fd, 4096, 0)
        if not text:
            # New, or its maker was killed before this line. Two that write it at once write the same.
            text = json.dumps({"layout": LAYOUT}).encode()
            os.pwrite(fd, text, 0)
    finally:
        os.close(fd)
    check_layout(folder, text)
    for name in ("parts", "blocks"):
        os.makedirs(folder / name, 0o700, exist_ok=True)
        if not os.access(folder / name, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(f"{folder / name} may not be written to")
    usage = take_lock(f"{folder}/usage")  # fails where the file system has no locks
    if usage is not None:
        usage.close()
    with open(folder / "usage", "rb") as file:
        return read_usage(file.fileno())


def check_layout(folder: Path, text: bytes) -> None:
    """Raises StorageError where a marker's text is not that of this layout."""
    try:
        found = json.loads(text)["layout"]
    except (ValueError, LookupError, TypeError):
        found = repr(text[:40].decode(errors="replace"))
    if found != LAYOUT:
        raise StorageError(
            f"cannot use the cache in {folder}: expected layout {LAYOUT}, got {found} in {_MARKER_NAME}: "
            "give another cache_dir, or delete that folder"
        )


def default_budget_bytes(folder: Path, used_bytes: int, free_bytes: int) -> int:
    """Half of what is free or used already, so that every process finds about the same; never the last 5 GB."""
    room_bytes = used_bytes + free_bytes
    budget_bytes = min(room_bytes // 2, room_bytes - _SPARE_BYTES)
    if budget_bytes < LEAST_BUDGET_BYTES:
        raise StorageError(
            f"no room for a cache in {folder}: expected {LEAST_BUDGET_BYTES + _SPARE_BYTES} free bytes (a block, and "
            f"5 GB to spare), got {free_bytes} free and {used_bytes} in the cache: give another cache_dir or "
            "cache_bytes"
        )
    return budget_bytes
