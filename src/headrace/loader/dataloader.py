"""headrace.DataLoader: batches of any dataset, in an exact order, on time."""

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import torch

from headrace.datasets.iterable import IterableView
from headrace.datasets.mapstyle import MapDataset
from headrace.datasets.schedule import Schedule
from headrace.datasets.skipping import skipping
from headrace.errors import ArgumentError
from headrace.formats import DatasetSource, Source
from headrace.loader.advice import report
from headrace.loader.device import Delivery
from headrace.loader.forks import Birth
from headrace.loader.passing import Pass
from headrace.loader.pipeline import Pipeline
from headrace.loader.progress_bar import ProgressBar, check_tqdm, is_watched
from headrace.loader.recorder import Recorder
from headrace.loader.stats import Stats
from headrace.loader.torch_arguments import check_torch_arguments
from headrace.loader.user_code import UserCode
from headrace.loader.workers import resolve_workers


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
        persistent_workers: bool = False,
        worker_init_fn: Callable[[int], object] | None = None,
        multiprocessing_context: Any = None,
        timeout: float | None = None,
        prefetch_factor: int | None = None,
        prefetch_bytes: int = 256 << 20,
        transform: Callable[..., Any] | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        batch_transform: Callable[..., Any] | None = None,
        seed_samples: bool | None = None,
        on_error: str = "raise",
        max_errors: int = 100,
        pin_memory: bool = False,
        device: torch.device | str | int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        process_group: Any = None,
        on_stats: Callable[[Stats], object] | None = None,
        stats_seconds: float = 10.0,
        progress: bool = False,
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
            num_workers: Threads, or processes, that work ahead; 0 does all in the caller's thread.
            worker_type: "thread", or "process": the user's functions, and a foreign dataset, then run in `num_workers`
                fresh processes; headrace's own reading stays in threads of this one. By default processes for foreign
                datasets and threads for headrace's. In threads, reads of a foreign dataset overlap.
            persistent_workers: Whether worker processes outlive a pass, since starting them takes seconds; they end
                with the loader.
            worker_init_fn: Called in each worker process as it starts, with its number.
            multiprocessing_context: "spawn" or "forkserver", which both mean what is done anyway.
            timeout: Seconds that the loop waits for a batch before LoaderError is raised, which shows what each worker
                waits for; None or 0 waits for ever.
            prefetch_factor: Batches that are read ahead, per worker; by default as many as keep the workers busy.
            prefetch_bytes: The most bytes of batches that are read ahead; a larger single batch proceeds all the same.
            transform: A function of (sample) or (sample, rng) that gives one sample for one; `rng` is a
                `numpy.random.Generator` keyed by (seed, epoch, sample id).
            collate_fn: A function that makes a batch of a list of samples; torch's default collation by default.
            batch_transform: A function of (batch) or (batch, rng) that gives the batch to deliver; `rng` is a
                `BatchRandom`, keyed likewise.
            seed_samples: Whether torch's, NumPy's and Python's own generators are seeded before each sample, from
                (seed, epoch, sample id), for code that draws from them; by default in worker processes. With
                `num_workers=0` their states are put back after each batch.
            on_error: "raise", or "skip": a sample whose reading or transform fails is left out of its batch, logged and
                counted in `skipped`; a StorageError is raised all the same, for it is no sample's fault.
            max_errors: With "skip", the most different samples that may be skipped before SampleError is raised.
            pin_memory: Whether batches come in page-locked memory; without effect where there is no accelerator.
            device: Where batches are delivered, copied on a stream of their own; by default they stay in memory.
            rank: This process's rank; with `world_size`, by default as `torch.distributed` has it.
            world_size: The number of ranks.
            process_group: Instead of both, the `torch.distributed` group whose ranks share the data, or a `DeviceMesh`
                of one dimension: `mesh["dp"]`.
            on_stats: Called with `stats()` about every `stats_seconds`, and with the last batch of each pass, in the
                thread that asks for batches, just before the batch is delivered; `Stats.as_dict()` suits TensorBoard,
                Prometheus and the like.
            stats_seconds: See there.
            progress: Whether to show a bar of tqdm's, on rank 0, in terminals and notebooks.
            torch_arguments: torch's other arguments, accepted or refused as docs/torch_arguments.md says.

        Raises:
            ArgumentError: The arguments can't work, alone or together; the text says which and what to do.
        """
        check_torch_arguments(torch_arguments)
        self._skipped = skipping(on_error, max_errors)
        self.dataset = dataset
        if isinstance(dataset, IterableView):
            dataset = dataset.samples_for_a_loader()
        source = _source_of(dataset)
        workers = resolve_workers(
            num_workers=num_workers,
            worker_type=worker_type,
            persistent_workers=persistent_workers,
            worker_init_fn=worker_init_fn,
            multiprocessing_context=multiprocessing_context,
            seed_samples=seed_samples,
            timeout=timeout,
            is_foreign=isinstance(source, DatasetSource),
        )
        self._schedule = Schedule(
            source,
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
            process_group=process_group,
        )
        code = UserCode(
            dataset.form if isinstance(dataset, MapDataset) and source is dataset.source else None,
            transform=transform,
            collate_fn=collate_fn,
            batch_transform=batch_transform,
            skipped=self._skipped,
            where=source.where,
        )
        if progress:
            check_tqdm()
        self._pipeline = Pipeline(
            source,
            self._schedule,
            code,
            workers=workers,
            prefetch_factor=prefetch_factor,
            prefetch_bytes=prefetch_bytes,
            delivery=Delivery(pin_memory=pin_memory, device=device),
            recorder=Recorder(on_stats=on_stats, stats_seconds=stats_seconds, reads_here=workers.count == 0),
            skipped=self._skipped,
            dataset=self.dataset,
        )
        self._shows_bar = progress and is_watched(rank=self._schedule.steps.rank)
        self._birth = Birth()
        self._live: weakref.ref[Pass] | None = None
        self._turn = threading.RLock()  # to begin or end passes, or to move progress

    def __repr__(self) -> str:
        order, workers = self._schedule.order, self._pipeline.workers
        who = f" ({workers.type})" if workers.count else ""
        return (
            f"DataLoader({order.samples} samples, batch_size={self.batch_size}, rank {self.rank} of {self.world_size}, "
            f"shuffle={order.layout.shuffle!r}, seed={order.seed}, num_workers={workers.count}{who}; "
            f"epoch {self.epoch}, position {self.position})"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Batches of a full epoch, the same on every rank."""
        return len(self._schedule.steps)

    def __iter__(self) -> Iterator[Any]:
        """Begins a pass; ends the former one."""
        self._birth.check()
        with self._turn:
            self._end_pass("a newer one; call iter(loader) for the current pass")
            current = Pass(self._pipeline, self._birth, self._bar, self._turn)
            self._live = weakref.ref(current)
        return current

    def _bar(self, epoch: int, position: int) -> ProgressBar | None:
        if not self._shows_bar:
            return None
        steps = self._schedule.steps
        done = len(steps) - steps.remaining(position)
        return ProgressBar(len(steps), initial=max(done, 0), epoch=epoch)

    def _end_pass(self, by: str) -> None:
        live = None if self._live is None else self._live()
        if live is not None:
            live.end(f"this pass, at position {live.position} of epoch {live.epoch}, was ended by {by}")

    def close(self) -> None:
        """Ends the live pass, its threads and all worker processes; a further pass starts them anew.

        They end by themselves, too, when the loader is dropped. `with DataLoader(...) as loader:` closes it.
        """
        self._end_pass("close(); call iter(loader) for a new one")
        self._pipeline.close()

    @property
    def batch_size(self) -> int:
        """Samples of a batch on this rank, at most."""
        return self._pipeline.rows

    @property
    def global_batch_size(self) -> int:
        """Samples of a step over all ranks."""
        return self._schedule.steps.global_batch_size

    @property
    def rank(self) -> int:
        """The rank whose share of each step is delivered."""
        return self._schedule.steps.rank

    @property
    def world_size(self) -> int:
        """The ranks that share each step."""
        return self._schedule.steps.world_size

    @property
    def num_workers(self) -> int:
        """Threads, or processes, that work ahead."""
        return self._pipeline.workers.count

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

    def stats(self) -> Stats:
        """What this loader has done so far: samples, waiting, busy seconds by stage, depths, memory; see `Stats`."""
        return self._pipeline.stats()

    def report(self) -> str:
        """One paragraph that says which stage limits, and what to change."""
        return report(self.stats())

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
        with self._turn:
            self._schedule.load_state_dict(state)
            self._end_pass(
                f"a state of position {self.position} of epoch {self.epoch} that was loaded meanwhile; call "
                "iter(loader) to go on from there"
            )

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
        with self._turn:
            self._schedule.progress.seek(epoch, step, self._schedule.steps)
            self._end_pass(f"seek(epoch={epoch}, step={step}); call iter(loader) to go on from there")


def _source_of(dataset: Any) -> Source:
    if isinstance(dataset, MapDataset):
        return dataset.reading_source
    if isinstance(dataset, Mapping):
        raise ArgumentError(
            "dataset: expected a map-style dataset, got a mapping; give ArrayDataset(...) of its arrays"
        )
    return DatasetSource(dataset)
