"""Page-locked memory, which an accelerator copies from by itself, and who keeps it until it has done so.

Guarantees:
- `staged` may be called from any thread. What it gives shares no memory with tensors that were not page-locked.
- `CopiesUnderWay` keeps host memory until the copies out of it have ended, and about `most_bytes` of it at most, a
  single batch that is larger aside. Any number of threads may use one. No lock is held while it waits, or while memory
  goes back to where it came from; `wait` takes none at all, so that it may run in garbage collection.
"""

import threading
from collections import deque
from typing import Any, NamedTuple

import numpy as np
import torch

from headrace.loader.trees import map_tensors

_ALIGNMENT = 64  # bytes: a cache line, and whole values of every dtype


def page_locked(size_bytes: int) -> torch.Tensor:
    """So many bytes of page-locked memory, uint8, from torch's allocator.

    It keeps blocks of powers of two bytes for ever, and lends one again when the copies that it knows of have ended.
    """
    return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)


def staged(batch: Any) -> Any:
    """The batch in page-locked memory: as it is where it lies there already, else copied, all tensors into one block.

    A block for each batch is as good as slots of our own would be: torch's allocator hands it out in microseconds, and
    it is in use only while its copy is under way, a time which `CopiesUnderWay` bounds.
    """
    starts: deque[int | None] = deque()
    end = 0

    def plan(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal end
        starts.append(end if _is_copied(tensor) else None)
        if starts[-1] is not None:
            end += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        return tensor

    map_tensors(plan, batch)
    if end == 0:
        return map_tensors(locked, batch)
    block = page_locked(end)

    def move(tensor: torch.Tensor) -> torch.Tensor:
        start = starts.popleft()
        return locked(tensor) if start is None else _copied_into(block[start : start + tensor.nbytes], tensor)

    return map_tensors(move, batch)


def locked(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in page-locked memory of its own; as it is, where that can't be (on a device already, or sparse)."""
    return tensor.pin_memory() if tensor.device.type == "cpu" and tensor.layout == torch.strided else tensor


def _is_copied(tensor: torch.Tensor) -> bool:
    """Whether a tensor is put into a batch's block: plain ones that are not dense in page-locked memory already."""
    return (
        type(tensor) is torch.Tensor
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and not (tensor.is_nested or tensor.is_quantized or tensor.requires_grad)
        and tensor.numel() > 0
        and not (tensor.is_contiguous() and tensor.is_pinned())
    )


def _copied_into(memory: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's values in memory of as many bytes; strides stay where it is dense, as `Tensor.to` has it."""
    if tensor.is_contiguous() and not (tensor.is_conj() or tensor.is_neg()):
        # NumPy copies in this thread alone; torch would start a team of threads for each thread that copies
        np.copyto(memory.numpy(), tensor.view(-1).view(torch.uint8).numpy())
        return memory.view(tensor.dtype).view(tensor.shape)
    strides = torch.empty_like(tensor, device="meta").stride()
    return memory.view(tensor.dtype).as_strided(tensor.shape, strides).copy_(tensor)


class _Copy(NamedTuple):
    """Copies out of host memory, and the event that ends them."""

    ended: torch.Event
    sources: list[torch.Tensor]
    size_bytes: int


class CopiesUnderWay:
    """Host memory that copies to a device may still read.

    Attributes:
        size_bytes: How much of it there is now.
    """

    def __init__(self, most_bytes: int) -> None:
        """Holds nothing; `most_bytes` is how much may be held before a thread waits for the oldest copy."""
        self.size_bytes = 0
        self._most_bytes = most_bytes
        self._copies: deque[_Copy] = deque()
        self._lock = threading.Lock()

    def add(self, ended: torch.Event, sources: list[torch.Tensor]) -> None:
        """Keeps tensors until an event, recorded after the copies out of them, has passed."""
        copy = _Copy(ended, sources, sum(tensor.nbytes for tensor in sources))
        with self._lock:
            self._copies.append(copy)
            self.size_bytes += copy.size_bytes

    def release(self) -> None:
        """Lets go of what has been copied; waits for the oldest copies while there is too much of the rest."""
        done: list[_Copy] = []
        while True:
            with self._lock:
                while self._copies and self._copies[0].ended.query():
                    done.append(self._copies.popleft())
                    self.size_bytes -= done[-1].size_bytes
                oldest = self._copies[0] if self.size_bytes > self._most_bytes and len(self._copies) > 1 else None
            done.clear()
            if oldest is None:
                return
            oldest.ended.synchronize()
            del oldest

    def wait(self) -> None:
        """Returns when all copies that were under way have ended, or can't any more since the device has failed."""
        for copy in self._copies.copy():
            try:
                copy.ended.synchronize()
            except RuntimeError:
                return
