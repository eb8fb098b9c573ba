"""How worker processes copy and allocate: what their C library is told as they start.

Copying: batches are read by another process, and those in flight are more than the caches hold. Copies of 4 MB and more
that go past the caches (non-temporal stores) take half to three quarters of the time then. glibc does so by itself from
some three quarters of a core's share of the last cache on, but in virtual machines it often takes that for ten times
what it is. (What user code copies itself in pieces of 1 MB and more, and reads again at once, takes twice as long: with
what else such code does to arrays of 1 to 12 MB, and the hand-over, both came out about even.)

Allocating: glibc gives freed memory of some MB back to the system, by thresholds that follow what was freed first. What
user code makes anew for each batch, samples and the batch itself, then costs a page fault every 4 KB: batches of 64
samples of 0.6 MB took three times as long. So a worker keeps what it has freed.

What the user has set stays, and other C libraries are left alone.
"""

import ctypes
import os
from typing import Final

_VARIABLE: Final = "GLIBC_TUNABLES"
# glibc writes to four pages in turn from 16 times of this on, and to two below, which gains nothing
_NAME, _BYTES = "glibc.cpu.x86_non_temporal_threshold", 1 << 18
# Parameters of mallopt(3). Older versions of glibc refuse to keep larger blocks than the second number
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES, _SURELY_KEPT_BYTES = 1 << 30, 1 << 25
_OWN_MALLOC: Final = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")


def tuned_environment() -> dict[str, str]:
    """The environment to start a worker process with; what the user has set stays."""
    own = os.environ.get(_VARIABLE, "")
    if _NAME in own:
        return dict(os.environ)
    return {**os.environ, _VARIABLE: ":".join(filter(None, (own, f"{_NAME}={_BYTES}")))}


def restoring_code() -> str:
    """A line of Python that gives such a process this one's environment back, for what the user's code starts."""
    own = {name: value for name, value in os.environ.items() if name == _VARIABLE}
    # glibc itself has removed it where the interpreter has privileges of its own
    return f"import os; os.environ.pop({_VARIABLE!r}, None); os.environ.update({own!r})"


def keep_freed_memory() -> None:
    """Has this process keep up to 1 GB of what it frees, of blocks of any size up to that; the rest goes back."""
    if "glibc.malloc." in os.environ.get(_VARIABLE, "") or any(name in os.environ for name in _OWN_MALLOC):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    # the second alone would leave the first at 128 KB, which glibc else adapts to what is freed
    if any(mallopt(_MMAP_THRESHOLD, size) for size in (_KEPT_BYTES, _SURELY_KEPT_BYTES)):
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
