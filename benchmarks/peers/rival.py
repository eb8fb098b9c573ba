"""A rival in a process of its own, in an environment that has its package."""

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# An environment of their own: one of LitData's dependencies (boto3) needs a botocore that s3fs does not take
PYTHON = ROOT / ".venv-peers" / "bin" / "python"


@dataclass(frozen=True, slots=True)
class Rival:
    """One rival.

    Attributes:
        name: What promises call it.
        module: Its file in this folder.
        title: What it is, in words.
    """

    name: str
    module: str
    title: str

    @property
    def is_installed(self) -> bool:
        """Whether there is an environment to start it in."""
        return PYTHON.exists()

    def rate(
        self, paths: Sequence[Path], data_dir: Path, *, batch_size: int, num_workers: int, window: int, seconds: float
    ) -> float:
        """Its rows a second, after its first batch.

        Args:
            paths: The Parquet files.
            data_dir: Where it may keep what it makes of them.
            batch_size: Rows a batch.
            num_workers: Of torch's DataLoader.
            window: Rows of its shuffle buffer, where it has one.
            seconds: How long to read.

        Raises:
            subprocess.CalledProcessError: It failed.
        """
        options = {"batch-size": batch_size, "num-workers": num_workers, "window": window, "seconds": seconds}
        command = [str(PYTHON), "-m", f"benchmarks.peers.{self.module}", "--data-dir", str(data_dir.absolute())]
        command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
        command += [str(path.absolute()) for path in paths]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True, text=True)
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return float(result["rows"] / result["seconds"])


RIVALS = (
    Rival("huggingface", "huggingface", "Hugging Face datasets, streaming with a shuffle buffer"),
    Rival("litdata", "litdata", "LitData, on converted data"),
)
