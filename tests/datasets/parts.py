"""What the tests of this folder share: sources that are watched or made up, references, and what workers import."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset
from torch.utils.data._utils import worker as torch_worker

from headrace import ArrayDataset
from headrace.datasets import IterableView, MapDataset
from headrace.formats import Column, Source, check_ids, check_out, fingerprint, uniform_blocks

N = 23
RNG = np.random.default_rng(0)


def columns(n: int = N) -> dict[str, Any]:
    """One column of every kind that torch and NumPy share, and two that only one of them knows."""
    rng = np.random.default_rng(0)
    return {
        "f32": rng.standard_normal((n, 3, 2)).astype(np.float32),
        "f64": rng.standard_normal(n),
        "f16": rng.standard_normal((n, 2)).astype(np.float16),
        "i64": np.arange(n) * 7,
        "u8": rng.integers(0, 256, (n, 4)).astype(np.uint8),
        "u16": rng.integers(0, 65536, n).astype(np.uint16),
        "bool": rng.integers(0, 2, n).astype(np.bool_),
        "c64": (rng.standard_normal(n) + 1j * rng.standard_normal(n)).astype(np.complex64),
        "big": rng.standard_normal((n, 2)).astype(">f8"),
        "bf16": torch.from_numpy(rng.standard_normal((n, 2))).bfloat16(),
    }


def tensor_of(values: Any) -> torch.Tensor:
    """A column as one tensor, however it was given."""
    if isinstance(values, torch.Tensor):
        return values
    return torch.from_numpy(values.astype(values.dtype.newbyteorder("=")))


class PerRow(Dataset[Any]):
    """The reference: what people write by hand, one sample at a time, as dicts or tuples of tensors."""

    def __init__(self, named: Mapping[str, Any], *, as_tuple: bool = False) -> None:
        self.tensors = {name: tensor_of(values) for name, values in named.items()}
        self.as_tuple = as_tuple

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        sample = {name: tensor[index] for name, tensor in self.tensors.items()}
        return tuple(sample.values()) if self.as_tuple else sample


class Watched(Source):
    """Another source, and a list of the ids of each read."""

    def __init__(self, base: Source) -> None:
        self._base = base
        self.schema, self.random_access = base.schema, base.random_access
        self.reads: list[list[int]] = []

    def __len__(self) -> int:
        return len(self._base)

    @property
    def blocks(self):
        return self._base.blocks

    @property
    def fingerprint(self) -> str:
        return self._base.fingerprint

    def read(self, sample_ids, out=None):
        self.reads.append(np.asarray(sample_ids).tolist())
        return self._base.read(sample_ids, out)

    def where(self, sample_id: int) -> str:
        return self._base.where(sample_id)


class Counting(Source):
    """Any number of samples without any memory: sample i holds the number i."""

    random_access = True

    def __init__(self, samples: int, block_samples: int | None = None) -> None:
        self.schema = {"x": Column(np.dtype(np.int64))}
        self._samples = samples

    def __len__(self) -> int:
        return self._samples

    @property
    def blocks(self):
        return uniform_blocks(self._samples, 8)

    @property
    def fingerprint(self) -> str:
        return fingerprint([("counting", self._samples)])

    def read(self, sample_ids, out=None):
        ids = check_ids(sample_ids, self._samples)
        filled = check_out(out, self.schema, len(ids))
        filled["x"][...] = ids
        return filled

    def where(self, sample_id: int) -> str:
        return f"number {sample_id}"


def counting(samples: int) -> MapDataset:
    """A dataset whose sample i is {"x": i}."""
    return MapDataset(Counting(samples))


def watched(dataset: MapDataset) -> Watched:
    """Watches what a dataset reads from now on."""
    dataset.source = Watched(dataset.source)
    return dataset.source


class Tenfold(ArrayDataset):
    """A subclass with a `__getitem__` of its own."""

    def __init__(self, values: Any) -> None:
        super().__init__({"x": values})
        self.factor = 10

    def __getitem__(self, index: int) -> Any:
        return {"x": super().__getitem__(index)["x"] * self.factor}


def identity(samples: list[Any]) -> list[Any]:
    """The simplest `collate_fn` of a user."""
    assert isinstance(samples, list)
    return samples


def same(one: Any, other: Any) -> bool:
    """Whether two batches have the same types, keys in the same order, dtypes, shapes and values."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if type(one) is not type(other) or not isinstance(one, dict | list | tuple):
        raise AssertionError(f"{type(one)} and {type(other)}")
    if isinstance(one, dict):
        return list(one) == list(other) and same(list(one.values()), list(other.values()))
    return len(one) == len(other) and all(map(same, one, other))


def numbers(batches: Any) -> list[int]:
    """All values of the column "x", in the order that they come in."""
    return [int(value) for batch in batches for value in torch.atleast_1d(batch["x"])]


@contextmanager
def as_worker(number: int, num_workers: int, base_seed: int) -> Iterator[None]:
    """Makes this process look like one of torch's worker processes."""
    info = torch_worker.WorkerInfo(id=number, num_workers=num_workers, seed=base_seed + number, dataset=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_worker, "_worker_info", info)
        yield


class Workers:
    """torch's worker processes over an IterableView, played in this process: each has a copy of it, as after a fork.

    Args:
        view: What the main process holds.
        num_workers: How many; 0 iterates in the main process.
        base_seed: What torch draws anew whenever it starts workers.
    """

    def __init__(self, view: IterableView, num_workers: int, base_seed: int) -> None:
        self.num_workers, self.base_seed = num_workers, base_seed
        self.views = [_forked(view) for _ in range(num_workers)] or [view]

    def start(self) -> list[Callable[[], Any]]:
        """Begins a pass of torch's, and gives a function for each worker that answers with its next item, or None."""
        return [self._asker(number, iter(view)) for number, view in enumerate(self.views)]

    def run(self) -> list[Any]:
        """A whole pass: the items in the order in which torch's round-robin delivers them."""
        asked = self.start()
        items = []
        while asked:
            answers = [(ask, ask()) for ask in asked]
            items += [item for _, item in answers if item is not None]
            asked = [ask for ask, item in answers if item is not None]
        return items

    def _asker(self, number: int, items: Iterator[Any]) -> Callable[[], Any]:
        def ask() -> Any:
            if self.num_workers == 0:
                return next(items, None)
            with as_worker(number, self.num_workers, self.base_seed):
                return next(items, None)

        return ask


def _forked(view: IterableView) -> IterableView:
    forked = copy.copy(view)
    forked._schedule, forked._passes = copy.copy(view._schedule), copy.copy(view._passes)
    return forked
