"""Copies to an accelerator that overlap with computing, and page-locked batches.

With a device, a batch goes page-locked memory -> copies' stream -> fresh memory on the device. Columns that only the
loader sees are gathered straight into page-locked memory (`pool`), which never leaves the loader and is used again;
whatever else it is, what user code made, ragged rows, what worker processes send, is copied into it first.

Guarantees:
- A batch on the device is fresh memory, ready for the consumer's current stream, and recorded on it.
- Host memory that is copied from is kept until the event after its copy has passed, whatever happens to the batch, the
  pass or the loader meanwhile; only then is it filled again.
- `send` may be called from any threads at once. They share one stream, on which their copies come in some order; each
  batch has an event of its own, after its own copies. Which stream is current is each thread's own matter, to torch as
  well, so the only thing that is locked is the list of copies under way.
- Page-locked batches that are handed out lie in blocks of torch's allocator, by the storages that it gave: it notes the
  copies that the user makes of them, and waits for them before it lends a block again.
"""

import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from headrace.errors import ArgumentError
from headrace.formats import Column
from headrace.loader.pool import Pool, TrackedPool
from headrace.loader.staging import CopiesUnderWay, locked, page_locked, staged
from headrace.loader.trees import map_tensors

# Devices for which torch can neither lock pages nor make a second stream: batches are copied there one by one
_PLAIN = {"mps"}
# Page-locked bytes that wait for their copy before a thread that sends waits too: some milliseconds of copying over
# PCI Express, so that it never pauses, and little beside the batches that are read ahead
_UNDER_WAY_BYTES = 64 << 20


class Ready(NamedTuple):
    """A batch whose copy to the device has been started, and the event that ends it."""

    batch: Any
    copied: torch.Event


class Delivery:
    """Brings finished batches to where the user wants them.

    `send` runs where the batch was read and starts the copy on a stream of its own; `receive` runs in the consumer's
    thread and makes its current stream wait for that copy, without stopping the thread.

    Attributes:
        is_plain: Whether batches stay as they were read, so that neither needs to be called.
    """

    def __init__(
        self,
        *,
        pin_memory: bool,
        device: torch.device | str | int | None,
        under_way_bytes: int = _UNDER_WAY_BYTES,
    ) -> None:
        """Prepares to deliver; no memory is page-locked yet.

        Args:
            pin_memory: Whether batches on the CPU come in page-locked memory, where there is an accelerator.
            device: Where batches are wanted; None leaves them on the CPU.
            under_way_bytes: The most page-locked bytes that wait for their copy before `send` waits as well.

        Raises:
            ArgumentError: There is no such device.
        """
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        self._device = None if device is None else _checked_device(device, accelerator)
        self._copies = self._device is not None and self._device.type != "cpu"
        self._pins = accelerator is not None and accelerator.type not in _PLAIN and pin_memory and not self._copies
        self.is_plain = not self._pins and not self._copies
        self._stream: torch.Stream | None = None
        self._under_way = CopiesUnderWay(under_way_bytes)
        if self._device is not None and self._copies and self._device.type not in _PLAIN:
            self._stream = torch.Stream(self._device)
            self._device = self._stream.device  # with its number, whatever device is current later
            # page-locked memory goes back to torch with the loader, which doesn't know of every copy out of it
            weakref.finalize(self, self._under_way.wait)

    @property
    def under_way_bytes(self) -> int:
        """Page-locked bytes that are being copied to the device, or were and have not been used again since."""
        return self._under_way.size_bytes

    def pool(self, schema: Mapping[str, Column], rows: int, *, idle: int) -> Pool:
        """Memory to gather columns into that go to `send` as they are, through nobody's hands but the loader's.

        User code must not get at it: of a copy that it starts by itself, nobody would wait for the end.

        Args:
            schema: The columns.
            rows: The most rows that are gathered at once.
            idle: How many times as much is kept while nobody uses it.
        """
        if self._stream is not None:
            return Pool(schema, rows, idle=idle, allocate=page_locked)
        if self._pins:
            return TrackedPool(schema, rows, allocate=page_locked)
        return Pool(schema, rows, idle=idle)

    def adopt_thread(self) -> None:
        """Makes the copies' stream, and its device, the current ones of this thread, which belongs to the loader.

        So the copies come after what the user's code does on the device in this thread, and no thread opens a context
        on the first device besides.
        """
        if self._stream is not None:
            torch.accelerator.set_stream(self._stream)

    def send(self, batch: Any) -> Any:
        """The batch in page-locked memory, where asked for, or as `Ready` with its copy to the device started."""
        if self._stream is None:
            if self._pins:
                return map_tensors(locked, batch)
            return map_tensors(lambda tensor: tensor.to(self._device), batch) if self._copies else batch
        self._under_way.release()
        batch = staged(batch)
        there = torch.accelerator.current_stream(self._device)
        if there == self._stream:
            return self._sent(batch, self._stream)
        here = torch.accelerator.current_stream()
        torch.accelerator.set_stream(self._stream)
        try:
            return self._sent(batch, self._stream)
        finally:
            torch.accelerator.set_stream(there)
            torch.accelerator.set_stream(here)  # and with it the device that was current

    def _sent(self, batch: Any, stream: torch.Stream) -> Ready:
        sources: list[torch.Tensor] = []

        def copy(tensor: torch.Tensor) -> torch.Tensor:
            may_go_on = tensor.layout == torch.strided  # sparse ones are not page-locked
            if tensor.device.type == "cpu" and may_go_on:
                sources.append(tensor)
            return tensor.to(self._device, non_blocking=may_go_on)

        try:
            batch = map_tensors(copy, batch)
        finally:  # should one fail, the others are being copied all the same
            copied = stream.record_event()
            self._under_way.add(copied, sources)
        return Ready(batch, copied)

    def receive(self, sent: Any) -> Any:
        """The batch, for use on the current stream."""
        if type(sent) is not Ready:
            return sent
        stream = torch.accelerator.current_stream(self._device)
        stream.wait_event(sent.copied)

        # the memory belongs to the copies' stream, which must not use it again before the consumer's is done with it
        def record(tensor: torch.Tensor) -> None:
            for part in _parts_of(tensor):
                part.record_stream(stream)

        map_tensors(record, sent.batch)
        return sent.batch


def _parts_of(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The plain tensors that a tensor consists of: `record_stream` knows of no sparse ones."""
    if tensor.layout == torch.sparse_coo:
        return tensor._indices(), tensor._values()  # noqa: SLF001 (`indices` takes none that has the same index twice)
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return (tensor,)


def _checked_device(device: torch.device | str | int, accelerator: torch.device | None) -> torch.device:
    found = "none" if accelerator is None else accelerator.type
    expected = f"device: expected the CPU or an accelerator of this machine ({found})"
    try:
        checked = torch.device(device)
    except (RuntimeError, TypeError):
        raise ArgumentError(f"{expected}, got {device!r}") from None
    if checked.type == "cpu":
        return checked
    if accelerator is None or checked.type != accelerator.type:
        raise ArgumentError(f"{expected}, got {checked}")
    if checked.index is not None and checked.index >= torch.accelerator.device_count():
        raise ArgumentError(f"{expected}, of which there are {torch.accelerator.device_count()}, got {checked}")
    return checked
