"""transformers' Trainer in two ranks: what each rank saw, by check."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

import headrace as hr
from headrace.integrations.transformers import LoaderMixin
from tests.integrations.parts import BATCH, SEED, Model, dataset, loader


class OurTrainer(LoaderMixin, Trainer):
    """The Trainer that trains on our loader."""


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        num_train_epochs=3,
        per_device_train_batch_size=BATCH,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="steps",
        remove_unused_columns=False,
        **options,
    )


def ours(folder: Path, make: Callable[[], Any] = loader, **options: Any) -> Callable[[Model], Trainer]:
    return lambda model: OurTrainer(model=model, args=arguments(folder, **options), train_loader=make())


def theirs(folder: Path, make: Callable[[], Any], **options: Any) -> Callable[[Model], Trainer]:
    return lambda model: Trainer(model=model, args=arguments(folder, **options), train_dataset=make())


def resumed(trainer: Callable[[Model], Trainer], folder: Path, *steps: int) -> dict[str, Any]:
    """What a whole training sees, and those that go on from its checkpoints at some steps."""
    whole = Model()
    trainer(whole).train()
    torch.distributed.barrier()
    after = {}
    for step in steps:
        model = Model()
        trainer(model).train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
        after[step] = model.seen
    return {"whole": whole.seen, "after": after}


def samples(**world: int) -> Any:
    return dataset().to_iterable_dataset(shuffle=True, seed=SEED, **world)


def refused(run: Callable[[], Any]) -> str:
    try:
        run()
    except hr.HeadraceError as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


def resume_with(folder: Path, make: Callable[[], Any], step: int) -> Any:
    return ours(folder / "again", make)(Model()).train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))


def checks(folder: Path) -> dict[str, Any]:
    one = functools.partial(samples, rank=0, world_size=1)
    loaded, accumulated, mapped, streamed = (folder / name for name in ("loaded", "accumulated", "mapped", "streamed"))
    larger = functools.partial(loader, 2 * BATCH)
    return {
        "loader": lambda: resumed(ours(loaded, save_steps=2), loaded, 6, 8),
        "accumulated": lambda: resumed(ours(accumulated, save_steps=3, gradient_accumulation_steps=4), accumulated, 3),
        "mapped": lambda: resumed(theirs(mapped, dataset, save_steps=8), mapped, 8),
        "streamed": lambda: resumed(theirs(streamed, one, save_steps=4, max_steps=12), streamed, 4),
        "split_twice": lambda: refused(theirs(folder, samples, max_steps=18)(Model()).train),
        "other_steps": lambda: refused(lambda: resume_with(loaded, larger, 8)),
        "no_state": lambda: refused(lambda: resume_with(mapped, loader, 8)),
    }
