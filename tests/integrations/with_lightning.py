"""Lightning in two ranks: what each rank saw, by check.

    python tests/integrations/with_lightning.py FOLDER

As a script this is what users run: Lightning starts it once more for the second rank.
"""

import contextlib
import functools
import json
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader

import headrace as hr
from headrace.integrations.lightning import ResumeData
from headrace.integrations.tracking import TrackedLoader
from tests.integrations.parts import BATCH, RANKS, SEED, STEPS, Model, StoppedError, dataset, loader


class Module(LightningModule):
    """The model, with what it was trained and validated on by Lightning's epochs."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.trained: list[tuple[int, list[int]]] = []
        self.validated: list[list[int]] = []

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.trained.append((self.current_epoch, batch["labels"].tolist()))
        return self.model(**batch)["loss"]

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        if not self.trainer.sanity_checking:
            self.validated.append(batch["labels"].tolist())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


class Data(LightningDataModule):
    """Makes the loader where the process group exists."""

    def setup(self, stage: str) -> None:
        self.loader = loader(num_workers=1)

    def train_dataloader(self) -> hr.DataLoader:
        return self.loader


class SaveAndStop(Callback):
    """Saves a checkpoint in a hook, at the n-th time that it is called, and stops there."""

    def __init__(self, hook: str, call: int, path: Path) -> None:
        self.calls, self.call, self.path = 0, call, path
        setattr(self, hook, self.save)

    def save(self, trainer: Trainer, *_: Any) -> None:
        self.calls += 1
        if self.calls == self.call:
            trainer.save_checkpoint(self.path)
            raise StoppedError


def trainer(*callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=RANKS,
        strategy="ddp",
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,
    )


def fit() -> dict[str, Any]:
    module, validation = Module(), hr.DataLoader(dataset(), batch_size=6, num_workers=1)
    trainer(max_epochs=2, num_sanity_val_steps=1).fit(module, loader(), validation)
    return {"trained": module.trained, "validated": module.validated}


def limits() -> dict[str, Any]:
    module, validation = Module(), hr.DataLoader(dataset(), batch_size=6)
    trainer(max_epochs=3, limit_train_batches=2, limit_val_batches=1).fit(module, loader(), validation)
    return {"trained": module.trained, "validated": module.validated}


def sampler(num_workers: int) -> dict[str, Any]:
    module, data = Module(), dataset()
    ours = hr.OrderSampler(data, BATCH, seed=SEED)
    train = DataLoader(data, BATCH, sampler=ours, num_workers=num_workers)
    fitting = trainer(max_epochs=2)
    fitting.fit(module, train)
    return {"trained": module.trained, "is_ours": fitting.train_dataloader.sampler is ours}


def resumed(
    folder: Path,
    hook: str,
    call: int,
    *,
    make: Callable[[], Any] = loader,
    then: Callable[[], Any] = loader,
    by_itself: bool = False,
    max_steps: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Training that is stopped and resumed: what was trained on up to the checkpoint, and after it.

    `max_steps` ends the first part; the second then ends after the steps of three epochs.
    """
    ends: list[Any] = [{"max_epochs": 3}] * 2
    if max_steps is not None:
        ends = [{"max_steps": steps, "max_epochs": -1} for steps in (max_steps, 3 * STEPS)]
    path = folder / f"{hook}-{call}-{len(list(folder.iterdir()))}.ckpt"
    torch.distributed.barrier()
    before, data = Module(), make()
    with contextlib.suppress(StoppedError):
        ours = [] if by_itself else [ResumeData(data)]
        trainer(*ours, SaveAndStop(hook, call, path), **ends[0], **options).fit(before, data)
    after, data = Module(), then()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = [] if by_itself else [ResumeData(lambda: data)]
        trainer(*ours, **ends[1], **options).fit(after, data, ckpt_path=path)
    return {
        "before": before.trained,
        "after": after.trained,
        "warnings": [str(warning.message) for warning in caught if "resum" in str(warning.message)],
    }


def tracked() -> TrackedLoader:
    data = dataset()
    return TrackedLoader(DataLoader(data, BATCH, sampler=hr.OrderSampler(data, BATCH, seed=SEED), num_workers=1))


def refused() -> str:
    data = hr.DataLoader(dataset(), batch_size=BATCH, rank=0, world_size=1)
    try:
        trainer(ResumeData(lambda: data), max_epochs=1).fit(Module(), data)
    except hr.ArgumentError as error:
        return str(error)
    return "accepted"


def pickled() -> dict[str, Any]:
    callback = pickle.loads(pickle.dumps(ResumeData(loader, name="first")))
    return {
        "is_callback": isinstance(callback, Callback),
        "is_ours": isinstance(callback, ResumeData),
        "key": callback._key,
    }


def launched(folder: Path) -> dict[str, Any]:
    """Training that ends amid its second epoch, and another from its checkpoint to the end of the third."""
    path, seen = folder / "amid.ckpt", {}
    for part, steps, saved in (("before", STEPS + 3, None), ("after", 3 * STEPS, path)):
        module, data = Module(), Data()
        fitting = trainer(ResumeData(data.train_dataloader), max_steps=steps, max_epochs=-1)
        fitting.fit(module, data, ckpt_path=saved)
        fitting.save_checkpoint(path)
        seen[part] = module.trained
    return seen


def checks(folder: Path) -> dict[str, Any]:
    resume = functools.partial(resumed, folder)
    return {
        "fit": fit,
        "limits": limits,
        "sampler": functools.partial(sampler, 0),
        "refused": refused,
        "pickled": pickled,
        "amid": functools.partial(resume, "on_train_batch_end", 9),
        "by_itself": functools.partial(resume, "on_train_batch_end", 9, by_itself=True),
        "last": functools.partial(resume, "on_train_batch_end", 6),
        **{f"begun_{call}": functools.partial(resume, "on_train_batch_start", call) for call in (1, 6, 7, 9)},
        "limited_begun": functools.partial(resume, "on_train_batch_start", 5, limit_train_batches=4),
        "end": functools.partial(resume, "on_train_epoch_end", 2),
        **{f"stopped_{steps}": functools.partial(resume, "on_fit_end", 1, max_steps=steps) for steps in (6, 9, 12)},
        "limited": functools.partial(resume, "on_train_batch_end", 4, limit_train_batches=4),
        "limited_end": functools.partial(resume, "on_train_epoch_end", 1, limit_train_batches=4),
        "smaller": functools.partial(resume, "on_train_batch_end", 3, then=functools.partial(loader, BATCH // 2)),
        "larger": functools.partial(resume, "on_train_batch_end", 3, then=functools.partial(loader, BATCH * 2)),
        "tracked": functools.partial(resume, "on_train_batch_end", 8, make=tracked, then=tracked),
    }


if __name__ == "__main__":
    target = Path(sys.argv[1])
    results = launched(target)
    (target / f"{torch.distributed.get_rank()}.json").write_text(json.dumps(results))
    torch.distributed.barrier()  # the first rank's end is that of the script
