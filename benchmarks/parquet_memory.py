"""One epoch in a process of its own that watches its memory.

    python -m benchmarks.parquet_memory --memory-bytes 256000000 --window 65536 data/.../part-*.parquet

prints one line of JSON: how many bytes it held at most in each third of the epoch, beyond those held before the dataset
was opened, and the rows read. Pages of mapped files don't count: the system takes them back when it needs them.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.watch import Held, Watch

BATCH_SIZE = 1024


def read_watched(paths: Sequence[Path], *, memory_bytes: int, num_workers: int, window: int) -> Held:
    """What an epoch of features and labels takes.

    Args:
        paths: The Parquet files.
        memory_bytes: The dataset's budget.
        num_workers: Of the loader.
        window: Rows of the shuffle window; 0 for file order.

    Raises:
        subprocess.CalledProcessError: The process failed, or was killed for the memory it took.
    """
    options = {"memory-bytes": memory_bytes, "num-workers": num_workers, "window": window}
    command = [sys.executable, "-m", "benchmarks.parquet_memory", *map(str, paths)]
    command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return Held(*json.loads(done.stdout)["held_bytes"])


def _read(paths: Sequence[str], memory_bytes: int, num_workers: int, window: int) -> dict[str, Any]:
    import torch

    import headrace as hr

    torch.zeros(1)
    made = (hr.ParquetDataset, hr.DataLoader)  # imports count to the process itself
    watch = Watch()
    watch.start()
    dataset = made[0](list(paths), columns=["features", "label"], memory_bytes=memory_bytes)
    shuffle: dict[str, Any] = {"shuffle": "window", "shuffle_window": window} if window else {}
    rows = 0
    for batch in made[1](dataset, batch_size=BATCH_SIZE, num_workers=num_workers, **shuffle):
        rows += len(batch["label"])
        watch.third = min(2, 3 * rows // len(dataset))
    return {"held_bytes": watch.end(), "rows": rows}


def main() -> None:
    """Reads, prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parquet_memory", description=__doc__)
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--memory-bytes", type=int, required=True)
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--window", type=int, default=0)
    given = parser.parse_args()
    print(json.dumps(_read(given.paths, given.memory_bytes, given.num_workers, given.window)))


if __name__ == "__main__":
    main()
