"""Where shards are written: a local folder, or any store that fsspec writes to.

Guarantees: what has a shard's name is a whole shard. A local one is written under a hidden name in the same folder,
`.<name>.<random>.part`, forced to disk and renamed; a stored one is written to a temporary folder and uploaded as one
object. Only a process that is killed leaves a part behind.
"""

import contextlib
import os
import re
import secrets
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from headrace.errors import ArgumentError, HeadraceError, StorageError
from headrace.formats.local_pin import LocalPin
from headrace.formats.tar_index_building import build_index
from headrace.formats.tar_index_file import save_index, version_of
from headrace.formats.tar_scanning import Scanning
from headrace.formats.tar_shards import index_beside, open_tar_index
from headrace.formats.tar_table import ShardScan
from headrace.storage import Store, StoredObject, is_url, protocol_of, shown
from headrace.storage.access import HTTP, Filesystems, without_causes
from headrace.storage.urls import links_of

_NAME = re.compile(r"([^%]*)%0([1-9][0-9]?)d([^%]*)\.tar")
# What begins as a URL does, without its "://"; "C:/" is none
_HALF_URL = re.compile(r"(file(?=:)|[A-Z][A-Z0-9+.\-]+(?=:/)):(.*)", re.IGNORECASE | re.DOTALL)
# Stores in which an object is there as a whole or not at all. Elsewhere it is uploaded under another name, and moved.
_WHOLE_OBJECTS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "hf"}


def destination_of(pattern: str, storage_options: Mapping[str, Any], *, overwrite: bool) -> "Destination":
    """Where a pattern's shards go.

    Raises:
        ArgumentError: The pattern names no shards, or no place that can be written to.
    """
    if not is_url(pattern):
        _check_path(pattern)
        return LocalDestination(os.path.abspath(os.path.expanduser(pattern)), overwrite=overwrite)
    if len(links_of(pattern)) > 1 or protocol_of(pattern) in HTTP:
        raise ArgumentError(
            f"pattern: expected a local path, or the URL of a store that can be written to, got {shown(pattern)}"
        )
    if protocol_of(pattern) == "file":
        return LocalDestination(os.path.abspath(pattern.split("://", 1)[1]), overwrite=overwrite)
    return StoredDestination(pattern, storage_options, overwrite=overwrite)


def _check_path(pattern: str) -> None:
    """Refuses a URL that lacks slashes: it would name a folder "file:", or "s3:"."""
    if found := _HALF_URL.fullmatch(pattern):
        scheme, rest = found.groups()
        url = shown(f"{scheme}://{rest.lstrip('/')}")
        instead = rest if scheme.lower() == "file" else url
        raise ArgumentError(
            f"pattern: expected a local path, or a URL with '://', got one with {scheme + ':'!r} alone: "
            f"write {instead!r} (a str: pathlib drops a slash of URLs), or begin with './' where that is a name"
        )


class Destination(ABC):
    """A place for the shards of one pattern; a context manager.

    Attributes:
        folder: All before the names of the shards, with the "/" at its end.
        written: The shards that are there, whole.
        overwrite: Whether shards of the same name are replaced.
    """

    def __init__(self, pattern: str, *, overwrite: bool) -> None:
        self.folder, slash, name = pattern.rpartition("/")
        self.folder += slash
        found = _NAME.fullmatch(name)
        if found is None or re.search(r"%[0-9]*d", self.folder) or set("{}*?[]") & set(name):
            raise ArgumentError(
                "pattern: expected the name of an uncompressed tar with one number of fixed width in it, such as "
                f"'train-%06d.tar', and none in folders, got {shown(pattern)!r}"
            )
        self._pattern = pattern
        self._head, self._width, self._tail = found[1], int(found[2]), f"{found[3]}.tar"
        self.written: list[str] = []
        self.overwrite = overwrite

    def __str__(self) -> str:
        return shown(self._pattern)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def existing(self) -> list[str]:
        """The shards of this pattern that are there, sorted."""
        name = re.compile(f"{re.escape(self._head)}[0-9]{{{self._width}}}{re.escape(self._tail)}")
        return [f"{self.folder}{one}" for one in sorted(self._names()) if name.fullmatch(one)]

    def next_name(self) -> str:
        """The path or URL of the shard that comes next.

        Raises:
            ArgumentError: The pattern has no number for it.
        """
        number = len(self.written)
        if number >= 10**self._width:
            raise ArgumentError(
                f"{self}: expected at most {number} shards, which have numbers of {self._width} digits, got more: give "
                "the number more digits, or make the shards larger"
            )
        return f"{self.folder}{self._head}{number:0{self._width}d}{self._tail}"

    @abstractmethod
    def _names(self) -> Sequence[str]:
        """The names of what is in the folder."""

    @abstractmethod
    def part_of(self, name: str) -> str:
        """The path under which a shard is written at first."""

    @abstractmethod
    def publish(self, part: str, name: str) -> None:
        """Puts what was written in its place, in one step, and counts it among those that are written."""

    def delete_former(self, names: Sequence[str]) -> None:
        """Deletes what is left over of a former set of shards, its index too."""
        left_over = [name for name in names if name not in set(self.written)]
        if set(names) != set(self.written) and (index := self._index_of(names)) is not None:
            left_over.append(index)
        for name in left_over:
            self._delete(name)

    @abstractmethod
    def _index_of(self, names: Sequence[str]) -> str | None:
        """Where the index of these shards lies, if it is there."""

    @abstractmethod
    def _delete(self, name: str) -> None:
        """Deletes one file or object."""

    @abstractmethod
    def write_index(self) -> None:
        """Puts the index of what was written beside it."""


