"""What headrace promises of Parquet, each as something to measure against a plain reader, in the same run.

A rate is that of whole epochs, each measured next to one of the plain reader, and which of the two comes first
alternates. The first epoch isn't counted: what is to be measured is a stream that goes on. The dataset may keep less
than the data takes decoded, so every epoch decodes all of it.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader

import headrace as hr
from benchmarks.data import read_through
from benchmarks.parquet_data import COLUMNS, FEATURES, make_large_group, make_parquet
from benchmarks.parquet_memory import read_watched
from benchmarks.peers.rival import Rival
from benchmarks.plain_reader import PlainReader
from benchmarks.timing import Clock, Spent, alternating
from benchmarks.watch import Held
from headrace.bench import measure

BATCH_SIZE = 1024
WINDOW = 65_536  # shuffle_window, and the rivals' shuffle buffer
SCATTERED_BATCH_SIZE = 256
ROW_BYTES = FEATURES * 4 + 8  # of the columns that are read, decoded
SMALL_MEMORY_BYTES = 256_000_000


@dataclass
class Parquet:
    """Where and how long to measure.

    Attributes:
        data_dir: Where the files are made.
        rows: In 8 files.
        group_rows: Rows of 1 KB in the file that is one row group.
        memory_bytes: What the dataset may keep in memory; less than the data takes decoded.
        repetitions: Values of each promise.
        seconds: For what is no whole epoch: reading rows by the naive way, and a rival.
    """

    data_dir: Path
    rows: int = 2_000_000
    group_rows: int = 1_000_000
    memory_bytes: int = 512 << 20
    repetitions: int = 5
    seconds: float = 2.0
    _watched: list[Held] = field(default_factory=list)

    def paths(self) -> list[Path]:
        """The files, in the page cache."""
        paths = make_parquet(self.data_dir, self.rows)
        for path in paths:
            read_through(path)
        return paths

    def dataset(self, memory_bytes: int | None = None) -> Any:
        """Features and label of all rows; by default half of them, or less, are kept decoded."""
        return hr.ParquetDataset(
            [str(path) for path in self.paths()],
            columns=list(COLUMNS),
            memory_bytes=memory_bytes or min(self.memory_bytes, self.rows * ROW_BYTES // 2),
        )

    def loader(self, num_workers: int, *, shuffled: bool) -> hr.DataLoader:
        """What is measured."""
        window: dict[str, Any] = {"shuffle": "window", "shuffle_window": WINDOW} if shuffled else {}
        return hr.DataLoader(self.dataset(), batch_size=BATCH_SIZE, num_workers=num_workers, **window)

    def rate(self, loader: Iterable[Any] | Callable[[], Iterable[Any]]) -> float:
        """Rows a second for a while, one epoch after the other."""
        return measure(loader, seconds=self.seconds, samples_in=_rows).samples_per_second

    def watched(self) -> list[Held]:
        """What epochs with a window take in processes of their own, under a budget of 256 MB."""
        if not self._watched:
            memory_bytes = min(SMALL_MEMORY_BYTES, self.rows * ROW_BYTES // 2)
            self._watched.extend(
                read_watched(self.paths(), memory_bytes=memory_bytes, num_workers=2, window=WINDOW)
                for _ in range(max(1, self.repetitions // 2))
            )
        return self._watched


def rates(where: Parquet, *, num_workers: int, shuffled: bool, batch_rows: int) -> list[float]:
    """The rate of batches of tensors over that of the plain reader, which converts nothing."""
    loader = where.loader(num_workers, shuffled=shuffled)
    ours = functools.partial(_epoch, where.rows, loader, _rows)
    reader = PlainReader(where.paths(), COLUMNS, batch_rows)
    plain = functools.partial(_epoch, where.rows, reader, len)
    plain()
    ours()
    return [limit.seconds / own.seconds for own, limit in alternating(ours, plain, where.repetitions)]


def scattered(where: Parquet) -> list[float]:
    """Batches of random rows by torch's DataLoader, decoded rows in memory, over reading a row group for each row."""
    dataset, paths = where.dataset(2 * where.rows * ROW_BYTES), where.paths()
    loader = DataLoader(dataset, batch_size=SCATTERED_BATCH_SIZE, shuffle=True)
    order = np.random.default_rng(0).permutation(where.rows)
    for _ in loader:  # decodes what is in memory from here on
        pass
    values = []
    for repetition in range(where.repetitions):
        naive = functools.partial(naive_rows, paths, np.roll(order, -repetition))
        ways: dict[str, Callable[[], Iterable[Any]]] = {"ours": lambda: loader, "naive": naive}
        rates = {way: where.rate(ways[way]) for way in sorted(ways, reverse=repetition % 2 == 0)}
        values.append(rates["ours"] / rates["naive"])
    return values


