"""webdataset: the tar shards through a shuffle buffer, batched where they are read, in torch's DataLoader."""

import argparse
from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.peers.stretch import TAR, run
from benchmarks.tar_webdataset import WebdatasetBatches


def make(given: argparse.Namespace) -> Iterable[Any]:
    """Its epochs, one after the other."""
    return _whole(WebdatasetBatches(given.paths, given.batch_size, num_workers=given.num_workers), given.batch_size)


def _whole(batches: Iterable[dict[str, Any]], batch_size: int) -> Iterator[dict[str, Any]]:
    while True:
        yield from (batch for batch in batches if len(batch["cls"]) == batch_size)


if __name__ == "__main__":
    run("webdataset", make, TAR)
