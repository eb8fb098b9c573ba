"""Reading around samples that fail.

Guarantees:
- A `SampleReader` and a `Skipped` may be used by any number of threads at once.
- An exception keeps its type and says which sample it belongs to.
- What a store fails to give is never skipped: it is no sample's fault.
"""

import copy
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import get_worker_info

from headrace.datasets.passes import MAX_WORKERS
from headrace.errors import ArgumentError, SampleError, StorageError
from headrace.formats import Array, Ids, ReadPart, Source, Values, concatenate

_log = logging.getLogger("headrace")


class SkipLog(Protocol):
    """Where samples that fail are noted."""

    def add(self, sample_id: int, place: str, error: Exception) -> None:
        """Notes one more; may raise SampleError where that is one sample too many."""


class SkipNotes:
    """Samples skipped in a worker process, until the loader's own `Skipped` hears of them."""

    def __init__(self) -> None:
        self._notes: list[tuple[int, str, str]] = []

    def add(self, sample_id: int, place: str, error: Exception) -> None:
        """Notes one more."""
        self._notes.append((sample_id, place, _reason(error)))

    def take(self) -> list[tuple[int, str, str]]:
        """What was noted since the last call: the sample, its place and what happened to it."""
        notes, self._notes = self._notes, []
        return notes


