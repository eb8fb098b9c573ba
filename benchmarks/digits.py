"""Training the reference model on real data, and scoring it on samples that it has never seen."""

from dataclasses import dataclass

import numpy as np
import torch

import headrace as hr
from benchmarks.data import Files
from benchmarks.model import SimpleModel, TrainingStep

TEST_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Scores:
    """How well the model does on the held-out samples: shares 0..1; precision, recall and F1 are means over classes.

    Attributes:
        accuracy: Samples whose class is right.
        precision: Of the samples said to be of a class, those that are.
        recall: Of the samples of a class, those that were said to be.
        f1: The harmonic mean of the two.
        losses: The mean training loss of each epoch.
        train_samples: Samples trained on.
        test_samples: Samples scored on.
    """

    accuracy: float
    precision: float
    recall: float
    f1: float
    losses: list[float]
    train_samples: int
    test_samples: int

    def describe(self) -> str:
        """One line for people."""
        return (
            f"Trained on {self.train_samples:,} samples for {len(self.losses)} epochs (mean loss {self.losses[0]:.3f}, "
            f"at the end {self.losses[-1]:.3f}); on the {self.test_samples:,} held out: accuracy {self.accuracy:.2%}, "
            f"precision {self.precision:.2%}, recall {self.recall:.2%}, F1 {self.f1:.2%}."
        )


def train_and_score(
    files: Files, *, hidden: int = 128, epochs: int = 30, batch_size: int = 32, seed: int = 0, device: torch.device
) -> Scores:
    """Trains on 80 % of the samples for a fixed number of epochs, then scores once on the other 20 %."""
    x, y = files.names
    parts = files.dataset().split({"train": 1 - TEST_SHARE, "test": TEST_SHARE}, seed=seed)
    normalizer = hr.fit_normalizer(parts["train"], columns=[x])
    target = None if device.type == "cpu" else device
    train = hr.DataLoader(
        parts["train"], batch_size=batch_size, shuffle=True, seed=seed, batch_transform=normalizer, device=target
    )
    test = hr.DataLoader(parts["test"], batch_size=256, batch_transform=normalizer, device=target)

    torch.manual_seed(seed)
    step = TrainingStep(SimpleModel(files.features, hidden, files.classes), device, files.names)
    losses = [float(torch.stack([step(batch) for batch in train]).mean()) for _ in range(epochs)]

    with torch.no_grad():
        answers = [(step.model(batch[x]).argmax(dim=1).cpu(), batch[y].cpu()) for batch in test]
    predicted, labels = (torch.cat(column).numpy() for column in zip(*answers, strict=True))
    return score(labels, predicted, losses, len(parts["train"]))


def score(labels: np.ndarray, predicted: np.ndarray, losses: list[float], train_samples: int) -> Scores:
    """The scores of predicted classes, int64 (samples,) each."""
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, average="macro", zero_division=0)
    accuracy = float(accuracy_score(labels, predicted))
    return Scores(accuracy, float(precision), float(recall), float(f1), losses, train_samples, len(labels))
