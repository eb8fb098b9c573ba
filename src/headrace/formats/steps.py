"""Reads in steps, so that several of them wait for their bytes at the same time."""

from collections.abc import Generator, Sequence
from typing import TypeAlias

# A read, step by step: the first asks for bytes and doesn't wait, the others wait for them.
Steps: TypeAlias = Generator[None, None, None]


def together(readings: Sequence[Steps]) -> Steps:
    """Several reads as one: all of them ask for their bytes before any is waited for, in their order."""
    try:
        for reading in readings:
            next(reading, None)
        yield
        for reading in readings:
            for _ in reading:
                pass
    finally:
        for reading in readings:
            reading.close()
