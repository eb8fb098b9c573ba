"""Which samples a source is told of before they are read, and that a stream of samples tells it."""

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.datasets.mapstyle import MapDataset
from headrace.datasets.read_ahead import announced
from headrace.formats import Ids
from tests.datasets.parts import Counting, Workers, numbers


class Told(Counting):
    """Samples of 8 bytes, and what was announced of them when."""

    def __init__(self, samples: int, read_ahead_bytes: int = 0) -> None:
        super().__init__(samples)
        self.read_ahead_bytes = read_ahead_bytes
        self.events: list[Any] = []

    def prefetch(self, sample_ids: Any) -> None:
        self.events += [("told", sample_id) for sample_id in np.asarray(sample_ids).tolist()]

    def read(self, sample_ids: Any, out: Any = None) -> Any:
        self.events += [("read", sample_id) for sample_id in np.asarray(sample_ids).tolist()]
        return super().read(sample_ids, out)

    def end_prefetch(self) -> None:
        self.events.append("ended")

    def named(self, name: str) -> list[int]:
        return [event[1] for event in self.events if event[0] == name]


class Group(NamedTuple):
    sample_ids: Ids


def groups_of(samples: int, group_samples: int) -> list[Group]:
    return [Group(np.arange(i, min(i + group_samples, samples))) for i in range(0, samples, group_samples)]


cases = {"samples": st.integers(0, 60), "group_samples": st.integers(1, 9), "ahead": st.integers(1, 5)}


@given(**cases, ahead_samples=st.integers(1, 80))
def test_a_source_that_asks_is_told_of_every_sample_and_that_many_ahead(samples, group_samples, ahead, ahead_samples):
    groups = groups_of(samples, group_samples)
    pairs = announced(Told(1, 8 * ahead_samples), iter(groups), group_samples=group_samples, ahead=ahead)
    distance = max(2, ahead_samples // group_samples)
    told: list[int] = []
    for i, (group, coming) in enumerate(pairs):
        assert group is groups[i]
        told += [] if coming is None else coming.tolist()
        assert told == list(range(min(samples, (i + 1 + distance) * group_samples)))
    assert len(told) == samples


def test_small_groups_are_announced_no_more_than_some_thousand_ahead(monkeypatch):
    monkeypatch.setattr("headrace.datasets.read_ahead._MOST_GROUPS", 7)
    pulled: list[int] = []
    groups = (pulled.append(i) or Group(np.array([i])) for i in range(1000))
    next(announced(Told(1, 8 * 500), groups, group_samples=1, ahead=1))
    assert len(pulled) == 8


@given(**cases)
def test_others_are_told_of_one_group_at_a_time_some_groups_ahead(samples, group_samples, ahead):
    groups = groups_of(samples, group_samples)
    pairs = list(announced(Told(1), iter(groups), group_samples=group_samples, ahead=ahead))
    assert [group for group, _ in pairs] == groups
    told = [coming for _, coming in pairs]
    later = [group.sample_ids for group in groups[ahead:]]
    assert all(one is other for one, other in zip(told, [*later, *[None] * ahead], strict=False))


@pytest.mark.parametrize("batch_size", [None, 16])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_tells_such_a_source_of_each_workers_samples_before_it_reads_them(batch_size, num_workers):
    source = Told(5000, 8 * 3000)
    view = MapDataset(source).to_iterable_dataset(batch_size, shuffle=True, seed=3)
    workers = Workers(view, num_workers, base_seed=11)
    assert sorted(numbers(workers.run())) == list(range(5000))
    told, read = source.named("told"), source.named("read")
    assert sorted(told) == list(range(5000))
    for sample_id in range(0, 5000, 250):
        assert source.events.index(("told", sample_id)) < source.events.index(("read", sample_id))
    assert told == read if num_workers == 0 else sorted(told) == sorted(read)
    assert source.events.count("ended") == max(1, num_workers)


def test_a_stream_announces_no_more_than_asked_for_where_samples_are_large(monkeypatch):
    monkeypatch.setattr("headrace.datasets.iterable._BYTES_AT_ONCE", 8 * 32)
    source = Told(5000, 8 * 100)
    next(iter(MapDataset(source).to_iterable_dataset(8)))
    assert source.named("told") == list(range(32 * 4))


def test_a_stream_that_is_broken_off_says_that_the_rest_will_not_be_read():
    source = Told(5000, 8 * 100)
    for _ in MapDataset(source).to_iterable_dataset(8):
        assert "ended" not in source.events
        break
    assert source.events[-1] == "ended"


def test_a_part_of_a_source_asks_for_as_many_bytes_and_passes_on_what_it_is_told():
    source = Told(100, 8 * 7)
    part = MapDataset(source).select(range(10, 20)).source
    assert part.read_ahead_bytes == 8 * 7
    part.prefetch([0, 3])
    part.end_prefetch()
    assert source.events == [("told", 10), ("told", 13), "ended"]
