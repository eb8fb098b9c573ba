"""Epochs through a server that does harm: each fault, a server that stops, and processes that are killed.

Every epoch must end with the right bytes; what can't be mended (a missing object, no permission, another version) must
end in an error that says so.
"""

import contextlib
import functools
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import headrace as hr
from benchmarks.data import make_shards
from benchmarks.remote_promises import BATCH_SIZE, SHARDS, checksum
from benchmarks.servers.fault_proxy import FAULTS, FaultProxy
from benchmarks.servers.range_server import RangeServer
from headrace.errors import StorageError
from headrace.storage import RangeRead, split

SHARE = 0.05
STALL_SECONDS = 1.0
DEADLINE_SECONDS = 60.0
# What no further attempt can mend
REFUSED = ("access-denied", "signature-mismatch", "not-found", "other-etag")
# What no header shows: found where the checksums of blocks are known, as an index knows them
UNSEEN = ("wrong-range-right-headers", "flipped-byte")
STOPPED_SECONDS = 5.0
PROCESSES, KILLS = 4, 20
READER_REQUESTS = 4
RANGE_BYTES = 2 << 20


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an epoch went.

    Attributes:
        name: The fault, or what else was done.
        injected: How often.
        retries: What the store's report counts.
        seconds: The epoch took.
        is_right: Whether it ended as it must.
        text: How it ended.
    """

    name: str
    injected: int
    retries: int
    seconds: float
    is_right: bool
    text: str

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"measured": "fault", **asdict(self)}


@contextlib.contextmanager
def served(data_dir: Path, shard_rows: int) -> Iterator[tuple[list[Path], list[str], FaultProxy]]:
    """The shards, and their URLs through a proxy."""
    paths = make_shards(data_dir, SHARDS, shard_rows)
    with RangeServer(paths[0].parent) as server, FaultProxy(server.url, whole=_whole(paths[0].parent)) as proxy:
        yield paths, [f"{proxy.url}/{path.name}" for path in paths], proxy


def faults(data_dir: Path, shard_rows: int, names: Sequence[str] = FAULTS) -> Iterator[Outcome]:
    """An epoch under each fault, at 5 % of the requests."""
    with served(data_dir, shard_rows) as (paths, urls, proxy):
        expected = checksum(paths)
        for fault in names:
            proxy.clear()
            dataset, store = _dataset(urls)
            for how in ({"times": 1, "after": 2}, {"times": None, "share": SHARE}):  # one for sure
                proxy.inject(fault, **how, seconds=2 * STALL_SECONDS, bytes_per_second=1000)
            read = functools.partial(_checksum_of_ranges, store, urls, paths) if fault in UNSEEN else None
            epoch = read or functools.partial(_checksum_of, dataset)
            outcome = outcome_of(epoch, None if fault in REFUSED else expected)
            yield Outcome(fault, _injected(proxy, fault), _retries(store), *outcome)


def stopped(data_dir: Path, shard_rows: int) -> Outcome:
    """An epoch in whose middle the server is gone for 5 s."""
    with served(data_dir, shard_rows) as (paths, urls, proxy):
        total_bytes = SHARDS * shard_rows * 1024
        dataset, store = _dataset(urls, memory_bytes=total_bytes // 8)  # so that half of it is still to be fetched
        half = len(urls) * shard_rows // BATCH_SIZE // 2
        back = threading.Timer(STOPPED_SECONDS, proxy.accept_connections)

        def stop(step: int) -> None:
            if step == half:
                proxy.refuse_connections()
                back.start()

        try:
            outcome = outcome_of(functools.partial(_checksum_of, dataset, stop), checksum(paths))
        finally:
            back.join()
        seconds, is_right, text = outcome
        waited = seconds >= STOPPED_SECONDS and _retries(store) > 0
        return Outcome("server stopped for 5 s", 1, _retries(store), seconds, is_right and waited, text)


def killed(data_dir: Path, shard_rows: int, *, cache_share: float, seed: int = 0) -> Outcome:
    """4 processes that share a cache and read without end, 20 of them killed at random moments and replaced.

    Args:
        data_dir: Where the shards are made.
        shard_rows: Their rows.
        cache_share: The cache's budget, as a share of the data. Where all fits, no block may be fetched twice.
        seed: Of the moments.
    """
    dice = random.Random(seed)  # noqa: S311
    with served(data_dir, shard_rows) as (paths, urls, proxy), tempfile.TemporaryDirectory(dir=data_dir) as folder:
        cache = Path(folder) / "cache"
        cache_bytes = int(cache_share * sum(path.stat().st_size for path in paths))
        command = [sys.executable, "-m", "benchmarks.remote_faults", str(cache), str(cache_bytes), str(checksum(paths))]
        readers = [_Reader(command, urls) for _ in range(PROCESSES)]
        began, most_bytes = time.perf_counter(), 0
        try:
            for _ in range(KILLS):
                time.sleep(dice.uniform(0.1, 1.5))
                number = dice.randrange(PROCESSES)
                readers[number].kill()
                readers[number] = _Reader(command, urls)
                most_bytes = max(most_bytes, _folder_bytes(cache))
            ended = [reader.finish() for reader in readers]
        finally:
            for reader in readers:
                reader.kill()
        asked = Counter((entry.path, entry.range) for entry in proxy.log if entry.range != "bytes=0-0")
        blocks = {key: count for key, count in asked.items() if not _is_header(key[1])}
        twice = sum(count - 1 for count in blocks.values())
        bound = cache_bytes + PROCESSES * (8 << 20)
        fits = cache_share > 1
        is_right = all(ended) and most_bytes <= bound and (not fits or twice <= KILLS * READER_REQUESTS)
        text = f"{'all bytes right' if all(ended) else 'WRONG BYTES'}; at most {most_bytes / 1e6:.0f} MB on disk"
        if fits:
            in_flight = KILLS * READER_REQUESTS
            text += f"; {len(blocks)} blocks, {twice} fetched again (at most {in_flight} were in flight at a kill)"
        name = f"kill -9, cache of {cache_bytes / 1e6:.0f} MB"
        return Outcome(name, KILLS, twice, time.perf_counter() - began, is_right, text)


class _Reader:
    """A process that reads epochs through the shared cache until it is told to finish, or is killed."""

    def __init__(self, command: Sequence[str], urls: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(list(urls)) + "\n")
        self._process.stdin.flush()

    def finish(self) -> bool:
        """Lets it end its epoch; whether every byte of it was right."""
        said, _ = self._process.communicate(timeout=120)
        return self._process.returncode == 0 and said.strip().endswith("right")

    def kill(self) -> None:
        """Ends it as `kill -9` does, whatever it is doing."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def read_epochs(cache: Path, cache_bytes: int, expected: int) -> None:
    """Reads epochs until standard input ends; exits with an error at the first wrong byte."""
    urls = json.loads(sys.stdin.readline())
    over = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    while True:
        store = hr.Store(cache_dir=cache, cache_bytes=cache_bytes, max_requests=READER_REQUESTS)
        found = _checksum_of(hr.NumpyDataset({"x": urls}, store=store))
        if found != expected:
            sys.exit(f"expected CRC32 {expected:08x}, got {found:08x}")
        if over.is_set():
            print("right")
            return


