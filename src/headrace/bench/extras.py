"""Optional packages, imported when they are needed."""

import importlib
from typing import Any

from headrace.errors import DependencyError


def extra(module: str) -> Any:
    """The module, imported now.

    Raises:
        DependencyError: The package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise DependencyError(f'{package} is not installed; run: pip install "headrace[bench]"') from error
