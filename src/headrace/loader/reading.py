"""From planned steps to finished batches.

Guarantees:
- A `BatchReader` may be used by any number of threads at once; the user's functions then run in those threads.
- An exception keeps its type and says which sample it belongs to.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from torch.utils.data import default_collate

from headrace.datasets.batches import Batch, BatchForm, with_valid
from headrace.errors import ArgumentError, SampleError, StorageError
from headrace.formats import Array, Ids, ReadPart, Source, Values, concatenate
from headrace.loader.plan import Group, Step
from headrace.loader.pool import Pool
from headrace.loader.user_code import BatchRandom, sample_rng, wants_rng

_log = logging.getLogger("headrace")


class UserCode(NamedTuple):
    """The user's functions, each None where there is none."""

    transform: Callable[..., Any] | None = None
    collate_fn: Callable[[list[Any]], Any] | None = None
    batch_transform: Callable[..., Any] | None = None


class Skipped:
    """Counts the samples that could not be read or transformed, and says when they are too many.

    Attributes:
        count: How often a sample was skipped; one that fails in every epoch counts each time.
    """

    def __init__(self, max_errors: int) -> None:
        self.count = 0
        self._max_errors = max_errors
        self._sample_ids: set[int] = set()  # never more than `max_errors` and one for each thread
        self._lock = threading.Lock()

    def add(self, sample_id: int, place: str, error: Exception) -> None:
        """Notes one more; raises SampleError where that is one sample too many, however often each was skipped."""
        with self._lock:
            self.count += 1
            self._sample_ids.add(sample_id)
            count = len(self._sample_ids)
        _log.warning("skipped %s: %s: %s", place, type(error).__name__, error)
        if count > self._max_errors:
            raise SampleError(
                f"{count} samples could not be read or transformed, more than max_errors={self._max_errors}; "
                f"the last is {place}"
            ) from error


