"""Our order, state and epochs for torch's own DataLoader: a sampler that trainers recognise."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import DistributedSampler

from headrace.datasets.mapstyle import MapDataset
from headrace.datasets.passes import ENDED
from headrace.datasets.schedule import Schedule
from headrace.datasets.second_split import refuse_second_split
from headrace.errors import ArgumentError, StalePassError
from headrace.formats import DatasetSource

_IDS_AT_ONCE = 16_384


class OrderSampler(DistributedSampler[Any]):
    """The sample ids of one rank, in headrace's order.

    A `DistributedSampler`, so that trainers call its `set_epoch` and don't shard its data again. It begins a new epoch
    by itself at each pass, too, since some loops forget `set_epoch`. It has one live pass: a new one, or a loaded
    state, ends the former.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> from headrace import ArrayDataset
        >>> dataset = ArrayDataset(range(8))
        >>> loader = DataLoader(dataset, batch_size=4, sampler=OrderSampler(dataset, batch_size=4, seed=1))
        >>> sorted(int(x) for (batch,) in loader for x in batch)
        [0, 1, 2, 3, 4, 5, 6, 7]
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        *,
        shuffle: bool | str | None = True,
        seed: int | None = None,
        lanes: int | None = None,
        shuffle_window: int | None = None,
        drop_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        process_group: Any = None,
    ) -> None:
        """Plans a map-style dataset; the arguments are those of `headrace.DataLoader`.

        Args:
            dataset: Any map-style dataset.
            batch_size: The DataLoader's own batch size, per rank: steps, and so the state, count in it.
            shuffle: True, False, "global" or "window".
            seed: Any 64-bit integer; 0, or the loaded state's, where it is None.
            lanes: Streams that the order is cut into, a power of two.
            shuffle_window: Samples permuted together under a "window" shuffle.
            drop_last: Whether samples that don't fill a last step are left out; give it here, not to the DataLoader.
            rank: This process's rank; with `world_size`, by default as `torch.distributed` has it.
            world_size: The number of ranks.
            process_group: Instead of both, the `torch.distributed` group whose ranks share the data, or a `DeviceMesh`
                of one dimension: `mesh["dp"]`.

        Raises:
            ArgumentError: The arguments can't work, alone or together.
        """
        source = dataset.reading_source if isinstance(dataset, MapDataset) else DatasetSource(dataset)
        self._schedule = Schedule(
            source,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            lanes=lanes,
            shuffle_window=shuffle_window,
            drop_last=drop_last,
            may_pad=False,
            rank=rank,
            world_size=world_size,
            process_group=process_group,
        )
        steps = self._schedule.steps
        super().__init__(
            dataset,
            num_replicas=steps.world_size,
            rank=steps.rank,
            shuffle=self._schedule.order.layout.shuffle is not False,
            seed=self._schedule.order.seed,
            drop_last=drop_last,
        )
        self.batch_size = batch_size
        self._pass = 0
        self._began, self._drawn = (0, 0), 0
        self._is_amid = False  # whether some ids of a step have been drawn, and not yet all

    def __iter__(self) -> Iterator[int]:
        """Begins a pass and gives its sample ids."""
        schedule = self._schedule
        self._pass += 1
        self._is_amid = False
        self._began, self._drawn = schedule.begin(), 0
        return self._draw(self._pass, *self._began)

    def _draw(self, number: int, epoch: int, position: int) -> Iterator[int]:
        schedule, steps = self._schedule, self._schedule.steps
        at_once = max(1, _IDS_AT_ONCE // self.batch_size)
        while left := steps.remaining(position):
            count = min(at_once, left)
            plan = schedule.plan(epoch, position, count)
            for start, stop in zip(plan.bounds[:-1].tolist(), plan.bounds[1:].tolist(), strict=True):
                if number != self._pass:
                    raise StalePassError(ENDED)
                self._drawn += 1
                position = steps.advanced(position)
                schedule.progress.deliver(epoch, position, steps)
                *ids, last = plan.sample_ids[start:stop].tolist()
                self._is_amid = True
                yield from ids
                self._is_amid = False
                yield last
            if steps.remaining(position) == 0:
                return

    def __len__(self) -> int:
        """Sample ids of a full epoch on this rank."""
        steps = self._schedule.steps
        full = steps.samples // steps.global_batch_size
        last = len(steps.share(full * steps.global_batch_size, 1).sequence) if len(steps) > full else 0
        return full * self.batch_size + last

    def set_epoch(self, epoch: int) -> None:
        """Makes the next pass start this epoch, unless it continues a loaded state of the same epoch."""
        refuse_second_split(self._schedule.steps.world_size)
        # a trainer may say it when workers have begun to draw for this very epoch already
        is_running = self._drawn > 0 and self._began[0] == epoch
        self._schedule.progress.set_epoch(epoch)
        self.epoch = epoch
        if not is_running:
            self._stand()

    def state_dict(self, steps: int | None = None) -> dict[str, Any]:
        """The state of the run after some steps of the current pass; of the coming one, after `set_epoch` or a load.

        Args:
            steps: Batches of this pass that the training loop has taken; None counts those drawn so far, which runs
                ahead of the loop where the DataLoader prefetches (`num_workers` above 0).

        Raises:
            ArgumentError: The pass has not that many steps; or a step was drawn in part, so that the DataLoader's batch
                size must be another than the sampler's.
        """
        schedule = self._schedule
        if self._is_amid:
            raise ArgumentError(
                f"state_dict: a step of {self.batch_size} ids was drawn in part: expected a DataLoader with the "
                f"sampler's batch_size={self.batch_size}; give both the same"
            )
        if steps is None:
            return schedule.state_dict()
        return schedule.state_after(*self._began, steps)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a state; as `headrace.DataLoader.load_state_dict`."""
        self._schedule.load_state_dict(state)
        self._pass += 1
        self._stand()

    def _stand(self) -> None:
        progress = self._schedule.progress
        self._is_amid = False
        self._began, self._drawn = (progress.epoch, progress.position), 0
