"""A first program: train a small model on an array, and score it on samples that it has not seen.

    python examples/article.py

The same loop runs over torch's DataLoader and over headrace's.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import nn

import headrace as hr

SAMPLES, FEATURES, CLASSES = 100, 10, 2
BATCH_SIZE, EPOCHS = 32, 10


class SimpleModel(nn.Module):
    """Linear, ReLU, Linear: float32 (batch, 10) in, one score for each class out."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, CLASSES))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The scores, float32 (batch, 2)."""
        scores: torch.Tensor = self.layers(inputs)
        return scores


def make_data() -> tuple[np.ndarray, np.ndarray]:
    """Features, float32 (100, 10), and labels, int64 (100,): 1 for the half with the larger weighted sum."""
    rng = np.random.default_rng(seed=0)
    data = rng.normal(loc=5.0, scale=2.0, size=(SAMPLES, FEATURES)).astype(np.float32)
    sums = data @ rng.normal(size=FEATURES)
    return data, (sums > np.median(sums)).astype(np.int64)


def train(data_loader: Iterable[Sequence[torch.Tensor]]) -> SimpleModel:
    """A model trained for 10 epochs; prints the average loss of each."""
    torch.manual_seed(0)
    model = SimpleModel()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    for epoch in range(EPOCHS):
        total, samples = torch.tensor(0.0), 0
        for inputs, labels in data_loader:
            optimizer.zero_grad()
            loss = criterion(model(inputs), labels)
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(labels)
            samples += len(labels)
        print(f"epoch {epoch + 1:>2}: average loss {total.item() / samples:.4f}")
    return model


def score(model: SimpleModel, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Accuracy, and precision, recall and F1 of class 1."""
    with torch.no_grad():
        predicted = model(inputs).argmax(dim=1)
    hits = int(((predicted == 1) & (labels == 1)).sum())
    said, real = int((predicted == 1).sum()), int((labels == 1).sum())
    return {
        "accuracy": float((predicted == labels).float().mean()),
        "precision": hits / max(said, 1),
        "recall": hits / max(real, 1),
        "F1": 2 * hits / max(said + real, 1),
    }


def main() -> None:
    """Trains and scores with each loader in turn."""
    data, labels = make_data()
    parts = hr.ArrayDataset(data, labels).split({"train": 0.8, "test": 0.2}, seed=0)
    normalize = hr.fit_normalizer(parts["train"], columns=[0])  # the z-score, measured on the training part alone
    train_set = hr.ArrayDataset(*normalize(parts["train"][:]))
    test_inputs, test_labels = normalize(parts["test"][:])
    loaders: dict[str, Iterable[Sequence[torch.Tensor]]] = {
        "torch.utils.data.DataLoader": torch.utils.data.DataLoader(train_set, BATCH_SIZE, shuffle=True),
        "headrace.DataLoader": hr.DataLoader(train_set, BATCH_SIZE, shuffle=True),
    }
    for name, data_loader in loaders.items():
        print(f"\n{name}")
        model = train(data_loader)
        scores = score(model, test_inputs, test_labels)
        print(
            f"{len(test_labels)} held-out samples: " + ", ".join(f"{key} {value:.2f}" for key, value in scores.items())
        )


if __name__ == "__main__":
    main()
