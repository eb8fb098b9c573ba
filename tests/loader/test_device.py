"""Delivery: page-locked memory and copies to an accelerator."""

import gc
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import headrace as hr
from headrace.errors import ArgumentError
from headrace.formats import Column, Ragged
from headrace.loader.device import Delivery, Ready
from headrace.loader.staging import CopiesUnderWay, staged
from headrace.loader.trees import map_tensors
from tests.loader.stand_in_accelerator import LateAccelerator, install
from tests.loader.stand_ins import delivered, flat, numbers

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
def test_pinned_batches_may_be_dropped_while_they_are_being_copied(num_workers):
    device = torch.accelerator.current_accelerator()
    loader = hr.DataLoader(numbers(4000, width=5000), batch_size=50, num_workers=num_workers, pin_memory=True)
    there = [batch["x"][1:].to(device, non_blocking=True) for _ in range(3) for batch in loader]
    got = [(x.sum(1) // 5000).tolist() for x in there]
    assert flat(got) == 3 * [i for i in range(4000) if i % 50]


@NEEDS_ACCELERATOR
@WORKERS
def test_memory_that_is_copied_from_is_bounded_and_used_again(num_workers):
    device = torch.accelerator.current_accelerator()
    loader = hr.DataLoader(numbers(4000, width=5000), batch_size=50, num_workers=num_workers, device=device)
    flat(batch["x"][:, 0].tolist() for batch in loader)
    before = torch.accelerator.memory_allocated() if hasattr(torch.accelerator, "memory_allocated") else 0
    for _ in range(3):
        assert flat(batch["x"][:, 4999].tolist() for batch in loader) == list(range(4000))
        assert loader._pipeline.delivery.under_way_bytes <= 64 << 20
    if before:
        assert torch.accelerator.memory_allocated() <= before + (8 << 20)


@NEEDS_ACCELERATOR
@WORKERS
def test_what_user_code_makes_is_copied_through_locked_pages(num_workers):
    device = torch.accelerator.current_accelerator()
    loader = hr.DataLoader(
        numbers(4000, width=500),
        batch_size=50,
        num_workers=num_workers,
        device=device,
        batch_transform=lambda batch: {"x": batch["x"].T, "y": batch["x"][::2, ::3], "name": "text"},
    )
    batches = list(loader)
    assert all(batch["name"] == "text" for batch in batches)
    assert flat(batch["x"][3].tolist() for batch in batches) == list(range(4000))
    assert flat(batch["y"][:, 2].tolist() for batch in batches) == list(range(0, 4000, 2))


@NEEDS_ACCELERATOR
@WORKERS
def test_a_pass_may_be_left_and_its_loader_dropped_with_copies_under_way(num_workers):
    device = torch.accelerator.current_accelerator()
    for _ in range(20):
        loader = hr.DataLoader(numbers(4000, width=5000), batch_size=50, num_workers=num_workers, device=device)
        first = next(iter(loader))["x"]
        del loader
        gc.collect()
        assert (first.sum(1) // 5000).tolist() == list(range(50))


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


# -- with a stand-in that copies as late as it may, for machines without an accelerator --------------------------------


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> LateAccelerator:
    return install(monkeypatch)


def batch_of(accelerator: LateAccelerator, value: int = 3) -> dict[str, torch.Tensor]:
    """A batch in page-locked memory."""
    return {"x": accelerator.locked_block(16).view(torch.int64).fill_(value)}


def test_in_the_consumer_s_thread_the_copy_has_a_stream_of_its_own_that_the_consumer_s_waits_for(late):
    delivery = Delivery(pin_memory=False, device="cuda")
    sent = delivery.send(batch_of(late))
    assert type(sent) is Ready
    assert late.calls == [
        "switch to the copies' stream",
        "copy to cuda, going on",
        "record an event on the copies' stream",
        "switch to the consumer's stream",
    ]
    late.calls.clear()
    batch = delivery.receive(sent)
    assert late.calls == [
        "the consumer's stream waits for the event on the copies' stream",
        "the consumer's stream uses the memory",
    ]
    late.catch_up()
    assert batch["x"].tolist() == [3, 3]
    assert late.synchronized == 1


def test_a_thread_of_the_loader_s_own_keeps_the_copies_stream(late):
    delivery = Delivery(pin_memory=False, device="cuda")
    delivery.adopt_thread()
    delivery.send(batch_of(late))
    assert late.calls == [
        "switch to the copies' stream",
        "copy to cuda, going on",
        "record an event on the copies' stream",
    ]


@WORKERS
@pytest.mark.parametrize("batch_size", [5, 33])
def test_batches_hold_what_was_read_however_late_they_are_copied(late, num_workers, batch_size):
    loader = hr.DataLoader(numbers(700, width=4), batch_size=batch_size, num_workers=num_workers, device="cuda")
    batches = [batch for _ in range(3) for batch in loader]
    late.catch_up()
    assert flat(delivered(batches)) == 3 * list(range(700))
    assert all(batch["x"].is_there and not batch["x"].is_pinned() for batch in batches)


@WORKERS
def test_columns_that_only_the_loader_sees_are_gathered_straight_into_locked_pages_that_are_used_again(
    late, num_workers
):
    loader = hr.DataLoader(numbers(700, width=4), batch_size=10, num_workers=num_workers, device="cuda")
    for _ in range(3):
        for batch in loader:
            late.catch_up()
            assert batch["x"].tolist() == [[i] * 4 for i in batch["x"][:, 0].tolist()]
    # blocks for batches' columns; a copy in between would take a block of its own each time
    assert len(late.blocks) <= 40


@WORKERS
def test_user_code_gets_no_locked_pages_and_what_it_makes_is_copied_into_them(late, num_workers):
    seen = []

    def transform(batch: dict[str, torch.Tensor]) -> dict[str, Any]:
        seen.append(batch["x"].is_pinned())
        return {"x": batch["x"][:, :1], "y": [batch["x"].T, "text"], "n": 3}

    loader = hr.DataLoader(
        numbers(700, width=4), batch_size=10, num_workers=num_workers, device="cuda", batch_transform=transform
    )
    batches = list(loader)
    late.catch_up()
    assert flat(delivered(batches)) == list(range(700))
    assert flat(batch["y"][0][3].tolist() for batch in batches) == list(range(700))
    assert all(batch["y"][1] == "text" and batch["n"] == 3 for batch in batches)
    assert not any(seen)
    assert len(late.blocks) == len(batches)


@WORKERS
def test_a_pass_that_is_left_with_copies_under_way_spoils_none_of_the_next(late, num_workers):
    loader = hr.DataLoader(numbers(700, width=4), batch_size=10, num_workers=num_workers, device="cuda")
    kept = []
    for _ in range(5):
        loader.seek(epoch=0)
        kept += [batch for batch, _ in zip(loader, range(3), strict=False)]
    late.catch_up()
    assert flat(delivered(kept)) == 5 * list(range(30))


def test_what_worker_processes_make_is_sent_ahead_of_the_consumer_and_all_of_it_is_told(late):
    loader = hr.DataLoader(
        numbers(70, width=4), batch_size=10, num_workers=1, worker_type="process", transform=dict, device="cuda"
    )
    passing = iter(loader)
    batches = [next(passing)]
    stats = loader.stats()
    assert stats.groups_ready + stats.groups_in_flight <= stats.groups_capacity == 3
    batches += passing
    # nobody sends any more, and no batch is waiting
    assert loader.stats().memory_bytes == loader._pipeline.delivery.under_way_bytes > 0
    late.catch_up()
    assert flat(delivered(batches)) == list(range(70))
    stats = loader.stats()
    assert stats.busy_seconds["copy"] > max(0, stats.remote_seconds - stats.busy_seconds["user"])


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("to_sparse", ["to_sparse", "to_sparse_csr", "to_sparse_csc"])
def test_sparse_tensors_are_recorded_on_the_consumer_s_stream_by_their_parts(late, to_sparse):
    delivery = Delivery(pin_memory=False, device="cuda")
    got = delivery.receive(delivery.send(getattr(torch.eye(3), to_sparse)()))
    assert torch.equal(got.to_dense(), torch.eye(3))
    parts = 2 if to_sparse == "to_sparse" else 3
    assert late.calls[-parts:] == ["the consumer's stream uses the memory"] * parts


def test_memory_that_is_copied_from_is_kept_up_to_a_bound_beyond_which_the_oldest_copy_is_waited_for(late):
    delivery = Delivery(pin_memory=False, device="cuda", under_way_bytes=40)
    sent = []
    for value in range(10):
        sent.append(delivery.send(batch_of(late, value)))
        assert delivery.under_way_bytes <= 40 + 16
    assert late.synchronized == 7
    for ready in sent:
        delivery.receive(ready)
    late.catch_up()
    assert [ready.batch["x"].tolist() for ready in sent] == [[value, value] for value in range(10)]
    delivery.send({})
    assert delivery.under_way_bytes == 0


def test_one_batch_beyond_the_bound_is_not_waited_for(late):
    delivery = Delivery(pin_memory=False, device="cuda", under_way_bytes=1)
    delivery.send(batch_of(late))
    delivery.send({})
    assert late.synchronized == 0


def test_a_loader_that_is_dropped_with_copies_under_way_waits_for_them(late):
    delivery = Delivery(pin_memory=False, device="cuda")
    sent = [delivery.send(batch_of(late, value)) for value in range(3)]
    del delivery
    gc.collect()
    assert [ready.batch["x"].tolist() for ready in sent] == [[0, 0], [1, 1], [2, 2]]


def test_when_a_copy_fails_the_others_memory_is_kept_and_the_consumer_s_stream_is_current_again(late):
    delivery = Delivery(pin_memory=False, device="cuda")
    late.failing = (1, 2)
    batch = {**batch_of(late), "y": late.locked_block(2).view(1, 2)}
    with pytest.raises(torch.OutOfMemoryError):
        delivery.send(batch)
    assert late.current_stream().name == "the consumer's stream"
    assert delivery.under_way_bytes == 18


def test_many_threads_may_send_at_once(late):
    delivery = Delivery(pin_memory=False, device="cuda", under_way_bytes=100)
    # all that was ever in use may be idle: what is freed would be made again
    pool = delivery.pool({"x": Column(np.dtype(np.int64), (2,))}, 4, idle=40)
    sent: list[list[Any]] = [[] for _ in range(4)]

    def send(number: int) -> None:
        for value in range(200):
            lent = pool.lend(4)
            lent["x"][:] = 1000 * number + value
            sent[number].append(delivery.send({"x": torch.from_numpy(lent.pop("x"))}))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ready in flat(sent):
        delivery.receive(ready)
    late.catch_up()
    for number in range(4):
        assert [ready.batch["x"].unique().tolist() for ready in sent[number]] == [
            [1000 * number + value] for value in range(200)
        ]
    assert len(late.blocks) < 40
    delivery.send({})
    assert delivery.under_way_bytes == 0


class BrokenEvent:
    def synchronize(self) -> None:
        raise RuntimeError("the device has failed")


def test_of_a_device_that_has_failed_nothing_is_waited_for():
    copies = CopiesUnderWay(10)
    copies.add(BrokenEvent(), [torch.zeros(3)])  # type: ignore[arg-type]
    copies.wait()


LAYOUTS: dict[str, Callable[[], torch.Tensor]] = {
    "dense": lambda: torch.arange(24.0).view(2, 3, 4),
    "of one value": lambda: torch.tensor(3),
    "empty": lambda: torch.empty(0, 5),
    "transposed": lambda: torch.arange(24).view(4, 6).T,
    "channels last": lambda: torch.arange(120).view(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "with gaps": lambda: torch.arange(24).view(4, 6)[::2, 1::2],
    "expanded": lambda: torch.arange(3).expand(4, 3),
    "of conjugates": lambda: torch.tensor([1 + 2j, 3 - 1j]).conj(),
    "of negated parts": lambda: torch.tensor([1 + 2j, 3 - 1j]).conj().imag,
    "needing a gradient": lambda: torch.ones(3, requires_grad=True),
    "sparse": lambda: torch.eye(3).to_sparse(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_of_every_layout_are_the_same_in_locked_pages(layout, request):
    tensor = LAYOUTS[layout]()
    late = request.getfixturevalue("late")
    got = staged([tensor])[0]
    assert (got.shape, got.dtype, got.layout) == (tensor.shape, tensor.dtype, tensor.layout)
    assert got.requires_grad == tensor.requires_grad
    if layout == "sparse":
        assert got is tensor
        return
    assert torch.equal(got, tensor)
    assert late.is_locked(got) or not got.numel()
    if layout in ("transposed", "channels last"):
        assert got.stride() == tensor.stride()


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint16", "float16", "bfloat16", "complex64", "float64"])
def test_tensors_of_every_dtype_are_the_same_in_locked_pages(late, dtype):
    tensor = torch.tensor([[0, 1, 3]]).type(getattr(torch, dtype))
    got = staged(tensor)
    assert got.dtype == tensor.dtype
    assert torch.equal(got, tensor)


def test_all_tensors_of_a_batch_share_one_block_of_locked_pages(late):
    ragged = Ragged(torch.tensor([1, 2, 3]), torch.tensor([0, 2, 3]))
    batch = {"a": torch.ones(3), "b": [torch.ones(2, dtype=torch.int8), "text"], "c": ragged, "d": ("x", 3)}
    got = staged(batch)
    assert len(late.blocks) == 1
    assert got["a"].tolist() == [1, 1, 1]
    assert got["b"][0].tolist() == [1, 1]
    assert got["b"][1] == "text"
    assert [row.tolist() for row in got["c"].to_list()] == [[1, 2], [3]]
    assert got["d"] is batch["d"]
    again = staged({**got, "e": torch.ones(1)})
    assert len(late.blocks) == 2
    assert again["a"] is got["a"]


@WORKERS
@pytest.mark.parametrize("batch_size", [5, 33])
def test_pinned_batches_lie_in_the_storages_of_torch_s_allocator(late, num_workers, batch_size):
    loader = hr.DataLoader(numbers(700, width=4), batch_size=batch_size, num_workers=num_workers, pin_memory=True)
    batches = list(loader)
    assert flat(delivered(batches)) == list(range(700))
    assert {batch["x"].untyped_storage()._cdata for batch in batches} <= late.storages
    assert "lock pages" not in late.calls
    batches[0]["x"].fill_(-1)
    assert flat(delivered(batches[1:])) == list(range(batch_size, 700))


def test_pinned_batches_that_user_code_made_are_copied_into_locked_pages(late):
    loader = hr.DataLoader(
        numbers(20), batch_size=5, pin_memory=True, batch_transform=lambda batch: {"x": batch["x"][::2]}
    )
    batches = list(loader)
    assert [batch["x"].flatten().tolist() for batch in batches] == [[i, i + 2, i + 4] for i in (0, 5, 10, 15)]
    assert {batch["x"].untyped_storage()._cdata for batch in batches} <= late.storages
    assert late.calls == ["lock pages"] * 4


def test_where_torch_has_one_stream_and_no_locked_pages_batches_are_just_copied(monkeypatch):
    late = install(monkeypatch, "mps")
    delivery = Delivery(pin_memory=True, device="mps")
    assert not delivery.is_plain
    assert delivery.receive(delivery.send({"x": torch.ones(2)}))["x"].tolist() == [1, 1]
    assert late.calls == ["copy to mps"]
    assert not late.blocks
    assert Delivery(pin_memory=True, device=None).is_plain


def test_a_device_number_beyond_the_last_is_refused(late):
    with pytest.raises(ArgumentError, match=r"machine \(cuda\), of which there are 1, got cuda:1"):
        Delivery(pin_memory=False, device="cuda:1")
