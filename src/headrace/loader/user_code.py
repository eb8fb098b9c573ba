"""The user's functions: from what was read of a step to the batch that is delivered.

Guarantees:
- A `UserCode` may be used by any number of threads at once, which the user's functions then run in.
- An exception keeps its type and says which sample it belongs to.
"""

import contextlib
import copy
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch.utils.data import default_collate

from headrace.datasets.batches import BatchForm, with_valid
from headrace.datasets.skipping import SkipLog, check_any_left, listed_ids
from headrace.errors import ArgumentError
from headrace.formats import Array, Column, Ids
from headrace.loader.randomness import BatchRandom, sample_rng
from headrace.loader.seeding import Seeding
from headrace.metrics import stage


class Read(NamedTuple):
    """What was read of one step.

    Attributes:
        sample_ids: int64, shape (m,): the samples that could be read.
        valid: bool, shape (m,): which of them don't only fill up the last step; None where all are real.
        content: The batch as the dataset's form gives it. Where user code works sample by sample, a list: of batches
            that together hold the samples, or of a foreign dataset's samples themselves.
    """

    sample_ids: Ids
    valid: Array | None
    content: Any


class UserCode:
    """The user's functions, and how they are called; made in one process, perhaps used in others.

    Attributes:
        form: How columns are put together; None where samples are a foreign dataset's own.
        is_by_sample: Whether samples are looked at one by one.
        changes_batches: Whether there is a `batch_transform`.
    """

    def __init__(
        self,
        form: BatchForm | None,
        *,
        transform: Callable[..., Any] | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        batch_transform: Callable[..., Any] | None = None,
        skipped: SkipLog | None = None,
        where: Callable[[int], str] = "sample {}".format,
        seeding: Seeding | None = None,
    ) -> None:
        """Takes everything that happens to samples after they were read.

        Args:
            form: How columns are put together; None where samples are a foreign dataset's own.
            transform: Makes a sample of a sample.
            collate_fn: Makes a batch of a list of samples; torch's by default.
            batch_transform: Makes a batch of a batch.
            skipped: Where samples whose transform fails are counted; None where they raise.
            where: Names a sample's place.
            seeding: Seeds the process's random generators; None leaves them alone.

        Raises:
            ArgumentError: One of them is no function, or not of such arguments.
        """
        if collate_fn is not None and not callable(collate_fn):
            raise ArgumentError(f"collate_fn: expected a function of a list of samples, got {collate_fn!r}")
        self.form, self.is_by_sample = form, form is None or transform is not None or collate_fn is not None
        self.changes_batches = batch_transform is not None
        self._transform, self._collate_fn, self._batch_transform = transform, collate_fn, batch_transform
        self._transform_rng = transform is not None and _wants_rng("transform", transform, "sample")
        self._batch_rng = batch_transform is not None and _wants_rng("batch_transform", batch_transform, "batch")
        self._skipped, self._where, self._seeding = skipped, where, seeding

    def seeded(self, seeding: Seeding) -> Self:
        """The same, before each call of which the process's random generators are seeded."""
        code = copy.copy(self)
        code._seeding = seeding  # noqa: SLF001 (its own class)
        return code

    @property
    def parts(self) -> dict[str, Any]:
        """The user's functions by their names, those that there are."""
        named = {
            "transform": self._transform,
            "collate_fn": self._collate_fn,
            "batch_transform": self._batch_transform,
        }
        return {name: function for name, function in named.items() if function is not None}

    def elsewhere(self, skipped: SkipLog | None, seeding: Seeding | None) -> Self:
        """The same for a worker process, to which it is sent without what is known here of the samples' places."""
        code = copy.copy(self)
        code._skipped, code._where, code._seeding = skipped, "sample {}".format, seeding  # noqa: SLF001 (its own class)
        return code

    def finish(self, seed: int, epoch: int, read: Read) -> Any:
        """The batch to deliver.

        Args:
            seed: The order's seed, for the user's randomness.
            epoch: The epoch, likewise.
            read: What was read.

        Raises:
            SampleError: All samples were skipped, or one too many.
            Exception: What the user's functions raise.
        """
        ids, valid, batch = read
        with stage("user"):
            if self.is_by_sample:
                samples = batch if self.form is None else [row for part in batch for row in self.form.rows(part)]
                kept = np.ones(len(ids), np.bool_)
                if self._transform is not None:
                    samples, kept = self._transformed(seed, epoch, ids, samples)
                    ids, valid = ids[kept], None if valid is None else valid[kept]
                self._seed_batch(seed, epoch, ids)
                batch = self._collate(ids, samples)
            else:
                self._seed_batch(seed, epoch, ids)
            if valid is not None:
                batch = with_valid(batch, valid)
            if self._batch_transform is None:
                return batch
            rng = {"rng": BatchRandom(seed, epoch, ids)} if self._batch_rng else {}
            try:
                return self._batch_transform(batch, **rng)
            except Exception as error:
                error.add_note(f"in batch_transform of {listed_ids(ids)}")
                raise

    def _seed_batch(self, seed: int, epoch: int, ids: Ids) -> None:
        if self._seeding is not None and (self._collate_fn is not None or self._batch_transform is not None):
            self._seeding.seed(seed, epoch, ids[:1])

    def _transformed(self, seed: int, epoch: int, ids: Ids, samples: list[Any]) -> tuple[list[Any], Array]:
        """The samples that could be transformed, and which of all they are, bool (m,)."""
        assert self._transform is not None
        kept, transformed = np.ones(len(ids), np.bool_), []
        seeding = self._seeding
        seeds = None if seeding is None else seeding.seeds(seed, epoch, ids)
        for place, (sample_id, sample) in enumerate(zip(ids.tolist(), samples, strict=True)):
            if seeding is not None and seeds is not None:
                seeding.set(seeds[place])
            rng = {"rng": sample_rng(seed, epoch, sample_id)} if self._transform_rng else {}
            try:
                transformed.append(self._transform(sample, **rng))
            except Exception as error:
                where = self._where(sample_id)
                if self._skipped is None:
                    error.add_note(f"in transform of sample {sample_id} ({where})")
                    raise
                self._skipped.add(sample_id, f"sample {sample_id} ({where})", error)
                kept[place] = False
        check_any_left(kept)
        return transformed, kept

    def _collate(self, ids: Ids, samples: list[Any]) -> Any:
        try:
            return (self._collate_fn or default_collate)(samples)
        except Exception as error:
            error.add_note(f"while collating {listed_ids(ids)}")
            if self._collate_fn is None and (note := self._uneven(samples)) is not None:
                error.add_note(note)
            raise

    def _uneven(self, samples: list[Any]) -> str | None:
        """What to do about the first column whose rows differ in shape, as the samples hold them after the transform.

        None where there is no such column.
        """
        if self.form is None:
            return None
        for place, (name, column) in enumerate(self.form.schema.items()):
            with contextlib.suppress(TypeError, LookupError):  # the transform made something else of it
                rows = [sample[place if self.form.as_tuple else name] for sample in samples]
                if note := _uneven_rows(name, column, rows):
                    return note
        return None


def _wants_rng(name: str, function: Callable[..., Any], subject: str) -> bool:
    """Whether a user's function has a parameter `rng`.

    Raises:
        ArgumentError: It can't be called with `subject` alone, or with `subject` and `rng`.
    """
    if not callable(function):
        raise ArgumentError(f"{name}: expected a function of ({subject}) or ({subject}, rng), got {function!r}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return False  # builtins don't tell; they take no rng either
    asks = "rng" in signature.parameters
    try:
        signature.bind(None, **({"rng": None} if asks else {}))
    except TypeError:
        raise ArgumentError(
            f"{name}: expected a function of ({subject}) or ({subject}, rng), got one of {signature}"
        ) from None
    return asks


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
