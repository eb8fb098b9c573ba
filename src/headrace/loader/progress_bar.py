"""A progress bar for those who watch: tqdm's, on a terminal or in a notebook."""

import importlib.util
import sys
from typing import TYPE_CHECKING, Any, TextIO

from headrace.errors import DependencyError

if TYPE_CHECKING:
    from headrace.loader.stats import Stats


class ProgressBar:
    """The batches of one pass, with samples a second and the share of the time that the consumer waited."""

    def __init__(self, total: int, *, initial: int = 0, epoch: int = 0, stream: TextIO | None = None) -> None:
        """Shows it.

        Args:
            total: Batches of the epoch.
            initial: How many of them were delivered before the pass began.
            epoch: The epoch.
            stream: Where it goes; by default stderr.

        Raises:
            DependencyError: tqdm is not installed.
        """
        check_tqdm()
        from tqdm.auto import tqdm

        # tqdm would else start a thread that outlives the bar; `show` is called often enough without
        unwatched = type("Bar", (tqdm,), {"monitor_interval": 0})
        self._initial = initial
        # mininterval: whoever calls `show` sees to it that this is not too often
        self._bar: Any = unwatched(
            total=total, initial=initial, desc=f"epoch {epoch}", unit="batch", file=stream, mininterval=0, miniters=0
        )

    def show(self, batches: int, stats: "Stats | None" = None) -> None:
        """So many batches of the pass are delivered."""
        if stats is not None:
            text = f"{stats.recent_samples_per_second:,.0f} samples/s, waiting {stats.recent_wait_share:.0%}"
            self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(self._initial + batches - self._bar.n)

    def close(self) -> None:
        """Leaves it as it stands; may be called more than once."""
        self._bar.close()


def is_watched(*, rank: int) -> bool:
    """Whether this process should show a bar: it is the first one, and stderr is a terminal or a notebook's."""
    if rank != 0:
        return False
    return (sys.stderr is not None and sys.stderr.isatty()) or _is_in_notebook()


def check_tqdm() -> None:
    """Raises DependencyError where tqdm is not installed."""
    if importlib.util.find_spec("tqdm") is None:
        raise DependencyError("progress=True needs tqdm, which is not installed; run: pip install tqdm")


def _is_in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")
