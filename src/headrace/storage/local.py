"""Local files, open for reading: mapped where the address space allows, else read at positions.

Guarantees:
    - Everything may be called from any number of threads at once; there are no locks, so a forked child has none to
      inherit.
    - Whoever holds a LocalFile, or an array that `map` returned, keeps the file open and the map in place; both go with
      the last reference, never while a gather runs.
    - Mapped pages are clean file pages: the kernel takes them back whenever memory is short.
"""

import mmap
import os
import resource
import stat
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from headrace.errors import StorageError
from headrace.storage.faults import Fault, Refused
from headrace.storage.objects import StoredObject
from headrace.storage.transfers import Part, Probe

# The kernel cuts one request down to its read-ahead, 128 KiB unless configured otherwise.
_ADVICE_BYTES = 128 << 10
_PAGE_BYTES = mmap.PAGESIZE
_CAN_ADVISE = hasattr(os, "posix_fadvise") and hasattr(mmap, "MADV_RANDOM")
_CAN_PROBE = hasattr(os, "preadv") and hasattr(os, "RWF_NOWAIT")


class LocalFile:
    """One file, open for reading until the last reference to it goes.

    Attributes:
        path: The file.
        opened_bytes: Its size when it was opened.
        mapped: uint8 (opened_bytes,), the file's bytes; None where they are read at positions.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = open_to_read(path)
        weakref.finalize(self, os.close, self._fd).atexit = False
        self.opened_bytes = os.fstat(self._fd).st_size
        self._map = map_file(self._fd, self.opened_bytes)
        self.mapped = None if self._map is None else np.frombuffer(self._map, np.uint8)
        self._reads_ahead = True

    def check_size(self) -> None:
        """Raises StorageError where the file has shrunk since it was opened.

        Touching a mapped page beyond the end would kill the process.
        """
        check_size(self._fd, self.path, self.opened_bytes)

    def status(self) -> os.stat_result:
        """How the open file looks now, whatever has its name."""
        return os.fstat(self._fd)

    def read_into(self, out: npt.NDArray[np.uint8], offset: int) -> None:
        """Fills `out`, uint8 (bytes,), with the bytes [offset, offset + len(out))."""
        read_at(self._fd, out, offset, path=self.path, opened_bytes=self.opened_bytes)

    def will_need(self, offsets: npt.NDArray[np.int64], length_bytes: int) -> None:
        """Asks the kernel to start reading [offset, offset + length_bytes) for each offset, and doesn't wait.

        Args:
            offsets: int64 (ranges,), in any order.
            length_bytes: The bytes of each range.
        """
        ask_for(self._fd, offsets, length_bytes)

    def read_ahead(self, *, wanted: bool) -> None:
        """Says whether the kernel should read beyond what is touched: right for sequential reads only."""
        if wanted != self._reads_ahead and _CAN_ADVISE:
            self._reads_ahead = wanted
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_NORMAL if wanted else os.POSIX_FADV_RANDOM)
            if self._map is not None:
                self._map.madvise(mmap.MADV_NORMAL if wanted else mmap.MADV_RANDOM)

    def is_resident(self, offset: int) -> bool | None:
        """Whether the byte at `offset` is in memory; None where the system can't tell.

        Asks by a read that must not wait, which unlike `mincore` is also answered for other users' files. A byte that
        is missing may be read meanwhile.
        """
        return is_byte_resident(self._fd, offset)


def open_to_read(path: Path | str, flags: int = 0) -> int:
    """Returns a descriptor, for the caller to close.

    Raises:
        StorageError: The file cannot be opened.
    """
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    except OSError as error:
        raise StorageError(f"cannot open {path}: {error.strerror}") from error


def check_size(fd: int, path: Path, opened_bytes: int) -> None:
    """Raises StorageError where the open file has less than `opened_bytes`."""
    now_bytes = os.lseek(fd, 0, os.SEEK_END)  # a third of fstat's time; nothing here uses the position
    if now_bytes < opened_bytes:
        raise StorageError(
            f"{path} shrank after it was opened: expected {opened_bytes} bytes, got {now_bytes}: "
            "don't write into files that are being read; write a new one and rename it"
        )


def read_at(fd: int, out: npt.NDArray[np.uint8], offset: int, *, path: Path, opened_bytes: int) -> None:
    """Fills `out`, uint8 (bytes,), with the bytes [offset, offset + len(out)) of an open file.

    Raises:
        StorageError: It ends before that, having shrunk below `opened_bytes` or not.
    """
    view = out.data
    while view:
        count = os.preadv(fd, [view], offset)
        if count == 0:
            check_size(fd, path, opened_bytes)
            raise StorageError(f"{path}: expected {len(view)} bytes more at byte {offset}, got the file's end")
        view, offset = view[count:], offset + count


def ask_for(fd: int, offsets: npt.NDArray[np.int64], length_bytes: int) -> None:
    """Asks the kernel to start reading [offset, offset + length_bytes) for each of int64 (ranges,); doesn't wait."""
    if not _CAN_ADVISE:
        return
    for start, stop in page_runs(offsets, length_bytes):
        for piece in range(start, stop, _ADVICE_BYTES):
            os.posix_fadvise(fd, piece, min(_ADVICE_BYTES, stop - piece), os.POSIX_FADV_WILLNEED)


