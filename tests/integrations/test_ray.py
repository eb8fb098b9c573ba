"""Ray Train, on a real local Ray of two workers that fail and go on from their checkpoint."""

import json
import shutil
import subprocess
import sys
import tempfile

import pytest

from tests.integrations.parts import RANKS, order, over_ranks


@pytest.fixture
def ray_folder():
    """A folder for Ray's sockets, whose whole paths must be short."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    yield folder
    shutil.rmtree(folder)


def test_workers_that_fail_go_on_from_their_checkpoint_with_just_the_samples_that_are_left(
    tmp_path, ray_folder, quiet_environment
):
    result = subprocess.run(
        [sys.executable, "-m", "tests.integrations.ray_program", str(tmp_path), ray_folder],
        # Ray writes a token into the home folder; and asks its workers how they are every other second
        env={**quiet_environment, "HOME": str(tmp_path / "home"), "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"},
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    first, again = (
        [[*map(json.loads, (tmp_path / f"{run}.{rank}").read_text().splitlines())] for rank in range(RANKS)]
        for run in range(2)
    )
    assert [len(rank) for rank in first] == [9] * RANKS
    up_to_the_checkpoint = [before[:8] + after for before, after in zip(first, again, strict=True)]
    assert over_ranks(up_to_the_checkpoint) == order(0) + order(1)
