"""What the programs of two ranks have in common: the data, the order that is expected, a model and a log."""

from collections.abc import Iterable
from typing import Any

import torch

import headrace as hr

SAMPLES, BATCH, RANKS, SEED = 48, 4, 2, 7
STEPS = SAMPLES // (BATCH * RANKS)


class StoppedError(Exception):
    """What ends a training early, as a kill would."""


def dataset() -> hr.ArrayDataset:
    return hr.ArrayDataset({"x": torch.arange(float(SAMPLES)).reshape(-1, 1), "labels": torch.arange(SAMPLES)})


def loader(batch_size: int = BATCH, **options: Any) -> hr.DataLoader:
    return hr.DataLoader(dataset(), batch_size=batch_size, shuffle=True, seed=SEED, **options)


def order(epoch: int) -> list[int]:
    """The sample ids of an epoch, step by step, as one process reads them in steps of all ranks' size."""
    one = hr.DataLoader(dataset(), BATCH * RANKS, shuffle=True, seed=SEED, rank=0, world_size=1)
    one.set_epoch(epoch)
    return [sample for batch in one for sample in batch["labels"].tolist()]


def over_ranks(ranks: Iterable[list[list[int]]]) -> list[int]:
    """The samples of all ranks' batches, step by step, as `order` has them."""
    return [sample for step in zip(*ranks, strict=True) for batch in step for sample in batch]


class Model(torch.nn.Module):
    """One linear layer; keeps the ids of the samples that it was trained on, a list for each step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[list[int]] = []

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.training:
            self.seen.append(labels.tolist())
        return {"loss": self.layer(x / SAMPLES).square().mean(), "logits": labels}
