"""Batches read at once, seen as lists of samples: how torch's own DataLoader gets whole batches from us.

torch's fetcher takes a list of samples from a dataset and hands it to `collate_fn`. We read a batch at once and give it
a list whose samples are made only when somebody looks at them. torch's default collation picks its function by the type
of the first sample; ours is of a private type, and the function registered for it returns the batch as it was read. A
user's own `collate_fn` sees an ordinary list of dicts or tuples.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
import torch.utils.data._utils.collate as torch_collate

from headrace.datasets.batches import Batch, BatchForm, Sample
from headrace.formats import Ragged


class Chunk:
    """Samples that were read together: as a batch, and one by one.

    Attributes:
        batch: All of them, as default collation would give them.
        length: Their number.
    """

    def __init__(self, form: BatchForm, batch: Batch, length: int) -> None:
        self.form, self.batch, self.length = form, batch, length
        self._versions = self._counted()

    def first(self) -> "_DictRow | _TupleRow":
        """The first sample, without making the others."""
        return self._as_row(self.form.row(self.batch, 0), 0)

    def rows(self) -> list[Any]:
        """All samples."""
        return [self._as_row(sample, i) for i, sample in enumerate(self.form.rows(self.batch))]

    def unchanged(self) -> bool:
        """Whether no operation in place has touched the tensors, or those of the samples, which share their memory."""
        return self._versions == self._counted()

    def _counted(self) -> list[Any]:
        return [_version(column) for column in (self.batch if isinstance(self.batch, list) else self.batch.values())]

    def slice(self, start: int, stop: int) -> Batch:
        """The batch of samples [start, stop), in memory of its own unless it is the whole chunk."""
        if start == 0 and stop == self.length:
            return self.batch
        columns = self.batch if isinstance(self.batch, list) else self.batch.values()
        parts = [_copied(column, start, stop) for column in columns]
        return parts if isinstance(self.batch, list) else dict(zip(self.batch, parts, strict=True))

    def _as_row(self, sample: Sample, index: int) -> "_DictRow | _TupleRow":
        row = _DictRow(sample) if isinstance(sample, dict) else _TupleRow(sample)
        row.chunk, row.place, row.made = self, index, _snapshot(sample)
        return row


class _DictRow(dict[str, Any]):
    """A sample that remembers the chunk it came from; copies and pickles are plain dicts."""

    chunk: Chunk
    place: int
    made: Any  # what it held when it was made

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


class _TupleRow(tuple[Any, ...]):  # noqa: SLOT001 (a tuple can't have slots of its own)
    """A sample that remembers the chunk it came from; copies and pickles are plain tuples."""

    chunk: Chunk
    place: int
    made: Any

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (tuple(self),)


def _snapshot(value: Any) -> Any:
    """The value with copies of its dicts, those of structured columns too, which a user may change in place."""
    if isinstance(value, dict):
        return {name: _snapshot(field) for name, field in value.items()}
    return tuple(map(_snapshot, value)) if isinstance(value, tuple) else value


def _holds(value: Any, made: Any) -> bool:
    """Whether a value still holds the very tensors of its snapshot, under the same names."""
    if isinstance(made, dict):
        return isinstance(value, dict) and list(value) == list(made) and all(map(_holds, value.values(), made.values()))
    return all(map(_holds, value, made)) if isinstance(made, tuple) else value is made


def _version(column: Any) -> Any:
    """How often a column's tensors, or those that share their memory, were changed in place, in shape or content."""
    if isinstance(column, torch.Tensor):
        return 0 if column.is_inference() else column._version  # noqa: SLF001 (autograd's own count)
    if isinstance(column, Ragged):
        return _version(column.values), _version(column.offsets)
    if isinstance(column, list):
        # tensors in a list are views of one, which count together; what else a list holds, samples hold themselves
        return _version(column[0]) if column and isinstance(column[0], torch.Tensor) else 0
    return [_version(field) for field in column.values()]


def _copied(column: Any, start: int, stop: int) -> Any:
    if isinstance(column, dict):
        return {name: _copied(field, start, stop) for name, field in column.items()}
    if isinstance(column, list):
        return [value.clone() if isinstance(value, torch.Tensor) else value for value in column[start:stop]]
    return column[start:stop].clone()


