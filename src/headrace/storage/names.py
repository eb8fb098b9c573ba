"""What patterns stand for: braces, then globs, in an order that is the same everywhere."""

import glob
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from headrace.errors import ArgumentError, DependencyError, StorageError
from headrace.storage.access import Filesystems
from headrace.storage.urls import expand_braces, has_glob, is_url, links_of, protocol_of, shown


def expand(patterns: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], filesystems: Filesystems) -> list[str]:
    """The URLs and absolute local paths that patterns stand for.

    Lists keep their order, braces have a shell's, and what a glob finds is sorted by code point. A local file that
    exists by the very name of a pattern is meant by it.

    Raises:
        ArgumentError: A pattern, or an empty list, stands for nothing.
        StorageError: A store cannot be listed.
    """
    if not isinstance(patterns, str | os.PathLike):
        found = [name for pattern in patterns for name in expand(pattern, filesystems)]
        if not found:
            raise ArgumentError("expected at least one path or URL, got an empty list")
        return found
    pattern = os.fspath(patterns)
    if not is_url(pattern):
        return _expand_local(pattern)
    if protocol_of(pattern) == "file" and len(links_of(pattern)) == 1:
        return _expand_local(pattern.split("://", 1)[1])
    names = expand_braces(pattern)
    found = [name for one in names for name in (_listed(one, filesystems) if has_glob(one) else [one])]
    if not found:
        raise ArgumentError(f"no object matches {shown(pattern)!r}")
    return found


def _expand_local(pattern: str) -> list[str]:
    pattern = os.path.expanduser(pattern)
    if os.path.exists(pattern):
        return [_absolute(pattern)]
    found: list[str] = []
    for name in expand_braces(pattern):
        matches = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else [name]
        found += map(_absolute, matches)
    if not found:
        raise ArgumentError(f"no file matches {pattern!r} in {os.getcwd()}")
    return found


def _absolute(path: str) -> str:
    return str(Path(path).absolute())  # ".." stays: behind a link it is not what the text suggests


def _listed(pattern: str, filesystems: Filesystems) -> list[str]:
    """What a glob finds, as URLs."""
    fs, path = filesystems.resolve(pattern)
    try:
        fs.invalidate_cache()
        found: dict[str, Any] = fs.glob(path, detail=True)
    except ImportError as error:
        raise DependencyError(str(error)) from None
    except Exception as error:  # noqa: BLE001 (clients raise whatever they like)
        raise StorageError(f"cannot list {shown(pattern)}: {filesystems.said(error)}") from None
    first, *others = links_of(pattern)
    protocol = first.partition("://")[0]
    names = sorted(name for name, info in found.items() if info.get("type") != "directory")
    # filesystems name what they find without the protocol, HTTP with it
    return ["::".join([name if is_url(name) else f"{protocol}://{name}", *others]) for name in names]
