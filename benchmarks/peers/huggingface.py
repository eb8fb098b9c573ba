"""Hugging Face `datasets`: the Parquet files as a stream through a shuffle buffer, in torch's DataLoader."""

import argparse
from collections.abc import Iterable
from typing import Any

import datasets
from torch.utils.data import DataLoader

from benchmarks.peers.stretch import run


def make(given: argparse.Namespace) -> Iterable[Any]:
    """The loader as its documentation has it, the columns chosen before anything is decoded."""
    stream = datasets.load_dataset(
        "parquet",
        data_files=given.paths,
        split="train",
        streaming=True,
        columns=["features", "label"],
        cache_dir=str(given.data_dir / "huggingface"),
    )
    shuffled = stream.shuffle(seed=0, buffer_size=given.window).with_format("torch")
    return DataLoader(shuffled, batch_size=given.batch_size, num_workers=given.num_workers)


if __name__ == "__main__":
    run("huggingface", make)
