"""headrace and its peers: the same files, the same batches, dicts of the two columns."""

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
from benchmarks.tar_webdataset import WebdatasetBatches
from headrace.bench import PlainGather
from headrace.bench.sweep import Factory, Setting

HEADRACE = "headrace"
PER_ROW = "torch, row by row"
WEBDATASET = "webdataset"


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
    """What reads the same rows and does nothing else: a gather; of Parquet, Arrow's batches in file order.

    Those in tar shards are gathered from the `.npy` files.
    """
    if files.parquet is None:
        return PlainGather(files.arrays(), batch_size, seed=seed)
    return PlainReader([files.parquet], ["x", "y"])


def loaders(files: Files, device: torch.device, seed: int) -> dict[str, Factory]:
    """How each loader is made from a setting; headrace first."""

    def headrace(setting: Setting) -> hr.DataLoader:
        return hr.DataLoader(
            files.tars() if files.shards else files.dataset(),
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

    def torch_over_tars(setting: Setting) -> DataLoader[Any]:
        tars = files.tars(batch_size=setting.batch_size, seed=seed, **_shuffled(files))
        workers, pin_memory = setting.num_workers, bool(setting.pin_memory)
        return DataLoader(tars, batch_size=None, num_workers=workers, pin_memory=pin_memory)

    def webdataset(setting: Setting) -> WebdatasetBatches:
        return WebdatasetBatches(
            files.shards,
            setting.batch_size,
            num_workers=setting.num_workers,
            storage_options=files.storage_options,
            pin_memory=bool(setting.pin_memory),
            seed=seed,
        )

    if files.shards:
        return {HEADRACE: headrace, "torch, TarDataset": torch_over_tars, WEBDATASET: webdataset}
    return {
        HEADRACE: headrace,
        f"torch, {type(files.dataset()).__name__}": torch_over(files.dataset),
        PER_ROW: torch_over(lambda: PerRowDataset(files)),
    }


def _shuffled(files: Files) -> dict[str, Any]:
    """How headrace shuffles: all rows, or of Parquet and tar, which are decoded in every epoch, those of a window."""
    if files.parquet is None and not files.shards:
        return {"shuffle": True}
    return {"shuffle": "window", "shuffle_window": files.window}


def code(files: Files, device: torch.device, name: str, setting: Setting) -> str:
    """The line that makes this loader with this setting."""
    if files.shards:
        return _tar_code(files, device, name, setting)
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


def _tar_code(files: Files, device: torch.device, name: str, setting: Setting) -> str:
    shards = f"{files.shards[0].rpartition('/')[0]}/*.tar"
    if name == WEBDATASET:
        return f'loader = WebdatasetBatches("{shards}", {setting.batch_size}, num_workers={setting.num_workers})'
    order = f'batch_size={setting.batch_size}, shuffle="window", shuffle_window={files.window}'
    columns = f"columns={list(files.names)}".replace("'", '"')
    options = ""
    if setting.num_workers:
        options += f", num_workers={setting.num_workers}"
    if setting.pin_memory:
        options += ", pin_memory=True"
    if name == HEADRACE:
        if device.type != "cpu":
            options += f', device="{device.type}"'
        return f'loader = hr.DataLoader(hr.TarDataset("{shards}", {columns}), {order}{options})'
    dataset = f'hr.TarDataset("{shards}", {columns}, {order})'
    return f"loader = torch.utils.data.DataLoader({dataset}, batch_size=None{options})"