class LazyRows(list[Any]):
    """A batch as a list of its samples, filled when anything but its length or first sample is asked for."""

    def __init__(self, chunk: Chunk) -> None:
        super().__init__()
        self._chunk: Chunk | None = chunk
        self._first: Any = None  # kept here: a chunk that held its rows would be garbage for the collector to find

    def untouched(self) -> Chunk | None:
        """The chunk, as long as nobody has changed a sample, nor was given more than the first; else None."""
        if self._chunk is None or not self._chunk.unchanged():
            return None
        return self._chunk if self._first is None or _holds(self._first, self._first.made) else None

    def _fill(self) -> None:
        if self._chunk is not None:
            rows, self._chunk = self._chunk.rows(), None
            if self._first is not None:
                rows[0] = self._first
            list.extend(self, rows)

    def __len__(self) -> int:
        return super().__len__() if self._chunk is None else self._chunk.length

    def __bool__(self) -> bool:
        return len(self) > 0

    def __iter__(self) -> Iterator[Any]:
        self._fill()
        return super().__iter__()

    def __getitem__(self, index: Any) -> Any:
        if self._chunk is not None and type(index) is int and index == 0:
            if self._first is None:
                self._first = self._chunk.first()
            return self._first
        self._fill()
        return super().__getitem__(index)

    def __radd__(self, other: Any) -> Any:
        return other + list(self) if isinstance(other, list) else NotImplemented

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


def _filled(name: str) -> Callable[..., Any]:
    method = getattr(list, name)

    def filled(self: LazyRows, *args: Any, **kwargs: Any) -> Any:
        self._fill()
        return method(self, *args, **kwargs)

    filled.__name__ = name
    return filled


for _name in (
    *("append", "extend", "insert", "pop", "remove", "clear", "sort", "reverse", "copy", "index", "count"),
    *("__setitem__", "__delitem__", "__contains__", "__reversed__", "__repr__", "__add__", "__iadd__", "__mul__"),
    *("__rmul__", "__imul__", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"),
):
    setattr(LazyRows, _name, _filled(_name))


def collate_at_once() -> bool:
    """Teaches torch's default collation our rows; returns whether this torch can be taught."""
    table = getattr(torch_collate, "default_collate_fn_map", None)
    if table is None:
        return False
    if _DictRow not in table:
        table[_DictRow] = table[_TupleRow] = _collate_rows
    return True


def _collate_rows(rows: list[Any], *, collate_fn_map: Mapping[Any, Any]) -> Any:
    """What default collation makes of these samples: where nothing changed, what reading them at once gives."""
    if collate_fn_map.get(torch.Tensor) is torch_collate.collate_tensor_fn:  # else a user's own way with tensors
        if isinstance(rows, LazyRows) and (chunk := rows.untouched()) is not None:
            return chunk.batch
        if (batch := _as_read(rows)) is not None:
            return batch
    plain = [dict(row) if isinstance(row, dict) else tuple(row) for row in rows]
    return cast(Any, torch_collate.collate)(plain, collate_fn_map=collate_fn_map)


def _as_read(rows: list[Any]) -> Batch | None:
    """The rows as a batch of the form in which they were read, where they are unchanged; else None.

    A run of one chunk's rows is a slice of it. Rows of several are put together by column: default collation would
    give some columns another form (dicts of JSON become one dict), which then changed from batch to batch.

    Raises:
        SampleError: Samples of several differ in shape, of a column whose batches are one array.
    """
    runs: list[tuple[Chunk, int, int]] = []
    for row in rows:
        if type(row) is not type(rows[0]) or not _holds(row, row.made):
            return None
        chunk, place = cast(Chunk, row.chunk), row.place
        start = place
        if runs and runs[-1][0] is chunk and runs[-1][2] == place:
            _, start, _ = runs.pop()
        runs.append((chunk, start, place + 1))
    form = runs[0][0].form
    chunks = {id(chunk): chunk for chunk, _, _ in runs}.values()
    if not all(chunk.form == form and chunk.unchanged() for chunk in chunks):
        return None
    parts = [chunk.slice(start, stop) for chunk, start, stop in runs]
    return parts[0] if len(parts) == 1 else form.joined(parts)