def is_byte_resident(fd: int, offset: int) -> bool | None:
    """Whether the byte at `offset` of an open file is in memory; None where the system can't tell."""
    if not _CAN_PROBE:
        return None
    try:
        return os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False
    except OSError:
        return None


def map_file(fd: int, file_bytes: int) -> mmap.mmap | None:
    """Maps a whole file for reading; None where it is empty, can't be mapped, or would crowd out the program."""
    if not is_mappable(file_bytes):
        return None
    try:
        if sys.version_info >= (3, 13):
            return mmap.mmap(fd, file_bytes, access=mmap.ACCESS_READ, trackfd=False)
        return mmap.mmap(fd, file_bytes, access=mmap.ACCESS_READ)
    except (OSError, MemoryError, ValueError):  # ValueError: it has shrunk meanwhile
        return None


def is_mappable(file_bytes: int) -> bool:
    """Whether there is anything to map, and room for it."""
    return 0 < file_bytes <= mappable_bytes()


def mappable_bytes() -> int:
    """What may still be mapped: under a limit on the address space (`ulimit -v`), half of it is left to the program."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    try:
        used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE_BYTES
    except OSError:
        return 0
    return soft // 2 - used_bytes


def page_runs(offsets: npt.NDArray[np.int64], length_bytes: int) -> list[tuple[int, int]]:
    """The byte ranges as sorted runs of whole pages [start, stop), neighbours joined.

    >>> page_runs(np.array([9000, 0, 4096]), 100)
    [(0, 12288)]
    """
    offsets = np.sort(offsets)
    starts = offsets // _PAGE_BYTES * _PAGE_BYTES
    stops = -(-(offsets + length_bytes) // _PAGE_BYTES) * _PAGE_BYTES
    first = np.flatnonzero(np.append(True, starts[1:] > stops[:-1]))
    last = np.append(first[1:], len(offsets)) - 1
    return list(zip(starts[first].tolist(), stops[last].tolist(), strict=True)) if len(offsets) else []


def read_bytes(path: Path, offset: int, length_bytes: int) -> tuple[bytes, int]:
    """Returns the bytes [offset, offset + length_bytes) of a file, fewer at its end, and the file's size.

    Raises:
        StorageError: The file cannot be opened or read.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            return os.pread(file.fileno(), length_bytes, offset), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error


class LocalRanges:
    """Reads ranges of local files at positions, one attempt at a time; safe from any thread."""

    def probe(self, probe: Probe) -> StoredObject:
        """The file's length and time of change.

        Raises:
            Refused: It can't be opened, or is no file.
        """
        try:
            with open(probe.url, "rb", buffering=0, opener=_open_at_once) as file:
                status = os.fstat(file.fileno())
        except OSError as error:
            raise Refused(error.strerror or type(error).__name__) from None
        if not stat.S_ISREG(status.st_mode):
            raise Refused("it is not a regular file")
        return _pinned(probe.url, status)

    def read(self, part: Part) -> None:
        """Reads what is missing of a part.

        Raises:
            Fault: The disk failed.
            Refused: The file is gone or has changed.
        """
        read = part.read
        memory = read.out.data
        try:
            with open(read.source.url, "rb", buffering=0) as file:
                now = _pinned(read.source.url, os.fstat(file.fileno()))
                if now != read.source:
                    raise Refused(
                        f"it has changed since it was opened: expected {read.source.object_bytes} bytes, "
                        f"{read.source.version}, got {now.object_bytes} bytes, {now.version}"
                    )
                while part.arrived < len(memory):
                    count = os.preadv(file.fileno(), [memory[part.arrived :]], read.offset + part.arrived)
                    if count == 0:
                        raise Fault("ended-early", f"it ended at byte {read.offset + part.arrived}", at_most=2)
                    part.arrived += count
        except FileNotFoundError as error:
            raise Refused(error.strerror or "there is no such file") from None
        except OSError as error:
            raise Fault("disk", error.strerror or type(error).__name__, at_most=3) from None


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe would wait for its writer


def _pinned(path: str, status: os.stat_result) -> StoredObject:
    return StoredObject(path, status.st_size, f"mtime {status.st_mtime_ns}")


Opened = TypeVar("Opened")


class OpenFiles(Generic[Opened]):
    """Files opened when first asked for and kept open, a bounded number of them: the first opened leaves first.

    Args:
        open_file: Opens file `number`.
        limit: How many stay open.
    """

    def __init__(self, open_file: Callable[[int], Opened], limit: int | None = None) -> None:
        self._open_file = open_file
        self._limit = open_limit() if limit is None else limit
        self._opened: dict[int, Opened] = {}

    def __getitem__(self, number: int) -> Opened:
        opened = self._opened.get(number)
        if opened is None:
            # Two threads may open the same file at once; the later one stays, the other ends with its read.
            opened = self._opened[number] = self._open_file(number)
            for oldest in list(self._opened)[: -self._limit]:
                self._opened.pop(oldest, None)
        return opened

    def __len__(self) -> int:
        return len(self._opened)

    @property
    def limit(self) -> int:
        """How many stay open."""
        return self._limit

    def opened(self) -> list[tuple[int, Opened]]:
        """Those that are open now, and their numbers."""
        return list(self._opened.items())


def open_limit() -> int:
    """How many files one source keeps open: an eighth of what the process may, at two descriptors each."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(8, min(1024, soft // 16))
