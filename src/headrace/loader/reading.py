"""From planned steps to finished batches.

Guarantees:
- A `BatchReader` may be used by any number of threads at once; the user's functions then run in those threads.
- An exception keeps its type and says which sample it belongs to.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Self, cast

import numpy as np
import torch
from torch.utils.data import default_collate

from headrace.datasets.batches import Batch, BatchForm, with_valid
from headrace.datasets.skipping import SampleReader, check_any_left, listed_ids
from headrace.errors import ArgumentError, StorageError
from headrace.formats import Array, Column, Ids, ReadPart, Source, Values
from headrace.loader.plan import Group, Step
from headrace.loader.pool import Pool
from headrace.loader.user_code import BatchRandom, sample_rng, wants_rng


class UserCode(NamedTuple):
    """The user's functions, each None where there is none."""

    transform: Callable[..., Any] | None = None
    collate_fn: Callable[[list[Any]], Any] | None = None
    batch_transform: Callable[..., Any] | None = None


class BatchReader:
    """Makes batches: calls of the source, then the user's functions."""

    def __init__(
        self,
        samples: SampleReader,
        form: BatchForm | None,
        code: UserCode,
        *,
        pool: Pool | None,
        steps_at_once: int,
    ) -> None:
        """Takes everything that a batch is made with.

        Args:
            samples: Reads samples that are not gathered with others.
            form: How columns are put together; None where the source's one column holds whole samples.
            code: The user's functions.
            pool: Memory for the columns of some steps; None where samples are looked at one by one.
            steps_at_once: How many steps share such memory at most.
        """
        self._samples, self._form, self._code = samples, form, code
        self._pool, self._steps_at_once = pool, steps_at_once
        self._by_sample = form is None or code.transform is not None or code.collate_fn is not None
        self._transform_rng = code.transform is not None and wants_rng("transform", code.transform, "sample")
        self._batch_rng = code.batch_transform is not None and wants_rng(
            "batch_transform", code.batch_transform, "batch"
        )
        if code.collate_fn is not None and not callable(code.collate_fn):
            raise ArgumentError(f"collate_fn: expected a function of a list of samples, got {code.collate_fn!r}")

    def over(self, source: Source) -> Self:
        """The same over another source of the same samples."""
        reader = copy.copy(self)
        reader._samples = self._samples.over(source)  # noqa: SLF001 (its own class)
        return reader

    def read(self, seed: int, epoch: int, group: Group) -> Iterator[Any]:
        """The finished batches of some steps, one after the other.

        Args:
            seed: The order's seed, for the user's randomness.
            epoch: The epoch, likewise.
            group: The steps. Where nothing works sample by sample, they are looked up together, and a few of them
                gathered together, when the first one is asked for.
        """
        part = None if self._pool is None else self._samples.prepare(group.sample_ids)
        for first in range(0, len(group.positions), self._steps_at_once):
            bounds = group.bounds[first : first + self._steps_at_once + 1]
            batches = None if part is None else self._gather(group.sample_ids, part, bounds)
            if batches is None:
                yield from (self._read_step(seed, epoch, step) for step in group.steps(bounds))
            elif group.valid is None and self._code.batch_transform is None:
                yield from batches
            else:
                for step, batch in zip(group.steps(bounds), batches, strict=True):
                    yield self._finish(seed, epoch, step.sample_ids, step.valid, batch)

    def _gather(self, ids: Ids, part: ReadPart, bounds: list[int]) -> list[Batch] | None:
        """The batches of some steps of plain columns, as they were read; None where that fails."""
        if self._pool is None or self._form is None:
            return None
        start = bounds[0]
        try:
            columns = part(start, bounds[-1], self._pool.lend(bounds[-1] - start))
        except StorageError as error:
            self._samples.name_sample(error, ids[start : bounds[-1]])
            raise
        except Exception:  # noqa: BLE001 (read by step, it comes again)
            return None
        return self._form.batches(columns, [bound - start for bound in bounds])

    def _read_step(self, seed: int, epoch: int, step: Step) -> Any:
        ids, valid = step.sample_ids, step.valid
        if self._by_sample:
            samples, kept = self._samples.samples(ids, self._rows, may_go_apart=self._form is not None)
            check_any_left(kept)
            batch, kept = self._collate(seed, epoch, ids, samples, kept)
        else:
            assert self._form is not None
            columns, readable = self._samples.columns(ids)
            kept = np.ones(len(ids), np.bool_) if readable is None else readable
            batch = self._form.batch(columns)
        return self._finish(seed, epoch, ids[kept], None if valid is None else valid[kept], batch)

    def _rows(self, columns: Mapping[str, Values], samples: int) -> list[Any]:  # noqa: ARG002 (as many as there are)
        """The samples of some columns; those of a foreign dataset are one column of objects."""
        if self._form is None:
            return cast(list[Any], cast(Array, columns["sample"]).tolist())
        return self._form.rows(self._form.batch(columns))

    def _finish(self, seed: int, epoch: int, ids: Ids, valid: Array | None, batch: Any) -> Any:
        if valid is not None:
            batch = with_valid(batch, valid)
        if self._code.batch_transform is not None:
            rng = {"rng": BatchRandom(seed, epoch, ids)} if self._batch_rng else {}
            try:
                return self._code.batch_transform(batch, **rng)
            except Exception as error:
                error.add_note(f"in batch_transform of {listed_ids(ids)}")
                raise
        return batch

    def _collate(self, seed: int, epoch: int, ids: Ids, samples: list[Any], kept: Array) -> tuple[Any, Array]:
        """The samples that could be read, transformed and collated, and which of all were kept, bool (m,)."""
        kept = kept.copy()
        if self._code.transform is not None:
            transformed = []
            for place, sample in zip(np.flatnonzero(kept).tolist(), samples, strict=True):
                sample_id = int(ids[place])
                rng = {"rng": sample_rng(seed, epoch, sample_id)} if self._transform_rng else {}
                try:
                    transformed.append(self._code.transform(sample, **rng))
                except Exception as error:
                    if not self._samples.skips:
                        where = self._samples.source.where(sample_id)
                        error.add_note(f"in transform of sample {sample_id} ({where})")
                        raise
                    self._samples.skip(sample_id, error)
                    kept[place] = False
            samples = transformed
        check_any_left(kept)
        try:
            return (self._code.collate_fn or default_collate)(samples), kept
        except Exception as error:
            error.add_note(f"while collating {listed_ids(ids[kept])}")
            if self._code.collate_fn is None and (note := self._uneven(samples)) is not None:
                error.add_note(note)
            raise

    def _uneven(self, samples: list[Any]) -> str | None:
        """What to do about the first column whose rows differ in shape, as the samples hold them after the transform.

        None where there is no such column.
        """
        if self._form is None:
            return None
        for place, (name, column) in enumerate(self._form.schema.items()):
            with contextlib.suppress(TypeError, LookupError):  # the transform made something else of it
                rows = [sample[place if self._form.as_tuple else name] for sample in samples]
                if note := _uneven_rows(name, column, rows):
                    return note
        return None


def _uneven_rows(name: str, column: Column, rows: list[Any]) -> str | None:
    if column.ragged and len(set(map(len, rows))) > 1:
        return f"column {name!r} has rows of different lengths: give pad_to= or a collate_fn"
    shapes = {row.shape for row in rows if isinstance(row, torch.Tensor)}
    if column.python_type in (object, np.ndarray) and len(shapes) > 1:
        return (
            f"column {name!r} has samples of different shapes: decode images to one size, as in "
            f"decode={{{name!r}: headrace.image(224)}}, or give a transform or a collate_fn"
        )
    return None
