"""The files that are read: made once, from a seed, in bounded memory."""

import contextlib
import ctypes
import mmap
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import headrace as hr
from headrace.datasets import MapDataset
from headrace.errors import StorageError
from headrace.storage import is_url

CHUNK_BYTES = 16 << 20  # made and written at once
TAR_OVERHEAD = 3584  # bytes of a sample besides its values, as webdataset writes them
MOST_LEFT = 0.01  # of a file that counts as dropped


@dataclass(frozen=True, slots=True)
class Files:
    """Two columns on disk.

    Attributes:
        x: float32 (samples, features) as .npy.
        y: int64 (samples,) as .npy, the labels 0..classes-1.
        samples: The number of samples.
        features: The values of a sample.
        classes: The number of classes.
        parquet: The same rows as a Parquet file, where that is what is to be read.
        shards: The same rows as tar shards, each a `npy` and a `cls`, where those are: their paths or URLs.
        storage_options: How fsspec gets to URLs.
    """

    x: Path
    y: Path
    samples: int
    features: int
    classes: int
    parquet: Path | None = None
    shards: tuple[str, ...] = ()
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)  # credentials

    @property
    def columns(self) -> dict[str, str]:
        """As `NumpyDataset` takes them."""
        return {"x": str(self.x), "y": str(self.y)}

    @property
    def paths(self) -> list[Path]:
        """The files that are read."""
        if self.shards:
            return [] if is_url(self.shards[0]) else [Path(shard) for shard in self.shards]
        return [self.x, self.y] if self.parquet is None else [self.parquet]

    @property
    def names(self) -> tuple[str, str]:
        """What the two columns are called in what is read."""
        return ("npy", "cls") if self.shards else ("x", "y")

    def dataset(self) -> MapDataset:
        """Headrace's dataset over them, samples as dicts of the columns."""
        if self.shards:
            return self.tars().samples
        if self.parquet is None:
            return hr.NumpyDataset(self.columns)
        return hr.ParquetDataset(str(self.parquet), memory_bytes=self.memory_bytes)

    def tars(self, **options: Any) -> hr.TarDataset:
        """The shards, as a stream; where they lie in a store, it keeps half of them, so that every epoch reads."""
        stored: dict[str, Any] = {}
        if is_url(self.shards[0]):
            stored = {"storage_options": self.storage_options, "index_dir": self.x.parents[1] / "indexes"}
        return hr.TarDataset(self.shards, list(self.names), memory_bytes=self.memory_bytes, **stored, **options)

    @property
    def memory_bytes(self) -> int:
        """What a dataset may keep of what isn't memory-mapped: half of it, so that every epoch decodes, or fetches."""
        row_bytes = self.features * 4 + (TAR_OVERHEAD if self.shards else 8)
        return self.samples * row_bytes // 2

    @property
    def window(self) -> int:
        """The rows that are shuffled together where they are decoded in every epoch: memory holds several windows."""
        return max(1, min(65_536, self.samples // 8))

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Both columns, memory-mapped, as plain arrays."""
        return {name: np.load(path, mmap_mode="r").view(np.ndarray) for name, path in self.columns.items()}


def make_rows(folder: Path, samples: int, features: int = 256, classes: int = 10, *, seed: int = 0) -> Files:
    """Random rows and labels that a linear rule gives, the same for the same arguments; reused where they exist.

    Row values are standard normal; the label is the largest of `classes` fixed random projections.

    Raises:
        StorageError: The disk is too full.
    """
    at = folder / f"rows-{samples}x{features}-classes{classes}-seed{seed}"
    files = Files(at / "x.npy", at / "y.npy", samples, features, classes)
    if at.exists():
        return files
    with made_whole(at, samples * (features * 4 + 8)) as part:
        rule = np.random.default_rng([seed, 0]).standard_normal((features, classes), dtype=np.float32)
        step = max(1, CHUNK_BYTES // (features * 4))
        with (part / "x.npy").open("wb") as x_file, (part / "y.npy").open("wb") as y_file:
            _write_header(x_file, "<f4", (samples, features))
            _write_header(y_file, "<i8", (samples,))
            for number, start in enumerate(range(0, samples, step)):
                shape = (min(step, samples - start), features)
                x = np.random.default_rng([seed, 1, number]).standard_normal(shape, dtype=np.float32)
                x_file.write(x.data)
                y_file.write((x @ rule).argmax(axis=1).astype("<i8").data)
    return files


def make_shards(folder: Path, shards: int, rows: int, *, seed: int = 0) -> list[Path]:
    """Files of one column, float32 (rows, 256): normal, the same for the same arguments; reused where they exist.

    Raises:
        StorageError: The disk is too full.
    """
    at = folder / f"shards-{shards}x{rows}-seed{seed}"
    if not at.exists():
        with made_whole(at, shards * rows * 1024) as part:
            for number in range(shards):
                x = np.random.default_rng([seed, 2, number]).standard_normal((rows, 256), dtype=np.float32)
                np.save(part / f"x-{number:02d}.npy", x)
    return [at / f"x-{number:02d}.npy" for number in range(shards)]


def make_digits(folder: Path) -> Files:
    """The 1 797 handwritten digits of 8 x 8 pixels that scikit-learn ships, as .npy; pixel values are 0..16."""
    at = folder / "digits"
    files = Files(at / "x.npy", at / "y.npy", 1797, 64, 10)
    if at.exists():
        return files
    from sklearn.datasets import load_digits

    digits = load_digits()
    with made_whole(at, digits.data.nbytes) as part:
        np.save(part / "x.npy", digits.data.astype(np.float32))
        np.save(part / "y.npy", digits.target.astype(np.int64))
    return files


def read_through(path: Path) -> None:
    """Reads a file from its first byte to its last one, so that it is in memory where it fits."""
    buffer = bytearray(4 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def drop_from_memory(path: Path) -> None:
    """Makes the system forget what it holds of a file, so that it is read from disk again.

    Raises:
        StorageError: It still holds some, as it does where a process has the file mapped.
    """
    with path.open("rb") as file:
        os.fsync(file.fileno())  # only pages that are on disk can be dropped
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    left = share_in_memory(path)
    if left > MOST_LEFT:
        raise StorageError(f"{path}: expected it to leave memory, got {left:.0%} of it still there; is it mapped?")


def share_in_memory(path: Path) -> float:
    """The share of a file's pages, 0 to 1, that the system holds in memory (man 2 mincore)."""
    mapped = np.memmap(path, np.uint8, mode="r")
    held = np.zeros(-(-mapped.size // mmap.PAGESIZE), np.uint8)
    asked = ctypes.CDLL(None, use_errno=True).mincore(
        ctypes.c_void_p(mapped.ctypes.data), ctypes.c_size_t(mapped.size), ctypes.c_void_p(held.ctypes.data)
    )
    if asked != 0:
        raise StorageError(f"{path}: cannot tell what is in memory: {os.strerror(ctypes.get_errno())}")
    return float((held & 1).mean())


@contextlib.contextmanager
def made_whole(at: Path, size_bytes: int) -> Iterator[Path]:
    """A folder to write into that becomes `at` once everything is written: what exists is complete."""
    part = at.with_name(f"{at.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    free = shutil.disk_usage(part).free
    if free < 1.1 * size_bytes:
        part.rmdir()
        raise StorageError(
            f"{at.parent}: expected {size_bytes / 1e6:,.0f} MB of free disk, got {free / 1e6:,.0f} MB; "
            "make room, or give fewer --rows or another --data-dir"
        )
    yield part
    part.rename(at)


def _write_header(file: Any, dtype: str, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
