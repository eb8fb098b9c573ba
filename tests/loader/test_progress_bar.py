"""The bar, as it is written to a stream."""

import io
import sys
import threading
from types import SimpleNamespace

import pytest

from headrace.errors import DependencyError
from headrace.loader import progress_bar
from headrace.loader.progress_bar import ProgressBar, check_tqdm, is_watched
from headrace.loader.stats import Stats


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_shows_batches_samples_a_second_and_the_share_that_is_waited():
    stream = Terminal()
    bar = ProgressBar(50, initial=10, epoch=3, stream=stream)
    bar.show(15, Stats(samples=5000, elapsed_seconds=2.0, wait_seconds=0.5))
    assert "epoch 3:" in stream.getvalue()
    assert "| 25/50 [" in stream.getvalue()
    assert "2,500 samples/s, waiting 25%" in stream.getvalue()
    bar.show(40)
    bar.close()
    bar.close()
    assert "| 50/50 [" in stream.getvalue()
    assert stream.getvalue().endswith("\n")


def test_a_bar_starts_no_thread():
    before = set(threading.enumerate())
    bar = ProgressBar(10, stream=Terminal())
    assert set(threading.enumerate()) <= before  # those of other tests may end meanwhile
    bar.close()


def test_only_the_first_rank_shows_one_and_only_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert [is_watched(rank=rank) for rank in (0, 1)] == [True, False]
    for stream in (io.StringIO(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        assert not is_watched(rank=0)


@pytest.mark.parametrize(
    ("shell", "shows"), [(None, False), (SimpleNamespace(), False), (SimpleNamespace(kernel=1), True)]
)
def test_a_notebook_has_a_kernel_and_is_watched(monkeypatch, shell, shows):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert is_watched(rank=0) is shows


def test_without_tqdm_the_error_names_what_to_install(monkeypatch):
    monkeypatch.setattr(progress_bar.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match="pip install tqdm"):
        check_tqdm()
