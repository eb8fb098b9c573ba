"""Measurements as JSON lines, with the facts of the machine."""

import json
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch


def machine_facts() -> dict[str, object]:
    """What figures depend on: cores, memory, system and versions. Neither the host's name nor any path."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return {
        "cores": _cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.system(),
        "architecture": platform.machine(),
        "accelerator": None if accelerator is None else accelerator.type,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "numpy": np.__version__,
    }


def write_json_lines(path: str | Path, lines: Iterable[Mapping[str, object]]) -> None:
    """Writes one measurement a line, each with the facts of the machine under `machine`, replacing the file."""
    machine = machine_facts()
    with Path(path).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({**line, "machine": machine}, allow_nan=False) + "\n" for line in lines)


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
