"""A program for torchrun: runs scenarios on every rank, which each write what they got.

torchrun --standalone --nproc-per-node=4 -m tests.distributed.ranks FOLDER epochs training mesh
"""

import json
import sys
from pathlib import Path

import torch.distributed as dist

from tests.distributed import epochs, mesh, training

SCENARIOS = {"epochs": epochs.run, "training": training.run, "mesh": mesh.run}


def main(folder: str, *names: str) -> None:
    """Runs the named scenarios and writes their results to FOLDER/RANK.json."""
    dist.init_process_group("gloo")
    results = {name: SCENARIOS[name]() for name in names}
    Path(folder, f"{dist.get_rank()}.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
