"""How much memory this process may still use."""

import sys
from collections.abc import Iterator
from pathlib import Path


def available_bytes(root: Path = Path("/")) -> int:
    """What the machine and this process's control groups have left, counting file pages that can be dropped.

    Args:
        root: Where `proc` and `sys` are found.
    """
    return min(_meminfo_bytes(root / "proc/meminfo"), *map(_group_bytes, _control_groups(root)), sys.maxsize)


def _meminfo_bytes(file: Path) -> int:
    """MemAvailable; 0 where nothing says, since then nothing should count on memory."""
    return _table(file).get("MemAvailable:", 0) * 1024


def _control_groups(root: Path) -> Iterator[Path]:
    """The folders of this process's memory groups and of those above them, version 1 and 2."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mount = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top = mount / "memory" if controllers else mount
        # Within a container the path may be the host's, of which only the top exists.
        group = top / path.lstrip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(top))


def _group_bytes(folder: Path) -> int:
    """The group's limit less what it uses and can't give back."""
    for limit_name, used_name, prefix in (
        ("memory.max", "memory.current", ""),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        try:
            limit = (folder / limit_name).read_text().strip()
            used = int((folder / used_name).read_text())
        except (OSError, ValueError):
            continue
        if limit == "max":
            return sys.maxsize
        stat = _table(folder / "memory.stat")
        droppable = stat.get(f"{prefix}active_file", 0) + stat.get(f"{prefix}inactive_file", 0)
        return max(0, int(limit) - max(0, used - droppable))
    return sys.maxsize


def _table(file: Path) -> dict[str, int]:
    """The lines "name number ..." of a file; none where it can't be read."""
    try:
        rows = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
