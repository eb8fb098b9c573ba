"""Ray Train: the state of a loader in the checkpoints that a worker loop reports."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headrace.integrations.checkpoint import read_state, write_state
from headrace.integrations.frameworks import framework


def resume(loader: Any) -> Path | None:
    """Makes a loader continue from the latest checkpoint of this run, where there is one.

        def train_loop_per_worker(config):
            data = headrace.DataLoader(dataset, batch_size=32)    # the ranks are those of Ray's process group
            resume(data)
            for epoch in range(data.epoch, config["epochs"]):
                for step, batch in enumerate(data):
                    ...
                    if step % 500 == 499:
                        with checkpoint(data) as folder:
                            torch.save(model.state_dict(), folder / "model.pt")

    Don't give the loader to `ray.train.torch.prepare_data_loader`, which is for torch's. That leaves torch's DataLoader
    over an `OrderSampler` whole, but puts a sampler of its own in the place of others.

    Args:
        loader: A `headrace.DataLoader` or `TrackedLoader`.

    Returns:
        None where there is no checkpoint yet; else the local folder of it, as long as the loop runs on this node.

    Raises:
        DependencyError: Ray is not installed.
        ResumeError: The checkpoint holds no state of a loader, or one of other data.
    """
    latest = framework("ray.train", "ray").get_checkpoint()
    if latest is None:
        return None
    with latest.as_directory() as folder:
        read_state(loader, folder)
    return Path(folder)


@contextlib.contextmanager
def checkpoint(loader: Any, metrics: dict[str, Any] | None = None) -> Iterator[Path | None]:
    """A folder to write the model into, which is then reported as a checkpoint, with the loader's state in it.

    All workers are to come here, since Ray's `report` waits for them. Only the first one's folder is reported; the
    others get None.

    Args:
        loader: A `headrace.DataLoader` or `TrackedLoader`.
        metrics: What else is reported.

    Raises:
        DependencyError: Ray is not installed.
    """
    train = framework("ray.train", "ray")
    if train.get_context().get_world_rank() != 0:
        yield None
        train.report(metrics or {})
        return
    with tempfile.TemporaryDirectory() as folder:
        write_state(loader, folder)
        yield Path(folder)
        train.report(metrics or {}, checkpoint=train.Checkpoint.from_directory(folder))