class BatchReader:
    """Makes batches: calls of the source, then the user's functions."""

    def __init__(
        self,
        source: Source,
        form: BatchForm | None,
        code: UserCode,
        *,
        pool: Pool | None,
        steps_at_once: int,
        skipped: Skipped | None,
        one_at_a_time: bool = False,
    ) -> None:
        """Takes everything that a batch is made with.

        Args:
            source: Where the samples are.
            form: How columns are put together; None where the source's one column holds whole samples.
            code: The user's functions.
            pool: Memory for the columns of some steps; None where samples are looked at one by one.
            steps_at_once: How many steps share such memory at most.
            skipped: Where failing samples are counted; None where they raise.
            one_at_a_time: Whether the source must not be read by several threads at once.
        """
        self._source, self._form, self._code, self._skipped = source, form, code, skipped
        self._pool, self._steps_at_once = pool, steps_at_once
        self._turn = threading.Lock() if one_at_a_time else contextlib.nullcontext()
        self._by_sample = form is None or code.transform is not None or code.collate_fn is not None
        self._transform_rng = code.transform is not None and wants_rng("transform", code.transform, "sample")
        self._batch_rng = code.batch_transform is not None and wants_rng(
            "batch_transform", code.batch_transform, "batch"
        )
        if code.collate_fn is not None and not callable(code.collate_fn):
            raise ArgumentError(f"collate_fn: expected a function of a list of samples, got {code.collate_fn!r}")

    def read(self, seed: int, epoch: int, group: Group) -> Iterator[Any]:
        """The finished batches of some steps, one after the other.

        Args:
            seed: The order's seed, for the user's randomness.
            epoch: The epoch, likewise.
            group: The steps. Where nothing works sample by sample, they are looked up together, and a few of them
                gathered together, when the first one is asked for.
        """
        part = None if self._pool is None else self._prepare(group.sample_ids)
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

    def _prepare(self, ids: Ids) -> ReadPart | None:
        """What reads parts of these samples; None where that fails, so that reading them by step tells which."""
        try:
            return self._source.prepare(ids)
        except Exception:  # noqa: BLE001 (read by step, it comes again)
            return None

    def _gather(self, ids: Ids, part: ReadPart, bounds: list[int]) -> list[Batch] | None:
        """The batches of some steps of plain columns, as they were read; None where that fails."""
        if self._pool is None or self._form is None:
            return None
        start = bounds[0]
        try:
            columns = part(start, bounds[-1], self._pool.lend(bounds[-1] - start))
        except StorageError as error:
            self._name_sample(error, ids[start : bounds[-1]])
            raise
        except Exception:  # noqa: BLE001 (read by step, it comes again)
            return None
        return self._form.batches(columns, [bound - start for bound in bounds])

    def _read_step(self, seed: int, epoch: int, step: Step) -> Any:
        ids, valid = step.sample_ids, step.valid
        columns, readable = self._read(ids)
        if readable is not None:
            ids, valid = ids[readable], None if valid is None else valid[readable]
        if self._by_sample:
            batch, kept = self._collate(seed, epoch, ids, columns)
            ids, valid = ids[kept], None if valid is None else valid[kept]
        else:
            assert self._form is not None
            batch = self._form.batch(columns)
        return self._finish(seed, epoch, ids, valid, batch)

    def _finish(self, seed: int, epoch: int, ids: Ids, valid: Array | None, batch: Any) -> Any:
        if valid is not None:
            batch = with_valid(batch, valid)
        if self._code.batch_transform is not None:
            rng = {"rng": BatchRandom(seed, epoch, ids)} if self._batch_rng else {}
            try:
                return self._code.batch_transform(batch, **rng)
            except Exception as error:
                error.add_note(f"in batch_transform of {_listed(ids)}")
                raise
        return batch

    def _read(self, ids: Ids) -> tuple[Mapping[str, Values], Array | None]:
        """The columns, and which of the samples could be read; None where all could."""
        try:
            return self._read_source(ids), None
        except Exception as error:
            # a store that gives nothing is no fault of the samples
            if self._skipped is None or isinstance(error, StorageError):
                self._name_sample(error, ids)
                raise
        alone = [self._read_alone(sample_id) for sample_id in ids.tolist()]
        readable = np.array([columns is not None for columns in alone], np.bool_)
        _check_any_left(readable)
        kept = [columns for columns in alone if columns is not None]
        return {name: concatenate([columns[name] for columns in kept]) for name in kept[0]}, readable

    def _name_sample(self, error: Exception, ids: Ids) -> None:
        """Adds to an error which sample it belongs to, where it does not tell: the first that cannot be read alone."""
        if isinstance(error, SampleError) or hasattr(error, "__notes__"):
            return
        if isinstance(error, StorageError):  # not read again: it names the place, and may have taken minutes
            error.add_note(f"while reading {_listed(ids)}")
            return
        for sample_id in ids.tolist():
            try:
                self._read_source([sample_id])
            except Exception:  # noqa: BLE001 (the error at hand is the one to be raised)
                error.add_note(f"while reading sample {sample_id} ({self._source.where(sample_id)})")
                return
        error.add_note(f"while reading {_listed(ids)} together; one by one they can be read")

    def _read_alone(self, sample_id: int) -> Mapping[str, Values] | None:
        """One sample's columns, of one row; None where it is skipped."""
        try:
            return self._read_source([sample_id])
        except Exception as error:  # noqa: BLE001 (the user chose to skip)
            self._skip(sample_id, error)
            return None

    def _read_source(self, ids: npt.ArrayLike) -> Mapping[str, Values]:
        """What every sample goes through that is not gathered with others."""
        with self._turn:
            try:
                return self._source.read(ids)
            except StopIteration as error:  # which would end the pass as if all were well
                raise SampleError("the dataset raised StopIteration") from error

    def _skip(self, sample_id: int, error: Exception) -> None:
        assert self._skipped is not None
        self._skipped.add(sample_id, f"sample {sample_id} ({self._source.where(sample_id)})", error)

    def _collate(self, seed: int, epoch: int, ids: Ids, columns: Mapping[str, Values]) -> tuple[Any, Array]:
        """The samples, transformed and collated, and which of them were kept."""
        samples = _objects(columns) if self._form is None else self._form.rows(self._form.batch(columns))
        kept = np.ones(len(ids), np.bool_)
        if self._code.transform is not None:
            transformed = []
            for i, (sample_id, sample) in enumerate(zip(ids.tolist(), samples, strict=True)):
                rng = {"rng": sample_rng(seed, epoch, sample_id)} if self._transform_rng else {}
                try:
                    transformed.append(self._code.transform(sample, **rng))
                except Exception as error:
                    if self._skipped is None:
                        error.add_note(f"in transform of sample {sample_id} ({self._source.where(sample_id)})")
                        raise
                    self._skip(sample_id, error)
                    kept[i] = False
            samples = transformed
        _check_any_left(kept)
        try:
            return (self._code.collate_fn or default_collate)(samples), kept
        except Exception as error:
            error.add_note(f"while collating {_listed(ids[kept])}")
            if self._code.collate_fn is None and (name := self._uneven(samples)) is not None:
                error.add_note(f"column {name!r} has rows of different lengths: give pad_to= or a collate_fn")
            raise

    def _uneven(self, samples: list[Any]) -> str | None:
        """The first ragged column whose rows differ in length, as the samples hold them after the transform."""
        if self._form is None:
            return None
        for place, (name, column) in enumerate(self._form.schema.items()):
            key = place if self._form.as_tuple else name
            with contextlib.suppress(TypeError, LookupError):  # the transform made something else of it
                if column.ragged and len({len(sample[key]) for sample in samples}) > 1:
                    return name
        return None


def _objects(columns: Mapping[str, Values]) -> list[Any]:
    """The samples of a foreign dataset."""
    return cast(list[Any], cast(Array, columns["sample"]).tolist())


def _check_any_left(kept: Array) -> None:
    if not kept.any():
        raise SampleError(f"all {len(kept)} samples of this rank's share of a step were skipped, so there is no batch")


def _listed(ids: Ids) -> str:
    """A batch's samples as text."""
    first = ", ".join(map(str, ids[:8].tolist()))
    return f"samples {first}" + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
