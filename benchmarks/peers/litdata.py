"""LitData: the rows converted once to its own chunks, shuffled, in its own DataLoader."""

import argparse
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import litdata
import pyarrow.parquet as pq

from benchmarks.peers.stretch import run

CHUNK_BYTES = "64MB"


def make(given: argparse.Namespace) -> Iterable[Any]:
    """The loader over the converted rows, which are converted if they are not there."""
    at = given.data_dir / f"litdata-{Path(given.paths[0]).parent.name}"
    if not at.exists():
        part = at.with_name(f"{at.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        litdata.optimize(rows_of, given.paths, output_dir=str(part), chunk_bytes=CHUNK_BYTES, num_workers=1)
        part.rename(at)
    dataset = litdata.StreamingDataset(str(at), shuffle=True, seed=0)
    loader: Iterable[Any] = litdata.StreamingDataLoader(
        dataset, batch_size=given.batch_size, num_workers=given.num_workers
    )
    return loader


def rows_of(path: str) -> Iterator[dict[str, Any]]:
    """The rows of a file: features as an array (128,), label as a number."""
    for batch in pq.ParquetFile(path).iter_batches(columns=["features", "label"]):
        features = batch["features"].values.to_numpy().reshape(len(batch), -1)
        for row, label in zip(features, batch["label"].to_pylist(), strict=True):
            yield {"features": row, "label": label}


if __name__ == "__main__":
    run("litdata", make)
