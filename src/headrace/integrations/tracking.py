"""What trainers ask of any loader over our data: which batch is the last of its pass, and the state after each."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch.utils.data

from headrace.datasets import OrderSampler
from headrace.datasets.iterable import IterableView
from headrace.datasets.schedule import Schedule
from headrace.errors import ArgumentError
from headrace.loader import DataLoader


class TrackedLoader:
    """The batches of a loader, which of them is the last one of its pass, and the state after each.

    torch's own DataLoader has no state, and what its workers have drawn runs ahead of the training loop. Here it has
    one, as exact as that of `headrace.DataLoader`: of the batches that the loop has taken. A pass begins when its first
    batch is asked for, so that a state may be loaded after `iter()`, too.

    Attributes:
        loader: The loader whose batches these are.
        is_last: Whether the batch that came last is the last one of its pass.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> from headrace import ArrayDataset, OrderSampler
        >>> dataset = ArrayDataset({"x": range(6)})
        >>> sampler = OrderSampler(dataset, batch_size=2, shuffle=False)
        >>> loader = TrackedLoader(DataLoader(dataset, batch_size=2, sampler=sampler))
        >>> for batch in loader:
        ...     print(batch["x"].tolist(), loader.is_last, loader.state_dict()["position"])
        [0, 1] False 2
        [2, 3] False 4
        [4, 5] True 0
    """

    def __init__(self, loader: Any) -> None:
        """Tracks a loader.

        Args:
            loader: A `headrace.DataLoader`, or torch's over an `OrderSampler` or over an IterableDataset of ours that
                yields batches.

        Raises:
            ArgumentError: It is none of these.
        """
        self.loader: Any = loader.loader if isinstance(loader, TrackedLoader) else loader
        self._face = _face_of(self.loader)
        self.is_last = False
        self._taken: int | None = None  # of torch's loader: batches of the current pass; None until it has begun

    def __len__(self) -> int:
        """Batches of a full epoch on this rank."""
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        """Begins a pass with the first batch that is asked for."""
        self.is_last = False
        if self._face is self.loader:
            for batch in self.loader:
                self.is_last = self.loader.position == 0  # it stands in the next epoch then
                yield batch
            return
        batches = iter(self.loader)
        self._taken = left = None
        for taken, batch in enumerate(batches, start=1):
            if left is None:
                left = self._schedule.steps.remaining(self._face.state_dict(steps=0)["position"])
            self._taken, self.is_last = taken, taken == left
            yield batch

    @property
    def _schedule(self) -> Schedule:
        schedule: Schedule = self._face._schedule  # noqa: SLF001 (the one thing that all our faces drive)
        return schedule

    @property
    def rank(self) -> int:
        """The rank whose share of each step this is."""
        return self._schedule.steps.rank

    @property
    def world_size(self) -> int:
        """The number of ranks that share each step."""
        return self._schedule.steps.world_size

    @property
    def samples(self) -> int:
        """Samples of an epoch over all ranks, those of a dropped tail included."""
        return self._schedule.steps.samples

    @property
    def step(self) -> int:
        """Steps of the epoch that the state stands in that are consumed, counted from its end in steps of this size."""
        return len(self._schedule.steps) - self._schedule.steps.remaining(self.state_dict()["position"])

    def set_epoch(self, epoch: int) -> None:
        """Makes the next pass start this epoch, unless it continues a loaded state of the same epoch."""
        self._face.set_epoch(epoch)
        self._taken = None

    def state_dict(self) -> dict[str, Any]:
        """The state of the run as of the last batch that came from here."""
        is_exact = self._face is self.loader
        state: dict[str, Any] = self._face.state_dict() if is_exact else self._face.state_dict(steps=self._taken or 0)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a state; as `headrace.DataLoader.load_state_dict`."""
        self._face.load_state_dict(state)
        self._taken = None


def is_ours(loader: Any) -> bool:
    """Whether a loader's order is headrace's, so that it can be tracked."""
    if isinstance(loader, torch.utils.data.DataLoader):
        return isinstance(loader.sampler, OrderSampler) or isinstance(loader.dataset, IterableView)
    return isinstance(loader, DataLoader | TrackedLoader)


def _face_of(loader: Any) -> Any:
    """The part of a loader that knows the order: itself, its sampler or its dataset."""
    if not is_ours(loader):
        raise ArgumentError(
            "loader: expected a headrace.DataLoader, or torch's over an OrderSampler or one of headrace's "
            f"IterableDatasets, got {type(loader).__qualname__}"
        )
    if isinstance(loader, DataLoader):
        return loader
    if isinstance(loader.sampler, OrderSampler):
        return loader.sampler
    if not loader.dataset.batched or loader.batch_size is not None:
        raise ArgumentError(
            "loader: expected an IterableDataset that yields batches, whose steps torch delivers in order\n"
            "  give the batch_size to the dataset, and batch_size=None to torch's DataLoader"
        )
    return loader.dataset
