"""headrace.DataLoader: batches of any dataset, in an exact order, on time."""

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from headrace.datasets.iterable import IterableView
from headrace.datasets.mapstyle import MapDataset
from headrace.datasets.read_ahead import announced
from headrace.datasets.schedule import Schedule
from headrace.datasets.skipping import SampleReader, skipping
from headrace.errors import ArgumentError, StalePassError
from headrace.formats import DatasetSource, Ids, Source
from headrace.loader.device import Delivery, bytes_of
from headrace.loader.plan import Group, plan_groups
from headrace.loader.pool import Pool
from headrace.loader.prefetch import ReadAhead
from headrace.loader.reading import BatchReader, UserCode
from headrace.loader.torch_arguments import check_torch_arguments

# Batches that are planned, looked up and, with workers, handed over together, so that the Python between two gathers,
# which finds the caches emptied, costs little, and threads seldom wait for the interpreter's lock: of batches of 1 MB
# two threads delivered a fifth more than in groups of 8, gathered by twos
_GROUP_BYTES = 16 << 20
_GROUP_STEPS = 32
# Batches that threads gather together, into memory that they share, which a kept batch keeps: so many bytes, or a few
# batches that have twice as many. In the caller's thread each is gathered by itself, when it is asked for, into memory
# that is still in the cache
_GATHER_BYTES = 2 << 20
_GATHER_STEPS = 4
_ANNOUNCED_SAMPLES = 1024  # samples that are announced before they are read, at least


