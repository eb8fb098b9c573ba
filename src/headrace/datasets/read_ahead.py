"""Announcing samples before they are read, so that their source can fetch them meanwhile."""

import itertools
from collections import deque
from collections.abc import Iterator
from typing import Protocol, TypeVar

import numpy as np

from headrace.formats import Ids, Source

# Announced ahead at most: so many ids take 32 MiB, and groups of a few samples take longer to plan, up to 15 us each
_MOST_SAMPLES = 4 << 20
_MOST_GROUPS = 8192


class _Group(Protocol):
    @property
    def sample_ids(self) -> Ids:
        """Samples that are read together, int64 (m,)."""


_GroupT = TypeVar("_GroupT", bound=_Group)


def announced(
    source: Source, groups: Iterator[_GroupT], *, group_samples: int, ahead: int, least: int = 2
) -> Iterator[tuple[_GroupT, Ids | None]]:
    """The groups, each with the samples that `source.prefetch` is to be told of before it is read; None for none.

    Samples are announced once and in the order in which they are read. For a source that wants to know of
    `read_ahead_bytes` they begin with the first group's, and stay about as far ahead of the group handed out; less far
    where that were many samples or groups.

    Args:
        source: What the samples are read from.
        groups: Samples that are read together, in order; asked for as far ahead as they are announced.
        group_samples: The samples of a full group.
        ahead: For all other sources: how many groups earlier a group is announced; the first `ahead` ones are not.
        least: For a source with `read_ahead_bytes`: how many groups earlier at least.
    """
    unannounced: list[Ids] = []
    if source.read_ahead_bytes > 0:
        sample_bytes = max(1, sum(column.sample_bytes for column in source.schema.values()))
        ahead_samples = min(source.read_ahead_bytes // sample_bytes, _MOST_SAMPLES)
        ahead = max(least, min(ahead_samples // group_samples, _MOST_GROUPS))
        waiting = deque(itertools.islice(groups, ahead))
        unannounced += [group.sample_ids for group in waiting]
    else:
        waiting = deque(itertools.islice(groups, ahead))
    for group in groups:
        waiting.append(group)
        unannounced.append(group.sample_ids)
        yield waiting.popleft(), _taken(unannounced)
    while waiting:
        yield waiting.popleft(), _taken(unannounced)


def _taken(parts: list[Ids]) -> Ids | None:
    """The parts as one, which leave their list."""
    if not parts:
        return None
    ids = parts[0] if len(parts) == 1 else np.concatenate(parts)
    parts.clear()
    return ids
