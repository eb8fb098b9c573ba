"""What this process has open; what other tests left behind may be closed at any moment, by the garbage collection."""

import os


def descriptors() -> set[str]:
    """Every descriptor with what it is open for."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{number}: {os.readlink(f'/proc/self/fd/{number}')}")
        except FileNotFoundError:  # that of the list itself
            continue
    return found


def opened_since(before: set[str]) -> set[str]:
    """What is open now and was not before."""
    return descriptors() - before
