"""Datasets over arrays: in memory, and in NumPy's files, memory-mapped or in a store."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt
import torch

from headrace.datasets.mapstyle import MapDataset
from headrace.errors import ArgumentError
from headrace.formats import ArraySource, ColumnFiles, NumpySource, Raw
from headrace.storage import Store


class ArrayDataset(MapDataset):
    """Arrays or tensors in memory as a dataset; row i of each is sample i.

    Example:
        >>> import numpy as np
        >>> dataset = ArrayDataset(np.zeros((3, 2), np.float32), np.array([0, 1, 2]))
        >>> dataset[2]
        (tensor([0., 0.]), tensor(2))
        >>> ArrayDataset({"x": np.zeros((3, 2)), "y": np.arange(3)})[[0, 2]]["y"]
        tensor([0, 2])
    """

    def __init__(
        self, *columns: npt.ArrayLike | torch.Tensor | Mapping[str, Any], as_tuple: bool | None = None
    ) -> None:
        """Takes the columns one by one, giving tuples as `TensorDataset` does; or one mapping of them, giving dicts.

        Args:
            columns: Arrays or CPU tensors with one row a sample, all of one length; they are not copied.
            as_tuple: Whether samples are tuples; by default as said above.

        Raises:
            ArgumentError: No column or sample, columns of different lengths, or values that no tensor can hold.
        """
        named, positional = _named(columns)
        if any(isinstance(column, str | os.PathLike) for column in named.values()):
            raise ArgumentError("expected arrays, got a path; give files to NumpyDataset")
        super().__init__(ArraySource(named), as_tuple=positional if as_tuple is None else as_tuple)


class NumpyDataset(MapDataset):
    """NumPy files as a dataset: nothing is loaded before it is asked for.

    Local files are memory-mapped. Files in a store (any fsspec URL) are read in blocks of some MiB, kept in memory up
    to a budget; a loader reads the blocks ahead in the order in which it will need them, and `shuffle=True` permutes
    samples within windows of blocks, so that each is read once. With `shuffle=False`, neighbouring batches go to
    different ranks, so each rank fetches all blocks: give the loader `lanes=` (a power of two, as many as there are
    ranks or more), and each rank reads stretches of its own, in another order. Where the blocks of a window don't fit
    into the budget, rows are fetched one by one, which is slow; a warning says so.

    Example:
        >>> import numpy as np, pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> np.save(folder / "x.npy", np.arange(6).reshape(3, 2))
        >>> NumpyDataset({"x": folder / "x.npy"})[1]
        {'x': tensor([2, 3])}
    """

    def __init__(
        self,
        *columns: ColumnFiles | Mapping[str, ColumnFiles],
        as_tuple: bool | None = None,
        store: Store | None = None,
        storage_options: Mapping[str, Any] | None = None,
        memory_bytes: int | None = None,
    ) -> None:
        """Takes the columns one by one, giving tuples; or one mapping of them, giving dicts. Reads only headers.

        Args:
            columns: For each column a `.npy` file, a pattern (`*`, `{000..127}`) or list of such files that are seen as
                one array, or `Raw(path, dtype=, shape=)` for raw binary files: local paths, or URLs such as
                `s3://bucket/x-*.npy`. All columns have the same number of samples.
            as_tuple: Whether samples are tuples; by default as said above.
            store: What reads URLs: a `Store`, perhaps with a disk cache.
            storage_options: Instead of a store, the options (credentials, endpoint) of one without a cache.
            memory_bytes: The most memory that blocks from a store take, in each process that reads; by default 2 GiB,
                or a quarter of what is free.

        Raises:
            ArgumentError: No column, no file, columns of different lengths, or arguments that don't go together.
            DependencyError: A URL needs a package that is missing; the text names the pip line.
            FormatError: A file is not what its header or the arguments say.
            StorageError: A file cannot be opened.
        """
        store = store_of(store, storage_options)
        named, positional = _named(columns)
        for name, column in named.items():
            if not isinstance(column, str | os.PathLike | Raw | Sequence):
                raise ArgumentError(
                    f"column {name!r}: expected a path, a list of paths or Raw(...), got {type(column).__name__}; "
                    "give arrays to ArrayDataset"
                )
        source = NumpySource(named, store, memory_bytes=memory_bytes)
        super().__init__(source, as_tuple=positional if as_tuple is None else as_tuple)


def store_of(store: Store | None, storage_options: Mapping[str, Any] | None) -> Store | None:
    """The store, or one with these options; None for neither.

    Raises:
        ArgumentError: Both are given.
    """
    if store is not None and storage_options is not None:
        raise ArgumentError(
            "expected store= or storage_options=, got both: give the options to the store, Store(storage_options=...)"
        )
    return store if storage_options is None else Store(storage_options=storage_options)


def _named(columns: Sequence[Any]) -> tuple[Mapping[str, Any], bool]:
    """The columns by name, and whether they were given by position (their names are then "0", "1", ...)."""
    if any(isinstance(column, Mapping) for column in columns):
        if len(columns) != 1:
            raise ArgumentError(f"expected one mapping of columns, or columns one by one, got {len(columns)} arguments")
        return columns[0], False
    return {str(i): column for i, column in enumerate(columns)}, True
