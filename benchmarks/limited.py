"""One reader in a process of its own, with a bound on its memory where the system lets us set one.

    python -m benchmarks.limited --reader plain --path data/.../x.npy --seconds 3

prints one line of JSON: rows read, seconds, and the memory held at the start, at the end and at most.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BATCH_SIZE = 256
CGROUPS = Path("/sys/fs/cgroup")


def read_limited(
    path: Path, reader: str, *, seconds: float, memory_bytes: int | None, num_workers: int = 0
) -> dict[str, Any]:
    """What a reader achieved in a process that may hold so much memory, the cached pages of the file included.

    Args:
        path: A .npy file.
        reader: "plain" (a gather through a memory map) or "headrace".
        seconds: How long to read.
        memory_bytes: The bound; None for none.
        num_workers: For "headrace".

    Raises:
        OSError: The bound cannot be set here.
    """
    arguments = ["--reader", reader, "--path", str(path), "--seconds", str(seconds), "--num-workers", str(num_workers)]
    with contextlib.ExitStack() as stack:
        if memory_bytes is not None:
            arguments += ["--group", str(stack.enter_context(memory_group(memory_bytes)))]
        command = [sys.executable, "-m", "benchmarks.limited", *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@contextlib.contextmanager
def memory_group(memory_bytes: int) -> Iterator[Path]:
    """A control group below our own whose processes may hold so much memory; removed at the end.

    Raises:
        OSError: There is no memory controller here, or we may not make groups in it.
    """
    parent, limit = _own_group()
    group = parent / f"headrace-bench-{os.getpid()}"
    group.mkdir()
    try:
        (group / limit).write_text(str(memory_bytes))
        yield group
    finally:
        group.rmdir()


def memory_can_be_limited() -> bool:
    """Whether `memory_group` works here."""
    try:
        with memory_group(1 << 30):
            return True
    except OSError:
        return False


def _own_group() -> tuple[Path, str]:
    """Our control group in the memory controller, and the name of its bound: version 1 or 2 (man 7 cgroups)."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, name = line.split(":", 2)
        if "memory" in controllers.split(","):
            return CGROUPS / "memory" / name.lstrip("/"), "memory.limit_in_bytes"
        if number == "0" and (CGROUPS / name.lstrip("/") / "memory.max").exists():
            return CGROUPS / name.lstrip("/"), "memory.max"
    raise OSError("no memory controller found")


def _batches(reader: str, path: Path, num_workers: int) -> Iterator[int]:
    """The lengths of the batches of one pass."""
    if reader == "headrace":
        import headrace as hr

        loader = hr.DataLoader(
            hr.NumpyDataset({"x": str(path)}), batch_size=BATCH_SIZE, shuffle=True, num_workers=num_workers
        )
        for batch in loader:
            yield len(batch["x"])
    else:
        import numpy as np

        from headrace.bench import PlainGather

        for batch in PlainGather({"x": np.load(path, mmap_mode="r")}, BATCH_SIZE):
            yield len(batch["x"])


def _read(reader: str, path: Path, seconds: float, num_workers: int) -> dict[str, Any]:
    from headrace.bench.usage import ProcessUsage

    memory = ProcessUsage().memory_bytes
    rows, held = 0, list[int]()
    began = now = time.perf_counter()
    for length in _batches(reader, path, num_workers):
        rows += length
        now = time.perf_counter()
        if now - began > len(held) * seconds / 16:
            held.append(memory() or 0)
        if now - began >= seconds:
            break
    # the first samples see the start: imports, maps, the pool's first batches
    return {"rows": rows, "seconds": now - began, "grown_bytes": max(held[4:] or held) - held[min(3, len(held) - 1)]}


def main() -> None:
    """Joins the group, reads, prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limited", description=__doc__)
    parser.add_argument("--reader", choices=["plain", "headrace"], required=True)
    parser.add_argument("--path", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--group", type=Path, help="the control group to join")
    given = parser.parse_args()
    if given.group is not None:
        (given.group / "cgroup.procs").write_text(str(os.getpid()))
    print(json.dumps(_read(given.reader, given.path, given.seconds, given.num_workers)))


if __name__ == "__main__":
    main()
