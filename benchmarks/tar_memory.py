"""Epochs of tar shards in a process of its own that watches its memory.

    python -m benchmarks.tar_memory --num-workers 2 data/.../train-*.tar

prints one line of JSON: how many bytes it held at most in each third of its epochs, beyond those held before the
dataset was opened, and the samples read. Pages of mapped files don't count: the system takes them back when it needs
them.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.tar_data import BATCH_SIZE
from benchmarks.watch import Held, Watch

EPOCHS = 6


def read_watched(paths: Sequence[Path], *, num_workers: int) -> Held:
    """What epochs of shuffled batches take.

    Raises:
        subprocess.CalledProcessError: The process failed, or was killed for the memory it took.
    """
    command = [sys.executable, "-m", "benchmarks.tar_memory", "--num-workers", str(num_workers), *map(str, paths)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return Held(*json.loads(done.stdout)["held_bytes"])


def _read(paths: Sequence[str], num_workers: int) -> dict[str, Any]:
    import torch

    import headrace as hr

    torch.zeros(1)
    made = (hr.TarDataset, hr.DataLoader)  # imports count to the process itself
    watch = Watch()
    watch.start()
    dataset = made[0](list(paths))
    loader = made[1](dataset, batch_size=BATCH_SIZE, shuffle=True, num_workers=num_workers)
    samples, expected = 0, EPOCHS * len(dataset.samples)
    for _ in range(EPOCHS):
        for batch in loader:
            samples += len(batch["cls"])
            watch.third = min(2, 3 * samples // expected)
    return {"held_bytes": watch.end(), "samples": samples}


def main() -> None:
    """Reads, prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tar_memory", description=__doc__)
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--num-workers", type=int, default=0)
    given = parser.parse_args()
    print(json.dumps(_read(given.paths, given.num_workers)))


if __name__ == "__main__":
    main()
