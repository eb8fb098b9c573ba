"""SPDL: the tar shards, mapped and taken apart by its own parser, through a pipeline of threads."""

import argparse
import itertools
import mmap
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import spdl.io
import torch
from spdl.pipeline import PipelineBuilder

from benchmarks.peers.stretch import TAR, run

NPY_HEADER_VALUES = 32  # float32 of the 128 bytes before the values
Batch = tuple[list[memoryview], list[memoryview]]


def make(given: argparse.Namespace) -> Iterable[Any]:
    """The fastest of those tried: one thread takes shards apart, others make batches.

    Also tried: `spdl.io.load_npy` for each sample and `np.stack` (half as fast), rows copied one by one (a third), one
    stage for everything in one or two threads (as fast as this one or slower). It shuffles the shards and each shard's
    samples.
    """

    def batches(path: str) -> Iterator[Batch]:
        yield from _shuffled(path, given.batch_size)

    threads = max(1, given.num_workers)
    builder = PipelineBuilder().add_source(_epochs(given.paths)).pipe(batches).pipe(_tensors, concurrency=threads)
    # without max_failures it would log errors and go on
    return _run(builder.add_sink(8).build(num_threads=1 + threads, max_failures=0, use_thread_output_queue=True))


def _epochs(paths: Sequence[str]) -> Iterator[str]:
    draw = random.Random(0)  # noqa: S311 (an order, no secret)
    for _ in itertools.count():
        yield from draw.sample(paths, len(paths))


def _shuffled(path: str, batch_size: int) -> Iterator[Batch]:
    """The payloads of whole batches of one shard, in random order."""
    with Path(path).open("rb") as file:
        mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    arrays: list[memoryview] = []
    labels: list[memoryview] = []
    for name, payload in spdl.io.iter_tarfile(mapped):
        (arrays if name.endswith(".npy") else labels).append(payload)
    order = random.Random(path).sample(range(len(arrays)), len(arrays))  # noqa: S311 (as above)
    for start in range(0, len(order) - batch_size + 1, batch_size):
        places = order[start : start + batch_size]
        yield [arrays[i] for i in places], [labels[i] for i in places]


def _tensors(batch: Batch) -> dict[str, torch.Tensor]:
    arrays, labels = batch
    together = np.frombuffer(bytearray().join(arrays), np.float32).reshape(len(arrays), -1)
    classes = np.array([bytes(label) for label in labels]).astype(np.int64)
    return {"npy": torch.from_numpy(together[:, NPY_HEADER_VALUES:]), "cls": torch.from_numpy(classes)}


def _run(pipeline: Any) -> Iterator[Any]:
    with pipeline.auto_stop():
        yield from pipeline


if __name__ == "__main__":
    run("spdl", make, TAR)