class DataLoader:
    """Batches of a dataset, in an order that is exact, reproducible and resumable.

    Each `iter(loader)` is a pass: where a loaded state stands, else over the next epoch. A loader has one live pass; a
    new one, or a loaded state, ends the former. Columns come as tensors, a dict or a list as the dataset's form is;
    samples of foreign datasets are collated as torch does. What is delivered may be kept: its memory is used again only
    when nothing views it any more.

    Example:
        >>> from headrace import ArrayDataset
        >>> loader = DataLoader(ArrayDataset({"x": range(10)}), batch_size=4, shuffle=True, seed=7)
        >>> batches = iter(loader)
        >>> first = next(batches)["x"].tolist()
        >>> state = loader.state_dict()
        >>> rest = [x for batch in batches for x in batch["x"].tolist()]
        >>> sorted(first + rest)
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]

        A loader with another batch size goes on from the state, with just the samples that are left:

        >>> other = DataLoader(ArrayDataset({"x": range(10)}), batch_size=3, shuffle=True, seed=7)
        >>> other.load_state_dict(state)
        >>> [x for batch in other for x in batch["x"].tolist()] == rest
        True
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = 1,
        shuffle: bool | str | None = None,  # noqa: FBT001 (torch's third argument)
        *,
        global_batch_size: int | None = None,
        seed: int | None = None,
        lanes: int | None = None,
        shuffle_window: int | None = None,
        drop_last: bool = False,
        pad_last: bool = False,
        num_workers: int = 0,
        worker_type: str | None = None,
        prefetch_factor: int | None = None,
        prefetch_bytes: int = 256 << 20,
        transform: Callable[..., Any] | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        batch_transform: Callable[..., Any] | None = None,
        on_error: str = "raise",
        max_errors: int = 100,
        pin_memory: bool = False,
        device: torch.device | str | int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        **torch_arguments: Any,
    ) -> None:
        """Plans the loading; starts no thread and reads no data.

        Args:
            dataset: A headrace dataset (of a `TarDataset`, its samples), or any map-style torch Dataset whose reads are
                pure.
            batch_size: Samples of a batch on each rank.
            shuffle: False (file order; the default), True (as suits the source), "global" or "window".
            global_batch_size: Samples of a step over all ranks, instead of `batch_size`; the ranks' shares then differ
                by at most one sample.
            seed: Any 64-bit integer; 0, or a loaded state's, by default.
            lanes: Streams that the order is cut into, a power of two; by default as the data suggests.
            shuffle_window: Samples permuted together under a "window" shuffle; by default 1 GiB of them.
            drop_last: Whether samples that don't fill a last step are left out; `dropped` says how many.
            pad_last: Whether the last step is filled up with repeats; all batches then have a boolean column
                `__valid__`, shape (rows,), that marks the real ones.
            num_workers: Threads that read ahead; 0 reads in the caller's thread.
            worker_type: "thread", or None: threads as well, but a foreign dataset, whose reads may share a file or
                other state, is then read by one of them at a time. Say "thread" where its reads may overlap.
            prefetch_factor: Batches that are read ahead, per worker; by default as many as keep the workers busy.
            prefetch_bytes: The most bytes of batches that are read ahead; a larger single batch proceeds all the same.
            transform: A function of (sample) or (sample, rng) that gives one sample for one; `rng` is a
                `numpy.random.Generator` keyed by (seed, epoch, sample id).
            collate_fn: A function that makes a batch of a list of samples; torch's default collation by default.
            batch_transform: A function of (batch) or (batch, rng) that gives the batch to deliver; `rng` is a
                `BatchRandom`, keyed likewise.
            on_error: "raise", or "skip": a sample whose reading or transform fails is left out of its batch, logged and
                counted in `skipped`; a StorageError is raised all the same, for it is no sample's fault.
            max_errors: With "skip", the most different samples that may be skipped before SampleError is raised.
            pin_memory: Whether batches come in page-locked memory; without effect where there is no accelerator.
            device: Where batches are delivered, copied on a stream of their own; by default they stay in memory.
            rank: This process's rank; with `world_size`, by default as `torch.distributed` has it.
            world_size: The number of ranks.
            torch_arguments: torch's other arguments, accepted or refused as docs/torch_arguments.md says.

        Raises:
            ArgumentError: The arguments can't work, alone or together; the text says which and what to do.
        """
        check_torch_arguments(torch_arguments)
        _check_workers(num_workers, worker_type, prefetch_factor, prefetch_bytes)
        self._skipped = skipping(on_error, max_errors)
        self.dataset = dataset
        self.num_workers = num_workers
        self._prefetch_bytes = prefetch_bytes
        if isinstance(dataset, IterableView):
            dataset = dataset.samples_for_a_loader()
        self._source = _source_of(dataset)
        self._schedule = Schedule(
            self._source,
            batch_size=batch_size,
            global_batch_size=global_batch_size,
            shuffle=shuffle,
            seed=seed,
            lanes=lanes,
            shuffle_window=shuffle_window,
            drop_last=drop_last,
            pad_last=pad_last,
            rank=rank,
            world_size=world_size,
        )
        form = dataset.form if isinstance(dataset, MapDataset) and self._source is dataset.source else None
        code = UserCode(transform, collate_fn, batch_transform)
        self._sample_wise = form is None or transform is not None or collate_fn is not None
        is_fixed = all(column.is_fixed for column in self._source.schema.values())
        self._size_is_known = is_fixed and not self._sample_wise and batch_transform is None
        self._rows = -(-self._schedule.steps.global_batch_size // self._schedule.steps.world_size)
        self._batch_bytes = self._rows * sum(column.sample_bytes for column in self._source.schema.values())
        self._steps_a_group, self._max_groups = self._grouping(prefetch_factor)
        at_once = min(self._steps_a_group, self._gathered_together()) if num_workers else 1
        if any(column.python_type in (object, np.ndarray) for column in self._source.schema.values()):
            at_once = 1  # what they become may depend on what they are read with: images of one size are a tensor
        # idle memory: of what may be read ahead, and of what the consumer had before its last batch
        idle = 1 + (-(-self._max_groups * self._steps_a_group // at_once) if num_workers else 1)
        pool = None if self._sample_wise else Pool(self._source.schema, self._rows * at_once, idle=idle)
        samples = SampleReader(self._source, self._skipped, one_at_a_time=form is None and worker_type is None)
        self._reader = BatchReader(samples, form, code, pool=pool, steps_at_once=at_once)
        self._delivery = Delivery(pin_memory=pin_memory, device=device)
        self._live: weakref.ref[_Pass] | None = None

    def _gathered_together(self) -> int:
        """How many steps threads gather together, at most."""
        batch_bytes = max(self._batch_bytes, 1)
        return max(1, _GATHER_BYTES // batch_bytes, min(_GATHER_STEPS, 2 * _GATHER_BYTES // batch_bytes))

    def _grouping(self, prefetch_factor: int | None) -> tuple[int, int]:
        """How many steps are read together, and how many such groups at most at once."""
        workers = max(self.num_workers, 1)
        group_bytes = min(_GROUP_BYTES, self._prefetch_bytes)
        together = 1 if self._sample_wise else min(_GROUP_STEPS, group_bytes // max(self._batch_bytes, 1)) or 1
        if prefetch_factor is None:
            return together, 2 * workers + 1
        together = min(together, max(1, prefetch_factor // 2))
        return together, max(workers, prefetch_factor * workers // together)

    def __len__(self) -> int:
        """Batches of a full epoch, the same on every rank."""
        return len(self._schedule.steps)

    def __iter__(self) -> Iterator[Any]:
        """Begins a pass; ends the former one."""
        self._end_pass()
        schedule = self._schedule
        epoch, position = schedule.progress.begin(schedule.steps)
        announced_after = -(-_ANNOUNCED_SAMPLES // (self._rows * self._steps_a_group))
        source = schedule.source_of(epoch)
        groups = announced(
            source,
            plan_groups(schedule, epoch, position, self._steps_a_group),
            group_samples=self._rows * self._steps_a_group,
            ahead=max(1, self.num_workers, announced_after),
            least=max(2, self.num_workers),
        )
        batches = self._batches(source, groups, epoch)
        current = _Pass(schedule, self._delivery, epoch, batches, source.end_prefetch)
        self._live = weakref.ref(current)
        return current

    def _batches(
        self, source: Source, groups: Iterator[tuple[Group, Ids | None]], epoch: int
    ) -> "ReadAhead | Iterator[tuple[Any, int]]":
        reader, delivery, seed = self._reader.over(source), self._delivery, self._schedule.order.seed
        in_own_threads = self.num_workers > 0

        def read(group: Group) -> Iterable[Any]:
            if in_own_threads:
                delivery.adopt_thread()
            batches = reader.read(seed, epoch, group)
            return batches if delivery.is_plain else map(delivery.send, batches)

        def announce(ids: Ids) -> None:
            with contextlib.suppress(Exception):  # should it fail, so will the reading, at its own batch
                source.prefetch(ids)

        if self.num_workers == 0:
            return _read_here(groups, read, announce)
        return ReadAhead(
            groups,
            read,
            announce,
            in_order=source.read_ahead_bytes > 0,
            num_workers=self.num_workers,
            max_groups=self._max_groups,
            max_bytes=self._prefetch_bytes,
            step_bytes=self._measure,
        )

    def _measure(self, batch: Any) -> int:
        """The bytes of a batch; without one, or where the schema says it all, those of a batch of plain columns."""
        if batch is None or self._size_is_known:
            return self._batch_bytes
        return max(bytes_of(batch), 1)

    def _end_pass(self) -> None:
        live = None if self._live is None else self._live()
        if live is not None:
            live.end()

    @property
    def epoch(self) -> int:
        """The epoch that the run stands in: that of the next batch, unless a pass was broken off."""
        return self._schedule.progress.epoch

    @property
    def position(self) -> int:
        """Samples of the epoch that all ranks together have consumed."""
        return self._schedule.progress.position

    @property
    def dropped(self) -> int:
        """Samples that `drop_last` leaves out of a full epoch."""
        return self._schedule.steps.dropped

    @property
    def skipped(self) -> int:
        """Samples that this rank has skipped since the loader was made."""
        return 0 if self._skipped is None else self._skipped.count

    def state_dict(self) -> dict[str, Any]:
        """The state of the run as of the last delivered batch: JSON-able, under 1 KB, the same on all ranks."""
        return self._schedule.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a state: the next pass delivers exactly the samples that were not consumed, each once.

        World size, batch size, workers, the last-step rule, user code and device may differ from when it was saved.
        Order parameters that were left at their defaults are taken from it.

        Raises:
            ResumeError: It is of another dataset or a newer version, or an explicit order parameter differs from it.
            ArgumentError: The last step would hold fewer samples than there are ranks.
        """
        self._schedule.load_state_dict(state)
        self._end_pass()

    def set_epoch(self, epoch: int) -> None:
        """Makes the next pass start this epoch, unless it continues a loaded state of the same epoch.

        Raises:
            ArgumentError: The epoch is negative.
        """
        self._schedule.progress.set_epoch(epoch)

    def seek(self, *, epoch: int, step: int = 0) -> None:
        """Makes the next pass start at a step of an epoch, and ends the former pass.

        Raises:
            ArgumentError: The epoch is negative, or the step outside 0..len(loader).
        """
        self._schedule.progress.seek(epoch, step, self._schedule.steps)
        self._end_pass()


