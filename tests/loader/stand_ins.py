"""Sources that can be watched, held back and made to fail, and an epoch's steps a second time, as plain lists."""

import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from headrace import DataLoader
from headrace.datasets.mapstyle import MapDataset
from headrace.formats import Blocks, Column, Source, check_ids
from headrace.formats.source import check_out
from tests.order.reference import epoch_order, step_of_rank

WAITING_SECONDS = 60.0  # far more than anything takes: only a test that fails waits so long


class Numbers(Source):
    """Samples whose column "x" is their number, `width` times over; blocks hold five samples each.

    Attributes:
        bad: Samples that cannot be read.
        gate: Every read waits for it.
        entered: Released once for every read that has begun.
        reads: How many reads have begun.
        samples_read: How often each sample has been read.
        announced: The samples announced, call by call.
    """

    random_access = True
    fingerprint = "0123456789abcdef"

    def __init__(self, samples: int, *, width: int = 1, bad: Collection[int] = ()) -> None:
        self._samples, self._width, self.bad = samples, width, set(bad)
        self.schema = {"x": Column(np.dtype(np.int64), (width,))}
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.reads = 0
        self.samples_read: Counter[int] = Counter()
        self.announced: list[list[int]] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._samples

    @property
    def blocks(self) -> Blocks:
        lengths = np.diff(np.append(np.arange(0, self._samples, 5), self._samples))
        return Blocks(lengths, lengths * 8 * self._width)

    def read(self, sample_ids: Any, out: Mapping[str, Any] | None = None) -> dict[str, Any]:
        ids = check_ids(sample_ids, self._samples)
        with self._lock:
            self.reads += 1
            self.samples_read.update(ids.tolist())
        self.entered.release()
        assert self.gate.wait(WAITING_SECONDS)
        for sample_id in ids.tolist():
            if sample_id in self.bad:
                raise OSError("the disk is on fire")
        filled = check_out(out, self.schema, len(ids))
        filled["x"][:] = ids[:, None]
        return filled

    def prefetch(self, sample_ids: Any) -> None:
        self.announced.append(np.asarray(sample_ids).tolist())

    def where(self, sample_id: int) -> str:
        return f"row {sample_id} of the numbers"

    def wait_for_reads(self, count: int) -> None:
        """Returns when so many more reads have begun."""
        for _ in range(count):
            assert self.entered.acquire(timeout=WAITING_SECONDS)


def numbers(samples: int, *, as_tuple: bool = False, **options: Any) -> MapDataset:
    """The same as a dataset."""
    return MapDataset(Numbers(samples, **options), as_tuple=as_tuple)


def ids_of(batch: Any) -> list[int]:
    """The samples of a batch of such a dataset."""
    column = batch["x"] if isinstance(batch, dict) else batch[0]
    return [int(row[0]) for row in column]


def delivered(batches: Iterable[Any]) -> list[list[int]]:
    """The samples of every batch."""
    return [ids_of(batch) for batch in batches]


def flat(steps: Iterable[Iterable[int]]) -> list[int]:
    """All samples, one step after the other."""
    return [sample for step in steps for sample in step]


def over_ranks(dataset: Any, world_size: int, **options: Any) -> list[DataLoader]:
    """One loader for each rank."""
    return [DataLoader(dataset, rank=rank, world_size=world_size, **options) for rank in range(world_size)]


def together(iterators: Iterable[Iterable[Any]]) -> Iterator[list[int]]:
    """Step by step, the samples of all ranks."""
    for batches in zip(*iterators, strict=True):
        yield flat(delivered(batches))


def plain_steps(
    state: Mapping[str, Any],
    global_batch_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    drop_last: bool = False,
    pad_last: bool = False,
) -> list[list[int]]:
    """What a rank gets from a state to the end of its epoch, as the design says it."""
    samples, lanes = state["samples"], state["lanes"]
    lengths = [min(5, samples - start) for start in range(0, samples, 5)]
    order = epoch_order(
        samples,
        state["shuffle"],
        lanes=lanes,
        window=state["window"] or 1,
        seed=state["seed"],
        epoch=state["epoch"],
        block_lengths=lengths,
    )
    steps = []
    for position in range(state["position"], samples, global_batch_size):
        size = global_batch_size if pad_last else min(global_batch_size, samples - position)
        if size < global_batch_size and drop_last:
            break
        shares = step_of_rank(position, size, lanes, rank, world_size)
        steps.append([order[number % samples] for number in shares])
    return steps
