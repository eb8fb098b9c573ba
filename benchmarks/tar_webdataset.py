"""webdataset over tar shards: its own reading, shuffling and batching, in torch's DataLoader."""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import webdataset as wds
from torch.utils.data import DataLoader

from headrace.storage import is_url

SHUFFLE_BUFFER = 1000  # as in its documentation
NPY_HEADER = 128
FETCHED_BYTES = 8 << 20  # of a store at once


class WebdatasetBatches:
    """Each iteration is an epoch of batches of `npy`, float32 (batch, values), and `cls`, int64 (batch,).

    What would take longest after reading, decoding by webdataset's rules, is left out: the layout is known.

    Args:
        shards: Paths or URLs; these are opened by fsspec, since webdataset has no client for stores.
        batch_size: Samples of a batch.
        num_workers: Of torch's DataLoader; each takes some of the shards.
        storage_options: How fsspec gets to URLs.
        pin_memory: As for torch's DataLoader.
        seed: Of the order of the shards.
    """

    def __init__(
        self,
        shards: Sequence[str],
        batch_size: int,
        *,
        num_workers: int = 0,
        storage_options: Mapping[str, Any] | None = None,
        pin_memory: bool = False,
        seed: int = 0,
    ) -> None:
        stream = wds.DataPipeline(
            wds.SimpleShardList(list(shards)),
            wds.detshuffle(len(shards), seed=seed),
            wds.split_by_worker,
            functools.partial(_opened, options=dict(storage_options or {})),
            wds.tariterators.tar_file_expander,
            wds.tariterators.group_by_keys,
            wds.shuffle(SHUFFLE_BUFFER),
            wds.map(_decoded),
            wds.batched(batch_size),
        )
        self._loader: Iterable[Any] = DataLoader(
            stream, batch_size=None, num_workers=num_workers, pin_memory=pin_memory
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for arrays, labels in self._loader:
            yield {"npy": arrays, "cls": labels}


def _decoded(sample: dict[str, Any]) -> tuple[Any, int]:
    """Twice as fast as webdataset's `.decode()`, and right for what is read here."""
    return np.frombuffer(sample["npy"], np.float32, offset=NPY_HEADER), int(sample["cls"])


def _opened(shards: Iterable[dict[str, Any]], options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """As webdataset's `url_opener`, which does not close local files: each shard with an open stream."""
    for shard in shards:
        url = shard["url"]
        with _open_url(url, options) if is_url(url) else Path(url).open("rb") as stream:
            yield {**shard, "stream": stream}


def _open_url(url: str, options: dict[str, Any]) -> Any:
    fs, path = fsspec.core.url_to_fs(url, **options)
    return fs.open(path, "rb", block_size=FETCHED_BYTES)
