"""Rows of different lengths: their values one after the other, and where each row begins."""

import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch

from headrace.errors import ArgumentError
from headrace.formats.decoding import PayloadError
from headrace.formats.source import Array


class Ragged:
    """A batch of rows of different lengths.

    Row i is `values[offsets[i]:offsets[i + 1]]`. Rows are views: what is written into one shows in `values`.

    Attributes:
        values: The values of all rows, (total, *shape).
        offsets: int64 (rows + 1,), rising from 0 to the total, on the same device.

    Example:
        >>> import torch
        >>> batch = Ragged(torch.tensor([1, 2, 3, 4]), torch.tensor([0, 1, 1, 4]))
        >>> batch
        Ragged of 3 rows, 4 values in all, torch.int64
        >>> batch[2], batch.lengths
        (tensor([2, 3, 4]), tensor([1, 0, 3]))
        >>> batch.to_padded(value=-1)
        tensor([[ 1, -1, -1],
                [-1, -1, -1],
                [ 2,  3,  4]])
        >>> [row.tolist() for row in batch[:2]]
        [[1], []]
    """

    __slots__ = ("offsets", "values")

    def __init__(self, values: torch.Tensor, offsets: torch.Tensor) -> None:
        """Takes both as they are.

        Raises:
            ArgumentError: They don't fit each other. What the offsets say is checked on the CPU only.
        """
        if offsets.ndim != 1 or len(offsets) == 0 or offsets.dtype != torch.int64 or values.ndim == 0:
            raise ArgumentError(
                f"Ragged: expected values (total, *shape) and int64 offsets (rows + 1,), got {tuple(values.shape)} and "
                f"{offsets.dtype} {tuple(offsets.shape)}"
            )
        if offsets.device.type == "cpu":
            _check_offsets(offsets.numpy(), len(values))
        self.values, self.offsets = values, offsets

    @classmethod
    def from_arrays(cls, values: Array, offsets: Array) -> "Ragged":
        """Rows over an array's memory; of a read-only array, over a copy.

        Args:
            values: (total, *shape).
            offsets: Integers (rows + 1,) that rise; they may begin after 0 and end before the total, as those of a
                slice do.

        Raises:
            ArgumentError: The offsets fall, or leave the values.

        >>> Ragged.from_arrays(np.arange(9), np.array([2, 3, 6])).to_list()
        [tensor([2]), tensor([3, 4, 5])]
        """
        offsets = offsets.astype(np.int64, copy=False)
        total = len(values)
        if offsets.ndim == 1 and len(offsets) and 0 <= offsets[0] <= offsets[-1] <= total:
            values = values[offsets[0] : offsets[-1]]
            offsets = offsets - offsets[0] if offsets[0] else offsets
        _check_offsets(offsets, len(values))
        return _made(_as_tensor(values), _as_tensor(offsets))

    @classmethod
    def concatenate(cls, parts: "Sequence[Ragged]") -> "Ragged":
        """The rows of several, one after the other."""
        starts = itertools.accumulate((len(part.values) for part in parts), initial=0)
        ends = [part.offsets[1:] + start for part, start in zip(parts, starts, strict=False)]
        return _made(torch.cat([part.values for part in parts]), torch.cat([parts[0].offsets[:1], *ends]))

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> torch.Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> "Ragged": ...
    def __getitem__(self, index: Any) -> Any:
        """One row, (length, *shape); or, of a slice, several."""
        rows = len(self)
        if isinstance(index, slice):
            start, stop, step = index.indices(rows)
            if step != 1:
                return self._picked(range(start, stop, step))
            offsets = self.offsets[start : max(start, stop) + 1]
            first, last = int(offsets[0]), int(offsets[-1])
            return _made(self.values[first:last], offsets - first)
        place = operator.index(index)
        if not -rows <= place < rows:
            raise IndexError(f"row {place} is out of range: there are {rows}")
        place %= rows
        start, stop = self.offsets[place : place + 2].tolist()
        return self.values[start:stop]

    def _picked(self, places: Sequence[int]) -> "Ragged":
        rows = [self[place] for place in places]
        lengths = torch.tensor([0, *map(len, rows)], device=self.offsets.device)
        return _made(torch.cat([self.values[:0], *rows]), lengths.cumsum(0))

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self.to_list())

    def __repr__(self) -> str:
        shape = f", each {tuple(self.values.shape[1:])}" if self.values.ndim > 1 else ""
        return f"Ragged of {len(self)} rows, {len(self.values)} values in all{shape}, {self.values.dtype}"

    @property
    def lengths(self) -> torch.Tensor:
        """The length of each row, int64 (rows,)."""
        return self.offsets.diff()

    def to_list(self) -> list[torch.Tensor]:
        """The rows, as views."""
        return list(self.values.split(self.lengths.tolist())) if len(self) else []

    def to_padded(self, length: int | None = None, value: float = 0, *, truncate: bool = False) -> torch.Tensor:
        """All rows as one tensor (rows, length, *shape), filled up at their ends.

        Args:
            length: The length of every row; by default that of the longest.
            value: What rows are filled up with.
            truncate: Whether longer rows lose their ends.

        Raises:
            ArgumentError: A row is longer than `length`, and `truncate` is False.
        """
        lengths, starts = self.lengths, self.offsets[:-1]
        if length is None:
            length = int(lengths.max()) if len(self) else 0
        elif not truncate:
            try:
                _check_length(lengths.cpu().numpy(), length)
            except PayloadError as error:
                raise ArgumentError(f"to_padded: {error}") from None
        padded = self.values.new_full((len(self) * length, *self.values.shape[1:]), value)
        # int64 (total,): of each value its place in its row, and the place of its row's first one in `padded`
        places = torch.arange(len(self.values), device=starts.device) - starts.repeat_interleave(lengths)
        firsts = (torch.arange(len(self), device=starts.device) * length).repeat_interleave(lengths)
        values = self.values
        if truncate:
            kept = places < length
            values, places, firsts = values[kept], places[kept], firsts[kept]
        padded = padded.index_copy(0, firsts + places, values)
        return padded.view(len(self), length, *values.shape[1:])

    def to_nested(self) -> torch.Tensor:
        """The rows as torch's nested tensor of jagged layout, over the same memory."""
        return torch.nested.nested_tensor_from_jagged(self.values, self.offsets)

    def map_tensors(self, function: Callable[[torch.Tensor], Any]) -> "Ragged":
        """The same rows with the function's result for `values` and for `offsets`."""
        return _made(function(self.values), function(self.offsets))

    def to(self, *args: Any, **kwargs: Any) -> "Ragged":
        """The rows on another device, `to(device, non_blocking=True)`; a dtype goes to the values alone."""
        values = self.values.to(*args, **kwargs)
        non_blocking = kwargs.get("non_blocking", False)
        return _made(values, self.offsets.to(values.device, non_blocking=non_blocking))

    def clone(self) -> "Ragged":
        """The same rows in memory of their own."""
        return self.map_tensors(torch.Tensor.clone)

    def pin_memory(self) -> "Ragged":
        """The rows in page-locked memory."""
        return self.map_tensors(torch.Tensor.pin_memory)

    def record_stream(self, stream: torch.Stream) -> None:
        """Says that a stream uses the memory, as `torch.Tensor.record_stream` does."""
        self.map_tensors(lambda tensor: tensor.record_stream(stream))