class _Pass(Iterator[Any]):
    """One pass: delivers batches and moves the run's progress with each."""

    def __init__(
        self,
        schedule: Schedule,
        delivery: Delivery,
        epoch: int,
        batches: "ReadAhead | Iterator[tuple[Any, int]]",
        end_prefetch: Callable[[], None],
    ) -> None:
        self._schedule, self._delivery, self._epoch, self._batches = schedule, delivery, epoch, batches
        self._why_ended: str | None = None
        # runs when the loop drops the pass, on `end`, and when the interpreter ends
        self._close = weakref.finalize(self, _end, batches, end_prefetch)

    def __next__(self) -> Any:
        if self._why_ended is not None:
            raise StalePassError(self._why_ended)
        try:
            batch, position = next(self._batches)
            if not self._delivery.is_plain:
                batch = self._delivery.receive(batch)
        except BaseException as error:
            self._close()
            if self._why_ended is not None:  # another thread has ended it meanwhile
                raise StalePassError(self._why_ended) from None
            if not isinstance(error, StopIteration):
                self._why_ended = (
                    f"this pass was ended by {type(error).__name__}; to go on after the last batch that it delivered, "
                    "call loader.load_state_dict(loader.state_dict()), then iter(loader)"
                )
            raise
        self._schedule.progress.deliver(self._epoch, position, self._schedule.steps)
        return batch

    def end(self) -> None:
        """Ends the pass in favour of another."""
        self._why_ended = (
            "this pass was ended by a newer one, or by a loaded state; call iter(loader) for the current pass"
        )
        self._close()


