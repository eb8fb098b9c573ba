"""The reference model and its training step."""

from collections.abc import Mapping

import torch
from torch import nn

LEARNING_RATE = 0.001


class SimpleModel(nn.Sequential):
    """Linear, ReLU, Linear.

    Takes float32 (batch, inputs) and gives logits, float32 (batch, outputs).
    """

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


class TrainingStep:
    """One step of training: cross-entropy, Adam at a learning rate of 0.001.

    It never asks the device for a value, so the device can run behind.

    Args:
        model: What is trained.
        device: Where it is trained.
        names: What batches call the inputs and the labels.
    """

    def __init__(self, model: nn.Module, device: torch.device, names: tuple[str, str] = ("x", "y")) -> None:
        self.model = model.to(device)
        self.device = device
        self._names = names
        self._loss = nn.CrossEntropyLoss()
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE)

    @property
    def __name__(self) -> str:
        """What reports call the step."""
        widths = [weight.shape[1] for weight in self.model.parameters() if weight.ndim == 2]
        outputs = next(reversed(list(self.model.parameters()))).shape[0]
        return f"{type(self.model).__name__} {'-'.join(map(str, [*widths, outputs]))}"

    def __call__(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Trains on a batch of inputs and labels; gives its mean loss, a scalar that stays on the device."""
        x, y = (batch[name].to(self.device, non_blocking=True) for name in self._names)
        self._optimizer.zero_grad()
        loss: torch.Tensor = self._loss(self.model(x), y)
        loss.backward()
        self._optimizer.step()
        return loss.detach()
