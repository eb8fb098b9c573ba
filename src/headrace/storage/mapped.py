"""Local files that are mapped and not kept open: thousands at once, whatever the limit on descriptors.

Guarantees:
    - Everything may be called from any number of threads at once; there are no locks, so a forked child has none to
      inherit. A child has the maps of its parent, and what it lets go is unmapped in the child alone.
    - No descriptor outlives the call that opened it.
    - A map stays in place while any array views it, whether or not the MappedFile is still there, and goes with the
      last one, in whichever thread that is.
    - Mapped pages are clean file pages: the kernel takes them back whenever memory is short.
"""

import ctypes
import functools
import mmap
import os
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.errors import StorageError
from headrace.storage import local

_MAP_FAILED = ctypes.c_void_p(-1).value


class MappedFile:
    """One file, mapped for as long as its bytes are viewed, and opened anew for whatever else is asked of it.

    Attributes:
        path: The file.
        opened: How it looked when it was opened.
        opened_bytes: Its size then.
        mapped: uint8 (opened_bytes,), the file's bytes, read-only; None where they are read at positions.

    Raises:
        StorageError: The file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        fd = local.open_to_read(path)
        try:
            self._name = str(path.absolute())  # it is looked up again, perhaps from another working directory
            self.opened = os.fstat(fd)
            self.opened_bytes = self.opened.st_size
            self.mapped = map_untracked(fd, self.opened_bytes)
        finally:
            os.close(fd)

    def status(self) -> os.stat_result:
        """How the file looks now; as when it was opened, where its name leads to another file by now or to none.

        Nobody can write by that name into a file that was renamed over or unlinked; a change by another of its names
        shows no more. (The map keeps its inode's number from being given to another file. Where there is no map, a file
        made later may have that number; it shows by its time of change.)

        Raises:
            StorageError: The system doesn't say, so the file may have changed.
        """
        try:
            now = os.stat(self._name)
        except (FileNotFoundError, NotADirectoryError):
            return self.opened
        except OSError as error:
            raise StorageError(f"cannot look at {self.path}: {error.strerror}") from error
        return now if os.path.samestat(now, self.opened) else self.opened

    def read_into(self, out: npt.NDArray[np.uint8], offset: int) -> None:
        """Fills `out`, uint8 (bytes,), with the bytes [offset, offset + len(out)).

        Raises:
            StorageError: The file ends before that, cannot be opened again, or its name leads to another file.
        """
        with self._open_again() as fd:
            local.read_at(fd, out, offset, path=self.path, opened_bytes=self.opened_bytes)

    def will_need(self, offsets: npt.NDArray[np.int64], length_bytes: int) -> None:
        """Asks the kernel to start reading [offset, offset + length_bytes) for each offset, and doesn't wait.

        Where the file can't be opened again, nothing is asked.

        Args:
            offsets: int64 (ranges,), in any order.
            length_bytes: The bytes of each range.
        """
        with suppress(StorageError), self._open_again() as fd:
            local.ask_for(fd, offsets, length_bytes)

    def is_resident(self, offset: int) -> bool | None:
        """Whether the byte at `offset` is in memory; None where the system can't tell.

        Asks as `LocalFile.is_resident` does. A file that can't be opened again is one that it can't tell of.
        """
        try:
            with self._open_again() as fd:
                return local.is_byte_resident(fd, offset)
        except StorageError:
            return None

    @contextmanager
    def _open_again(self) -> Iterator[int]:
        """A descriptor of the very file that was opened; StorageError where its name leads elsewhere."""
        fd = local.open_to_read(self._name, os.O_NONBLOCK)  # if that is a pipe by now, it would wait for its writer
        try:
            now = os.fstat(fd)
            if not os.path.samestat(now, self.opened):
                raise StorageError(
                    f"cannot read {self.path}: another file has that name since it was opened: "
                    f"expected inode {self.opened.st_ino} of device {self.opened.st_dev}, "
                    f"got inode {now.st_ino} of device {now.st_dev}: don't replace files that are being read"
                )
            yield fd
        finally:
            os.close(fd)


def map_untracked(fd: int, file_bytes: int) -> npt.NDArray[np.uint8] | None:
    """Maps a whole file without keeping a descriptor: uint8 (file_bytes,), read-only; None as `local.map_file`."""
    if sys.version_info >= (3, 13):
        kept = local.map_file(fd, file_bytes)
        return None if kept is None else np.frombuffer(kept, np.uint8)
    return map_by_libc(fd, file_bytes)


def map_by_libc(fd: int, file_bytes: int) -> npt.NDArray[np.uint8] | None:
    """As `map_untracked`, for Python before 3.13, whose `mmap` keeps a copy of the descriptor with each map."""
    if not local.is_mappable(file_bytes):
        return None
    map_memory, unmap_memory = _libc()
    address = map_memory(None, file_bytes, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    if address == _MAP_FAILED:
        return None
    owner: object = _Owner(address, file_bytes)
    weakref.finalize(owner, unmap_memory, address, file_bytes).atexit = False
    mapped = np.asarray(owner, np.uint8)
    assert mapped.base is owner
    return mapped


class _Owner:
    """What numpy takes for the owner of a map: every array over it has this at the end of its chain of bases.

    The collector doesn't see through arrays, so this goes by its count alone, after the last of them; in a cycle of
    garbage it would be finalized before the `__del__` of a neighbour that may still read.
    """

    def __init__(self, address: int, length_bytes: int) -> None:
        self.__array_interface__ = {
            "version": 3,
            "data": (address, True),  # True: read-only
            "shape": (length_bytes,),
            "typestr": "|u1",
        }


@functools.cache
def _libc() -> tuple[Any, Any]:
    """The C library's `mmap` and `munmap`."""
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,  # off_t
    ]
    libc.munmap.restype = ctypes.c_int
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc.mmap, libc.munmap
