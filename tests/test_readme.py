"""README.md is true: its code runs in order, its links lead somewhere, and it stays short."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

LINES = 150
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


@pytest.fixture(scope="module")
def readme(root: Path) -> str:
    return (root / "README.md").read_text()


def blocks_of(text: str) -> list[str]:
    """The Python blocks, each after as many blank lines as puts it on its line of the whole text (for tracebacks)."""
    return ["\n" * text.count("\n", 0, match.start(1)) + match[1] for match in BLOCK.finditer(text)]


@pytest.fixture
def _bucket(s3, tmp_path, monkeypatch):
    """What the README finds in S3, and the credentials in the environment, where S3's own clients look for them."""
    for i in range(4):
        np.save(tmp_path / "part.npy", np.full((50, 16), i, np.float32))
        s3.put("data", f"train/x-{i:02d}.npy", (tmp_path / "part.npy").read_bytes())
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.mark.usefixtures("_bucket")
def test_every_python_block_runs_after_those_before_it(readme, root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.save("x.npy", rng.normal(size=(1000, 16)).astype(np.float32))
    np.save("y.npy", rng.integers(10, size=1000))
    Path("rows").mkdir()
    for i in range(2):
        x = pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=8000)), 16)
        pq.write_table(pa.table({"x": x, "y": rng.integers(10, size=500)}), f"rows/{i}.parquet", row_group_size=100)
    blocks = blocks_of(readme)
    assert len(blocks) >= 5
    namespace: dict[str, object] = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, str(root / "README.md"), "exec"), namespace)


def test_its_links_lead_to_files_of_the_checkout(readme, root):
    assert {link for link in LINK.findall(readme) if not (root / link).exists()} == set()


def test_its_commands_are_targets_of_the_makefile(readme, root):
    commands = set(re.findall(r"\bmake (\w+) +#", readme))
    assert commands == {"bench", "test"}
    targets = set(re.findall(r"^(\w+):", (root / "Makefile").read_text(), re.MULTILINE))
    assert commands <= targets


def test_it_is_shorter_than_150_lines(readme):
    assert len(readme.splitlines()) < LINES
