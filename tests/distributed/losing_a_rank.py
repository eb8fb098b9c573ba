"""A run for torchrun that checkpoints, and may lose a rank: a program with three loaders, one for each last-step rule.

torchrun --standalone --nproc-per-node=4 -m tests.distributed.losing_a_rank FOLDER first 2
torchrun --standalone --nproc-per-node=3 -m tests.distributed.losing_a_rank FOLDER second
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import torch
import torch.distributed as dist

from headrace import DataLoader
from tests.distributed.plain import ORDER, RULES, Step, step_of
from tests.loader.stand_ins import numbers

SAMPLES = 502
BATCH = 4
EPOCHS = 2
CHECKPOINT_STEPS = 5
LOST_AT_STEP = 18  # steps that are done when the rank goes: three after a checkpoint, in the first epoch


def main(folder: str, life: str, lost: str = "") -> None:
    """Reads to the end of the last epoch from the checkpoint on, where there is one; rank `lost` kills itself.

    Each rank logs what each of its steps held, before the checkpoint that counts the step.
    """
    dist.init_process_group("gloo")
    rank, checkpoint = dist.get_rank(), Path(folder, "checkpoint.json")
    loaders = {rule: DataLoader(numbers(SAMPLES), BATCH, num_workers=1, **ORDER, **RULES[rule]) for rule in RULES}
    if checkpoint.exists():
        for rule, state in json.loads(checkpoint.read_text())["states"].items():
            loaders[rule].load_state_dict(state)
    with Path(folder, f"{life}-{rank}.log").open("w", buffering=1) as log:
        runs = zip_longest(*(_run(loader) for loader in loaders.values()))
        for step, batches in enumerate(runs, start=1):
            dist.all_reduce(torch.ones(1))  # a step of all ranks, as training is
            print(json.dumps(dict(zip(loaders, batches, strict=True))), file=log)
            if lost and step == LOST_AT_STEP:
                dist.barrier()  # all have logged it
                if str(rank) == lost:
                    os.kill(os.getpid(), signal.SIGKILL)
            if step % CHECKPOINT_STEPS == 0:
                dist.barrier()
                if rank == 0:
                    states = {rule: loader.state_dict() for rule, loader in loaders.items()}
                    _replace(checkpoint, json.dumps({"steps": step, "states": states}))
    dist.destroy_process_group()


def _run(loader: DataLoader) -> Iterator[tuple[int, Step]]:
    """The epoch and this rank's share of each step."""
    while (epoch := loader.epoch) < EPOCHS:
        for batch in loader:
            yield epoch, step_of(batch)


def _replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
