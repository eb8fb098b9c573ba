"""Accelerate in two ranks: what each rank saw, by check."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch.utils.data import DataLoader

import headrace as hr
from headrace.integrations.accelerate import prepare
from tests.integrations.parts import BATCH, SEED, Model, dataset, loader


def accumulation() -> dict[str, Any]:
    """The steps after which the gradients were synchronised, counted in each epoch from 0."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    model = Model()
    wrapped, optimizer, data = prepare(accelerator, model, torch.optim.SGD(model.parameters(), 0.01), loader())
    synchronised = []
    for epoch in range(2):
        for step, batch in enumerate(data):
            with accelerator.accumulate(wrapped):
                accelerator.backward(wrapped(**batch)["loss"])
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                synchronised.append((epoch, step))
    return {"trained": model.seen, "synchronised": synchronised, "weight": model.layer.weight.item()}


def resumed(folder: Path, make: Callable[[], Any]) -> dict[str, Any]:
    """Three epochs whose run is saved amid the second one; what a run that loads it sees from there."""
    before: list[list[int]] = []
    accelerator = Accelerator(cpu=True)
    data = prepare(accelerator, make())
    accelerator.register_for_checkpointing(data)
    before += [batch["labels"].tolist() for batch in data]
    for step, batch in enumerate(data):
        before.append(batch["labels"].tolist())
        if step == 2:
            accelerator.save_state(str(folder))
            break
    accelerator.wait_for_everyone()
    accelerator = Accelerator(cpu=True)
    data = prepare(accelerator, make())
    accelerator.register_for_checkpointing(data)
    accelerator.load_state(str(folder))
    return {"before": before, "after": [batch["labels"].tolist() for _ in range(2) for batch in data]}


def over_sampler(num_workers: int = 0, **world: int) -> DataLoader:
    data = dataset()
    ours = hr.OrderSampler(data, BATCH, seed=SEED, **world)
    return DataLoader(data, BATCH, sampler=ours, num_workers=num_workers)


def over_batches(num_workers: int = 0, **world: int) -> DataLoader:
    view = dataset().to_iterable_dataset(batch_size=BATCH, shuffle=True, seed=SEED, **world)
    return DataLoader(view, batch_size=None, num_workers=num_workers)


def over_samples(**world: int) -> DataLoader:
    return DataLoader(dataset().to_iterable_dataset(shuffle=True, seed=SEED, **world), batch_size=BATCH)


def over_the_dataset() -> DataLoader:
    return DataLoader(dataset(), BATCH, shuffle=True)


def theirs(make: Callable[..., DataLoader], *, configured: dict[str, Any] | None = None, **world: int) -> Any:
    """What `accelerator.prepare` itself makes of a loader: its two first epochs, or why it is refused."""
    configuration = DataLoaderConfiguration(**configured or {})
    data = Accelerator(cpu=True, dataloader_config=configuration).prepare(make(**world))
    try:
        return [batch["labels"].tolist() for _ in range(2) for batch in data]
    except hr.ArgumentError as error:
        return str(error)


def seedable(**configured: int) -> Any:
    """What it makes of torch's shuffling, by a sampler of its own; the processes' seeds differ."""
    torch.manual_seed(torch.distributed.get_rank())
    if not configured:
        set_seed(SEED)
    return theirs(over_the_dataset, configured={"use_seedable_sampler": True, **configured})


def evaluation() -> list[int]:
    """The rows of an evaluation whose last step is filled up, gathered from all ranks."""
    accelerator = Accelerator(cpu=True)
    whole = hr.DataLoader(dataset().take(21), batch_size=BATCH, pad_last=True)
    rows: list[int] = []
    for batch in prepare(accelerator, whole):
        labels, valid = accelerator.gather_for_metrics((batch["labels"], batch["__valid__"]))
        rows += labels[valid].tolist()
    return rows


def refused() -> str:
    try:
        prepare(Accelerator(cpu=True), loader(rank=0, world_size=1))
    except hr.ArgumentError as error:
        return str(error)
    return "accepted"


def checks(folder: Path) -> dict[str, Any]:
    one, in_shards = {"rank": 0, "world_size": 1}, {"dispatch_batches": False}
    return {
        "accumulation": accumulation,
        "loader": functools.partial(resumed, folder / "loader", loader),
        "sampler": functools.partial(resumed, folder / "sampler", functools.partial(over_sampler, 1)),
        "batches": functools.partial(resumed, folder / "batches", functools.partial(over_batches, 2)),
        "evaluation": evaluation,
        "refused": refused,
        "sampler_split_twice": functools.partial(theirs, over_sampler),
        "samples_split_twice": functools.partial(theirs, over_samples),
        "samples_split_twice_in_shards": functools.partial(theirs, over_samples, configured=in_shards),
        "sampler_split_once": functools.partial(theirs, over_sampler, **one),
        "samples_split_once": functools.partial(theirs, over_samples, **one),
        "samples_split_once_in_shards": functools.partial(theirs, over_samples, configured=in_shards, **one),
        "whole": functools.partial(theirs, over_the_dataset),
        "whole_by_data_seed": functools.partial(seedable, data_seed=SEED),
        "whole_by_set_seed": seedable,
    }
