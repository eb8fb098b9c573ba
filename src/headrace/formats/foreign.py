"""Any map-style torch Dataset as a source: exact order and resume for datasets that know nothing of us."""

import copy
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset, IterableDataset

from headrace.errors import ArgumentError, SampleError
from headrace.formats.source import (
    Array,
    Blocks,
    Column,
    Ids,
    Source,
    check_ids,
    check_out,
    fingerprint,
    uniform_blocks,
)
from headrace.metrics import stage

# (a batch's samples, what gets one) -> what gets each of them in turn
Around = Callable[[Ids, Callable[[int], Any]], Callable[[int], Any]]


class DatasetSource(Source):
    """The samples of a map-style dataset as one column of objects, `"sample"`.

    A batch is one call of `__getitems__` where the dataset has that method, else one `__getitem__` per sample. How
    many threads may read at once is the dataset's own affair.

    >>> DatasetSource(["a", "b", "c"]).read([2, 0])
    {'sample': array(['c', 'a'], dtype=object)}
    """

    random_access = True

    def __init__(self, dataset: Any) -> None:
        """Takes anything with `__len__` and `__getitem__`.

        Raises:
            ArgumentError: The dataset is an IterableDataset, has no length, no `__getitem__`, or no samples.
        """
        kind = type(dataset).__qualname__
        if isinstance(dataset, IterableDataset):
            raise ArgumentError(
                f"expected a map-style dataset, got {kind}, an IterableDataset: its samples have no numbers, "
                "so no order can be planned over it; wrap what it reads in a class with __len__ and __getitem__"
            )
        if getattr(type(dataset), "__getitem__", Dataset.__getitem__) is Dataset.__getitem__:
            raise ArgumentError(f"expected a map-style dataset, got {kind}, which has no __getitem__")
        if not hasattr(type(dataset), "__len__"):
            raise ArgumentError(f"expected a map-style dataset, got {kind}, which has no __len__: the order needs it")
        self.schema: dict[str, Column] = {"sample": Column(np.dtype("O"))}
        self._dataset = dataset
        self._around: Around | None = None
        self._samples = len(dataset)
        if self._samples == 0:
            raise ArgumentError(f"expected at least one sample, got an empty {kind}")

    def __len__(self) -> int:
        return self._samples

    @cached_property
    def blocks(self) -> Blocks:
        """Counted as pointers: what the samples take is not known."""
        return uniform_blocks(self._samples, self.schema["sample"].sample_bytes)

    @cached_property
    def fingerprint(self) -> str:
        """The dataset's own `fingerprint` (text, or a method that returns one), else of its type and length."""
        own = getattr(self._dataset, "fingerprint", None)
        own = own() if callable(own) else own
        kind = type(self._dataset)
        return fingerprint([(f"{kind.__module__}.{kind.__qualname__}", self._samples) if own is None else (str(own),)])

    def read_through(self, around: Around) -> Self:
        """The same samples, read through `around(sample_ids, get)` where they would be by `get(sample_id)`.

        Args:
            around: Takes the samples of a batch, int64 (m,), and what gets one of them; gives what is called for each
                of them in turn. A call of `__getitems__` counts as getting the first of its samples.
        """
        source = copy.copy(self)
        source._around = around  # noqa: SLF001 (its own class)
        return source

    def read(self, sample_ids: npt.ArrayLike, out: Mapping[str, Array] | None = None) -> dict[str, Array]:
        ids = check_ids(sample_ids, self._samples)
        filled = check_out(out, self.schema, len(ids))
        fetch_many = getattr(self._dataset, "__getitems__", None)
        with stage("user"):
            samples = self._fetch_batch(fetch_many, ids) if fetch_many and len(ids) else self._fetch_each(ids)
        column = filled["sample"]
        # One by one: assigning them as a list would spread samples that are sequences over the array.
        for place, sample in enumerate(samples):
            column[place] = sample
        return filled

    def _fetch_each(self, ids: Ids) -> Sequence[object]:
        get: Callable[[int], object] = functools.partial(operator.getitem, self._dataset)
        if self._around is not None:
            get = self._around(ids, get)
        samples = []
        for sample_id in ids.tolist():
            try:
                samples.append(get(sample_id))
            except Exception as error:
                error.add_note(f"while reading {self.where(sample_id)}")
                raise
        return samples

    def _fetch_batch(self, fetch_many: Callable[[list[int]], Sequence[object]], ids: Ids) -> Sequence[object]:
        def get(first: int) -> Sequence[object]:  # noqa: ARG001 (what tells it from other batches)
            return fetch_many(ids.tolist())

        batch = f"{len(ids)} samples, {ids[0]} to {ids[-1]}"
        try:
            samples = get(int(ids[0])) if self._around is None else self._around(ids[:1], get)(int(ids[0]))
        except Exception as error:
            error.add_note(f"while reading {batch}, with __getitems__")
            raise
        if len(samples) != len(ids):
            raise SampleError(f"__getitems__ was asked for {batch}, and returned {len(samples)}")
        return samples

    def where(self, sample_id: int) -> str:
        return f"sample {sample_id} of {type(self._dataset).__qualname__}"
