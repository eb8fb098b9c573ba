"""The Parquet files that are read: made once, from a seed, in bounded memory."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.data import Files, made_whole

FILES = 8
GROUP_ROWS = 8192
FEATURES = 128
CLASSES = 10
COLUMNS = ("features", "label")  # those that are read
TEXT_WORDS = 6  # a row's text: about 40 bytes
LARGE_GROUP_FEATURES = 256


def make_parquet(folder: Path, rows: int, *, files: int = FILES, seed: int = 0) -> list[Path]:
    """Files of rows as they come from an export: id, features, label and text, in row groups of 8 192, zstd.

    Pages carry no CRC, since Arrow writes none unless asked; checking one takes a tenth of the time of decoding.

    Args:
        folder: Where they are made, or found again.
        rows: In all files together; the last file has fewer where they don't divide.
        files: How many.
        seed: The same for the same arguments.

    Returns:
        The paths. id is int64 (0, 1, ... through all files), features FixedSizeList<float32, 128>, standard normal,
        label int64 0..9, text a string.

    Raises:
        StorageError: The disk is too full.
    """
    at = folder / f"parquet-{rows}x{FEATURES}-files{files}-seed{seed}"
    paths = [at / f"part-{number:02d}.parquet" for number in range(files)]
    if at.exists():
        return paths
    words = _words()
    file_rows = -(-rows // files)
    with made_whole(at, rows * (FEATURES * 4 + 40)) as part:
        for number, path in enumerate(paths):
            first, stop = min(number * file_rows, rows), min((number + 1) * file_rows, rows)
            groups = (
                _group(start, min(GROUP_ROWS, stop - start), words, seed) for start in range(first, stop, GROUP_ROWS)
            )
            _write(part / path.name, groups)
    return paths


def make_large_group(folder: Path, rows: int = 1_000_000, *, seed: int = 0) -> Path:
    """A file of one row group: `features`, FixedSizeList<float32, 256>, and `label`; 1 GB as it is.

    Making it takes 2.3 GB of memory: Arrow can only write a row group that it holds as a whole, as it is and encoded.

    Raises:
        StorageError: The disk is too full.
    """
    at = folder / f"parquet-group-{rows}x{LARGE_GROUP_FEATURES}-seed{seed}"
    path = at / "group.parquet"
    if at.exists():
        return path
    with made_whole(at, rows * (LARGE_GROUP_FEATURES * 4 + 8)) as part:
        rng = np.random.default_rng([seed, 4])
        features = rng.standard_normal((rows, LARGE_GROUP_FEATURES), dtype=np.float32)
        group = pa.table({"features": _lists(features), "label": pa.array(rng.integers(0, CLASSES, rows))})
        _write(part / path.name, iter([group]))
    return path


def make_rows_parquet(files: Files) -> Files:
    """The same rows as one Parquet file beside the `.npy` files: `x` and `y`, in row groups of 8 192, zstd.

    Raises:
        StorageError: The disk is too full.
    """
    folder = files.x.parent
    at = folder.with_name(f"{folder.name}-parquet")
    path = at / "rows.parquet"
    if not at.exists():
        arrays = files.arrays()
        x, y = arrays["x"], arrays["y"]
        with made_whole(at, x.nbytes + y.nbytes) as part:
            groups = (
                pa.table(
                    {"x": _lists(x[start : start + GROUP_ROWS]), "y": pa.array(y[start : start + GROUP_ROWS])},
                )
                for start in range(0, len(x), GROUP_ROWS)
            )
            _write(part / path.name, groups)
    return Files(files.x, files.y, files.samples, files.features, files.classes, parquet=path)


def _write(path: Path, groups: Iterator[pa.Table]) -> None:
    """A file with a row group for each table."""
    first = next(groups)
    with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
        for group in itertools.chain([first], groups):
            writer.write_table(group, row_group_size=len(group))


def _group(start: int, rows: int, words: pa.Array, seed: int) -> pa.Table:
    rng = np.random.default_rng([seed, 3, start])
    chosen = [words.take(pa.array(rng.integers(0, len(words), rows))) for _ in range(TEXT_WORDS)]
    return pa.table(
        {
            "id": pa.array(np.arange(start, start + rows)),
            "features": _lists(rng.standard_normal((rows, FEATURES), dtype=np.float32)),
            "label": pa.array(rng.integers(0, CLASSES, rows)),
            "text": pc.binary_join_element_wise(*chosen, " "),
        }
    )


def _words() -> pa.Array:
    """A vocabulary of 4096 words of 4 to 8 letters."""
    rng = np.random.default_rng([0, 5])
    letters = rng.integers(ord("a"), ord("z") + 1, (4096, 8)).astype(np.uint8)
    lengths = rng.integers(4, 9, 4096)
    return pa.array(
        [bytes(word[:length]).decode("ascii") for word, length in zip(letters, lengths.tolist(), strict=True)]
    )


def _lists(rows: npt.NDArray[np.float32]) -> pa.FixedSizeListArray:
    """Rows, float32 (rows, values), as lists of a fixed size."""
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
