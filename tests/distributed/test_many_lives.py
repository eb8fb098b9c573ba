"""A training that is killed fifty times, and resumed each time under other numbers, reads what a plain list says."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import many_lives
from tests.distributed.many_lives import DATA, PROCESS_LIVES, SAMPLES
from tests.distributed.plain import plain_step, real, steps_left

KILLS = 50
SEED = 8203  # draws lives with worker processes of all the kinds that the last test wants

pytestmark = pytest.mark.timeout(600)  # it has taken 126 s on two cores that thirty processes wanted


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """What the lives have left."""
    made = tmp_path_factory.mktemp("lives")
    program = [sys.executable, "-m", many_lives.__name__, str(made), str(SEED), str(KILLS)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture(scope="module")
def lives(folder: Path) -> list[dict[str, Any]]:
    """What each was, in their order; the last ones finish an epoch of each dataset."""
    found: list[dict[str, Any]] = json.loads((folder / "lives.json").read_text())
    assert len(found) == KILLS + len(DATA)
    return found


@pytest.mark.parametrize("data", DATA)
def test_whatever_is_killed_when_each_checkpoint_counts_just_the_plain_lists_samples_each_once(folder, lives, data):
    account = Account(data)
    counted: list[list[int]] = []
    for number, life in enumerate(lives):
        checkpoint = life["checkpoint"]
        if life["data"] != data or checkpoint is None or checkpoint["counted"] == counted:
            continue  # killed before its first checkpoint, or of the other dataset
        assert checkpoint["counted"][:-1] == counted, "what was counted before stays counted"
        counted = checkpoint["counted"]
        last, steps = counted[-1]
        assert last == number
        lines = (folder / data / f"{number}.log").read_text().splitlines()[:steps]
        assert len(lines) == steps
        account.count(life, [json.loads(line) for line in lines])
        assert (checkpoint["state"]["epoch"], checkpoint["state"]["position"]) == (account.epoch, account.position)
    assert (account.epoch >= 2, account.position) == (True, 0)
    assert len(counted) > sum(life["data"] == data for life in lives) / 2


def test_worker_processes_that_lose_their_script_end_by_themselves(lives):
    # exit codes; None where one went on
    assert {number: life["orphans"] for number, life in enumerate(lives) if set(life["orphans"]) - {0}} == {}


def test_the_kills_come_while_worker_processes_of_all_kinds_live(lives):
    with_processes = [life for life in lives if life["worker_type"] == "process"]
    assert len(with_processes) == PROCESS_LIVES
    for life in lives:
        most = life["ranks"] * life["num_workers"] if life in with_processes else 0
        # of a life without persistent ones, none may live between two epochs
        is_exact = most == 0 or (life["persistent_workers"] and life["signs"])
        assert len(life["orphans"]) == most if is_exact else len(life["orphans"]) <= most
    assert sum(bool(life["orphans"]) for life in with_processes) > PROCESS_LIVES / 2
    after_signs = [life for life in with_processes if life["signs"]]
    for option in ("persistent_workers", "transforms"):
        assert {(life["data"], life[option]) for life in after_signs} == {(data, on) for data in DATA for on in (0, 1)}
    assert {life["data"] for life in with_processes if not life["signs"]} == set(DATA)
    assert {life["num_workers"] for life in after_signs} == {1, 2}


class Account:
    """Where a run must stand, by plain arithmetic, and the samples of its epoch so far."""

    def __init__(self, data: str) -> None:
        self.epoch = self.position = 0
        # a foreign dataset of few samples is one block
        self._blocks = (SAMPLES,) if data == "foreign" else None
        self._read: list[int] = []

    def count(self, life: dict[str, Any], steps: list[Any]) -> None:
        """Checks some steps of a life, and moves on by them."""
        size, rule = life["ranks"] * life["batch_size"], life["rule"]
        self._end_the_epoch_without_a_step(size, rule)
        for epoch, shares in steps:
            assert epoch == self.epoch
            expected = plain_step(
                SAMPLES, epoch, self.position, size=size, ranks=life["ranks"], rule=rule, blocks=self._blocks
            )
            assert [tuple(share) for share in shares] == expected
            self._read += [sample for share in shares for sample in real(share)]
            self.position = min(self.position + size, SAMPLES)
            self._end_the_epoch_without_a_step(size, rule)

    def _end_the_epoch_without_a_step(self, size: int, rule: str) -> None:
        if steps_left(SAMPLES, self.position, size=size, rule=rule):
            return
        dropped = SAMPLES - self.position
        assert dropped == 0 or (rule == "drop_last" and dropped < size)
        assert len(self._read) == len(set(self._read)) == SAMPLES - dropped
        self.epoch, self.position, self._read = self.epoch + 1, 0, []