class Skipped:
    """Counts the samples that could not be read or transformed, and says when they are too many.

    Attributes:
        max_errors: The most different samples that may be skipped in one process.
    """

    def __init__(self, max_errors: int, *, among_workers: bool = False) -> None:
        """Begins to count.

        Args:
            max_errors: The most different samples that may be skipped.
            among_workers: Whether the counts of torch's worker processes are seen here.
        """
        self.max_errors = max_errors
        self._sample_ids: set[int] = set()  # never more than `max_errors` and one for each thread
        # this process's, then those of torch's workers: each cell has one writer
        self._counts = torch.zeros(1 + MAX_WORKERS if among_workers else 1, dtype=torch.int64)
        self._attach()

    def _attach(self) -> None:
        self._lock = threading.Lock()
        if len(self._counts) > 1:
            self._counts.share_memory_()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Shares the memory of a copy or a pickle too; that of a worker process is shared already."""
        self.__dict__.update(state)
        self._attach()

    @property
    def count(self) -> int:
        """How often a sample was skipped; one that fails in every epoch counts each time."""
        return int(self._counts.sum())

    def add(self, sample_id: int, place: str, error: Exception) -> None:
        """Notes one more; raises SampleError where that is one sample too many, however often each was skipped."""
        self.note(sample_id, place, _reason(error), error)

    def note(self, sample_id: int, place: str, reason: str, error: Exception | None = None) -> None:
        """The same with the reason in words, of an error that may have stayed in another process."""
        worker = get_worker_info() if len(self._counts) > 1 else None
        with self._lock:
            self._counts[0 if worker is None else 1 + worker.id] += 1
            self._sample_ids.add(sample_id)
            count = len(self._sample_ids)
        _log.warning("skipped %s: %s", place, reason)
        if count > self.max_errors:
            raise SampleError(
                f"{count} samples could not be read or transformed, more than max_errors={self.max_errors}; "
                f"the last is {place}"
            ) from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def skipping(on_error: str, max_errors: int, *, among_workers: bool = False) -> Skipped | None:
    """Where failing samples are counted, as the user's arguments say; None where they are errors.

    Raises:
        ArgumentError: The arguments are none of those.
    """
    if on_error not in ("raise", "skip"):
        raise ArgumentError(f'on_error: expected "raise" or "skip", got {on_error!r}')
    if isinstance(max_errors, bool) or not isinstance(max_errors, int | np.integer) or max_errors < 0:
        raise ArgumentError(f"max_errors: expected a number of samples, 0 or more, got {max_errors!r}")
    return Skipped(int(max_errors), among_workers=among_workers) if on_error == "skip" else None


class SampleReader:
    """Reads samples of a source, around those that cannot be read where they are to be skipped.

    Attributes:
        source: Where the samples are.
    """

    def __init__(self, source: Source, skipped: SkipLog | None) -> None:
        """Takes a source.

        Args:
            source: Where the samples are.
            skipped: Where failing samples are noted; None where they raise.
        """
        self.source, self._skipped = source, skipped
        self._goes_apart = False

    @property
    def skips(self) -> bool:
        """Whether failing samples are skipped."""
        return self._skipped is not None

    def over(self, source: Source) -> Self:
        """The same over another source of the same samples."""
        reader = copy.copy(self)
        reader.source = source
        return reader

    def prepare(self, ids: Ids) -> ReadPart | None:
        """What reads parts of these samples; None where that fails, so that reading them by batch tells which."""
        try:
            return self.source.prepare(ids)
        except Exception:  # noqa: BLE001 (read by batch, it comes again)
            return None

    def columns(
        self, ids: Ids, read: Callable[[], Mapping[str, Values]] | None = None
    ) -> tuple[Mapping[str, Values], Array | None]:
        """The columns of a batch, and which of the samples could be read, bool (m,); None where all could.

        Args:
            ids: The samples, int64 (m,).
            read: Reads all of them, where that was prepared.

        Raises:
            SampleError: None of them could.
        """
        try:
            return self._read(ids) if read is None else read(), None
        except Exception as error:
            if not self.skips or isinstance(error, StorageError):
                self.name_sample(error, ids)
                raise
        alone = [self._read_alone(sample_id) for sample_id in ids.tolist()]
        readable = np.array([columns is not None for columns in alone], np.bool_)
        check_any_left(readable)
        kept = [columns for columns in alone if columns is not None]
        return {name: concatenate([columns[name] for columns in kept]) for name in kept[0]}, readable

    def samples(
        self, ids: Ids, rows_of: Callable[[Mapping[str, Values], int], list[Any]], *, may_go_apart: bool = False
    ) -> tuple[list[Any], Array]:
        """Single samples, and which of those that were asked for they are, bool (m,).

        Args:
            ids: Which, int64 (m,).
            rows_of: Makes a list of samples of the columns of so many.
            may_go_apart: Whether samples that can be read one by one, but make no batch, are no error: images of
                different sizes, say.
        """
        makes_no_batch = False
        if not self._goes_apart:
            try:
                return rows_of(self._read(ids), len(ids)), np.ones(len(ids), np.bool_)
            except Exception as error:
                makes_no_batch = may_go_apart and isinstance(error, SampleError)
                if isinstance(error, StorageError) or not (self.skips or makes_no_batch):
                    self.name_sample(error, ids)
                    raise
        samples: list[Any] = []
        kept = np.ones(len(ids), np.bool_)
        for place, sample_id in enumerate(ids.tolist()):
            columns = self._read_alone(sample_id)
            if columns is None:
                kept[place] = False
            else:
                samples += rows_of(columns, 1)
        # where that was no sample's fault it will be so again, and decoding twice costs as much again
        self._goes_apart |= makes_no_batch and bool(kept.all())
        return samples, kept

    def name_sample(self, error: Exception, ids: Ids) -> None:
        """Adds to an error which sample it belongs to, where it does not tell: the first that cannot be read alone."""
        if isinstance(error, SampleError) or hasattr(error, "__notes__"):
            return
        if isinstance(error, StorageError):  # not read again: it names the place, and may have taken minutes
            error.add_note(f"while reading {listed_ids(ids)}")
            return
        for sample_id in ids.tolist():
            try:
                self._read([sample_id])
            except Exception:  # noqa: BLE001 (the error at hand is the one to be raised)
                error.add_note(f"while reading sample {sample_id} ({self.source.where(sample_id)})")
                return
        error.add_note(f"while reading {listed_ids(ids)} together; one by one they can be read")

    def _read_alone(self, sample_id: int) -> Mapping[str, Values] | None:
        """One sample's columns, of one row; None where it is skipped."""
        try:
            return self._read([sample_id])
        except Exception as error:
            if not self.skips or isinstance(error, StorageError):
                self.name_sample(error, np.array([sample_id], np.int64))
                raise
            assert self._skipped is not None
            self._skipped.add(sample_id, f"sample {sample_id} ({self.source.where(sample_id)})", error)
            return None

    def _read(self, ids: npt.ArrayLike) -> Mapping[str, Values]:
        """What every sample goes through that is not gathered with others."""
        try:
            return self.source.read(ids)
        except StopIteration as error:  # which would end the pass as if all were well
            raise SampleError("the dataset raised StopIteration") from error


def check_any_left(kept: Array) -> None:
    """Refuses a share of a step, bool (m,), of which every sample was skipped.

    Raises:
        SampleError: None is left.
    """
    if not kept.any():
        raise SampleError(f"all {len(kept)} samples of this rank's share of a step were skipped, so there is no batch")


def listed_ids(ids: Ids) -> str:
    """A batch's samples as text."""
    first = ", ".join(map(str, ids[:8].tolist()))
    return f"samples {first}" + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
