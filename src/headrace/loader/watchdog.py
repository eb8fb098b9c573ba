"""What threads wait for, as text: for the error that takes the place of a hang.

Guarantees:
- `stacks_of` may be called from any thread at any time; it waits for nothing, and keeps no frame and no local variable
  of another thread alive.
"""

import sys
import threading
from collections.abc import Iterable, Mapping
from types import FrameType, MappingProxyType

from headrace.storage.cancellation import awaited_by

_FRAMES = 8  # the innermost ones tell what is waited for; those further out are the loader's own


def stacks_of(threads: Iterable[threading.Thread], doing: Mapping[threading.Thread, str] = MappingProxyType({})) -> str:
    """What each thread does and waits for: a line with its name, then its innermost frames, the last one innermost.

    Args:
        threads: The threads.
        doing: What some of them do, to be said after their names.
    """
    frames = sys._current_frames()  # noqa: SLF001 (the only way to see another thread's)
    lines: list[str] = []
    for thread in threads:
        head = f"{thread.name} {doing[thread]}" if thread in doing else thread.name
        frame = frames.get(thread.ident or 0)
        if frame is None or not thread.is_alive():
            lines.append(f"{head}: it has ended")
            continue
        awaited = awaited_by(thread.ident or 0)
        lines.append(f"{head}: it waits for the store: {awaited}" if awaited else f"{head}:")
        lines += [f"    {line}" for line in _innermost(frame)]
    return "\n".join(lines)


def _innermost(frame: FrameType | None) -> list[str]:
    """A few frames as "file:line function", the last one innermost."""
    lines: list[str] = []
    while frame is not None and len(lines) < _FRAMES:
        code = frame.f_code
        lines.append(f"{code.co_filename}:{frame.f_lineno} {code.co_qualname}")
        frame = frame.f_back
    return lines[::-1]
