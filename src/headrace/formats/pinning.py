"""Opens many files: what is read of them later is of just the versions that they have now."""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias, TypeVar

from headrace.errors import StorageError
from headrace.formats.local_pin import LocalPin
from headrace.formats.progress import Progress
from headrace.storage import Store, StoredObject

# A file, local or in a store, as it was when it was opened; `str` names either.
Place: TypeAlias = LocalPin | StoredObject
Given = TypeVar("Given")
Done = TypeVar("Done")

_AT_ONCE = 256
# Few local files are looked at faster without threads.
_FEW = 16
_THREADS = 8


def place_bytes(place: Place) -> int:
    """The length of a file or object."""
    return place.file_bytes if isinstance(place, LocalPin) else place.object_bytes


def pin_files(places: Sequence[str], store: Store, *, stored: bool) -> list[Place]:
    """Pins files, all of them local or all stored, many at once.

    Raises:
        DependencyError: A store needs a package that is missing.
        StorageError: One cannot be opened.
    """
    pinned: list[Place] = []
    with Progress(len(places), "opening files") as progress:
        if not stored:
            for pin in in_threads(_pin, places):
                pinned.append(pin)
                progress.add(1)
            return pinned
        for first in range(0, len(places), _AT_ONCE):
            some = places[first : first + _AT_ONCE]
            pinned += store.open(some)
            progress.add(len(some))
    return pinned


def in_threads(work: Callable[[Given], Done], on: Sequence[Given]) -> Iterator[Done]:
    """The results in order; the first error of that order is raised, and what hasn't begun by then is left."""
    if len(on) <= _FEW:
        yield from map(work, on)
        return
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="headrace-open") as pool:
        try:
            yield from pool.map(work, on)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _pin(path: str) -> LocalPin:
    try:
        status = os.stat(path)
    except OSError as error:
        raise StorageError(f"cannot open {path}: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise StorageError(f"cannot open {path}: it is not a regular file")
    return LocalPin.of(path, status)
