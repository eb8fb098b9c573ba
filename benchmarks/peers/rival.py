"""A rival in a process of its own, in an environment that has its package."""

import json
import os
import subprocess
import sys
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
        needs_environment: Whether its package is one that headrace does not need.
    """

    name: str
    module: str
    title: str
    needs_environment: bool = True

    @property
    def python(self) -> Path:
        """What it is started with."""
        return PYTHON if self.needs_environment else Path(sys.executable)

    @property
    def is_installed(self) -> bool:
        """Whether there is an environment to start it in."""
        return self.python.exists()

    def rate(
        self, paths: Sequence[Path], data_dir: Path, *, batch_size: int, num_workers: int, window: int, seconds: float
    ) -> float:
        """Its rows a second, after its first batch.

        Args:
            paths: The files.
            data_dir: Where it may keep what it makes of them.
            batch_size: Rows a batch.
            num_workers: Of torch's DataLoader; or of threads, where it has those.
            window: Rows of its shuffle buffer, where it has one.
            seconds: How long to read.

        Raises:
            subprocess.CalledProcessError: It failed.
        """
        options = {"batch-size": batch_size, "num-workers": num_workers, "window": window, "seconds": seconds}
        command = [str(self.python), "-m", f"benchmarks.peers.{self.module}", "--data-dir", str(data_dir.absolute())]
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
TAR_RIVALS = (
    Rival("webdataset", "webdataset", "webdataset", needs_environment=False),
    Rival("spdl", "spdl", "SPDL's thread pipeline"),
)
