"""Starts a program on several ranks, as a user does: with torchrun."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SECONDS = 110  # far more than anything takes: only what hangs is ended


def torchrun(
    module: str, *arguments: str, ranks: int, environment: Mapping[str, str]
) -> "subprocess.CompletedProcess[str]":
    """Runs a module of the tests on some ranks, and waits for the end of all of them."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    with subprocess.Popen(
        [*launcher, "-m", module, *arguments],
        env={**environment, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=_SECONDS)
        except BaseException:
            process.terminate()  # torchrun then ends its ranks; killed, it would leave them behind
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def results_of_ranks(folder: Path, *scenarios: str, ranks: int, environment: Mapping[str, str]) -> list[dict[str, Any]]:
    """What every rank wrote of some scenarios of the program `ranks.py`, by rank, then by scenario."""
    done = torchrun("tests.distributed.ranks", str(folder), *scenarios, ranks=ranks, environment=environment)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]
