"""What `torch.utils.data.get_worker_info()` tells in a worker process of ours."""

from typing import Any

import torch
from torch.utils.data._utils import collate as _collate
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
    _collate.default_collate_fn_map[torch.Tensor] = stacked


def stacked(tensors: list[torch.Tensor], *, collate_fn_map: Any = None) -> Any:
    """Tensors in one, as torch collates them outside of workers.

    In one it would stack them into shared memory of its own: a file, and fresh pages, for each tensor of each batch,
    which then would be copied once more, into memory that is used again.
    """
    info, _torchs._worker_info = _torchs._worker_info, None  # noqa: SLF001 (it goes by that)
    try:
        return _collate.collate_tensor_fn(tensors, collate_fn_map=collate_fn_map)
    finally:
        _torchs._worker_info = info  # noqa: SLF001
