"""Brings samples to a GPU: from the files that you have, in an order that is exact, reproducible and elastic.

Three nouns carry the design:

    Source       knows where the samples are        bytes, no order       headrace.formats
    Order        says which sample comes when       numbers, no bytes     headrace.order
    DataLoader   brings them to the device in time  threads and memory    headrace.loader

Most programs need a dataset (`NumpyDataset`, `ParquetDataset`, `TarDataset`, `ArrayDataset`, or any map-style torch
Dataset) and a `DataLoader`:

    >>> import numpy as np
    >>> import headrace as hr
    >>> dataset = hr.ArrayDataset({"x": np.arange(12.0).reshape(6, 2)})
    >>> [batch["x"].shape for batch in hr.DataLoader(dataset, batch_size=4, shuffle=True, seed=7)]
    [torch.Size([4, 2]), torch.Size([2, 2])]

Importing this package imports nothing else: a public name loads what it needs when it is first used.
"""

import importlib
from typing import TYPE_CHECKING

from headrace.errors import (
    ArgumentError,
    DependencyError,
    FormatError,
    HeadraceError,
    LoaderError,
    ResumeError,
    SampleError,
    ShardError,
    StalePassError,
    StorageError,
)

if TYPE_CHECKING:
    from headrace.datasets import ArrayDataset, Normalizer, NumpyDataset, OrderSampler, fit_normalizer
    from headrace.datasets.parquet import ParquetDataset
    from headrace.datasets.tar import TarDataset
    from headrace.formats import Pad, Ragged, Raw
    from headrace.formats.image import image
    from headrace.formats.tar_writer import write_shards
    from headrace.loader import DataLoader
    from headrace.loader.stats import Stats
    from headrace.storage import Store

__version__ = "0.1.0.dev0"

__all__ = [
    "ArgumentError",
    "ArrayDataset",
    "DataLoader",
    "DependencyError",
    "FormatError",
    "HeadraceError",
    "LoaderError",
    "Normalizer",
    "NumpyDataset",
    "OrderSampler",
    "Pad",
    "ParquetDataset",
    "Ragged",
    "Raw",
    "ResumeError",
    "SampleError",
    "ShardError",
    "StalePassError",
    "Stats",
    "StorageError",
    "Store",
    "TarDataset",
    "fit_normalizer",
    "image",
    "write_shards",
]

_LOADED_ON_USE = {
    "ArrayDataset": "headrace.datasets",
    "DataLoader": "headrace.loader",
    "Normalizer": "headrace.datasets",
    "NumpyDataset": "headrace.datasets",
    "OrderSampler": "headrace.datasets",
    "Pad": "headrace.formats",
    "ParquetDataset": "headrace.datasets.parquet",
    "Ragged": "headrace.formats",
    "Raw": "headrace.formats",
    "Stats": "headrace.loader.stats",
    "Store": "headrace.storage",
    "TarDataset": "headrace.datasets.tar",
    "fit_normalizer": "headrace.datasets",
    "image": "headrace.formats.image",
    "write_shards": "headrace.formats.tar_writer",
}


if not TYPE_CHECKING:  # a type checker would take it as a promise that every name exists

    def __getattr__(name: str) -> object:
        """The public name `name`, loaded when it is first used (PEP 562)."""
        layer = _LOADED_ON_USE.get(name)
        if layer is None:
            raise AttributeError(f"module 'headrace' has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(layer), name)
        return value


def __dir__() -> list[str]:
    """All public names, loaded or not."""
    return sorted({*globals(), *__all__})
