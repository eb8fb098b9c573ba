"""Steps: an epoch cut into steps, and each step into the ranks' shares."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from headrace.errors import ArgumentError
from headrace.order import Share, Steps
from tests.order.reference import step_of_rank
from tests.order.strategies import examples, lane_counts

RULES: dict[str, dict[str, bool]] = {
    "smaller last step": {},
    "drop_last": {"drop_last": True},
    "pad_last": {"pad_last": True},
}


@st.composite
def all_steps(draw: st.DrawFn) -> Steps:
    """Steps of rank 0, of any last-step rule that can work."""
    samples = draw(st.integers(1, 400))
    size = draw(st.integers(1, 100) | st.integers(1, 500))
    world_size = draw(st.integers(1, min(size, 12)))
    rule = draw(st.sampled_from(list(RULES)))
    assume(rule != "drop_last" or samples >= size)
    assume(rule != "smaller last step" or samples % size in (0, *range(world_size, size)))
    return Steps(samples, draw(lane_counts), size, 0, world_size, **RULES[rule])


def ranks_of(steps: Steps) -> list[Steps]:
    return [replace(steps, rank=rank) for rank in range(steps.world_size)]


def rows_of_steps(share: Share) -> list[list[int]]:
    return [part.tolist() for part in np.split(share.sequence, share.bounds[1:-1])]


def size_at(steps: Steps, position: int) -> int:
    """Rows over all ranks of the step that begins at a position."""
    return steps.global_batch_size if steps.pad_last else min(steps.global_batch_size, steps.samples - position)


@given(all_steps(), st.data())
@examples(300)
def test_a_share_is_the_ranks_rows_of_each_step_sorted_by_lane_and_place(steps: Steps, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, steps.samples - 1))
    count = steps.remaining(position)
    assume(count)
    for rank in ranks_of(steps):
        share = rank.share(position, count)
        expected, start = [], position
        for _ in range(count):
            rows = step_of_rank(start, size_at(steps, start), steps.lanes, rank.rank, steps.world_size)
            expected.append([number % steps.samples for number in rows])
            start = steps.advanced(start)
        assert share.sequence.dtype == share.bounds.dtype == np.int64
        assert share.bounds[0] == 0
        assert rows_of_steps(share) == expected


@given(all_steps(), st.data())
@examples(100)
def test_the_ranks_together_hold_each_step_exactly_once(steps: Steps, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, steps.samples - 1))
    count = steps.remaining(position)
    assume(count)
    shares = [rank.share(position, count) for rank in ranks_of(steps)]
    start = position
    for step, parts in enumerate(zip(*map(rows_of_steps, shares), strict=True)):
        valid = [
            share.valid[share.bounds[step] : share.bounds[step + 1]] for share in shares if share.valid is not None
        ]
        together = np.concatenate(parts)
        real = together[np.concatenate(valid)] if valid else together
        assert sorted(real.tolist()) == list(range(start, steps.advanced(start)))
        assert len(together) == size_at(steps, start)
        start = steps.advanced(start)
    assert start == (
        steps.samples - (steps.samples - position) % steps.global_batch_size if steps.drop_last else steps.samples
    )


@given(all_steps(), st.data())
@examples(100)
def test_shares_of_a_step_differ_by_at_most_one_and_none_is_empty(steps: Steps, data: st.DataObject) -> None:
    position = steps.advanced(0, data.draw(st.integers(0, len(steps) - 1)))
    count = steps.remaining(position)
    lengths = np.array([np.diff(rank.share(position, count).bounds) for rank in ranks_of(steps)])
    assert (lengths.max(0) - lengths.min(0) <= 1).all()
    assert lengths.min() >= 1


@given(all_steps(), st.integers(1, 12), st.data())
@examples(100)
def test_the_step_concatenated_over_the_ranks_is_the_same_for_every_world_size(
    steps: Steps, world_size: int, data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, steps.samples - 1))
    assume(steps.remaining(position) and world_size <= steps.global_batch_size)
    assume(steps.drop_last or steps.pad_last or steps.samples % steps.global_batch_size in (0, *range(world_size, 500)))
    other = replace(steps, world_size=world_size)

    def first_step(steps: Steps) -> list[int]:
        return [number for rank in ranks_of(steps) for number in rank.share(position, 1).sequence.tolist()]

    assert first_step(steps) == first_step(other)


@given(all_steps(), st.data())
@examples(100)
def test_many_steps_at_once_are_what_single_steps_give(steps: Steps, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, steps.samples - 1))
    count = steps.remaining(position)
    assume(count)
    steps = replace(steps, rank=steps.world_size - 1)
    starts = [steps.advanced(position, i) for i in range(count)]
    single = [steps.share(start, 1) for start in starts]
    for first, every in ((0, 1), (0, 2), (1, 2), (2, 3), (0, count)):
        chosen = single[first::every]
        if not chosen:
            continue
        together = steps.share(starts[first], len(chosen), every)
        assert together.sequence.tolist() == np.concatenate([share.sequence for share in chosen]).tolist()
        assert np.diff(together.bounds).tolist() == [len(share.sequence) for share in chosen]
        if steps.pad_last:
            assert together.valid.tolist() == np.concatenate([share.valid for share in chosen]).tolist()


@given(all_steps())
@examples(100)
def test_valid_marks_what_is_real_of_a_filled_last_step(steps: Steps) -> None:
    shares = [rank.share(0, len(steps)) for rank in ranks_of(steps)]
    if not steps.pad_last:
        assert all(share.valid is None for share in shares)
        return
    real = np.concatenate([share.sequence[share.valid] for share in shares])
    assert sorted(real.tolist()) == list(range(steps.samples))
    filled = sum(int((~share.valid).sum()) for share in shares)
    assert filled == -steps.samples % steps.global_batch_size
    for share in shares:
        assert share.valid.dtype == np.bool_
        assert share.valid[: share.bounds[-2]].all()
        assert 0 <= share.sequence.min() <= share.sequence.max() < steps.samples


def test_a_last_step_longer_than_the_dataset_is_filled_by_going_round_more_than_once() -> None:
    shares = [Steps(3, 1, 8, rank, 2, pad_last=True).share(0, 1) for rank in range(2)]
    assert [share.sequence.tolist() for share in shares] == [[0, 1, 2, 0], [1, 2, 0, 1]]
    assert [share.valid.tolist() for share in shares] == [[True, True, True, False], [False] * 4]


@pytest.mark.parametrize(
    ("rule", "length", "dropped", "end"),
    [("smaller last step", 4, 0, 1003), ("drop_last", 3, 103, 900), ("pad_last", 4, 0, 1003)],
)
def test_each_rule_has_its_number_of_steps_and_its_end(rule: str, length: int, dropped: int, end: int) -> None:
    steps = Steps(1003, 4, 300, world_size=3, **RULES[rule])
    assert (len(steps), steps.dropped) == (length, dropped)
    assert steps.advanced(0, length) == end
    assert steps.remaining(end) == 0


@given(all_steps(), st.data())
@examples(100)
def test_remaining_counts_the_steps_that_advancing_makes(steps: Steps, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, steps.samples))
    count = 0
    while steps.remaining(position):
        following = steps.advanced(position)
        assert position < following <= steps.samples
        assert steps.remaining(position) == steps.remaining(following) + 1
        position, count = following, count + 1
    assert steps.samples - position == 0 or (steps.drop_last and steps.samples - position < steps.global_batch_size)
    assert count <= len(steps) + 1


@pytest.mark.parametrize("rule", RULES)
def test_all_ranks_have_the_same_number_of_steps(rule: str) -> None:
    lengths = {len(Steps(1003, 8, 100, rank, 3, **RULES[rule])) for rank in range(3)}
    assert len(lengths) == 1


def test_a_rank_stays_on_its_own_lanes_when_it_has_some() -> None:
    lanes_of_ranks = []
    for rank in range(8):
        share = Steps(64_000, 64, 256, rank, 8).share(0, 250)
        lanes_of_ranks.append(set((share.sequence % 64).tolist()))
    assert all(len(lanes) == 8 for lanes in lanes_of_ranks)
    assert len(set.union(*lanes_of_ranks)) == 64


def test_a_batch_smaller_than_the_lanes_still_spreads_over_them() -> None:
    steps = Steps(6400, 64, 48)
    lanes = steps.share(0, 100).sequence % 64
    assert (np.bincount(lanes) == 75).all()
    assert all(len(np.unique(step)) == 48 for step in lanes.reshape(100, 48))


def test_far_positions_do_not_overflow() -> None:
    samples = 10**13
    share = Steps(samples, 256, 1001, 2, 3).share(samples - 3001, 3)
    assert samples - 3001 <= share.sequence.min() <= share.sequence.max() < samples
    assert len(np.unique(share.sequence)) == len(share.sequence)


def test_offsets_of_many_phases_are_not_kept_without_bound() -> None:
    steps = Steps(10**9, 4096, 4097)
    for first in range(0, 400, 100):
        steps.share(4097 * first, 100)
        assert sum(map(len, steps._offsets_of.values())) <= (1 << 20) + 4097


REFUSALS: list[tuple[dict[str, Any], str]] = [
    (
        {"global_batch_size": 32, "rank": 3, "world_size": 3},
        "rank: expected 0 <= rank < world_size, got rank=3, world_size=3",
    ),
    (
        {"global_batch_size": 32, "rank": -1, "world_size": 3},
        "rank: expected 0 <= rank < world_size, got rank=-1, world_size=3",
    ),
    (
        {"global_batch_size": 32, "rank": 0, "world_size": 0},
        "rank: expected 0 <= rank < world_size, got rank=0, world_size=0",
    ),
    (
        {"global_batch_size": 7, "world_size": 8},
        "global_batch_size: expected at least one sample for each of 8 ranks, got 7",
    ),
    ({"global_batch_size": 0}, "global_batch_size: expected at least one sample for each of 1 ranks, got 0"),
    (
        {"global_batch_size": 32, "drop_last": True, "pad_last": True},
        "drop_last and pad_last: expected at most one of them, got both",
    ),
    (
        {"global_batch_size": 1004, "drop_last": True},
        (
            "no step: expected at least 1004 samples with drop_last=True, got 1003\n"
            "  give a smaller batch size, or drop_last=False"
        ),
    ),
    (
        {"global_batch_size": 100, "world_size": 4},
        (
            "the last step would hold 3 samples for 4 ranks (1003 samples from position 0 on, 100 a step)\n"
            "  give drop_last=True to leave them out, or pad_last=True to fill the step up and mark what is real"
        ),
    ),
    (
        {"global_batch_size": 2000, "world_size": 1500},
        (
            "the last step would hold 1003 samples for 1500 ranks (1003 samples from position 0 on, 2000 a step)\n"
            "  give drop_last=True to leave them out, or pad_last=True to fill the step up and mark what is real"
        ),
    ),
]


@pytest.mark.parametrize(("arguments", "text"), REFUSALS)
def test_what_cannot_work_is_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentError) as refusal:
        Steps(1003, 4, **arguments)
    assert str(refusal.value) == text


def test_a_position_that_leaves_some_rank_without_a_sample_of_the_last_step_is_refused() -> None:
    steps = Steps(1000, 4, 100, world_size=4)
    steps.check_last(0)
    steps.check_last(96)
    with pytest.raises(ArgumentError) as refusal:
        steps.check_last(97)
    assert str(refusal.value) == (
        "the last step would hold 3 samples for 4 ranks (903 samples from position 97 on, 100 a step)\n"
        "  give drop_last=True to leave them out, or pad_last=True to fill the step up and mark what is real"
    )
    for rule in ("drop_last", "pad_last"):
        replace(steps, **RULES[rule]).check_last(97)


def test_fewer_samples_than_a_step_make_one_small_step() -> None:
    steps = Steps(5, 16, 256, 1, 2)
    assert len(steps) == 1
    assert sorted(steps.share(0, 1).sequence.tolist() + replace(steps, rank=0).share(0, 1).sequence.tolist()) == [
        *range(5)
    ]


def test_a_single_sample_makes_an_epoch() -> None:
    for rule in RULES.values():
        share = Steps(1, 8, 1, **rule).share(0, 1)
        assert share.sequence.tolist() == [0]
        assert share.bounds.tolist() == [0, 1]
