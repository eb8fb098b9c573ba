"""Datasets that cost nothing, or an exact amount, so that what is left to measure is the loader."""

import functools
import time
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from headrace.formats import Array, Blocks, Column, ReadPart, Source

VALUES = 256  # float32 of a ready row: 1 KB
READY_ROWS = 8192  # more than a loader gathers at once
BATCH_SHAPE = (1024, 1024)  # float32 of a ready batch: 4 MB
BATCH_SAMPLES = 64  # of a ready batch: 64 KB each, as a small picture has
_TURNS = 20_000  # of a loop that is timed: about a third of a millisecond
_TRIES = 50


class ReadyRows(Source):
    """Rows that are there already: whichever are asked for, the same memory comes back."""

    def __init__(self, samples: int, *, block_samples: int | None = None) -> None:
        """Makes the memory; it holds no sample's own values.

        Args:
            samples: How many it says that it has.
            block_samples: Samples of each block, so that what is shuffled is a window; None for random access.
        """
        self.schema = {"x": Column(np.dtype(np.float32), (VALUES,))}
        self.random_access = block_samples is None
        self._samples = samples
        lengths = np.full(samples // (block_samples or samples), block_samples or samples)
        self._blocks = Blocks(lengths, lengths * (VALUES * 4))
        self._rows = np.zeros((READY_ROWS, VALUES), np.float32)

    def __len__(self) -> int:
        return self._samples

    @property
    def blocks(self) -> Blocks:
        return self._blocks

    @property
    def fingerprint(self) -> str:
        return f"{self._samples:032x}"

    def read(self, sample_ids: npt.ArrayLike, out: Mapping[str, Array] | None = None) -> dict[str, Array]:  # noqa: ARG002
        return {"x": self._rows[: np.size(sample_ids)]}

    def prepare(self, sample_ids: npt.ArrayLike) -> ReadPart:  # noqa: ARG002 (whichever they are)
        return lambda start, stop, out: {"x": self._rows[: stop - start]}  # noqa: ARG005 (there already)

    def where(self, sample_id: int) -> str:
        return f"ready row {sample_id}"


class ReadyBatches(Dataset[int]):
    """A foreign dataset that costs nothing: its samples are numbers, of which `ready_batch` makes a batch of 4 MB."""

    def __init__(self, batches: int) -> None:
        self._samples = batches * BATCH_SAMPLES

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, index: int) -> int:
        return index

    def __getitems__(self, ids: list[int]) -> list[int]:
        return ids


def ready_batch(samples: list[int]) -> torch.Tensor:  # noqa: ARG001 (whichever they are)
    """A batch of 4 MB that is there already.

    It is a new tensor over the same memory: of one tensor, torch's workers would move the memory to where it is shared
    the first time, and hand over nothing from then on.
    """
    return torch.from_numpy(_ready_batch())


@functools.cache
def _ready_batch() -> npt.NDArray[np.float32]:
    return np.zeros(BATCH_SHAPE, np.float32)


class Burning(Dataset[tuple[torch.Tensor, int]]):
    """A foreign dataset whose `__getitem__` holds the GIL for a while, as Python code does.

    It counts, rather than looking at a clock: a process that has to share its core takes as much longer.
    """

    def __init__(self, samples: int, turns: int) -> None:
        """Takes the amount of work.

        Args:
            samples: How many.
            turns: Of a loop that does nothing, for each of them; see `turns_in`.
        """
        self._samples, self._turns = samples, turns

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        _burn(self._turns)
        return torch.full((16,), index, dtype=torch.float32), index


class Pictures(Dataset[npt.NDArray[np.float32]]):
    """A foreign dataset that makes an array of 0.6 MB for each sample, as a decoded picture is, by NumPy."""

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._stored = np.ones((3, 224, 224), np.float32)

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, index: int) -> npt.NDArray[np.float32]:
        return self._stored * np.float32(index)


def turns_in(seconds: float) -> int:
    """How many turns of `Burning` take so long here, undisturbed."""
    return round(seconds * _TURNS / min(_seconds_of(_TURNS) for _ in range(_TRIES)))


def _seconds_of(turns: int) -> float:
    began = time.perf_counter()
    _burn(turns)
    return time.perf_counter() - began


def _burn(turns: int) -> None:
    for _ in range(turns):
        pass
