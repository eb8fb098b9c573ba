"""The tar shards at a URL, for `python -m benchmarks --format tar --url`."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec

from benchmarks.data import Files
from benchmarks.servers.s3 import S3Server
from headrace.errors import StorageError
from headrace.storage import shown


@contextlib.contextmanager
def uploaded(files: Files, url: str) -> Iterator[Files]:
    """The same rows, to be read from a store.

    Args:
        files: With local shards.
        url: A folder, below which they are written where they are not there yet; "s3" for a server of our own on the
            loopback interface, which holds them as long as the context lasts.

    Raises:
        StorageError: They can't be written there, or there is no such server here.
    """
    with contextlib.ExitStack() as stack:
        options: Mapping[str, Any] = {}
        try:
            if url == "s3":
                s3 = stack.enter_context(S3Server())
                url, options = "s3://data", s3.storage_options
            shards = tuple(_upload(Path(shard), url, options) for shard in files.shards)
        except Exception as error:
            raise StorageError(f"--url: cannot write the shards to {shown(url)}: {error}") from error
        yield replace(files, shards=shards, storage_options=options)


def _upload(shard: Path, url: str, options: Mapping[str, Any]) -> str:
    """Where it is; the folder's name tells what is in it, so that one of the same length is the same."""
    at = f"{url.rstrip('/')}/{shard.parent.name}/{shard.name}"
    fs, path = fsspec.core.url_to_fs(at, **options)
    if not fs.exists(path) or fs.size(path) != shard.stat().st_size:
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        fs.put_file(str(shard), path)
    return at
