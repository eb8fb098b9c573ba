"""How the batches of a pass come about: in the caller's thread, in threads, or in worker processes.

    caller's thread   plan -> read -> user code -> batch
    threads           plan -> [read -> user code -> copy to the device] -> batch
    processes         plan -> {read a foreign dataset -> user code} -> batch
                      plan -> [read one of ours] -> {user code} -> batch

[...] runs in threads of this process, {...} in worker processes. Where batches go to a device, one more thread takes
them from the processes and begins their copies.

Guarantees:
- Nothing is started before the first batch is asked for.
- Worker processes end with the pass or, if they are persistent, with the pipeline.
"""

import contextlib
import functools
import itertools
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from headrace.datasets.read_ahead import announced
from headrace.datasets.schedule import Schedule
from headrace.datasets.skipping import SampleReader, Skipped
from headrace.formats import DatasetSource, Ids, Source
from headrace.loader.device import Delivery
from headrace.loader.grouping import JobSteps, resolve_grouping
from headrace.loader.plan import Group, plan_groups
from headrace.loader.pool import Pool
from headrace.loader.prefetch import ReadAhead
from headrace.loader.process_ahead import Job, ProcessAhead
from headrace.loader.processes import Processes
from headrace.loader.reading import BatchReader
from headrace.loader.recorder import Recorder
from headrace.loader.seeding import Seeding, kept_generators
from headrace.loader.stats import Stats
from headrace.loader.trees import bytes_of
from headrace.loader.user_code import UserCode
from headrace.loader.work import Finish, ReadAndFinish, Work
from headrace.loader.workers import Workers
from headrace.metrics import metering, stage, timed

_ANNOUNCED_SAMPLES = 1024  # samples that are announced before they are read, at least

Announced: TypeAlias = tuple[Group, Ids | None]


class Brought(NamedTuple):
    """Batches with the position after each, and how to end whatever brings them.

    Attributes:
        batches: The batches; `Ahead` where they are brought by others than the caller's thread.
        ends: To be called in this order, any number of times, from any thread.
    """

    batches: Iterator[tuple[Any, int]]
    ends: tuple[Callable[[], object], ...]

    def close(self) -> None:
        """Calls all ends, each whatever becomes of the others; what fails is raised then."""
        with contextlib.ExitStack() as stack:
            for end in reversed(self.ends):
                stack.callback(end)


