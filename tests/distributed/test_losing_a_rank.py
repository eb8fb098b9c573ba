"""Four ranks, of which one is killed in the middle of an epoch; the three that are left go on from the checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import losing_a_rank
from tests.distributed.launching import torchrun
from tests.distributed.losing_a_rank import BATCH, CHECKPOINT_STEPS, EPOCHS, LOST_AT_STEP, SAMPLES
from tests.distributed.plain import RULES, plain_step, real, steps_left

PROGRAM = losing_a_rank.__name__


@pytest.mark.timeout(200)
def test_three_ranks_finish_what_four_began_with_each_sample_once_under_every_rule(tmp_path, environment):
    lost = torchrun(PROGRAM, str(tmp_path), "first", "2", ranks=4, environment=environment)
    assert lost.returncode != 0
    assert "Signal 9 (SIGKILL)" in lost.stderr
    checkpoint = json.loads((tmp_path / "checkpoint.json").read_text())
    counted = checkpoint["steps"]
    assert counted == LOST_AT_STEP // CHECKPOINT_STEPS * CHECKPOINT_STEPS

    finished = torchrun(PROGRAM, str(tmp_path), "second", ranks=3, environment=environment)
    assert finished.returncode == 0, finished.stderr

    for rule in RULES:
        first, second = _steps(tmp_path, "first", 4, rule), _steps(tmp_path, "second", 3, rule)
        assert first == _plain(rule, ranks=4, epoch=0, position=0)[:LOST_AT_STEP]
        position = counted * BATCH * 4
        assert checkpoint["states"][rule]["position"] == position
        rest = _plain(rule, ranks=3, epoch=0, position=position)
        others = [step for epoch in range(1, EPOCHS) for step in _plain(rule, ranks=3, epoch=epoch, position=0)]
        assert second == rest + others
        read = [sample for _, shares in first[:counted] + rest for share in shares for sample in real(share)]
        dropped = (SAMPLES - position) % (BATCH * 3) if rule == "drop_last" else 0
        assert len(read) == len(set(read)) == SAMPLES - dropped


def _steps(folder: Path, life: str, ranks: int, rule: str) -> list[Any]:
    """The steps of all ranks as they were logged: the epoch, and each rank's share."""
    logs = [(folder / f"{life}-{rank}.log").read_text().splitlines() for rank in range(ranks)]
    steps = []
    for lines in zip(*logs, strict=True):
        logged = [json.loads(line)[rule] for line in lines]
        if any(share is not None for share in logged):  # other rules have more steps
            (epoch,) = {epoch for epoch, _ in logged}
            steps.append((epoch, [tuple(share) for _, share in logged]))
    return steps


def _plain(rule: str, *, ranks: int, epoch: int, position: int) -> list[Any]:
    """The rest of an epoch in the same form."""
    size = BATCH * ranks
    starts = [position + step * size for step in range(steps_left(SAMPLES, position, size=size, rule=rule))]
    return [(epoch, plain_step(SAMPLES, epoch, start, size=size, ranks=ranks, rule=rule)) for start in starts]
