"""The limit of this machine: the same rows gathered by NumPy, and nothing else."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.errors import ArgumentError


class PlainGather:
    """Shuffled batches by `np.take` and nothing else: what no loader on one thread should be expected to beat.

    Each pass gathers every whole batch of the same order, so that drawing the order costs nothing while measured.

    Args:
        columns: Arrays (samples, ...) by name, of equal length; a memory map is read through a plain view.
        batch_size: Samples a batch.
        sample_ids: int64 (samples,), the order; by default NumPy's own permutation.
        seed: Seeds that permutation.
        reuse: Gather into the same memory again and again, so that every batch overwrites the former one; by default
            each batch is fresh memory that the caller may keep.

    Raises:
        ArgumentError: The columns differ in length, or hold less than a batch.

    Example:
        >>> [batch["x"].tolist() for batch in PlainGather({"x": np.arange(4)}, 2, sample_ids=np.array([3, 1, 0, 2]))]
        [[3, 1], [0, 2]]
    """

    def __init__(
        self,
        columns: Mapping[str, npt.NDArray[Any]],
        batch_size: int,
        *,
        sample_ids: npt.NDArray[np.int64] | None = None,
        seed: int = 0,
        reuse: bool = False,
    ) -> None:
        lengths = {name: len(array) for name, array in columns.items()}
        if len(set(lengths.values())) != 1:
            raise ArgumentError(f"columns: expected arrays of one length, got {lengths}")
        samples = next(iter(lengths.values()))
        if not 1 <= batch_size <= samples:
            raise ArgumentError(f"batch_size: expected 1..{samples}, the samples there are, got {batch_size}")
        self._columns = {name: np.asarray(array).view(np.ndarray) for name, array in columns.items()}
        self._batch_size = batch_size
        self._sample_ids = np.random.default_rng(seed).permutation(samples) if sample_ids is None else sample_ids
        self._reuse = reuse

    def __iter__(self) -> Iterator[dict[str, npt.NDArray[Any]]]:
        size = self._batch_size
        reused = {name: np.empty((size, *a.shape[1:]), a.dtype) for name, a in self._columns.items()}
        for start in range(0, len(self._sample_ids) - size + 1, size):
            ids = self._sample_ids[start : start + size]
            if self._reuse:
                # mode="raise" would gather into a buffer first; the ids are a permutation, so none can be out of range
                yield {name: a.take(ids, axis=0, out=reused[name], mode="clip") for name, a in self._columns.items()}
            else:
                yield {name: a.take(ids, axis=0) for name, a in self._columns.items()}
