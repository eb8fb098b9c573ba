"""Forks: a child process has its parent's objects, but none of the threads that drive them.

Guarantees:
- Everything may be called from any thread. Nothing here takes a lock, which some thread might have held at the fork.
- `is_here` is a plain attribute, told at the fork: looking at it, once a batch, costs some ten nanoseconds.
"""

import os
import weakref

from headrace.errors import LoaderError


class Birth:
    """In which process something was made: in it alone it can go on. What is unpickled was made where that happens.

    Attributes:
        is_here: Whether this is that process, not one that was forked from it.
    """

    __slots__ = ("__weakref__", "_pid", "is_here")

    def __init__(self) -> None:
        self.is_here, self._pid = True, os.getpid()
        _births.add(self)

    def __reduce__(self) -> tuple[type["Birth"], tuple[()]]:
        return Birth, ()

    def check(self) -> None:
        """Raises LoaderError in a process that was forked from that one."""
        if not self.is_here:
            raise LoaderError(
                f"this loader was made in process {self._pid} and is used in process {os.getpid()}, forked from it: "
                "it has no threads there, and would deliver the same samples once more\n"
                '  make the loader in the child, or start processes by "spawn" or "forkserver"'
            )


_births: weakref.WeakSet[Birth] = weakref.WeakSet()


def _tell() -> None:
    for birth in tuple(_births):
        birth.is_here = False
    _births.clear()


os.register_at_fork(after_in_child=_tell)
