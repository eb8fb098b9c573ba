"""Training of the reference model, on one rank or, with DistributedDataParallel, on several."""

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.model import LEARNING_RATE, SimpleModel, TrainingStep
from headrace import ArrayDataset, DataLoader

GLOBAL_BATCH = 64
EPOCHS = 15
SAMPLES = {"even": 512, "uneven": 522}  # uneven: the last step has 10 samples, which 4 ranks share as 2, 3, 2, 3


def learnable(samples: int) -> ArrayDataset:
    """Inputs of 10 numbers, and which of two hidden directions they point more along; `id` is the sample's number."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((samples, 10)).astype(np.float32)
    return ArrayDataset({"x": x, "y": (x @ rng.standard_normal((10, 2))).argmax(1), "id": np.arange(samples)})


def run() -> dict[str, Any]:
    """By case the samples that this rank had at each step, each step's loss over all ranks, and the final weights."""
    return {case: _train(samples) for case, samples in SAMPLES.items()}


def _train(samples: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = SimpleModel(10, 64, 2)
    wrapped = DistributedDataParallel(model) if dist.is_initialized() else model
    loader = DataLoader(learnable(samples), shuffle=True, seed=3, global_batch_size=GLOBAL_BATCH)
    step = TrainingStep(wrapped, torch.device("cpu")) if samples % GLOBAL_BATCH == 0 else WeightedStep(wrapped)
    ids, losses = [], []
    for _ in range(EPOCHS):
        for batch in loader:
            ids.append(batch["id"].tolist())
            losses.append(_over_ranks(step(batch).double() * len(batch["y"])) / _over_ranks(len(batch["y"])))
    weights = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    return {"ids": ids, "losses": losses, "weights": weights.tolist()}


class WeightedStep:
    """A step in which each rank counts as much as it has samples.

    DistributedDataParallel averages the ranks' gradients, so each rank's mean loss is weighted by its share of the
    step, times the number of ranks.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)

    def __call__(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Trains on a batch; gives its own mean loss."""
        share, ranks = len(batch["y"]), dist.get_world_size() if dist.is_initialized() else 1
        self._optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self._model(batch["x"]), batch["y"])
        (loss * share * ranks / _over_ranks(share)).backward()
        self._optimizer.step()
        return loss.detach()


def _over_ranks(value: Any) -> float:
    total = torch.as_tensor(value, dtype=torch.float64).clone()
    if dist.is_initialized():
        dist.all_reduce(total)
    return float(total)
