"""A store over a dict of bytes that records what it is asked for, and can be told to wait or to fail."""

import fnmatch
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from headrace.errors import ArgumentError, StorageError
from headrace.storage import RangeRead, StoredObject, Transfer
from headrace.storage.transfers import Part, TransferQueue
from headrace.storage.urls import expand_braces

BASE = "stand-in://bucket"


class StandInStore:
    """As `headrace.Store`, as far as sources need it.

    Attributes:
        objects: What is stored, by URL.
        has_cache: As it was told.
        asked: (URL, first byte, byte after the last, whether to keep it) of each range, in the order of asking.
        failing: URLs whose reads fail.
    """

    cache_dir = None

    def __init__(self, objects: Mapping[str, bytes], *, has_cache: bool = False, max_requests: int = 8) -> None:
        self.objects, self.has_cache, self._max_requests = dict(objects), has_cache, max_requests
        self._begin()

    def _begin(self) -> None:
        self.asked: list[tuple[str, int, int, bool]] = []
        self.failing: set[str] = set()
        self.transfers: list[Transfer] = []
        self._answering, self._releasing = threading.Event(), threading.Event()
        self._answering.set()
        self._releasing.set()
        self._queues: dict[int, TransferQueue] = {}

    def __getstate__(self):
        return self.objects, self.has_cache, self._max_requests

    def __setstate__(self, state):
        self.objects, self.has_cache, self._max_requests = state
        self._begin()

    def hold(self) -> None:
        """Lets no bytes come until `answer`."""
        self._answering.clear()

    def answer(self) -> None:
        self._answering.set()

    def keep_memory(self) -> None:
        """Fills memory, but goes on using it until `release_memory`, as a disk cache does that writes from it."""
        self._releasing.clear()

    def release_memory(self) -> None:
        self._releasing.set()

    def forget_asked(self) -> None:
        self.asked.clear()
        self.transfers.clear()

    def expand(self, patterns: Iterable[str | os.PathLike[str]]) -> list[str]:
        found = []
        for pattern in patterns:
            for name in expand_braces(os.fspath(pattern)):
                matches = sorted(fnmatch.filter(self.objects, name)) if any(c in name for c in "*?[") else [name]
                if not matches:
                    raise ArgumentError(f"no object matches {name!r}")
                found += matches
        return found

    def open(self, urls: Sequence[str]) -> list[StoredObject]:
        if missing := [url for url in urls if url not in self.objects]:
            raise StorageError(f"cannot open {missing[0]}: there is no such object")
        return [StoredObject(url, len(self.objects[url]), 'ETag "1"') for url in urls]

    def keep(self, read: RangeRead) -> None:
        """Its cache forgets at once."""

    def read_ranges(self, reads: Sequence[RangeRead]) -> None:
        for transfer in self.start(reads, urgent=True):
            transfer.wait()

    def start(self, reads: Sequence[RangeRead], *, urgent: bool = False) -> list[Transfer]:
        self.asked += [(read.source.url, read.offset, read.stop, read.keep) for read in reads]
        queue = self._queues.setdefault(
            os.getpid(), TransferQueue(self._run, max_requests=self._max_requests, max_request_bytes=1 << 30)
        )
        transfers = [Transfer(read, [read], queue) for read in reads]
        self.transfers += transfers
        queue.put([part for transfer in transfers for part in transfer.parts], urgent=urgent)
        return transfers

    def _run(self, part: Part) -> None:
        read = part.read
        try:
            while not self._answering.wait(0.02):
                part.check()
            part.check()
            if read.source.url in self.failing:
                raise StorageError(f"cannot read {read}: as the test wants it")
            part.write(self.objects[read.source.url][read.offset : read.stop])
            # Before it is seen to be there: which thread goes on first then makes no difference to what is asked for.
            if self._releasing.is_set():
                part.release()
            part.fill()
            self._releasing.wait()
        except BaseException as error:  # noqa: BLE001 (raised to those who wait)
            part.release(error)
        else:
            part.release()


def stored(folder: Path, **options) -> StandInStore:
    """A stand-in that holds the files of a folder."""
    return StandInStore({f"{BASE}/{path.name}": path.read_bytes() for path in folder.iterdir()}, **options)