def _read_here(
    groups: Iterator[tuple[Group, Ids | None]],
    read: Callable[[Group], Iterable[Any]],
    announce: Callable[[Ids], None],
) -> Iterator[tuple[Any, int]]:
    """Batches read in the caller's thread, with the position after each."""
    for group, coming in groups:
        if coming is not None:
            announce(coming)
        yield from zip(read(group), group.positions, strict=True)


def _end(batches: Any, end_prefetch: Callable[[], None]) -> None:
    """Ends the reading, then what was fetched for it."""
    try:
        batches.close()
    finally:
        with contextlib.suppress(Exception):
            end_prefetch()


def _source_of(dataset: Any) -> Source:
    if isinstance(dataset, MapDataset):
        return dataset.reading_source
    if isinstance(dataset, Mapping):
        raise ArgumentError(
            "dataset: expected a map-style dataset, got a mapping; give ArrayDataset(...) of its arrays"
        )
    return DatasetSource(dataset)


def _check_workers(num_workers: int, worker_type: str | None, prefetch_factor: int | None, prefetch_bytes: int) -> None:
    if isinstance(num_workers, bool) or not isinstance(num_workers, int | np.integer) or num_workers < 0:
        raise ArgumentError(f"num_workers: expected a number of threads, 0 or more, got {num_workers!r}")
    if worker_type == "process":
        raise ArgumentError(
            'worker_type: this release reads in threads only; give worker_type="thread", or, for a transform that '
            "holds the GIL, use torch's DataLoader with worker processes over the same dataset and an OrderSampler"
        )
    if worker_type not in (None, "thread"):
        raise ArgumentError(f'worker_type: expected None or "thread", got {worker_type!r}')
    if prefetch_factor is not None and (
        not isinstance(prefetch_factor, int | np.integer) or prefetch_factor < 1 or num_workers == 0
    ):
        raise ArgumentError(
            f"prefetch_factor: expected 1 or more, with 1 or more workers, got {prefetch_factor} and {num_workers=}"
        )
    if prefetch_bytes < 1:
        raise ArgumentError(f"prefetch_bytes: expected a number of bytes, 1 or more, got {prefetch_bytes}")