class Pipeline:
    """Brings batches: reads them, runs the user's functions, and sends them to where they are wanted.

    Attributes:
        source: Where the samples are.
        schedule: Which of them come when, and where the run stands.
        delivery: Where batches are wanted.
        recorder: Is told what takes how long.
        workers: Who reads ahead and runs the user's functions.
        rows: The most rows of a batch.
    """

    def __init__(
        self,
        source: Source,
        schedule: Schedule,
        code: UserCode,
        *,
        workers: Workers,
        prefetch_factor: int | None,
        prefetch_bytes: int,
        delivery: Delivery,
        recorder: Recorder,
        skipped: Skipped | None,
        dataset: Any,
    ) -> None:
        """Takes everything that batches are made with; starts nothing.

        Args:
            source: Where the samples are.
            schedule: Which of them come when.
            code: The user's functions.
            workers: Who reads ahead and runs them.
            prefetch_factor: Batches that are read ahead, per worker; None for as many as keep the workers busy.
            prefetch_bytes: The most bytes that are read ahead.
            delivery: Where batches are wanted.
            recorder: Is told what takes how long.
            skipped: Where samples that fail are counted; None where they raise.
            dataset: What the user gave, for worker processes to know of.

        Raises:
            ArgumentError: The limits can't be meant.
        """
        self.source, self.schedule, self.delivery, self.recorder = source, schedule, delivery, recorder
        self._seeding = Seeding() if workers.seeds else None
        if self._seeding is not None and workers.count == 0:
            code = code.seeded(self._seeding)
        self._code, self.workers, self._skipped, self._dataset = code, workers, skipped, dataset
        steps = schedule.steps
        self.rows = -(-steps.global_batch_size // steps.world_size)
        self._batch_bytes = self.rows * sum(column.sample_bytes for column in source.schema.values())
        self._grouping = resolve_grouping(
            source.schema,
            batch_bytes=self._batch_bytes,
            workers=workers,
            prefetch_factor=prefetch_factor,
            prefetch_bytes=prefetch_bytes,
            is_by_sample=code.is_by_sample,
        )
        is_fixed = all(column.is_fixed for column in source.schema.values())
        # of a sample in a batch, where that is known without a look
        self._sample_bytes: int | None = None
        if is_fixed and not (code.is_by_sample or code.changes_batches or steps.pad_last or skipped is not None):
            self._sample_bytes = recorder.sample_bytes = self._batch_bytes // self.rows
        self._queues: list[weakref.ref[ReadAhead | ProcessAhead]] = []  # of the last pass; the first brings its batches
        pool, at_once = None, self._grouping.gathered_steps
        if not code.is_by_sample:
            # page-locked memory only where nobody but the loader sees batches before they are delivered
            goes_straight = not code.changes_batches and not workers.are_processes
            lender = delivery.pool if goes_straight else Pool
            pool = lender(source.schema, self.rows * at_once, idle=self._grouping.idle)
        self._reader = BatchReader(SampleReader(source, skipped), code, pool=pool, steps_at_once=at_once)
        self._processes: Processes | None = None
        self._job_steps = self._grouping.job_steps() if isinstance(source, DatasetSource) else JobSteps(1)

    def bring(self, epoch: int, position: int) -> Brought:
        """The batches of an epoch from a position on."""
        source = self.schedule.source_of(epoch)
        self._queues.clear()
        if self.workers.are_processes and isinstance(source, DatasetSource):
            planned = timed("plan", plan_groups(self.schedule, epoch, position, self._steps_a_job))
            jobs = (Job(group, group.sample_ids, group.bounds, group.positions) for group in planned)
            return self._in_processes(jobs, epoch, position)
        group_rows = self.rows * self._grouping.steps
        groups = announced(
            source,
            plan_groups(self.schedule, epoch, position, lambda _: self._grouping.steps),
            group_samples=group_rows,
            ahead=max(1, self.workers.count, -(-_ANNOUNCED_SAMPLES // group_rows)),
            least=max(2, self.workers.count),
        )
        groups = timed("plan", groups)
        if self.workers.are_processes:
            read = self._ahead(source, groups, _reading(self._reader.over(source).raw))
            return self._in_processes(_ReadJobs(read), epoch, position, _ends_of(read, source))
        return self._in_threads(source, groups, epoch)

    # -- in the caller's thread, or in threads ------------------------------------------------------------------------

    def _in_threads(self, source: Source, groups: Iterator[Announced], epoch: int) -> Brought:
        seed = self.schedule.order.seed
        if self._seeding is not None and isinstance(source, DatasetSource):
            source = self._seeding.seeded(source, seed, epoch)
        read = functools.partial(self._reader.over(source).read, seed, epoch)
        if self.workers.count:
            ahead = self._ahead(source, groups, self._sending(_reading(read)))
            return Brought(ahead, _ends_of(ahead, source))
        batches = _read_here(groups, self._sending(read), _announcing(source), seeds=self.workers.seeds)
        return Brought(batches, _ends_of(batches, source))

    def _ahead(self, source: Source, groups: Iterator[Announced], read: Callable[[Group], Iterator[Any]]) -> ReadAhead:
        """What threads read of some groups."""
        ahead = ReadAhead(
            groups,
            read,
            _announcing(source),
            in_order=source.read_ahead_bytes > 0,
            num_workers=self.workers.count,
            max_groups=self._grouping.most,
            max_bytes=self._grouping.most_bytes,
            step_bytes=self._measure,
            timeout=self.workers.timeout_seconds,
            within=self._within_a_thread,
        )
        self._queues.append(weakref.ref(ahead))
        return ahead

    @contextlib.contextmanager
    def _within_a_thread(self) -> Iterator[None]:
        """What reading threads live in."""
        with metering(self.recorder.meter):
            self.delivery.adopt_thread()
            yield

    # -- in worker processes ------------------------------------------------------------------------------------------

    def _in_processes(
        self, jobs: Iterator[Job], epoch: int, position: int, ends: tuple[Callable[[], object], ...] = ()
    ) -> Brought:
        """What worker processes make; `ends` ends what brings their jobs."""
        processes = self._processes
        if processes is None or processes.closed:
            processes = self._start_processes()
        ahead = ProcessAhead(
            jobs,
            processes,
            seed=self.schedule.order.seed,
            epoch=epoch,
            max_groups=self._grouping.most,
            max_steps=self._grouping.most_steps,
            max_bytes=self._grouping.most_bytes,
            step_bytes=self._measure,
            job_steps=self._job_steps,
            timeout=self.workers.timeout_seconds,
            notes=self._note,
            recorder=self.recorder.add_remote,
        )
        self._queues.insert(0, weakref.ref(ahead))
        ends = ahead.close, *ends
        if not self.workers.persistent:
            ends = processes.close, *ends
        if self.delivery.is_plain:
            return Brought(ahead, ends)
        # copies are to begin before the consumer asks for them, so a thread of its own takes the batches and sends them
        sent = ReadAhead(
            self._placeholders(position),
            self._sending(lambda group: (next(ahead)[0] for _ in group.positions)),
            _nothing,
            num_workers=1,
            max_groups=2,
            max_bytes=self._grouping.most_bytes,
            step_bytes=self._measure,
            within=self._within_a_thread,
        )
        self._queues.append(weakref.ref(sent))
        return Brought(sent, (*ends, sent.close))

    def _steps_a_job(self, left: int) -> int:
        """How many steps the next job has: fewer towards the end, so that all processes have work until then."""
        return min(self._job_steps.next, max(1, left // (2 * self.workers.count)))

    def _start_processes(self) -> Processes:
        """Worker processes, which start when their first job comes; persistent ones end with this pipeline."""
        workers = self.workers
        skips = self._skipped is not None
        work: Work
        if isinstance(self.source, DatasetSource):
            work = ReadAndFinish(self.source, self._code, skips=skips, seeding=self._seeding)
        else:
            work = Finish(self._code, skips=skips, seeding=self._seeding)
        processes = Processes(
            workers.count,
            work,
            worker_init_fn=workers.init_fn,
            seed=self.schedule.order.seed,
            dataset=self._dataset if isinstance(self.source, DatasetSource) else None,
            parts=self._code.parts,
        )
        if workers.persistent:
            self._processes = processes
            weakref.finalize(self, processes.close)
        return processes

    def close(self) -> None:
        """Ends worker processes that outlived their pass; the next one starts them again."""
        if self._processes is not None:
            self._processes.close()

    def _note(self, notes: list[tuple[int, str, str]]) -> None:
        """Counts samples that a worker process has skipped."""
        assert self._skipped is not None
        for sample_id, _, reason in notes:
            self._skipped.note(sample_id, f"sample {sample_id} ({self.source.where(sample_id)})", reason)

    def _placeholders(self, position: int) -> Iterator[Announced]:
        """A group for each step that is left, without its samples."""
        steps = self.schedule.steps
        nothing = np.empty(0, np.int64)
        while steps.remaining(position):
            position = steps.advanced(position)
            yield Group(nothing, [0, 0], None, [position]), None

    # -- everywhere ---------------------------------------------------------------------------------------------------

    def _sending(self, read: Callable[[Group], Iterator[Any]]) -> Callable[[Group], Iterator[Any]]:
        """The same with each batch sent on its way to the device."""
        if self.delivery.is_plain:
            return read
        send = self.delivery.send

        def sent(batch: Any) -> Any:
            with stage("copy"):
                return send(batch)

        return lambda group: map(sent, read(group))

    def _measure(self, batch: Any) -> int:
        """The bytes of a batch; without one, or where the schema says it all, those of a batch of plain columns."""
        if batch is None or self._sample_bytes is not None:
            return self._batch_bytes
        return max(bytes_of(batch), 1)

    def stats(self) -> Stats:
        """What was done so far, in all passes."""
        workers = self.workers
        queues = [queue() for queue in self._queues]
        depths = [(0, 0, 0) if queue is None else queue.depth() for queue in queues] or [(0, 0, 0)]
        return self.recorder.snapshot(
            counts=self.source.counts(),
            memory_bytes=sum(depth[2] for depth in depths) + self.delivery.under_way_bytes,
            num_workers=workers.count,
            worker_type="process" if workers.are_processes else "thread",
            persistent_workers=workers.persistent,
            num_threads=0 if isinstance(self.source, DatasetSource) and workers.are_processes else workers.count,
            groups_ready=depths[0][0],
            groups_in_flight=depths[0][1],
            groups_capacity=self._grouping.most if workers.count else 0,
            skipped=0 if self._skipped is None else self._skipped.count,
        )


class _ReadJobs(Iterator[Job]):
    """What threads have read, as jobs for worker processes."""

    def __init__(self, read: ReadAhead) -> None:
        self._read = read

    def __next__(self) -> Job:
        read, position = next(self._read)
        return Job(read, read.sample_ids, [0, len(read.sample_ids)], [position])

    def ready(self) -> bool:
        """Whether the next one is there, or the end is."""
        return self._read.ready()


def _nothing(sample_ids: Ids) -> None:
    """Announces nothing: who reads the samples has announced them."""


def _reading(read: Callable[[Group], Iterator[Any]]) -> Callable[[Group], Iterator[Any]]:
    """The same, its time counted."""
    return lambda group: timed("read", read(group))


def _announcing(source: Source) -> Callable[[Ids], None]:
    """Announces samples; should that fail, so will the reading, at its own batch."""

    def announce(ids: Ids) -> None:
        with contextlib.suppress(Exception):
            source.prefetch(ids)

    return announce


def _ends_of(batches: ReadAhead | Generator[Any], source: Source) -> tuple[Callable[[], object], ...]:
    """What ends the reading, then what was fetched for it."""

    def end_reading() -> None:
        with contextlib.suppress(ValueError):  # a generator is in the middle of a batch; it is asked for no other one
            batches.close()

    def end_prefetch() -> None:
        with contextlib.suppress(Exception):  # what fails here has failed, or will, where it is needed
            source.end_prefetch()

    return end_reading, end_prefetch


def _read_here(
    groups: Iterator[Announced], read: Callable[[Group], Iterator[Any]], announce: Callable[[Ids], None], *, seeds: bool
) -> Generator[tuple[Any, int]]:
    """Batches read in the caller's thread, with the position after each."""
    for group, coming in groups:
        if coming is not None:
            announce(coming)
        batches = read(group)
        if seeds:
            batches = map(_keeping, itertools.repeat(batches, len(group.positions)))
        yield from zip(batches, group.positions, strict=True)


def _keeping(batches: Iterator[Any]) -> Any:
    """The next batch; the process's random generators are as they were before."""
    with kept_generators():
        return next(batches)
