"""An accelerator that copies as late as it may, for machines without one: who doesn't wait for a copy gets garbage.

Its memory is the CPU's. Copies are noted, by address, and carried out when an event after them is waited for, or by
`catch_up`. Page-locked memory that is given back is overwritten at once, and so is memory "on the device" until its
copy comes.
"""

import ctypes
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

GARBAGE = 0x5A


class LateStream:
    """Copies in their order, done up to a point.

    Attributes:
        name: How `LateAccelerator.calls` calls it.
    """

    def __init__(self, accelerator: "LateAccelerator", name: str) -> None:
        self.accelerator, self.name = accelerator, name
        self.device = torch.device(accelerator.kind, 0)
        self._work: list[Callable[[], Any]] = []
        self._done = 0
        self._lock = threading.RLock()

    def add(self, work: Callable[[], Any]) -> None:
        with self._lock:
            self._work.append(work)

    def record_event(self) -> "LateEvent":
        self.accelerator.note(f"record an event on {self.name}")
        with self._lock:
            return LateEvent(self, len(self._work))

    def wait_event(self, event: "LateEvent") -> None:
        self.accelerator.note(f"{self.name} waits for the event on {event.stream.name}")
        self.add(event.synchronize)

    def has_done(self, count: int) -> bool:
        return self._done >= count

    def do(self, count: int | None = None) -> None:
        with self._lock:
            count = len(self._work) if count is None else count
            while self._done < count:
                work, self._work[self._done] = self._work[self._done], int
                self._done += 1
                work()


class LateEvent:
    def __init__(self, stream: LateStream, count: int) -> None:
        self.stream, self._count = stream, count

    def query(self) -> bool:
        return self.stream.has_done(self._count)

    def synchronize(self) -> None:
        self.stream.accelerator.synchronized += 1
        self.stream.do(self._count)


class LateAccelerator:
    """What is asked of `torch.accelerator`, of tensors and of page-locked memory, and what was done.

    Attributes:
        calls: What was done to streams and tensors, in order; kept for the thread that made this.
        blocks: All page-locked memory that was ever handed out.
        storages: The storages of it, by which torch's allocator knows its blocks.
        synchronized: How often a thread waited for an event.
        failing: Shape of tensors that can't be copied.
    """

    def __init__(self, kind: str = "cuda") -> None:
        self.kind = kind
        self.calls: list[str] = []
        self.blocks: list[np.ndarray[Any, Any]] = []
        self.storages: set[int] = set()
        self.synchronized = 0
        self.failing: tuple[int, ...] | None = None
        self._places: list[tuple[int, int]] = []
        self._thread = threading.current_thread()
        self._threads = threading.local()
        self._consumer = LateStream(self, "the consumer's stream")
        self.copies: LateStream | None = None

    def note(self, call: str) -> None:
        if threading.current_thread() is self._thread:
            self.calls.append(call)

    def catch_up(self) -> None:
        """Does what is left, for the consumer who looks at its batches now: what its stream waits for, and no more."""
        self._consumer.do()

    # -- torch.accelerator

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_accelerator(self) -> torch.device:
        return torch.device(self.kind)

    def current_stream(self, device: torch.device | None = None) -> LateStream:
        stream: LateStream = getattr(self._threads, "stream", self._consumer)
        return stream

    def set_stream(self, stream: LateStream) -> None:
        if stream is not self.current_stream():
            self.note(f"switch to {stream.name}")
        self._threads.stream = stream

    # -- torch.Stream, and what tensors do

    def made_stream(self, device: torch.device) -> LateStream:
        self.copies = LateStream(self, "the copies' stream")
        return self.copies

    def locked_block(self, size_bytes: int) -> torch.Tensor:
        memory = np.full(size_bytes, GARBAGE, np.uint8)
        self.blocks.append(memory)
        self._places.append((memory.ctypes.data, size_bytes))
        view = memory[:]  # goes with the tensor's storage
        weakref.finalize(view, memory.fill, GARBAGE).atexit = False
        block = torch.from_numpy(view)
        self.storages.add(block.untyped_storage()._cdata)
        return block

    def is_locked(self, tensor: torch.Tensor) -> bool:
        return any(0 <= tensor.data_ptr() - start < size_bytes for start, size_bytes in tuple(self._places))

    def locked_copy(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.is_locked(tensor) or not tensor.numel():
            return tensor
        self.note("lock pages")
        return self.locked_block(tensor.nbytes).view(tensor.dtype).view(tensor.shape).copy_(tensor)

    def copied(self, tensor: torch.Tensor, device: torch.device, *, non_blocking: bool = False) -> torch.Tensor:
        if getattr(tensor, "is_there", False):
            return tensor
        self.note(f"copy to {device.type}{', going on' if non_blocking else ''}")
        if self.failing is not None and tuple(tensor.shape) == self.failing:
            raise torch.OutOfMemoryError("no memory on the device")
        there = torch.empty_like(tensor)
        there.is_there = True  # type: ignore[attr-defined]
        if not (non_blocking and self.is_locked(tensor)):
            return there.copy_(tensor)
        ctypes.memset(there.data_ptr(), GARBAGE, there.nbytes)
        source, size_bytes = tensor.data_ptr(), tensor.nbytes  # the address alone: it keeps nothing alive

        def copy(there: torch.Tensor = there) -> None:
            ctypes.memmove(there.data_ptr(), source, size_bytes)

        self.current_stream().add(copy)
        return there

    def record(self, tensor: torch.Tensor, stream: LateStream) -> None:
        if tensor.layout != torch.strided:
            raise NotImplementedError(f"torch has no record_stream of tensors of layout {tensor.layout}")
        self.note(f"{stream.name} uses the memory")


def as_method(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(*args: Any, **options: Any) -> Any:
        return function(*args, **options)

    return method


def install(monkeypatch: pytest.MonkeyPatch, kind: str = "cuda") -> LateAccelerator:
    """Makes torch believe in such an accelerator."""
    accelerator, empty = LateAccelerator(kind), torch.empty

    def made(*size: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        if not pin_memory:
            return empty(*size, **options)
        assert options == {"dtype": torch.uint8}
        return accelerator.locked_block(*size)

    monkeypatch.setattr(torch, "empty", made)
    monkeypatch.setattr(torch, "accelerator", accelerator)
    monkeypatch.setattr(torch, "Stream", accelerator.made_stream)
    monkeypatch.setattr(torch.Tensor, "to", as_method(accelerator.copied))
    monkeypatch.setattr(torch.Tensor, "is_pinned", as_method(accelerator.is_locked))
    monkeypatch.setattr(torch.Tensor, "pin_memory", as_method(accelerator.locked_copy))
    monkeypatch.setattr(torch.Tensor, "record_stream", as_method(accelerator.record))
    return accelerator
