"""A training that is killed fifty times, and resumed each time under other numbers, reads what a plain list says."""

import json
import os
import secrets
import subprocess
import sys
from typing import Any

from tests.distributed import many_lives
from tests.distributed.many_lives import SAMPLES
from tests.distributed.plain import plain_step, real, steps_left

KILLS = 50


def test_whatever_is_killed_when_each_checkpoint_counts_just_the_plain_lists_samples_each_once(tmp_path, environment):
    seed = 14 if os.environ.get("CI") else secrets.randbits(32)
    program = [sys.executable, "-m", many_lives.__name__, str(tmp_path), str(seed), str(KILLS)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    print(f"seed {seed}\n{done.stderr}")  # noqa: T201 - pytest shows it with a failure; the program takes the seed
    assert done.returncode == 0
    lives = json.loads((tmp_path / "lives.json").read_text())
    assert len(lives) == KILLS + 1

    account = Account()
    counted: list[list[int]] = []
    for number, life in enumerate(lives):
        checkpoint = life["checkpoint"]
        if checkpoint is None or checkpoint["counted"] == counted:
            continue  # killed before its first checkpoint
        assert checkpoint["counted"][:-1] == counted, "what was counted before stays counted"
        counted = checkpoint["counted"]
        last, steps = counted[-1]
        assert last == number
        lines = (tmp_path / f"{number}.log").read_text().splitlines()[:steps]
        assert len(lines) == steps
        account.count(life, [json.loads(line) for line in lines])
        assert (checkpoint["state"]["epoch"], checkpoint["state"]["position"]) == (account.epoch, account.position)
    assert (account.epoch >= 2, account.position) == (True, 0)
    assert len(counted) > KILLS / 2


class Account:
    """Where a run must stand, by plain arithmetic, and the samples of its epoch so far."""

    def __init__(self) -> None:
        self.epoch = self.position = 0
        self._read: list[int] = []

    def count(self, life: dict[str, Any], steps: list[Any]) -> None:
        """Checks some steps of a life, and moves on by them."""
        size, rule = life["ranks"] * life["batch_size"], life["rule"]
        self._end_the_epoch_without_a_step(size, rule)
        for epoch, shares in steps:
            assert epoch == self.epoch
            expected = plain_step(SAMPLES, epoch, self.position, size=size, ranks=life["ranks"], rule=rule)
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
