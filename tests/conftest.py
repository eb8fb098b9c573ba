"""What holds for every test: the same Hypothesis examples in CI, no thread left behind, doctests in an empty folder."""

import gc
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.servers import fault_proxy, range_server, s3  # noqa: F401 - fixtures, for every test

# torch's own threads (OpenMP) would compete with the loader's for few cores, and a forked worker hangs when it uses
# OpenMP after its parent did. Set before torch is imported; in the environment, so that spawned processes have it too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadline: timings never decide a test. The same examples in every CI run: a failure there is about the change.
settings.register_profile("headrace", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True)
settings.load_profile("headrace")

# The most that a loader may take to end its threads.
ENDING_SECONDS = 10.0


def threads_left_after(ending_seconds: float = ENDING_SECONDS) -> list[str]:
    """Names of the library's threads that do not end within `ending_seconds`, though nobody holds a loader any more."""

    def ours() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name.startswith("headrace")]

    for seconds in (min(0.5, ending_seconds), ending_seconds):
        deadline = time.monotonic() + seconds
        # looked at again and again: a thread that ends may have started another
        while (threads := ours()) and (left := deadline - time.monotonic()) > 0:
            threads[0].join(left)
        if threads:
            gc.collect()  # an iterator in a reference cycle (a caught exception's traceback) ends when it is collected
    return [thread.name for thread in ours()]


class Everywhere:
    """Fixtures for the doctests in src too, which a conftest.py's own would not reach."""

    @pytest.fixture(autouse=True)
    def _no_thread_is_left(self) -> Iterator[None]:
        yield
        left = threads_left_after()
        assert not left, f"the test left these threads behind: {left}"

    @pytest.fixture(autouse=True)
    def _doctest_in_an_empty_folder(self, request: pytest.FixtureRequest) -> None:
        if isinstance(request.node, pytest.DoctestItem):
            request.getfixturevalue("monkeypatch").chdir(request.getfixturevalue("tmp_path"))


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Everywhere(), "headrace-everywhere")


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture
def environment(root: Path) -> dict[str, str]:
    """Environment variables for a Python process that imports this checkout, from whatever folder."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])}
