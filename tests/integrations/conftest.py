"""The program of two ranks, run once for all the tests that look at what it saw."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integrations.parts import RANKS

FRAMEWORKS = ("lightning", "accelerate", "transformers", "checkpoint")

Seen = Callable[[str, str], list[Any]]


@pytest.fixture(scope="session")
def quiet_environment(root: Path) -> dict[str, str]:
    """The environment of a program that imports this checkout, writes nothing home and tells nobody that it runs."""
    python_path = os.pathsep.join([str(root / "src"), str(root)])
    return {**os.environ, "PYTHONPATH": python_path, "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory, quiet_environment: dict[str, str]) -> Path:
    """The folder that the program has written into, with what each rank saw in each check."""
    folder = tmp_path_factory.mktemp("two_ranks")
    # no launcher: the processes find each other by a file, and a launcher takes seconds of its own
    command = [sys.executable, "-m", "tests.integrations.two_ranks", str(folder), *FRAMEWORKS]
    with contextlib.ExitStack() as stack:
        ranks = []
        for rank in range(RANKS):
            log = stack.enter_context((folder / f"log.{rank}").open("wb"))
            environment = {**quiet_environment, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
            ranks.append(subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log))
            stack.callback(ranks[-1].wait)
            stack.callback(ranks[-1].kill)
        for process in ranks:
            process.wait(180)
    return folder


@pytest.fixture(scope="session")
def seen(two_ranks: Path) -> Seen:
    """What the ranks saw in a framework's check, one after the other."""

    def of(framework: str, check: str) -> list[Any]:
        found = []
        for rank in range(RANKS):
            file = two_ranks / f"{framework}.{check}.{rank}.json"
            if not file.exists():
                errors = [path.read_text() for path in sorted(two_ranks.glob("*.error"))]
                log = (two_ranks / f"log.{rank}").read_text()[-4000:]
                pytest.fail(f"rank {rank} did not end the check {check} of {framework}\n" + "\n".join(errors or [log]))
            found.append(json.loads(file.read_text()))
        return found

    return of
