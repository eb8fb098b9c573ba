"""Every example runs as it is, from any folder, without a warning."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).resolve().parent.parent / "examples").glob("*.py"))
ARTICLE = [path for path in EXAMPLES if path.name == "article.py"]
EPOCHS = 10


def output_of(example: Path, folder: Path, environment: dict[str, str]) -> str:
    command = [sys.executable, "-W", "error", str(example)]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert not run.stderr, run.stderr
    return run.stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs_and_leaves_nothing_behind(example, tmp_path, environment):
    assert output_of(example, tmp_path, environment)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("example", ARTICLE, ids=lambda path: path.name)
def test_the_article_prints_a_loss_per_epoch_that_falls_and_four_scores(example, tmp_path, environment):
    output = output_of(example, tmp_path, environment).lower()
    losses = [float(number) for number in re.findall(r"loss\D*(\d+\.\d+)", output)]
    assert len(losses) >= EPOCHS
    assert losses[EPOCHS - 1] < losses[0]
    assert all(score in output for score in ("accuracy", "precision", "recall", "f1"))