@dataclass(frozen=True, slots=True)
class Pad:
    """Makes rows of different lengths as long as each other: shorter ones are filled up at their ends.

    Attributes:
        length: The length of every row.
        value: What they are filled up with.
        truncate: Whether longer rows lose their ends; else they are an error.

    >>> Pad(3, value=-1).write(Ragged(torch.tensor([1, 2, 3]), torch.tensor([0, 1, 3])), np.zeros((2, 3), np.int64))
    array([[ 1, -1, -1],
           [ 2,  3, -1]])
    """

    length: int
    value: float = 0
    truncate: bool = False

    def __post_init__(self) -> None:
        is_whole = isinstance(self.length, int | np.integer) and not isinstance(self.length, bool)
        if not is_whole or not 1 <= self.length < 1 << 31:
            raise ArgumentError(f"Pad: expected a length of 1 to 2147483647, got {self.length!r}")
        if not isinstance(self.value, int | float | np.number | np.bool_):
            raise ArgumentError(f"Pad: expected a number as value, got {self.value!r}")
        if not isinstance(self.truncate, bool):
            raise ArgumentError(f"Pad: expected truncate=True or False, got {self.truncate!r}")

    def write(self, rows: Ragged, out: Array) -> Array:
        """Fills `out` (rows, length, *shape), of the values' dtype and C-contiguous, and returns it.

        Raises:
            PayloadError: A row is too long; `place` says which.
        """
        # NumPy's way is several times as fast as `to_padded`, and leaves torch's threads alone
        values, offsets = rows.values.numpy(), rows.offsets.numpy()
        lengths = np.diff(offsets)
        out[...] = self.value
        # int64 (total,): of each value its place in its row, and the place of its row's first one in `out`
        places = np.arange(len(values)) - np.repeat(offsets[:-1], lengths)
        firsts = np.repeat(np.arange(len(rows)) * self.length, lengths)
        if self.truncate:
            kept = places < self.length
            values, places, firsts = values[kept], places[kept], firsts[kept]
        else:
            _check_length(lengths, self.length)
        out.reshape(-1, *out.shape[2:])[firsts + places] = values
        return out


def _check_length(lengths: Array, length: int) -> None:
    """Raises PayloadError where a row, of int64 (rows,), is longer than `length`."""
    if (is_longer := lengths > length).any():
        place = int(is_longer.argmax())
        raise PayloadError(
            f"row {place} holds {lengths[place]} values, more than the length {length}: "
            "give a greater length, or truncate=True to drop their ends",
            place,
        )


def _made(values: torch.Tensor, offsets: torch.Tensor) -> Ragged:
    """Both, known to fit each other."""
    rows = object.__new__(Ragged)
    rows.values, rows.offsets = values, offsets
    return rows


def _as_tensor(array: Array) -> torch.Tensor:
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _check_offsets(offsets: Array, total: int) -> None:
    if offsets.ndim != 1 or len(offsets) == 0:
        raise ArgumentError(f"Ragged: expected offsets (rows + 1,), got shape {offsets.shape}")
    if offsets[0] != 0 or offsets[-1] != total:
        raise ArgumentError(f"Ragged: expected offsets from 0 to {total}, got them from {offsets[0]} to {offsets[-1]}")
    if (offsets[1:] < offsets[:-1]).any():
        row = int(np.argmax(offsets[1:] < offsets[:-1]))
        raise ArgumentError(
            f"Ragged: expected offsets that never fall, got {offsets[row]} and {offsets[row + 1]} for row {row}"
        )
