"""A local file as it was when it was opened."""

import os
from dataclasses import dataclass

from headrace.errors import StorageError


@dataclass(frozen=True, slots=True)
class LocalPin:
    """One local file, pinned when it was opened: `check` makes sure that it is still that file. `str` is its path.

    Attributes:
        path: Its absolute path.
        file_bytes: Its length.
        mtime_ns: When it was written, in ns since 1970.
        inode: Its number in its filesystem: another file that is renamed into its place has another.
    """

    path: str
    file_bytes: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, path: str, status: os.stat_result) -> "LocalPin":
        """The pin of a file that looks like this."""
        return cls(path, status.st_size, status.st_mtime_ns, status.st_ino)

    def check(self, status: os.stat_result | None = None) -> None:
        """Makes sure that the file is still the one that was opened.

        Args:
            status: How it looks now, where that is known; by default it is looked up.

        Raises:
            StorageError: It is gone, or another file, or was written to.
        """
        if status is None:
            try:
                status = os.stat(self.path)
            except OSError as error:
                raise StorageError(f"cannot read {self.path}: {error.strerror}") from None
        now = LocalPin.of(self.path, status)
        if now != self:
            raise StorageError(
                f"{self.path} was replaced while it was being read: expected {_looks(self)}, got {_looks(now)}: "
                "leave files alone while they are read; write new ones under other names"
            )

    def __str__(self) -> str:
        return self.path


def _looks(pin: LocalPin) -> str:
    return f"{pin.file_bytes} bytes written at {pin.mtime_ns} ns (inode {pin.inode})"
