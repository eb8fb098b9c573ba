"""What a store holds, as it was when it was opened, and a range of it that is to be read."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.errors import ArgumentError
from headrace.storage.urls import shown


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object or file, pinned when it was opened: a read of anything else in its place is an error.

    `str` is its URL without credentials and query.

    Attributes:
        url: Its full URL, or the absolute path of a local file.
        object_bytes: Its length.
        version: What tells this content from other content under the same name: `ETag "..."`, `Last-Modified ...` or
            another date; "" where the store tells nothing.
    """

    url: str
    object_bytes: int
    version: str = ""

    def __str__(self) -> str:
        return shown(self.url)

    def __repr__(self) -> str:
        return f"StoredObject({shown(self.url)!r}, object_bytes={self.object_bytes}, version={self.version!r})"


class RangeRead:
    """A range of an object, to be read into memory that the caller owns.

    Attributes:
        source: The object.
        offset: The first byte.
        out: uint8 (bytes,), C-contiguous and writable: filled with the bytes [offset, offset + len(out)).
        keep: Whether a disk cache may keep it; it must then be one of the object's fixed blocks, with the same offset
            and length every time.
        crc32: The CRC32 that it must have, where that is known.
    """

    __slots__ = ("crc32", "keep", "offset", "out", "source")

    def __init__(
        self,
        source: StoredObject,
        offset: int,
        out: npt.NDArray[np.uint8],
        *,
        keep: bool = False,
        crc32: int | None = None,
    ) -> None:
        if out.dtype != np.uint8 or out.ndim != 1 or not out.flags.carray:
            raise ArgumentError(
                f"out: expected a writable C-contiguous uint8 array of one dimension, got {out.dtype} of {out.shape}"
            )
        if offset < 0 or offset + len(out) > source.object_bytes:
            raise ArgumentError(
                f"{source}: expected a range within its {source.object_bytes} bytes, got {offset}..{offset + len(out)}"
            )
        self.source, self.offset, self.out, self.keep, self.crc32 = source, offset, out, keep, crc32

    @property
    def stop(self) -> int:
        """The byte after the last."""
        return self.offset + len(self.out)

    def __str__(self) -> str:
        return f"bytes [{self.offset}, {self.stop}) of {self.source}"
