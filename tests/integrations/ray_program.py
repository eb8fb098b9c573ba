"""A program that trains on a local Ray of two workers, fails amid an epoch and goes on from its checkpoint."""

import json
import sys
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer

from headrace.integrations.ray import checkpoint, resume
from tests.integrations.parts import loader


def train(config: dict[str, Any]) -> None:
    """Two epochs; in the first run a checkpoint after 8 steps, and a failure after 9."""
    data, rank = loader(num_workers=1), ray.train.get_context().get_world_rank()
    is_resumed = resume(data) is not None
    for epoch in range(data.epoch, 2):
        for step, batch in enumerate(data):
            with Path(config["folder"], f"{is_resumed:d}.{rank}").open("a") as file:
                file.write(json.dumps(batch["labels"].tolist()) + "\n")
            if is_resumed or epoch == 0:
                continue
            if step == 1:
                with checkpoint(data, {"step": step}) as folder:
                    if folder is not None:
                        (folder / "model").touch()
            if step == 2:
                raise RuntimeError("a failure that Ray answers by starting the workers anew")


if __name__ == "__main__":
    folder, temporary = sys.argv[1:]
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 << 20,
        _node_ip_address="127.0.0.1",
        _temp_dir=temporary,
    )
    try:
        TorchTrainer(
            train,
            train_loop_config={"folder": folder},
            scaling_config=ray.train.ScalingConfig(num_workers=2),
            run_config=ray.train.RunConfig(
                name="run",
                storage_path=folder,
                failure_config=ray.train.FailureConfig(max_failures=1),
            ),
        ).fit()
    finally:
        ray.shutdown()
