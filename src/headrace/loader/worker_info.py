"""What `torch.utils.data.get_worker_info()` tells in a worker process of ours."""

from types import TracebackType
from typing import Any

from torch.utils.data._utils import worker as _torchs


def introduce(*, worker: int, num_workers: int, seed: int, dataset: Any) -> None:
    """Makes this process a worker in the eyes of torch, and of user code that asks it.

    Args:
        worker: Its number, below `num_workers`.
        num_workers: How many there are.
        seed: What its generators were seeded with.
        dataset: Its own copy of the dataset.
    """
    _torchs._worker_info = _torchs.WorkerInfo(  # noqa: SLF001 (where torch's own workers put it)
        id=worker, num_workers=num_workers, seed=seed, dataset=dataset
    )


class Collating:
    """While it lasts, `get_worker_info()` is None.

    torch's collation asks it, and in a worker stacks tensors into shared memory of its own: a file, and fresh pages,
    for each tensor of each batch, which then would be copied once more into memory that is used again.
    """

    __slots__ = ("_info",)

    def __enter__(self) -> None:
        self._info, _torchs._worker_info = _torchs._worker_info, None  # noqa: SLF001

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _torchs._worker_info = self._info  # noqa: SLF001
