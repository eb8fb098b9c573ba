"""What a rival's process does: batches of tensors by name, counted for a while."""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

Columns = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]

PARQUET: Columns = {"features": (torch.float32, (128,)), "label": (torch.int64, ())}
TAR: Columns = {"npy": (torch.float32, (1024,)), "cls": (torch.int64, ())}


def run(name: str, make: Callable[[argparse.Namespace], Iterable[Any]], columns: Columns = PARQUET) -> None:
    """Reads the command line, makes the loader, and prints one line of JSON: rows and seconds after the first batch.

    Args:
        name: Of the rival's module.
        make: Its loader, told what the command line says; its batches are dicts of tensors.
        columns: By name the dtype and the shape of a row that every rival brings.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.peers.{name}")
    parser.add_argument("paths", nargs="+", help="the files")
    parser.add_argument("--data-dir", type=Path, required=True, help="where converted data is kept")
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--window", type=int, default=65_536, help="rows of the shuffle buffer, where there is one")
    parser.add_argument("--seconds", type=float, default=5.0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows, seconds = _count(make(given), given.batch_size, given.seconds, columns)
    print(json.dumps({"rows": rows, "seconds": seconds}))


def _count(loader: Iterable[Any], batch_size: int, seconds: float, columns: Columns) -> tuple[int, float]:
    rows, began, now = 0, 0.0, 0.0
    for batch in loader:
        now = time.perf_counter()
        if began == 0.0:
            _check(batch, batch_size, columns)
            began = now
            continue
        rows += len(batch[next(iter(columns))])
        if now - began >= seconds:
            break
    if rows == 0:
        raise RuntimeError("expected two batches or more, got less: give more rows")
    return rows, now - began


def _check(batch: Any, batch_size: int, columns: Columns) -> None:
    """All rivals bring the same."""
    expected = {name: (dtype, (batch_size, *shape)) for name, (dtype, shape) in columns.items()}
    got = {name: (batch[name].dtype, tuple(batch[name].shape)) for name in columns}
    if got != expected:
        raise RuntimeError(f"expected batches of {expected}, got {got}")
