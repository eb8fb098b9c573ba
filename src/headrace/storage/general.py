"""Ranges of whatever fsspec opens, by its `cat_file`, with every answer's length and the object's version checked.

Guarantees: one `FsspecRanges` belongs to one process and may be used from any thread. Filesystems that aren't
asynchronous are used by one thread at a time.
"""

import contextlib
import errno
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from headrace.errors import HeadraceError
from headrace.storage.access import Filesystems
from headrace.storage.cancellation import ReadCancelled
from headrace.storage.faults import AGAIN, MISFITS, Fault, Patience, Refused
from headrace.storage.objects import StoredObject
from headrace.storage.transfers import Part, Probe, Work

# Of what filesystems tell about a file, what changes with its content.
_VERSIONS = (
    "ETag",
    "etag",
    "md5Hash",
    "content_md5",
    "checksum",
    "mtime",
    "LastModified",
    "last_modified",
    "Last-Modified",
    "modified",
    "created",
)
# A request may take this much longer for each byte: it can't be seen whether it goes on.
_SLOWEST_BYTES_PER_SECOND = 1 << 20


class FsspecRanges:
    """Reads ranges through a filesystem's own client."""

    def __init__(self, filesystems: Filesystems, patience: Patience, count: Callable[[str, int], None]) -> None:
        self._filesystems, self._patience, self._count = filesystems, patience, count
        self._turn = threading.Lock()

    def probe(self, probe: Probe) -> StoredObject:
        """Asks for an object's length and version.

        Raises:
            Fault: Another attempt may do better.
            Refused: None will.
        """
        with self._translated(), probe.abortable(lambda: probe.release(ReadCancelled())):
            fs, path = self._filesystems.resolve(probe.url)
            info = self._info(fs, path, probe)
        if info.get("type") == "directory":
            raise Refused("it is a folder")
        if not isinstance(info.get("size"), int):
            raise Refused("the filesystem doesn't tell its length")
        return StoredObject(probe.url, info["size"], _version(info))

    def read(self, part: Part) -> None:
        """Reads a part, and makes sure that the object was still the same afterwards.

        Raises:
            Fault: The attempt failed.
            Refused: No attempt will do better.
        """
        read = part.read
        # Its memory isn't touched while the client works, so whoever gives up needs not wait for a client that hangs.
        with self._translated(), part.abortable(lambda: part.release(ReadCancelled())):
            fs, path = self._filesystems.resolve(read.source.url)
            data = self._cat(fs, path, read.offset, read.stop, part)
            self._check_unchanged(read.source, self._info(fs, path, part))
            if len(data) != len(read.out):
                raise _misfit(data, len(read.out), read.source.object_bytes)
        part.write(data)
        self._count("received_bytes", len(data))

    def _check_unchanged(self, source: StoredObject, info: Mapping[str, Any]) -> None:
        # The answer can't be tied to a version. But if it was of a newer one, that one is there now.
        if (info.get("size"), _version(info)) != (source.object_bytes, source.version):
            raise Refused(
                f"it has changed since it was opened: expected {source.object_bytes} bytes, {source.version}, "
                f"got {info.get('size')} bytes, {_version(info)}"
            )

    def _info(self, fs: Any, path: str, work: Work) -> Mapping[str, Any]:
        self._count("requests", 1)
        # listings are kept by the filesystem, and may be old
        if fs.async_impl:
            fs.invalidate_cache()
            seconds = _at_most(self._patience.stall_seconds, work)
            return dict(self._awaited(fs, fs._info, path, seconds=seconds))  # noqa: SLF001
        with self._turn:
            fs.invalidate_cache()
            return dict(fs.info(path))

    def _cat(self, fs: Any, path: str, start: int, stop: int, work: Work) -> bytes:
        self._count("requests", 1)
        if fs.async_impl:
            seconds = self._patience.stall_seconds * (1 + work.attempts) + (stop - start) / _SLOWEST_BYTES_PER_SECOND
            seconds = _at_most(seconds, work)
            return bytes(self._awaited(fs, fs._cat_file, path, start=start, end=stop, seconds=seconds))  # noqa: SLF001
        with self._turn:
            return bytes(fs.cat_file(path, start=start, end=stop))

    def _awaited(self, fs: Any, call: Callable[..., Any], *arguments: Any, seconds: float, **options: Any) -> Any:
        """What the filesystem's own `sync` does, with an end to it."""
        from fsspec.asyn import sync

        return sync(fs.loop, call, *arguments, timeout=seconds, **options)

    @contextlib.contextmanager
    def _translated(self):  # type: ignore[no-untyped-def]
        """Says of every exception of a filesystem whether another attempt may do better."""
        try:
            yield
        except (Fault, Refused, HeadraceError):
            raise
        except Exception as error:  # noqa: BLE001 (clients raise whatever they like)
            raise self._meaning(error) from None

    def _meaning(self, error: Exception) -> Exception:
        said = self._filesystems.said(error)
        status = getattr(error, "status", None)
        if isinstance(error, FileNotFoundError | IsADirectoryError) or status in (404, 410):
            return Refused(f"there is no such object: {said}")
        if isinstance(error, PermissionError) or status in (401, 403):
            if "expired" in str(error).lower():
                self._filesystems.forget()
                return Fault("resigned", said, at_most=MISFITS)
            return Refused(f"no permission to read it: {said}")
        is_beyond = isinstance(error, OSError) and error.errno == errno.EINVAL and "range" in said.lower()
        if status == 416 or is_beyond:
            return Refused(f"it is shorter than when it was opened: {said}")
        if status == 400:  # aiohttp says so too of an answer that it can't read
            return Fault("bad-request", said, at_most=MISFITS)
        if isinstance(status, int) and 400 < status < 500 and status not in AGAIN:
            return Refused(said)
        if isinstance(error, NotImplementedError | TypeError | AttributeError):
            return Refused(f"the filesystem can't do it: {said}")
        throttled = "SlowDown" in str(error) or status in (429, 503)
        return Fault("general", said, throttled=throttled)


def _at_most(seconds: float, work: Work) -> float:
    return max(min(seconds, work.ends - time.monotonic()), 0.001)


def _misfit(data: bytes, expected_bytes: int, object_bytes: int) -> Fault:
    if len(data) == object_bytes:
        return Fault("range-ignored", f"expected {expected_bytes} bytes, got the whole object", at_most=MISFITS)
    return Fault("wrong-length", f"expected {expected_bytes} bytes, got {len(data)}")


def _version(info: Mapping[str, Any]) -> str:
    return next((f"{name} {info[name]}" for name in _VERSIONS if info.get(name)), "")
