"""A disk cache of small blocks that knows what each must hold, and what its folder should look like."""

import threading
from collections import Counter
from pathlib import Path

import numpy as np

from headrace.storage.cache import DiskCache
from headrace.storage.cache_block import HEADER_BYTES, CachedBlock
from headrace.storage.cache_budget import occupied_bytes, read_usage

BLOCK = 10_000
OCCUPIED = occupied_bytes(HEADER_BYTES + BLOCK)


def payload(key: str) -> np.ndarray:
    return np.random.default_rng(list(key.encode())).integers(0, 256, BLOCK, np.uint8)


class Cache:
    """A DiskCache with what it counted and what it fetched; every block that it hands out is checked."""

    def __init__(self, folder: Path, blocks: float = 1000, **options):
        self.counts: Counter[str] = Counter()
        self.fetched: list[str] = []
        self._counting = threading.Lock()
        self.disk = DiskCache(folder, int(blocks * OCCUPIED), count=self.count, **options)

    def count(self, name, number):
        with self._counting:
            self.counts[name] += number

    def read(self, key: str, **options) -> None:
        out = np.zeros(BLOCK, np.uint8)

        def fetch():
            self.fetched.append(key)
            out[:] = payload(key)

        self.disk.read_through(key, out, fetch, **options)
        np.testing.assert_array_equal(out, payload(key))


def files(folder: Path) -> list[Path]:
    """All parts and blocks."""
    return [path for name in ("parts", "blocks") for path in sorted((folder / name).rglob("*")) if path.is_file()]


def only_file(folder: Path) -> Path:
    (path,) = files(folder)
    return path


def used_bytes(folder: Path) -> int:
    if not (folder / "usage").exists():
        return 0
    with open(folder / "usage", "rb") as usage:
        return read_usage(usage.fileno())


def occupied(folder: Path) -> int:
    return sum(occupied_bytes(path.stat().st_size) for path in files(folder))


def part_of(folder: Path, key: str) -> str:
    return CachedBlock.of(folder, key, BLOCK).part


def run_threads(count: int, work) -> None:
    """Runs `work(number)` in that many threads at once, and raises what any of them raised."""
    errors, gate = [], threading.Barrier(count)

    def run(number):
        try:
            gate.wait()
            work(number)
        except BaseException as error:  # noqa: BLE001 - raised by the caller
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
