"""Any of our map-style datasets as an IterableDataset that splits itself over ranks and torch's workers."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from headrace.datasets.batches import with_valid
from headrace.datasets.collate import Chunk, collate_at_once
from headrace.datasets.mapstyle import MapDataset
from headrace.datasets.passes import ENDED, SharedPasses, Start
from headrace.datasets.read_ahead import announced
from headrace.datasets.schedule import Plan, Schedule
from headrace.datasets.second_split import refuse_second_split
from headrace.datasets.skipping import SampleReader, skipping
from headrace.errors import ArgumentError, StalePassError
from headrace.formats import ReadPart, Source, Values, check_out
from headrace.order import checked_epoch

_SAMPLES_AT_ONCE = 1024
_BYTES_AT_ONCE = 4 << 20
_PLANNED_SAMPLES = 16_384


class IterableView(IterableDataset[Any]):
    """A map-style dataset as a stream: each sample once an epoch over all ranks and workers, in headrace's order.

    With a batch size it yields ready batches, for `torch.utils.data.DataLoader(view, batch_size=None)`: worker w of W
    yields the rank's steps w, w + W, ..., which torch delivers in the order of the steps. Without one it yields
    samples, which torch's default collation assembles a batch at once.

    Each pass is the next epoch, also in persistent workers and without `set_epoch`. The state is arithmetic: the main
    process computes it from the number of steps that the training loop has taken.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> from headrace import ArrayDataset
        >>> stream = ArrayDataset({"x": range(6)}).to_iterable_dataset(batch_size=4, shuffle=False)
        >>> [batch["x"].tolist() for batch in DataLoader(stream, batch_size=None)]
        [[0, 1, 2, 3], [4, 5]]
    """

    _refusal: ArgumentError | None = None  # why there is no order, of a subclass that may do without one

    def __init__(
        self,
        dataset: MapDataset,
        batch_size: int | None = None,
        *,
        global_batch_size: int | None = None,
        shuffle: bool | str | None = None,
        seed: int | None = None,
        lanes: int | None = None,
        shuffle_window: int | None = None,
        drop_last: bool = False,
        pad_last: bool = False,
        on_error: str = "raise",
        max_errors: int = 100,
        rank: int | None = None,
        world_size: int | None = None,
        process_group: Any = None,
    ) -> None:
        """Plans a map-style dataset; the arguments are those of `headrace.DataLoader`.

        Args:
            dataset: One of headrace's map-style datasets.
            batch_size: Samples of a batch on each rank; None yields single samples.
            global_batch_size: Samples of a step over all ranks, instead.
            shuffle: True, False, "global" or "window".
            seed: Any 64-bit integer; 0, or the loaded state's, where it is None.
            lanes: Streams that the order is cut into, a power of two.
            shuffle_window: Samples permuted together under a "window" shuffle.
            drop_last: Whether the samples that don't fill a last step are left out.
            pad_last: Whether the last step is filled up with repeats; batches then have a column `__valid__`.
            on_error: "raise", or "skip": a sample that cannot be read is left out, logged and counted in `skipped`.
                Steps and single samples are counted as they were planned, so `state_dict(steps=)` counts skipped ones.
            max_errors: With "skip", the most different samples that may be skipped in one process before SampleError
                is raised.
            rank: This process's rank; with `world_size`, by default as `torch.distributed` has it.
            world_size: The number of ranks.
            process_group: Instead of both, the `torch.distributed` group whose ranks share the data, or a `DeviceMesh`
                of one dimension: `mesh["dp"]`.

        Raises:
            ArgumentError: The arguments can't work, alone or together.
        """
        if dataset.overrides_samples:
            raise ArgumentError(
                f"{type(dataset).__qualname__} makes its samples by a __getitem__ of its own; "
                "give it to headrace.DataLoader, or to torch's with an OrderSampler"
            )
        self.batched = batch_size is not None or global_batch_size is not None
        if pad_last and not self.batched:
            raise ArgumentError("pad_last: expected a batch_size with it, since single samples have no `__valid__`")
        self._dataset = dataset
        self._skipped = skipping(on_error, max_errors, among_workers=True)
        self._schedule = Schedule(
            dataset.source,
            batch_size=1 if batch_size is None else batch_size,
            global_batch_size=global_batch_size,
            shuffle=shuffle,
            seed=seed,
            lanes=lanes,
            shuffle_window=shuffle_window,
            drop_last=drop_last,
            pad_last=pad_last,
            may_pad=self.batched,
            rank=rank,
            world_size=world_size,
            process_group=process_group,
        )
        self._passes = SharedPasses()
        self._generation = 0
        self._pass = 0  # of those that this very process began
        self._delivered: tuple[int, int] | None = None  # the epoch of that pass, and its steps so far
        self._restart(0, 0)

    def __len__(self) -> int:
        """Batches of a full epoch on this rank; single samples have no length that torch could use with workers."""
        if not self.batched:
            raise TypeError("a stream of single samples has no length; give to_iterable_dataset() a batch_size")
        return len(self._schedule.steps)

    def __iter__(self) -> Iterator[Any]:
        """Begins this process's part of a pass with the first sample that is asked for."""
        self._check_planned()
        self._schedule.check_world()
        start_of_run, epoch, position = self._passes.begin()
        self._follow(start_of_run)
        worker = get_worker_info()
        first, every = (0, 1) if worker is None else (worker.id, worker.num_workers)
        self._pass += 1
        number, delivered = self._pass, 0
        self._delivered = epoch, delivered
        source = self._schedule.source_of(epoch)
        reader = SampleReader(source, self._skipped)
        try:
            for plan in self._announced(source, self._plans(epoch, position, first, every)):
                for item, steps in self._read(reader, plan):
                    if number != self._pass:
                        raise StalePassError(ENDED)
                    self._delivered = epoch, delivered + steps
                    yield item
                delivered += len(plan.bounds) - 1
                if number == self._pass:  # none may have been left of the last ones
                    self._delivered = epoch, delivered
        finally:
            if number == self._pass:
                source.end_prefetch()

    def _plans(self, epoch: int, position: int, first: int, every: int) -> Iterator[Plan]:
        """This worker's steps from a position on, `first`, `first + every` and so on, some at a time."""
        steps = self._schedule.steps
        start, left = steps.advanced(position, first), steps.remaining(position) - first
        while left > 0:
            count = min(self._steps_at_once(), -(-left // every))
            yield self._schedule.plan(epoch, start, count, every)
            start, left = steps.advanced(start, count * every), left - count * every

    def _steps_at_once(self) -> int:
        sample_bytes = max(1, sum(column.sample_bytes for column in self._dataset.schema.values()))
        samples = _PLANNED_SAMPLES if self.batched else _SAMPLES_AT_ONCE
        if not self.batched or self._dataset.source.read_ahead_bytes > 0:  # what is read, or announced, at once
            samples = min(samples, _BYTES_AT_ONCE // sample_bytes)
        return max(1, samples * self._schedule.steps.world_size // self._schedule.steps.global_batch_size)

    def _announced(self, source: Source, plans: Iterator[Plan]) -> Iterator[Plan]:
        """The plans; before each the source is told what comes as much later as it wants to know it."""
        steps = self._schedule.steps
        if source.read_ahead_bytes == 0:
            yield from plans
            return
        plan_samples = self._steps_at_once() * -(-steps.global_batch_size // steps.world_size)
        for plan, coming in announced(source, plans, group_samples=plan_samples, ahead=1):
            if coming is not None:
                source.prefetch(coming)
            yield plan

    def _read(self, reader: SampleReader, plan: Plan) -> Iterator[tuple[Any, int]]:
        """The items of some of this worker's steps, batches or single samples, and how many steps each ends."""
        source, form = reader.source, self._dataset.form
        ids, bounds, valid = plan
        if not self.batched:
            samples, kept = reader.samples(ids, self._rows, may_go_apart=True)
            # what was skipped belongs to the step before it
            yield from zip(samples, [*np.flatnonzero(kept)[1:].tolist(), len(ids)], strict=False)
            return
        rows = [slice(start, stop) for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)]
        announces_steps = source.read_ahead_bytes == 0
        part = reader.prepare(ids)
        for i, step in enumerate(rows):
            if announces_steps and i + 1 < len(rows):
                source.prefetch(ids[rows[i + 1]])
            read = None if part is None else functools.partial(self._read_part, part, step)
            columns, readable = reader.columns(ids[step], read)
            batch = form.batch(columns)
            if valid is not None:
                batch = with_valid(batch, valid[step] if readable is None else valid[step][readable])
            yield batch, i + 1

    def _read_part(self, part: ReadPart, rows: slice) -> Mapping[str, Values]:
        return part(rows.start, rows.stop, check_out(None, self._dataset.schema, rows.stop - rows.start))

    def _rows(self, columns: Mapping[str, Values], samples: int) -> list[Any]:
        form = self._dataset.form
        chunk = Chunk(form, form.batch(columns), samples)
        return chunk.rows() if collate_at_once() else form.rows(chunk.batch)

    @property
    def skipped(self) -> int:
        """Samples that this rank has skipped since the view was made, in all worker processes together."""
        return 0 if self._skipped is None else self._skipped.count

    def samples_for_a_loader(self) -> MapDataset:
        """The samples for `headrace.DataLoader`, which plans by itself.

        Raises:
            ArgumentError: This view plans already.
        """
        raise ArgumentError(
            f"dataset: expected a map-style dataset, got {type(self).__qualname__}, an IterableDataset; "
            "give the dataset that it was made from, or iterate over it with torch's DataLoader"
        )

    def _check_planned(self) -> None:
        """Refuses to go on without an order."""
        if self._refusal is not None:
            raise ArgumentError(str(self._refusal))

    def _follow(self, start: Start) -> None:
        """Takes over the order that the main process loaded, in a worker that was started before."""
        if start.generation != self._generation:
            self._schedule.lay_out(start.layout, start.seed)
            self._generation = start.generation

    def _restart(self, epoch: int, position: int) -> None:
        """Says where the next pass begins, to all processes."""
        order = self._schedule.order
        self._delivered = None
        self._passes.restart(epoch, position, order.seed, order.layout)
        self._generation = self._passes.start().generation

    def set_epoch(self, epoch: int) -> None:
        """Makes the next pass start this epoch, unless it continues a loaded state of the same epoch.

        To be called in the main process.
        """
        self._check_planned()
        refuse_second_split(self._schedule.steps.world_size)
        epoch, start = checked_epoch(epoch), self._passes.start()
        if self._passes.latest() is None and start.epoch == epoch:
            return
        self._restart(epoch, 0)

    def state_dict(self, steps: int | None = None) -> dict[str, Any]:
        """The state of the run after some steps of the current pass; to be called in the main process.

        Args:
            steps: Steps of the current pass that the training loop has taken: its batches, or its samples where single
                ones are yielded. May be left out where `num_workers` is 0. With workers, ask once a first batch has
                come: before that, it may be the former pass that counts as the current one. Where torch makes batches
                of single samples in W > 1 workers, each batch holds every W-th of them, so that only a multiple of W
                full batches is what `steps` says; with a `batch_size` of the dataset's own any number is.

        Raises:
            ArgumentError: Worker processes do the reading, and `steps` is not given; or the pass has not that many.
        """
        self._check_planned()
        latest = self._passes.latest()
        if latest is None:
            start = self._passes.start()
            return self._schedule.state_at(start.epoch, start.position)
        epoch, position = latest
        if steps is None and self._delivered is not None and self._delivered[0] == epoch:
            steps = self._delivered[1]
        if steps is None:
            raise ArgumentError(
                "state_dict: expected steps=, the number of batches that the training loop has taken in this pass: "
                "worker processes read ahead of it"
            )
        return self._schedule.state_after(epoch, position, steps)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Makes the next pass continue from a state; as `headrace.DataLoader.load_state_dict`.

        To be called in the main process.
        """
        self._check_planned()
        self._schedule.load_state_dict(state)
        self._pass += 1
        self._restart(self._schedule.progress.epoch, self._schedule.progress.position)
