"""Arrays and tensors that are in memory already."""

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from headrace.errors import ArgumentError
from headrace.formats.dtypes import native, why_refused
from headrace.formats.gather import gather
from headrace.formats.source import (
    Array,
    Blocks,
    Column,
    Ids,
    ReadPart,
    Source,
    check_ids,
    check_out,
    fingerprint,
    uniform_blocks,
)

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


class ArraySource(Source):
    """Columns that are arrays in memory; row i of each is sample i.

    The arrays are not copied (big-endian ones are, once, into native order): what is later written into them is read.

    >>> source = ArraySource({"x": np.arange(6.0).reshape(3, 2), "y": torch.tensor([0, 1, 2])})
    >>> source.read([2, 0])
    {'x': array([[4., 5.],
           [0., 1.]]), 'y': array([2, 0])}
    """

    random_access = True

    def __init__(self, columns: Mapping[str, npt.ArrayLike | torch.Tensor]) -> None:
        """Takes arrays by column name: NumPy arrays, CPU tensors, or whatever `np.asarray` makes numbers of.

        Raises:
            ArgumentError: No columns, no samples, columns of different lengths, or values that no tensor can hold.
        """
        if not columns:
            raise ArgumentError("expected at least one column, got none")
        self._arrays: dict[str, Array] = {}
        self.schema: dict[str, Column] = {}
        for name, values in columns.items():
            array, torch_dtype = _as_array(name, values)
            self._arrays[name] = array
            self.schema[name] = Column(array.dtype, array.shape[1:], torch_dtype=torch_dtype)
        self._samples = same_length({name: len(array) for name, array in self._arrays.items()})

    def __len__(self) -> int:
        return self._samples

    @cached_property
    def blocks(self) -> Blocks:
        return uniform_blocks(self._samples, sum(column.sample_bytes for column in self.schema.values()))

    @cached_property
    def fingerprint(self) -> str:
        """Of names, dtypes and shapes only: the values are not looked at."""
        return fingerprint((name, str(array.dtype), *array.shape) for name, array in self._arrays.items())

    def read(self, sample_ids: npt.ArrayLike, out: Mapping[str, Array] | None = None) -> dict[str, Array]:
        ids = check_ids(sample_ids, self._samples)
        filled = check_out(out, self.schema, len(ids))
        self._fill(ids, filled)
        return filled

    def prepare(self, sample_ids: npt.ArrayLike) -> ReadPart:
        ids = check_ids(sample_ids, self._samples)
        return lambda start, stop, out: self._fill(ids[start:stop], out)

    def _fill(self, ids: Ids, out: Mapping[str, Array]) -> Mapping[str, Array]:
        for name, array in self._arrays.items():
            gather(array, ids, out[name])
        return out

    def where(self, sample_id: int) -> str:
        return f"row {sample_id} of {', '.join(map(repr, self._arrays))} in memory"


def same_length(lengths: Mapping[str, int]) -> int:
    """Returns the length that all columns have, the number of samples."""
    first, samples = next(iter(lengths.items()))
    for name, length in lengths.items():
        if length != samples:
            raise ArgumentError(
                f"columns must have the same number of samples: {first!r} has {samples}, {name!r} has {length}"
            )
    if samples == 0:
        raise ArgumentError(f"expected at least one sample, got an empty array in column {first!r}")
    return samples


def _as_array(name: str, values: npt.ArrayLike | torch.Tensor) -> tuple[Array, torch.dtype | None]:
    """The values as an array in native byte order, and the dtype of its bits where NumPy does not know it."""
    torch_dtype = None
    if isinstance(values, torch.Tensor):
        array, torch_dtype = _tensor_as_array(name, values)
    elif isinstance(values, np.ma.MaskedArray):
        raise ArgumentError(f"column {name!r}: a masked array would lose its mask: pass values.filled(...) instead")
    else:
        try:
            array = np.asarray(values)
        except ValueError as error:
            raise ArgumentError(
                f"column {name!r}: expected an array of numbers, got {type(values).__name__}: {error}"
            ) from None
    if refused := why_refused(array.dtype):
        raise ArgumentError(f"column {name!r}: {refused}")
    if array.ndim == 0:
        raise ArgumentError(f"column {name!r}: expected one row per sample, got a single value (a 0-d array)")
    return array.astype(native(array.dtype), copy=False), torch_dtype


def _tensor_as_array(name: str, tensor: torch.Tensor) -> tuple[Array, torch.dtype | None]:
    """A CPU tensor's memory as an array."""
    if tensor.device.type != "cpu":
        raise ArgumentError(
            f"column {name!r}: expected a tensor on the CPU, got one on {tensor.device}: pass tensor.cpu()"
        )
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise ArgumentError(f"column {name!r}: expected a dense tensor, got {tensor.layout}, {tensor.dtype}")
    tensor = tensor.detach().resolve_conj().resolve_neg()
    try:
        return tensor.numpy(), None
    except TypeError:
        return tensor.view(_BITS[tensor.element_size()]).numpy(), tensor.dtype
