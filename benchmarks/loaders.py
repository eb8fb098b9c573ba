"""headrace and its peers: the same files, the same batches, dicts of `x` and `y`."""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, Dataset

import headrace as hr
from benchmarks.data import Files
from benchmarks.plain_reader import PlainReader
from headrace.bench import PlainGather
from headrace.bench.sweep import Factory, Setting

HEADRACE = "headrace"
PER_ROW = "torch, row by row"


class PerRowDataset(Dataset[dict[str, Any]]):
    """The Dataset that tutorials write: one row at a time from memory-mapped files, or of a table in memory."""

    def __init__(self, files: Files) -> None:
        self._files = files

    @functools.cached_property
    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        # opened by each worker for itself: a pickled memory map would carry the data along
        if self._files.parquet is not None:
            return table_in_memory(self._files.parquet)
        return {name: np.load(path, mmap_mode="r") for name, path in self._files.columns.items()}

    def __len__(self) -> int:
        return self._files.samples

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": torch.from_numpy(self._arrays["x"][index].copy()), "y": int(self._arrays["y"][index])}


@functools.lru_cache(maxsize=1)
def table_in_memory(path: Path) -> dict[str, npt.NDArray[Any]]:
    """`x` and `y` of a Parquet file, decoded once; workers that are forked share it."""
    table = pq.read_table(path, columns=["x", "y"]).combine_chunks()
    x = table["x"].chunk(0)
    return {"x": x.values.to_numpy().reshape(len(x), -1), "y": table["y"].chunk(0).to_numpy()}


def limit(files: Files, batch_size: int, seed: int) -> Iterable[Any]:
    """What reads the same rows and does nothing else: a gather; of Parquet, Arrow's batches in file order."""
    if files.parquet is None:
        return PlainGather(files.arrays(), batch_size, seed=seed)
    return PlainReader([files.parquet], ["x", "y"])


def loaders(files: Files, device: torch.device, seed: int) -> dict[str, Factory]:
    """How each loader is made from a setting; headrace first."""

    def headrace(setting: Setting) -> hr.DataLoader:
        return hr.DataLoader(
            files.dataset(),
            batch_size=setting.batch_size,
            **_shuffled(files),
            seed=seed,
            num_workers=setting.num_workers,
            pin_memory=bool(setting.pin_memory),
            device=None if device.type == "cpu" else device,
        )

    def torch_over(make_dataset: Callable[[], Any]) -> Factory:
        def make(setting: Setting) -> DataLoader[Any]:
            dataset = make_dataset()
            order: dict[str, Any] = {"shuffle": True, "generator": torch.Generator().manual_seed(seed)}
            if isinstance(dataset, hr.ParquetDataset):
                order = {"sampler": hr.OrderSampler(dataset, setting.batch_size, seed=seed, **_shuffled(files))}
            return DataLoader(
                dataset,
                batch_size=setting.batch_size,
                **order,
                num_workers=setting.num_workers,
                pin_memory=bool(setting.pin_memory),
            )

        return make

    return {
        HEADRACE: headrace,
        f"torch, {type(files.dataset()).__name__}": torch_over(files.dataset),
        PER_ROW: torch_over(lambda: PerRowDataset(files)),
    }


def _shuffled(files: Files) -> dict[str, Any]:
    """How headrace shuffles: all rows, or of Parquet, which is decoded in every epoch, those of a window."""
    return {"shuffle": True} if files.parquet is None else {"shuffle": "window", "shuffle_window": files.window}


def code(files: Files, device: torch.device, name: str, setting: Setting) -> str:
    """The line that makes this loader with this setting."""
    windows = f'shuffle="window", shuffle_window={files.window}'
    in_windows = files.parquet is not None and name != PER_ROW
    shuffled = windows if in_windows else "shuffle=True"
    if in_windows and name != HEADRACE:
        shuffled = f"sampler=hr.OrderSampler(dataset, {setting.batch_size}, {windows})"
    options = f"batch_size={setting.batch_size}, {shuffled}"
    if setting.num_workers:
        options += f", num_workers={setting.num_workers}"
    if setting.pin_memory:
        options += ", pin_memory=True"
    if name == HEADRACE and device.type != "cpu":
        options += f', device="{device.type}"'
    loader = "hr.DataLoader" if name == HEADRACE else "torch.utils.data.DataLoader"
    columns = ", ".join(f'"{column}": "{path}"' for column, path in files.columns.items())
    ours = f"hr.NumpyDataset({{{columns}}})"
    if files.parquet is not None:
        ours = f'hr.ParquetDataset("{files.parquet}", memory_bytes={files.memory_bytes})'
    dataset = "PerRowDataset(...)" if name == PER_ROW else ours
    if in_windows and name != HEADRACE:
        return f"dataset = {dataset}; loader = {loader}(dataset, {options})"
    return f"loader = {loader}({dataset}, {options})"
