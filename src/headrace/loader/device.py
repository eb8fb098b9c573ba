"""Page-locked batches, and copies to an accelerator that overlap with computing.

Guarantees:
- A batch on the device is fresh memory, ready for the consumer's current stream, and recorded on it.
- Page-locked memory comes from torch's own allocator, which waits for the copies out of it before it lends it again.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from headrace.errors import ArgumentError
from headrace.formats import Ragged

# Devices for which torch can neither lock pages nor make a second stream: batches are copied there one by one
_PLAIN = {"mps"}
# What lists hold by the thousand, and tensors are never in
_TEXTS = {str, bytes}
_ATOMS = {*_TEXTS, int, float, bool, type(None)}


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

    def __init__(self, *, pin_memory: bool, device: torch.device | str | int | None) -> None:
        """Raises ArgumentError where there is no such device."""
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        self._device = None if device is None else _checked_device(device, accelerator)
        self._copies = self._device is not None and self._device.type != "cpu"
        self._pins = accelerator is not None and accelerator.type not in _PLAIN and (pin_memory or self._copies)
        self.is_plain = not self._pins and not self._copies
        self._stream: torch.Stream | None = None
        if self._device is not None and self._copies and self._device.type not in _PLAIN:
            self._stream = torch.Stream(self._device)
            self._device = self._stream.device  # with its number, whatever device is current later

    def adopt_thread(self) -> None:
        """Makes the copies' stream, and its device, the current ones of this thread, which belongs to the loader.

        So the copies come after what the user's code does on the device in this thread, and no thread opens a context
        on the first device besides.
        """
        if self._stream is not None:
            torch.accelerator.set_stream(self._stream)

    def send(self, batch: Any) -> Any:
        """The batch in locked pages, where asked for, or as `Ready` with its copy to the device started."""
        if self._pins:
            batch = map_tensors(_pinned, batch)
        if self._stream is None:
            return map_tensors(lambda tensor: tensor.to(self._device), batch) if self._copies else batch
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
        batch = map_tensors(lambda tensor: tensor.to(self._device, non_blocking=True), batch)
        return Ready(batch, stream.record_event())

    def receive(self, sent: Any) -> Any:
        """The batch, for use on the current stream."""
        if type(sent) is not Ready:
            return sent
        stream = torch.accelerator.current_stream(self._device)
        stream.wait_event(sent.copied)
        # the memory belongs to the copies' stream, which must not use it again before the consumer's is done with it
        map_tensors(lambda tensor: tensor.record_stream(stream), sent.batch)
        return sent.batch


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


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in locked pages; as it is, where that can't be (it is on a device already, or sparse)."""
    return tensor.pin_memory() if tensor.device.type == "cpu" and tensor.layout == torch.strided else tensor


def map_tensors(function: Callable[[torch.Tensor], Any], tree: Any) -> Any:
    """The same dicts, lists and tuples with the function's result for each tensor; all else passes through."""
    if isinstance(tree, torch.Tensor):
        return function(tree)
    if isinstance(tree, Ragged):
        return tree.map_tensors(function)
    if isinstance(tree, dict):
        return {name: map_tensors(function, value) for name, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_tensors(function, value) for value in tree))
    if isinstance(tree, (list, tuple)):
        if _ATOMS.issuperset(map(type, tree)):
            return tree
        return type(tree)(map_tensors(function, value) for value in tree)
    return tree


def bytes_of(tree: Any) -> int:
    """The bytes of all tensors, texts and byte strings in dicts, lists and tuples."""
    if isinstance(tree, torch.Tensor):
        return tree.nbytes
    if isinstance(tree, Ragged):
        return tree.values.nbytes + tree.offsets.nbytes
    if isinstance(tree, dict):
        return sum(map(bytes_of, tree.values()))
    if isinstance(tree, (list, tuple)):
        return sum(map(len if _TEXTS.issuperset(map(type, tree)) else bytes_of, tree))
    return len(tree) if isinstance(tree, (str, bytes)) else 0