class LocalDestination(Destination):
    """A folder, which is made where it isn't there."""

    def _names(self) -> Sequence[str]:
        with writing(self.folder):
            os.makedirs(self.folder, exist_ok=True)
            return os.listdir(self.folder)

    def part_of(self, name: str) -> str:
        folder, _, base = name.rpartition("/")
        return f"{folder}/.{base}.{secrets.token_hex(4)}.part"

    def publish(self, part: str, name: str) -> None:
        with writing(name):
            if self.overwrite:
                os.replace(part, name)
            else:
                _rename_to_new(part, name)
            self.written.append(name)
            folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                with contextlib.suppress(OSError):  # some file systems don't know how to
                    os.fsync(folder)
            finally:
                os.close(folder)

    def _index_of(self, names: Sequence[str]) -> str | None:
        index = index_beside([LocalPin(name, 0, 0, 0) for name in names])
        return index if index is not None and os.path.lexists(index) else None

    def _delete(self, name: str) -> None:
        with writing(name):
            os.unlink(name)

    def write_index(self) -> None:
        open_tar_index(self.written, Store())


def _rename_to_new(part: str, name: str) -> None:
    try:
        os.link(part, name)  # unlike a rename, it replaces nothing
    except FileExistsError:
        _refuse_existing(name)
    except OSError:  # a file system without links
        if os.path.lexists(name):
            _refuse_existing(name)
        os.rename(part, name)
    else:
        os.unlink(part)


def _refuse_existing(name: str) -> None:
    raise ArgumentError(
        f"{name}: expected no such file, since overwrite=True was not given, got one that was made meanwhile: do "
        "several processes write to the same pattern?"
    )


class StoredDestination(Destination):
    """A place in a store."""

    def __init__(self, pattern: str, storage_options: Mapping[str, Any], *, overwrite: bool) -> None:
        super().__init__(pattern, overwrite=overwrite)
        self._filesystems = Filesystems(storage_options)
        self._store = Store(storage_options=storage_options)
        self._is_whole = protocol_of(pattern) in _WHOLE_OBJECTS
        self._temporary = ""
        self._scans: list[ShardScan] = []
        self._places: list[StoredObject] = []

    def __enter__(self) -> Self:
        with writing(tempfile.gettempdir()):
            self._temporary = tempfile.mkdtemp(prefix="headrace-")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _names(self) -> Sequence[str]:
        with self._asking(f"cannot list {shown(self.folder)}"):
            fs, path = self._filesystems.resolve(self.folder)
            fs.invalidate_cache()
            try:
                found = fs.ls(path, detail=False)
            except FileNotFoundError:
                return []
            return [str(name).rstrip("/").rpartition("/")[2] for name in found]

    def part_of(self, name: str) -> str:
        return f"{self._temporary}/{name.rpartition('/')[2]}"

    def publish(self, part: str, name: str) -> None:
        # while it is at hand: from the store it would have to be read again
        scanning = Scanning(self._store, frozenset(), verify=True, keeps_decompressed=False)
        scan = scanning.scan(LocalPin.of(part, os.stat(part)), None)
        self._upload(part, name)
        self.written.append(name)
        os.unlink(part)
        # now: the index must not take what another may put there later for this
        [place] = self._store.open([name])
        if place.object_bytes != scan.file_bytes:
            raise StorageError(
                f"{place}: expected the {scan.file_bytes} bytes that were written, got {place.object_bytes}: do "
                "several processes write to the same pattern?"
            )
        self._scans.append(scan)
        self._places.append(place)

    def _upload(self, part: str, name: str, *, replace: bool = False) -> None:
        replace = replace or self.overwrite
        with self._asking(f"cannot write {shown(name)}"):
            fs, path = self._filesystems.resolve(name)
            fs.invalidate_cache()
            if not replace and fs.exists(path):
                _refuse_existing(shown(name))
            if self._is_whole:
                fs.put_file(part, path)
                return
            folder, _, base = path.rpartition("/")
            hidden = f"{folder}/.{base}.{secrets.token_hex(4)}.part"
            try:
                fs.makedirs(folder, exist_ok=True)
                fs.put_file(part, hidden)
                if replace and fs.exists(path):
                    fs.rm_file(path)
                fs.mv(hidden, path)
            except BaseException:
                with contextlib.suppress(Exception):
                    fs.rm_file(hidden)
                raise

    def _index_of(self, names: Sequence[str]) -> str | None:
        index = index_beside([StoredObject(name, 0) for name in names])
        return index if index is not None and index.rpartition("/")[2] in self._names() else None

    def _delete(self, name: str) -> None:
        with self._asking(f"cannot delete {shown(name)}"):
            fs, path = self._filesystems.resolve(name)
            fs.rm_file(path)

    def write_index(self) -> None:
        places = self._places
        url = index_beside(places)
        if url is not None and all(version_of(place) for place in places):
            path = f"{self._temporary}/index"
            with writing(path):
                save_index(Path(path), build_index(places, [None] * len(places), self._scans))
            self._upload(path, url, replace=True)

    @contextlib.contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """Makes a StorageError of whatever a client raises."""
        with without_causes():
            try:
                yield
            except HeadraceError:
                raise
            except Exception as error:  # noqa: BLE001 (clients raise whatever they like)
                raise StorageError(f"{what}: {self._filesystems.said(error)}") from None


@contextlib.contextmanager
def writing(name: str) -> Iterator[None]:
    """Makes a StorageError of what the disk says."""
    try:
        yield
    except HeadraceError:
        raise
    except OSError as error:
        raise StorageError(f"cannot write {shown(name)}: {error.strerror or error}") from error
