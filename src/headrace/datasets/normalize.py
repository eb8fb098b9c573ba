"""Mean and standard deviation of columns, in one pass, and the transform that takes them out: the z-score."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from headrace.datasets.mapstyle import MapDataset
from headrace.datasets.read_ahead import announced
from headrace.errors import ArgumentError, FormatError
from headrace.formats import Array, Ids, Source

_VERSION = 1
_BYTES_AT_ONCE = 8 << 20


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and standard deviation of one column, each value of a sample by itself.

    Attributes:
        position: The column's place in batches that are lists.
        mean: float64, of one sample's shape.
        std: float64, of one sample's shape; of the population (divided by n), as the z-score has it.
    """

    position: int
    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]


class Normalizer:
    """A batch transform that gives columns zero mean and unit standard deviation, as float32.

    Values that never varied become 0. Works on batches of any device, also on single samples.

    Example:
        >>> import numpy as np
        >>> from headrace import ArrayDataset
        >>> dataset = ArrayDataset({"x": np.array([[1.0, 5.0], [3.0, 5.0]])})
        >>> normalizer = fit_normalizer(dataset, columns=["x"])
        >>> normalizer(dataset[[0, 1]])["x"]
        tensor([[-1.,  0.],
                [ 1.,  0.]])
    """

    def __init__(self, columns: Mapping[str, Moments]) -> None:
        """Takes the moments of each column to be normalised."""
        self.columns = dict(columns)
        self._scalers = {name: _Scaler(moments) for name, moments in self.columns.items()}

    def __call__(self, batch: Any) -> Any:
        """The batch, with its columns normalised: a dict, a list or a tuple as the batch is; nothing else changes.

        Args:
            batch: Columns as tensors (rows, *shape), or one sample's (*shape).

        Raises:
            ArgumentError: A column is missing, or of another shape.
        """
        if isinstance(batch, Mapping):
            return {**batch, **{name: self._scaled(name, batch.get(name)) for name in self.columns}}
        values = list(batch)
        for name, moments in self.columns.items():
            if moments.position >= len(values):
                raise ArgumentError(
                    f"column {name!r}: expected it at place {moments.position} of the batch, got {len(values)}"
                )
            values[moments.position] = self._scaled(name, values[moments.position])
        return tuple(values) if isinstance(batch, tuple) else values

    def _scaled(self, name: str, values: Any) -> torch.Tensor:
        shape = self.columns[name].mean.shape
        if not isinstance(values, torch.Tensor) or tuple(values.shape)[-len(shape) or values.ndim :] != shape:
            got = f"shape {tuple(values.shape)}" if isinstance(values, torch.Tensor) else type(values).__name__
            raise ArgumentError(f"column {name!r}: expected a tensor of samples of shape {shape}, got {got}")
        return self._scalers[name](values)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the moments as JSON, exactly."""
        columns = {
            name: {"position": moments.position, "mean": moments.mean.tolist(), "std": moments.std.tolist()}
            for name, moments in self.columns.items()
        }
        Path(path).write_text(json.dumps({"version": _VERSION, "columns": columns}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Normalizer":
        """Reads what `save` wrote.

        Raises:
            FormatError: The file holds something else, or comes from a newer version.
        """
        try:
            content = json.loads(Path(path).read_text())
            is_newer = content["version"] > _VERSION
            columns = {} if is_newer else {name: _moments(column) for name, column in content["columns"].items()}
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise FormatError(f"{path}: expected a normalizer as Normalizer.save writes it, got {error!r}") from error
        if is_newer:
            raise FormatError(
                f"{path}: expected version {_VERSION} or older, got {content['version']}; update headrace"
            )
        return cls(columns)


def _moments(column: Mapping[str, Any]) -> Moments:
    position = column["position"]
    mean, std = np.asarray(column["mean"], np.float64), np.asarray(column["std"], np.float64)
    if not (isinstance(position, int) and position >= 0 and mean.shape == std.shape):
        raise ValueError("moments that don't fit each other")
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std >= 0).all()):
        raise ValueError("moments that are no finite numbers")
    return Moments(position, mean, std)


class _Scaler:
    """(values - mean) / std for one column, on any device."""

    def __init__(self, moments: Moments) -> None:
        with np.errstate(over="ignore", invalid="ignore"):  # float32 values can't have moments that float32 can't hold
            scale = np.where(moments.std > 0, 1 / np.where(moments.std > 0, moments.std, 1), 1)
            # the mean as a float32 and what it leaves: float32 values lose no digits against a large mean
            high = moments.mean.astype(np.float32)
            parts = (high, moments.mean - high, scale)
            self._single = [torch.from_numpy(np.asarray(part, np.float32)) for part in parts]
        self._is_single = all(bool(torch.isfinite(part).all()) for part in self._single)
        self._double = [torch.from_numpy(np.asarray(part, np.float64)) for part in (moments.mean, scale)]

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        if self._is_single and values.dtype in (
            torch.float32,
            torch.float16,
            torch.bfloat16,
            torch.uint8,
            torch.int8,
            torch.int16,
            torch.bool,
        ):
            high, low, scale = (part.to(values.device) for part in self._single)
            return (values.float() - high).sub_(low).mul_(scale)
        mean, scale = (part.to(values.device) for part in self._double)
        return (values.double() - mean).mul_(scale).float()


def fit_normalizer(dataset: MapDataset, columns: Sequence[str | int] | None = None) -> Normalizer:
    """Measures mean and standard deviation of columns in one pass over a dataset, in bounded memory.

    Only these columns are read, in the dataset's own order; what comes next is fetched meanwhile.

    Sums are kept in float64, of distances from the first sample, batch by batch around the batches' own means (Chan,
    Golub and LeVeque, "Algorithms for computing the sample variance", 1983): float32 values with a large mean lose no
    digits, and the deviation of values that never vary is exactly 0.

    Args:
        dataset: One of headrace's map-style datasets; each value of a sample is measured by itself.
        columns: Names, or places where the columns were given by position; all floating-point columns by default.

    Returns:
        A batch transform.

    Raises:
        ArgumentError: There is no such column, it can't be normalised, or it holds values that are no finite numbers.
    """
    if not isinstance(dataset, MapDataset) or dataset.overrides_samples:
        raise ArgumentError(
            f"fit_normalizer: expected a dataset of columns, got {type(dataset).__qualname__}, "
            "which is none or makes its samples itself"
        )
    names = _chosen(dataset, columns)
    sums = {name: _Sums(name, dataset.schema[name].shape) for name in names}
    for read in _read_through(dataset.source.narrowed(names)):
        for name in names:
            sums[name].add(_as_float64(np.asarray(read[name]), dataset.schema[name].torch_dtype))
    places = {name: place for place, name in enumerate(dataset.schema)}
    return Normalizer({name: sums[name].moments(places[name]) for name in names})


class _Piece(NamedTuple):
    """Samples that are read together, int64 (m,)."""

    sample_ids: Ids


def _read_through(source: Source) -> Iterator[Mapping[str, Any]]:
    """All samples in their order, some MiB at a time."""
    samples, sample_bytes = len(source), sum(column.sample_bytes for column in source.schema.values())
    at_once = max(1, _BYTES_AT_ONCE // max(1, sample_bytes))
    pieces = (_Piece(np.arange(start, min(start + at_once, samples))) for start in range(0, samples, at_once))
    try:
        for piece, coming in announced(source, pieces, group_samples=at_once, ahead=1):
            if coming is not None:
                source.prefetch(coming)
            yield source.read(piece.sample_ids)
    finally:
        source.end_prefetch()


def _chosen(dataset: MapDataset, columns: Sequence[str | int] | None) -> list[str]:
    schema = dataset.schema
    if isinstance(columns, str):
        columns = [columns]
    if columns is None:
        names = [
            name
            for name, column in schema.items()
            if column.is_fixed and (column.dtype.kind == "f" or column.torch_dtype is not None)
        ]
    else:
        names = [str(column) for column in columns]
    if not names:
        raise ArgumentError(f"columns: expected at least one, got none; the columns are {list(schema)}")
    for name in names:
        if name not in schema:
            raise ArgumentError(f"columns: expected some of {list(schema)}, got {name!r}")
        if schema[name].ragged:
            raise ArgumentError(f"columns: expected samples of one shape, got {name!r}, whose samples differ in length")
        if schema[name].dtype.kind not in "fiub":
            raise ArgumentError(f"columns: expected real numbers, got {name!r} of {schema[name].dtype}")
    return names


def _as_float64(array: Array, torch_dtype: torch.dtype | None) -> npt.NDArray[np.float64]:
    if torch_dtype is None:
        return array.astype(np.float64)
    return torch.from_numpy(array).view(torch_dtype).double().numpy()


class _Sums:
    """Count, mean and sum of squared deviations of one column, so far."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self._name, self._count = name, 0
        self._first, self._mean, self._squares = np.zeros(shape), np.zeros(shape), np.zeros(shape)

    def add(self, values: npt.NDArray[np.float64]) -> None:
        """Takes in a batch, float64 (rows, *shape); changes it."""
        if not np.isfinite(values).all():
            finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
            raise ArgumentError(
                f"column {self._name!r}: expected finite numbers, got {int((~finite).sum())} samples with others, "
                f"the first of them sample {self._count + int(np.argmin(finite))}"
            )
        count, total = len(values), self._count + len(values)
        if self._count == 0:
            self._first = values[0].copy()
        with np.errstate(over="ignore", invalid="ignore"):  # `moments` finds it
            values -= self._first
            mean = values.mean(axis=0)
            values -= mean
            apart = mean - self._mean
            self._mean = self._mean + apart * (count / total)
            self._squares = (
                self._squares + np.square(values, out=values).sum(axis=0) + apart**2 * (self._count * count / total)
            )
        self._count = total

    def moments(self, position: int) -> Moments:
        if not np.isfinite(self._squares).all():
            raise ArgumentError(
                f"column {self._name!r}: expected numbers whose squares float64 can add up, got larger ones; scale them"
            )
        return Moments(position, self._first + self._mean, np.sqrt(self._squares / self._count))
