"""What a rival's process does: batches of `features` and `label` as tensors, counted for a while."""

import argparse
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

FEATURES = 128


def run(name: str, make: Callable[[argparse.Namespace], Iterable[Any]]) -> None:
    """Reads the command line, makes the loader, and prints one line of JSON: rows and seconds after the first batch."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.peers.{name}")
    parser.add_argument("paths", nargs="+", help="the Parquet files")
    parser.add_argument("--data-dir", type=Path, required=True, help="where converted data is kept")
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--window", type=int, default=65_536, help="rows of the shuffle buffer, where there is one")
    parser.add_argument("--seconds", type=float, default=5.0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows, seconds = _count(make(given), given.batch_size, given.seconds)
    print(json.dumps({"rows": rows, "seconds": seconds}))


def _count(loader: Iterable[Any], batch_size: int, seconds: float) -> tuple[int, float]:
    rows, began, now = 0, 0.0, 0.0
    for batch in loader:
        now = time.perf_counter()
        if began == 0.0:
            _check(batch, batch_size)
            began = now
            continue
        rows += len(batch["label"])
        if now - began >= seconds:
            break
    if rows == 0:
        raise RuntimeError("expected two batches or more, got less: give more rows")
    return rows, now - began


def _check(batch: Any, batch_size: int) -> None:
    """All rivals bring the same: float32 (batch, 128) and int64 (batch,)."""
    features, label = batch["features"], batch["label"]
    expected = {"features": (torch.float32, (batch_size, FEATURES)), "label": (torch.int64, (batch_size,))}
    got = {"features": (features.dtype, tuple(features.shape)), "label": (label.dtype, tuple(label.shape))}
    if got != expected:
        raise RuntimeError(f"expected batches of {expected}, got {got}")