def naive_rows(paths: Sequence[Path], order: npt.NDArray[np.int64]) -> Iterator[dict[str, torch.Tensor]]:
    """Rows, as batches of one, by a Dataset without a cache: find the row group, decode it, take the row."""
    files = [pq.ParquetFile(path, memory_map=True, pre_buffer=False) for path in paths]
    groups = [(file, number) for file in files for number in range(file.num_row_groups)]
    lengths = np.array([file.metadata.row_group(number).num_rows for file, number in groups])
    ends = np.cumsum(lengths)
    for sample_id in order.tolist():
        place = int(np.searchsorted(ends, sample_id, side="right"))
        file, number = groups[place]
        group = file.read_row_group(number, columns=list(COLUMNS), use_threads=False)
        row = group.slice(sample_id - int(ends[place] - lengths[place]), 1)
        features = torch.tensor(row["features"].to_pylist())
        yield {"features": features, "label": torch.tensor(row["label"].to_pylist())}


def memory_window(where: Parquet) -> list[float]:
    """MB that an epoch with a window adds to a fresh process, at most."""
    return [held.most / 1e6 for held in where.watched()]


def memory_growth(where: Parquet) -> list[float]:
    """MB by which the last third of such an epoch holds more than the first one."""
    return [max(0, held.last_third - held.first_third) / 1e6 for held in where.watched()]


def memory_large_group(where: Parquet, *, num_workers: int) -> list[float]:
    """MB that reading a row group of 1 GB adds to a fresh process, at most, under a budget of 256 MB."""
    path = make_large_group(where.data_dir, where.group_rows)
    read_through(path)
    held = read_watched([path], memory_bytes=SMALL_MEMORY_BYTES, num_workers=num_workers, window=0)
    return [held.most / 1e6]


def peer(where: Parquet, *, rival: Rival) -> list[float]:
    """Our rate over a rival's, both shuffled, each with as many workers as make it fastest: 0 or 2."""
    loaders = {num_workers: where.loader(num_workers, shuffled=True) for num_workers in (0, 2)}
    theirs = functools.partial(
        rival.rate,
        where.paths(),
        where.data_dir,
        batch_size=BATCH_SIZE,
        window=min(WINDOW, where.rows // 4),
        seconds=2 * where.seconds,
    )
    values = []
    for _ in range(max(1, where.repetitions // 2)):
        fastest = max(theirs(num_workers=num_workers) for num_workers in loaders)
        values.append(max(where.rate(loader) for loader in loaders.values()) / fastest)
    return values


def _epoch(rows: int, batches: Iterable[Any], count: Callable[[Any], int]) -> Spent:
    """What an epoch takes, from before its first batch to its last."""
    before = Clock()
    read = sum(map(count, batches))
    spent = before.spent()
    if read != rows:
        raise RuntimeError(f"expected an epoch of {rows} rows, got {read}")
    return spent


def _rows(batch: Any) -> int:
    return int(batch["label"].shape[0])
