"""torch.distributed.checkpoint in two ranks: what was trained on before the checkpoints, which tests load elsewhere."""

from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp

from headrace.integrations.checkpoint import LoaderState
from tests.integrations.parts import loader


def save(folder: Path) -> list[list[int]]:
    """Saves after 8 steps, and asynchronously a step later while it goes on; the batches before the first of both."""
    data, seen = loader(num_workers=1), []
    for epoch in range(2):
        for step, batch in enumerate(data):
            seen.append(batch["labels"].tolist())
            if (epoch, step) == (1, 1):
                dcp.save({"data": data, "entry": LoaderState(data)}, checkpoint_id=folder / "saved")
                coming = dcp.async_save({"data": data}, checkpoint_id=folder / "async")
    coming.result()
    return seen[:8]


def checks(folder: Path) -> dict[str, Any]:
    return {"saved": lambda: save(folder)}
