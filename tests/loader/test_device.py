"""Delivery: page-locked memory and copies to an accelerator."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import headrace as hr
from headrace.errors import ArgumentError
from headrace.loader import device as module
from headrace.loader.device import Delivery, Ready, map_tensors
from tests.loader.stand_ins import delivered, flat, ids_of, numbers

HAS_ACCELERATOR = torch.accelerator.is_available()
NEEDS_ACCELERATOR = pytest.mark.skipif(not HAS_ACCELERATOR, reason="needs an accelerator: this machine has none")
WITHOUT_ACCELERATOR = pytest.mark.skipif(HAS_ACCELERATOR, reason="shows what happens where there is no accelerator")
WORKERS = pytest.mark.parametrize("num_workers", [0, 2])


@WORKERS
def test_delivery_to_the_cpu_is_delivery(num_workers):
    loader = hr.DataLoader(numbers(20), batch_size=5, num_workers=num_workers, device="cpu")
    batches = list(loader)
    assert flat(delivered(batches)) == list(range(20))
    assert all(batch["x"].device.type == "cpu" for batch in batches)


@WITHOUT_ACCELERATOR
@WORKERS
def test_pin_memory_without_an_accelerator_changes_nothing_and_warns_of_nothing(num_workers):
    loader = hr.DataLoader(numbers(20), batch_size=5, num_workers=num_workers, pin_memory=True)
    assert [batch["x"].is_pinned() for batch in loader] == [False] * 4


@WITHOUT_ACCELERATOR
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "xpu", "mps", "meta", torch.device("cuda")])
def test_a_device_that_is_not_there_is_refused_at_construction(device):
    with pytest.raises(ArgumentError, match=r"device: expected the CPU or an accelerator .* \(none\), got"):
        hr.DataLoader(numbers(20), device=device)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", 3.5])
def test_what_is_no_device_is_refused_at_construction(device):
    with pytest.raises(ArgumentError, match=f"device: expected the CPU or an accelerator .*, got {device!r}"):
        hr.DataLoader(numbers(20), device=device)


class Pair(NamedTuple):
    a: Any
    b: Any


def test_tensors_are_found_in_dicts_lists_tuples_and_named_tuples():
    tree = {"x": torch.ones(1), "y": [torch.ones(1), "text"], "z": (Pair(torch.ones(1), None), 3)}
    doubled = map_tensors(lambda tensor: tensor * 2, tree)
    two = torch.full((1,), 2.0)
    assert doubled == {"x": two, "y": [two, "text"], "z": (Pair(two, None), 3)}
    assert type(doubled["z"][0]) is Pair


# -- with an accelerator ----------------------------------------------------------------------------------------------


@NEEDS_ACCELERATOR
@WORKERS
def test_pinned_batches_come_in_locked_pages(num_workers):
    loader = hr.DataLoader(numbers(100), batch_size=5, num_workers=num_workers, pin_memory=True)
    batches = list(loader)
    assert all(batch["x"].is_pinned() for batch in batches)
    assert flat(delivered(batches)) == list(range(100))


@NEEDS_ACCELERATOR
@WORKERS
def test_batches_on_the_device_hold_what_was_read_and_stay_unchanged(num_workers):
    device = torch.accelerator.current_accelerator()
    loader = hr.DataLoader(numbers(4000, width=5000), batch_size=50, num_workers=num_workers, device=device)
    kept = []
    for _ in range(2):
        for batch in loader:
            assert batch["x"].device.type == device.type
            kept.append((batch["x"], batch["x"].sum(1) // 5000))
    got = [sums.tolist() for _, sums in kept]
    assert flat(got) == list(range(4000)) * 2
    assert [(x.sum(1) // 5000).tolist() for x, _ in kept] == got


@NEEDS_ACCELERATOR
@WORKERS
def test_a_batch_may_be_used_on_another_stream_and_dropped_at_once(num_workers):
    device = torch.accelerator.current_accelerator()
    loader = hr.DataLoader(numbers(4000, width=5000), batch_size=50, num_workers=num_workers, device=device)
    stream, before = torch.Stream(device), torch.accelerator.current_stream()
    torch.accelerator.set_stream(stream)
    try:
        sums = []
        for batch in loader:
            busy = batch["x"]
            for _ in range(20):
                busy = busy * 1
            sums.append(busy.sum(1) // 5000)
            del busy, batch
        assert flat(total.tolist() for total in sums) == list(range(4000))
    finally:
        torch.accelerator.set_stream(before)


@NEEDS_ACCELERATOR
@WORKERS
def test_what_a_batch_transform_puts_on_the_device_is_delivered_as_it_is(num_workers):
    device = torch.accelerator.current_accelerator()

    def on_device(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"x": batch["x"].to(device) + 1, "sparse": torch.eye(3).to_sparse()}

    loader = hr.DataLoader(
        numbers(100), batch_size=5, num_workers=num_workers, device=device, batch_transform=on_device
    )
    batches = list(loader)
    assert flat(delivered(batches)) == list(range(1, 101))


@NEEDS_ACCELERATOR
@WORKERS
def test_the_consumer_s_stream_and_device_stay_current(num_workers):
    device = torch.accelerator.current_accelerator()
    last = torch.device(device.type, torch.accelerator.device_count() - 1)
    stream = torch.accelerator.current_stream()
    for _ in hr.DataLoader(numbers(100), batch_size=5, num_workers=num_workers, device=last):
        assert torch.accelerator.current_stream() == stream


@NEEDS_ACCELERATOR
def test_a_device_number_that_is_not_there_is_refused():
    device = torch.accelerator.current_accelerator()
    with pytest.raises(ArgumentError, match="of which there are"):
        hr.DataLoader(numbers(20), device=f"{device.type}:{torch.accelerator.device_count()}")


# -- the order of what is done to streams, recorded by a stand-in, for machines without an accelerator ---------------


class RecordedStream:
    def __init__(self, accelerator: "RecordedAccelerator", device: torch.device, name: str = "copies") -> None:
        self.accelerator, self.device, self.name = accelerator, torch.device("cuda", 0), name

    def record_event(self) -> str:
        self.accelerator.calls.append(f"record an event on {self.name}")
        return "the event"

    def wait_event(self, event: str) -> None:
        self.accelerator.calls.append(f"{self.name} waits for {event}")


class RecordedAccelerator:
    """What Delivery asks of torch.accelerator, written down."""

    def __init__(self, kind: str = "cuda") -> None:
        self.calls: list[str] = []
        self.kind = kind
        self.current = RecordedStream(self, torch.device(kind), "the consumer's stream")

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_accelerator(self) -> torch.device:
        return torch.device(self.kind)

    def current_stream(self, device: torch.device | None = None) -> RecordedStream:
        return self.current

    def set_stream(self, stream: RecordedStream) -> None:
        if stream is not self.current:
            self.calls.append(f"switch to {stream.name}")
        self.current = stream


class RecordedTensor(torch.Tensor):
    """A tensor on the CPU that says what is done to it."""

    calls: list[str]

    def pin_memory(self, *args: Any) -> "RecordedTensor":  # type: ignore[override]
        self.calls.append("pin")
        return self

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "RecordedTensor":  # type: ignore[override]
        self.calls.append(f"copy to {device.type}{', not waiting' if non_blocking else ''}")
        return self

    def record_stream(self, stream: RecordedStream) -> None:  # type: ignore[override]
        self.calls.append(f"the memory is used by {stream.name}")


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch):
    def make(kind: str = "cuda") -> tuple[RecordedAccelerator, dict[str, torch.Tensor]]:
        accelerator = RecordedAccelerator(kind)
        monkeypatch.setattr(module.torch, "accelerator", accelerator)
        monkeypatch.setattr(module.torch, "Stream", lambda device: RecordedStream(accelerator, device))
        tensor = torch.from_numpy(np.arange(3)).as_subclass(RecordedTensor)
        tensor.calls = accelerator.calls
        return accelerator, {"x": tensor}

    return make


def test_in_the_consumer_s_thread_the_copy_has_a_stream_of_its_own_that_the_consumer_s_waits_for(recorded):
    accelerator, batch = recorded()
    delivery = Delivery(pin_memory=False, device="cuda")
    sent = delivery.send(batch)
    assert type(sent) is Ready
    assert accelerator.calls == [
        "pin",
        "switch to copies",
        "copy to cuda, not waiting",
        "record an event on copies",
        "switch to the consumer's stream",
    ]
    accelerator.calls.clear()
    delivery.receive(sent)
    assert accelerator.calls == [
        "the consumer's stream waits for the event",
        "the memory is used by the consumer's stream",
    ]


def test_a_thread_of_the_loader_s_own_keeps_the_copies_stream(recorded):
    accelerator, batch = recorded()
    delivery = Delivery(pin_memory=False, device="cuda")
    delivery.adopt_thread()
    delivery.send(batch)
    assert accelerator.calls == ["switch to copies", "pin", "copy to cuda, not waiting", "record an event on copies"]


def test_the_consumer_s_stream_is_current_again_when_a_copy_fails(recorded):
    accelerator, batch = recorded()
    delivery = Delivery(pin_memory=False, device="cuda")
    batch["x"].to = lambda *_, **__: 1 / 0
    with pytest.raises(ZeroDivisionError):
        delivery.send(batch)
    assert accelerator.current.name == "the consumer's stream"


def test_where_torch_has_one_stream_and_no_locked_pages_batches_are_just_copied(recorded):
    accelerator, batch = recorded("mps")
    delivery = Delivery(pin_memory=True, device="mps")
    assert not delivery.is_plain
    assert delivery.receive(delivery.send(batch)) == batch
    assert accelerator.calls == ["copy to mps"]
    assert Delivery(pin_memory=True, device=None).is_plain


def test_pinned_batches_without_a_device_are_locked_and_not_copied(recorded):
    accelerator, batch = recorded()
    delivery = Delivery(pin_memory=True, device=None)
    assert ids_of({"x": [[i] for i in delivery.receive(delivery.send(batch))["x"].tolist()]}) == [0, 1, 2]
    assert accelerator.calls == ["pin"]
    accelerator.calls.clear()
    sparse = {"x": torch.eye(3).to_sparse()}
    assert delivery.send(sparse)["x"] is sparse["x"]


def test_a_device_number_beyond_the_last_is_refused(recorded):
    recorded()
    with pytest.raises(ArgumentError, match=r"machine \(cuda\), of which there are 1, got cuda:1"):
        Delivery(pin_memory=False, device="cuda:1")
