"""What tells a shuffle from chance, as z-scores.

Each takes images, int64 of shape (m,): where m consecutive positions of a permutation of range(n) went. A z-score is a
distance from the expectation in standard deviations: for a random permutation about normal, rarely beyond 4.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.int64]
Shuffle = Callable[[int, int], Images]  # (seed, epoch) -> images

LAGS = (1, 2, 16, 256, 1024)
BATCH = 256
CLASSES = 10


def deviations(shuffle: Shuffle, n: int) -> Iterator[tuple[str, float]]:
    """Every statistic of one shuffle at two seeds and two epochs, by name."""
    first, next_epoch, next_seed = shuffle(10, 0), shuffle(10, 1), shuffle(11, 0)
    for lag in LAGS:
        yield f"differences at lag {lag}", spread((first[lag:] - first[:-lag]) % n, n)
        yield f"equal differences at lag {lag}", repeats((first[lag:] - first[:-lag]) % n, n)
    places = np.arange(len(first))
    whole = len(first) // BATCH * BATCH
    batch = places[:whole] // BATCH
    yield "contiguous classes in batches", independence(batch, first[:whole] * CLASSES // n, n)
    yield "interleaved classes in batches", independence(batch, first[:whole] % CLASSES, n)
    yield "low bits of place and image", independence(places & 15, first & 15, n)
    yield "low bits of neighbours", independence(first[:-1] & 15, first[1:] & 15, n)
    yield "high and low bits of neighbours", independence(first[:-1] * 16 // n, first[1:] & 15, n)
    for name, other in (("epochs", next_epoch), ("seeds", next_seed)):
        yield f"differences between {name}", spread((other - first) % n, n)
        yield f"equal differences between {name}", repeats((other - first) % n, n)
        yield f"low bits between {name}", independence(first & 15, other & 15, n)
    diagonal = shuffle(10, 1), shuffle(11, 0)
    yield "differences between (seed, epoch + 1) and (seed + 1, epoch)", spread((diagonal[0] - diagonal[1]) % n, n)


def spread(values: Images, n: int, bins: int = 128) -> float:
    """Whether values fall into equal bins of range(n) evenly (chi-square)."""
    seen = np.bincount(values * bins // n, minlength=bins)
    edges = -(-np.arange(bins + 1) * n // bins)
    expected = np.diff(edges) * (len(values) / n)
    return _standard(float(((seen - expected) ** 2 / expected).sum()), bins - 1)


def repeats(values: Images, n: int) -> float:
    """Whether as many pairs of values are equal as of random numbers below n (a Poisson count)."""
    counts = np.bincount(values) if n < 2**22 else np.unique(values, return_counts=True)[1]
    expected = len(values) * (len(values) - 1) / (2 * n)
    return (float((counts * (counts - 1.0)).sum()) / 2 - expected) / np.sqrt(expected)


def independence(rows: Images, columns: Images, n: int) -> float:
    """Whether two labels of the same places have nothing to do with each other (chi-square of their table)."""
    width = int(columns.max()) + 1
    table = np.bincount(rows * width + columns, minlength=(int(rows.max()) + 1) * width).reshape(-1, width)
    expected = np.outer(table.sum(1), table.sum(0)) / len(rows)
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
    return _standard(float(((table - expected) ** 2 / expected).sum()), freedom)


def _standard(chi_square: float, freedom: int) -> float:
    # Wilson and Hilferty's cube root makes a chi-square normal far into its tails
    variance = 2 / (9 * freedom)
    return float(((chi_square / freedom) ** (1 / 3) - (1 - variance)) / np.sqrt(variance))


def equal_places(shuffle: Shuffle, seeds: int, n: int) -> float:
    """Whether shuffles of neighbouring seeds and epochs send as many places to the same image as chance does."""
    images = [shuffle(seed, epoch) for seed in range(seeds) for epoch in range(2)]
    pairs = [(a, b) for i, a in enumerate(images) for b in images[i + 1 :]]
    expected = len(pairs) * len(images[0]) / n
    seen = sum(int((a == b).sum()) for a, b in pairs)
    return float((seen - expected) / np.sqrt(expected))
