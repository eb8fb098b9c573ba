"""What worker processes do: read a foreign dataset and run the user's functions, or run the functions alone.

Such an object is made in the loader's process, sent to each worker as it starts, and then called there.
"""

from collections.abc import Iterator
from typing import Any, Protocol

from headrace.datasets.skipping import SampleReader, SkipNotes
from headrace.formats import DatasetSource
from headrace.loader.plan import Group
from headrace.loader.reading import BatchReader
from headrace.loader.seeding import Seeding
from headrace.loader.user_code import Read, UserCode


class Work(Protocol):
    """What a worker process does for each job."""

    def __call__(self, seed: int, epoch: int, job: Any) -> Iterator[object]:
        """The job's batches, one for each of its steps. Nothing is done, or fails, before the first is asked for."""

    def take_notes(self) -> list[tuple[int, str, str]]:
        """Samples skipped since the last call: their ids, their places, and what happened to them."""


class _Noting:
    """Work that notes which samples it skips, where any are to be skipped."""

    def __init__(self, *, skips: bool) -> None:
        self._notes = SkipNotes() if skips else None

    def take_notes(self) -> list[tuple[int, str, str]]:
        """Samples skipped since the last call: their ids, their places, and what happened to them."""
        return [] if self._notes is None else self._notes.take()


class ReadAndFinish(_Noting):
    """Reads the steps of a group from a foreign dataset, then runs the user's functions."""

    def __init__(self, source: DatasetSource, code: UserCode, *, skips: bool, seeding: Seeding | None) -> None:
        super().__init__(skips=skips)
        self._source, self._seeding = source, seeding
        samples = SampleReader(source, self._notes)
        self._reader = BatchReader(samples, code.elsewhere(self._notes, seeding), pool=None, steps_at_once=1)

    def __call__(self, seed: int, epoch: int, job: Group) -> Iterator[object]:
        """The batches of a group's steps."""
        source = self._source if self._seeding is None else self._seeding.seeded(self._source, seed, epoch)
        yield from self._reader.over(source).read(seed, epoch, job)


class Finish(_Noting):
    """Runs the user's functions over what the loader's process has read."""

    def __init__(self, code: UserCode, *, skips: bool, seeding: Seeding | None) -> None:
        super().__init__(skips=skips)
        self._code = code.elsewhere(self._notes, seeding)

    def __call__(self, seed: int, epoch: int, job: Read) -> Iterator[object]:
        """The batch of one step."""
        yield self._code.finish(seed, epoch, job)