def _dataset(urls: Sequence[str], *, memory_bytes: int | None = None) -> tuple[hr.NumpyDataset, hr.Store]:
    store = hr.Store(stall_seconds=STALL_SECONDS, deadline_seconds=DEADLINE_SECONDS, max_requests=8)
    return hr.NumpyDataset({"x": list(urls)}, store=store, memory_bytes=memory_bytes), store


def _checksum_of(dataset: hr.NumpyDataset, at_step: Callable[[int], None] | None = None) -> int:
    found = 0
    for step, batch in enumerate(hr.DataLoader(dataset, batch_size=BATCH_SIZE, num_workers=2)):
        found = zlib.crc32(batch["x"].numpy().data, found)
        if at_step is not None:
            at_step(step)
    return found


def _checksum_of_ranges(store: hr.Store, urls: Sequence[str], paths: Sequence[Path]) -> int:
    """As `_checksum_of`, of ranges whose checksums are known."""
    found = 0
    for one, path in zip(store.open(urls), paths, strict=True):
        known, memory = path.read_bytes(), np.empty(one.object_bytes, np.uint8)
        store.read_ranges(
            [
                RangeRead(one, start, memory[start:stop], crc32=zlib.crc32(known[start:stop]))
                for start, stop in split(0, one.object_bytes, RANGE_BYTES)
            ]
        )
        found = zlib.crc32(memory.data[one.object_bytes - np.load(path, mmap_mode="r").nbytes :], found)
    return found


def outcome_of(epoch: Callable[[], int], expected: int | None) -> tuple[float, bool, str]:
    """What an epoch that should have a checksum, or None for an error, took; whether it did; and how it ended."""
    began = time.perf_counter()
    try:
        found = epoch()
        is_right = found == expected
        text = "bytes identical" if is_right else "WRONG BYTES" if expected is not None else "NO ERROR"
    except StorageError as error:
        is_right = expected is None
        text = "StorageError: " + re.sub(r"^cannot read bytes \S+ \S+ of \S+ ", "", str(error).splitlines()[0])
    return time.perf_counter() - began, is_right, text


def _retries(store: hr.Store) -> int:
    return store.counts().get("retries", 0)


def _injected(proxy: FaultProxy, fault: str) -> int:
    return sum(entry.fault == fault for entry in proxy.log)


def _whole(folder: Path) -> Any:
    return lambda path: (folder / path.lstrip("/")).read_bytes()


def _is_header(byte_range: str) -> bool:
    """Whether only a file's head was asked for, which every process reads for itself."""
    start, _, last = byte_range.removeprefix("bytes=").partition("-")
    return int(last) - int(start) < 64 << 10


def _folder_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # evicted meanwhile
            if path.is_file():
                total += path.stat().st_size
    return total


if __name__ == "__main__":
    read_epochs(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
