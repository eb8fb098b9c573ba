"""How worker processes copy: what their C library is told as they start.

Their batches are read by another process, and those in flight are more than the caches hold: copies of 4 MB and more
that go past the caches (non-temporal stores) take half to three quarters of the time. glibc does so by itself from some
three quarters of a core's share of the last cache on, but in virtual machines it often takes that for ten times what it
is. Other C libraries ignore what they are told here.
"""

import os
from typing import Final

_VARIABLE: Final = "GLIBC_TUNABLES"
# glibc writes to four pages in turn from 16 times of this on, and to two below, which gains nothing
_NAME, _BYTES = "glibc.cpu.x86_non_temporal_threshold", 1 << 18


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
