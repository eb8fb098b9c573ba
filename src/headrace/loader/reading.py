"""From planned steps to finished batches: what is read, then what the user's functions make of it.

Guarantees:
- A `BatchReader` may be used by any number of threads at once; the user's functions then run in those threads.
- An exception keeps its type and says which sample it belongs to.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Self, cast

import numpy as np

from headrace.datasets.batches import Batch
from headrace.datasets.skipping import SampleReader, check_any_left
from headrace.errors import StorageError
from headrace.formats import Array, Ids, ReadPart, Source, Values
from headrace.loader.plan import Group, Step
from headrace.loader.pool import Pool
from headrace.loader.user_code import Read, UserCode


class BatchReader:
    """Makes batches: calls of the source, then the user's functions."""

    def __init__(self, samples: SampleReader, code: UserCode, *, pool: Pool | None, steps_at_once: int) -> None:
        """Takes everything that a batch is made with.

        Args:
            samples: Reads samples that are not gathered with others.
            code: The user's functions.
            pool: Memory for the columns of some steps; None where samples are looked at one by one.
            steps_at_once: How many steps share such memory at most.
        """
        self._samples, self._code = samples, code
        self._pool, self._steps_at_once = pool, steps_at_once

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
        for steps, batches in self._gathered(group):
            if batches is None:
                yield from (self._code.finish(seed, epoch, self._read_step(step)) for step in group.steps(steps))
            elif group.valid is None and not self._code.changes_batches:
                yield from batches
            else:
                for step, batch in zip(group.steps(steps), batches, strict=True):
                    yield self._code.finish(seed, epoch, Read(*step, batch))

    def raw(self, group: Group) -> Iterator[Read]:
        """The same without the user's functions, which are called elsewhere."""
        for steps, batches in self._gathered(group):
            if batches is None:
                yield from map(self._read_step, group.steps(steps))
            else:
                yield from (Read(*step, batch) for step, batch in zip(group.steps(steps), batches, strict=True))

    def _gathered(self, group: Group) -> Iterator[tuple[list[int], list[Batch] | None]]:
        """The bounds of a few steps at a time, and their batches; None where they are to be read one by one."""
        part = None if self._pool is None else self._samples.prepare(group.sample_ids)
        for first in range(0, len(group.positions), self._steps_at_once):
            bounds = group.bounds[first : first + self._steps_at_once + 1]
            yield bounds, None if part is None else self._gather(group.sample_ids, part, bounds)

    def _gather(self, ids: Ids, part: ReadPart, bounds: list[int]) -> list[Batch] | None:
        """The batches of some steps of plain columns, as they were read; None where that fails."""
        form = self._code.form
        assert self._pool is not None
        assert form is not None
        start = bounds[0]
        lent = self._pool.lend(bounds[-1] - start)
        try:
            columns = part(start, bounds[-1], lent)
        except StorageError as error:
            self._samples.name_sample(error, ids[start : bounds[-1]])
            raise
        except Exception:  # noqa: BLE001 (read by step, it comes again)
            return None
        return self._pool.finished(lent, form.batches(columns, [bound - start for bound in bounds]))

    def _read_step(self, step: Step) -> Read:
        ids, valid = step
        if self._code.is_by_sample:
            content, kept = self._samples.samples(ids, self._contents, may_go_apart=self._code.form is not None)
            check_any_left(kept)
        else:
            assert self._code.form is not None
            columns, readable = self._samples.columns(ids)
            kept = np.ones(len(ids), np.bool_) if readable is None else readable
            batch = self._code.form.batch(columns)
            return Read(ids[kept], None if valid is None else valid[kept], batch)
        return Read(ids[kept], None if valid is None else valid[kept], content)

    def _contents(self, columns: Mapping[str, Values], samples: int) -> list[Any]:  # noqa: ARG002 (as many as there are)
        """What is handed on of some columns: one batch, or the samples of a foreign dataset's one column of objects."""
        if self._code.form is None:
            return cast(list[Any], cast(Array, columns["sample"]).tolist())
        return [self._code.form.batch(columns)]
