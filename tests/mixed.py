"""A source with columns of every kind: a fixed one, ragged ones, and those that Arrow holds."""

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from headrace.datasets import MapDataset
from headrace.formats import Column, Ragged, Source, check_ids, check_out, fingerprint, uniform_blocks

SAMPLES = 11


def tokens(i: int) -> list[int]:
    """Sample i holds i % 4 numbers."""
    return list(range(10 * i, 10 * i + i % 4))


def boxes(i: int) -> list[list[float]]:
    return [[i, k] for k in range((i + 1) % 3)]


def text(i: int) -> str:
    return "é" * (i % 3) + str(i)


def raw(i: int) -> bytes:
    return bytes([i]) * (i % 5)


def meta(i: int) -> dict[str, Any]:
    return {"n": i, "tags": ["t"] * (i % 2)}


class Mixed(Source):
    """Samples whose columns are functions of their numbers; those in `broken` cannot be read."""

    random_access = True

    def __init__(self, samples: int = SAMPLES, broken: tuple[int, ...] = ()) -> None:
        self.schema = {
            "id": Column(np.dtype(np.int64)),
            "tokens": Column(np.dtype(np.int64), ragged=True, mean_bytes=12),
            "boxes": Column(np.dtype(np.float32), (2,), ragged=True, as_list=True, mean_bytes=8),
            "text": Column(np.dtype("O"), python_type=str, mean_bytes=3),
            "raw": Column(np.dtype("O"), python_type=bytes, mean_bytes=2),
            "meta": Column(np.dtype("O"), python_type=object, mean_bytes=20),
        }
        self._samples, self._broken = samples, broken

    def __len__(self) -> int:
        return self._samples

    @property
    def blocks(self):
        return uniform_blocks(self._samples, 50)

    @property
    def fingerprint(self) -> str:
        return fingerprint([("mixed", self._samples)])

    def read(self, sample_ids, out=None):
        ids = check_ids(sample_ids, self._samples)
        if broken := set(ids.tolist()) & set(self._broken):
            raise ValueError(f"sample {min(broken)} is broken")
        filled = check_out(out, self.schema, len(ids))
        filled["id"][...] = ids
        numbers = ids.tolist()
        return {
            **filled,
            "tokens": _ragged([tokens(i) for i in numbers], np.int64, ()),
            "boxes": _ragged([boxes(i) for i in numbers], np.float32, (2,)),
            "text": pa.array([text(i) for i in numbers], pa.string()),
            "raw": pa.array([raw(i) for i in numbers], pa.binary()),
            "meta": pa.array([meta(i) for i in numbers], pa.struct({"n": pa.int64(), "tags": pa.list_(pa.string())})),
        }

    def where(self, sample_id: int) -> str:
        return f"number {sample_id}"


def mixed(samples: int = SAMPLES, *, as_tuple: bool = False, broken: tuple[int, ...] = ()) -> MapDataset:
    return MapDataset(Mixed(samples, broken), as_tuple=as_tuple)


def mixed_sample(i: int) -> dict[str, Any]:
    """What sample i is, as plain Python objects."""
    return {"id": i, "tokens": tokens(i), "boxes": boxes(i), "text": text(i), "raw": raw(i), "meta": meta(i)}


def plain(value: Any) -> Any:
    """Tensors and ragged rows, in whatever holds them, as plain Python objects."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, Ragged):
        return [row.tolist() for row in value]
    if isinstance(value, dict):
        return {name: plain(field) for name, field in value.items()}
    return type(value)(map(plain, value)) if isinstance(value, list | tuple) else value


def check_mixed_batch(batch: Any, ids: list[int]) -> None:
    """Asserts that a batch, a dict or a list, holds these samples, each column as its kind says."""
    columns = batch if isinstance(batch, dict) else dict(zip(mixed_sample(0), batch, strict=True))
    assert {name: type(column) for name, column in columns.items()} == {
        "id": torch.Tensor,
        "tokens": Ragged,
        **dict.fromkeys(("boxes", "text", "raw", "meta"), list),
    }
    assert all(isinstance(row, torch.Tensor) for row in columns["boxes"])
    samples = [mixed_sample(i) for i in ids]
    assert plain(columns) == {name: [sample[name] for sample in samples] for name in mixed_sample(0)}


def _ragged(rows: list[list[Any]], dtype: Any, shape: tuple[int, ...]) -> Ragged:
    values = np.array([value for row in rows for value in row], dtype).reshape(-1, *shape)
    return Ragged.from_arrays(values, np.cumsum([0, *map(len, rows)]))
