"""Frameworks, imported when they are needed, and classes of ours that are based on theirs."""

import functools
import importlib
from typing import Any

from headrace.errors import DependencyError


def framework(module: str, extra: str) -> Any:
    """The module, imported now.

    Args:
        module: Its full name.
        extra: headrace's extra that brings it.

    Raises:
        DependencyError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise DependencyError(f'{package} is not installed; run: pip install "headrace[{extra}]"') from error


@functools.cache
def based_on(ours: Any, *theirs: Any) -> Any:
    """Our class with a framework's as further bases, so that it takes it for one of its own: the same class each time.

    Our modules are imported without the frameworks, so that their classes can't be bases where ours are defined.
    """
    return type(ours.__name__, (ours, *theirs), {"__module__": ours.__module__, "__doc__": ours.__doc__})
