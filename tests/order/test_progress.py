"""Progress: where passes begin, and how they move the epoch and the position."""

from typing import Any

import numpy as np
import pytest

from headrace.errors import ArgumentError
from headrace.order import Progress, Steps

STEPS = Steps(100, 1, 30)  # steps end at 30, 60, 90, 100
DROPPING = Steps(100, 1, 30, drop_last=True)


def delivered(progress: Progress, count: int, steps: Steps = STEPS) -> None:
    """Begins a pass and takes `count` of its steps."""
    epoch, position = progress.begin(steps)
    for _ in range(count):
        position = steps.advanced(position)
        progress.deliver(epoch, position, steps)


def where(progress: Progress) -> tuple[int, int]:
    return progress.epoch, progress.position


def resumed(epoch: int, position: int, steps: Steps = STEPS) -> Progress:
    progress = Progress()
    progress.resume(epoch, position, steps)
    return progress


def test_the_first_pass_begins_at_the_start_of_epoch_0() -> None:
    assert Progress().begin(STEPS) == (0, 0)


def test_delivering_a_step_moves_the_position() -> None:
    progress = Progress()
    delivered(progress, 2)
    assert where(progress) == (0, 60)


@pytest.mark.parametrize("steps", [STEPS, DROPPING, Steps(100, 1, 30, pad_last=True)])
def test_delivering_the_last_step_moves_to_the_start_of_the_next_epoch(steps: Steps) -> None:
    progress = Progress()
    delivered(progress, len(steps) - 1, steps)
    assert progress.epoch == 0
    delivered_epoch, position = progress.epoch, steps.advanced(progress.position)
    progress.deliver(delivered_epoch, position, steps)
    assert where(progress) == (1, 0)
    assert progress.begin(steps) == (1, 0)


def test_a_pass_that_was_broken_off_after_a_step_is_followed_by_the_next_epoch() -> None:
    progress = Progress()
    delivered(progress, 1)
    assert progress.begin(STEPS) == (1, 0)


def test_a_pass_that_delivered_nothing_has_not_started_its_epoch() -> None:
    progress = Progress()
    for _ in range(3):
        assert progress.begin(STEPS) == (0, 0)
    delivered(progress, 4)
    for _ in range(3):
        assert progress.begin(STEPS) == (1, 0)


def test_a_pass_begins_where_a_loaded_state_stands() -> None:
    assert resumed(3, 47).begin(STEPS) == (3, 47)


def test_a_loaded_state_is_where_a_pass_begins_only_once() -> None:
    progress = resumed(3, 47)
    delivered(progress, 1)
    assert where(progress) == (3, 77)
    assert progress.begin(STEPS) == (4, 0)


def test_a_loaded_state_is_not_used_up_by_a_pass_that_delivered_nothing() -> None:
    progress = resumed(3, 47)
    progress.begin(STEPS)
    assert progress.begin(STEPS) == (3, 47)


def test_loading_a_state_replaces_what_went_before() -> None:
    progress = Progress()
    delivered(progress, 2)
    progress.set_epoch(7)
    progress.resume(3, 47, STEPS)
    assert where(progress) == (3, 47)
    assert progress.begin(STEPS) == (3, 47)


def test_a_loaded_state_that_leaves_too_few_samples_for_one_step_moves_to_the_next_epoch() -> None:
    progress = resumed(3, 71, DROPPING)
    assert where(progress) == (4, 0)
    assert progress.begin(DROPPING) == (4, 0)
    assert where(resumed(3, 70, DROPPING)) == (3, 70)


def test_a_loaded_state_that_leaves_a_smaller_last_step_goes_on_with_it() -> None:
    progress = resumed(3, 99)
    assert progress.begin(STEPS) == (3, 99)
    progress.deliver(3, 100, STEPS)
    assert where(progress) == (4, 0)


def test_no_pass_is_empty_when_the_steps_have_grown_since_the_last_one() -> None:
    progress = resumed(3, 60)
    assert progress.begin(Steps(100, 1, 50, drop_last=True)) == (4, 0)


def test_set_epoch_makes_the_next_pass_start_that_epoch() -> None:
    progress = Progress()
    progress.set_epoch(5)
    assert where(progress) == (5, 0)
    assert progress.begin(STEPS) == (5, 0)


def test_set_epoch_goes_back_too_and_repeats_an_epoch() -> None:
    progress = Progress()
    delivered(progress, 4)
    for epoch in (0, 0, 1):
        progress.set_epoch(epoch)
        delivered(progress, 2)
        assert where(progress) == (epoch, 60)


def test_set_epoch_holds_for_one_pass() -> None:
    progress = Progress()
    progress.set_epoch(5)
    delivered(progress, 1)
    assert progress.begin(STEPS) == (6, 0)


def test_set_epoch_leaves_a_loaded_state_of_the_same_epoch_alone() -> None:
    progress = resumed(3, 47)
    progress.set_epoch(3)
    assert where(progress) == (3, 47)
    assert progress.begin(STEPS) == (3, 47)


def test_set_epoch_of_another_epoch_leaves_a_loaded_state() -> None:
    progress = resumed(3, 47)
    progress.set_epoch(4)
    assert progress.begin(STEPS) == (4, 0)


def test_set_epoch_during_a_pass_is_for_the_next_one() -> None:
    progress = Progress()
    delivered(progress, 1)
    progress.set_epoch(5)
    progress.deliver(0, 60, STEPS)
    assert where(progress) == (0, 60)
    assert progress.begin(STEPS) == (5, 0)


def test_set_epoch_during_a_pass_outlives_the_end_of_its_epoch() -> None:
    progress = Progress()
    delivered(progress, 3)
    progress.set_epoch(5)
    progress.deliver(0, 100, STEPS)
    assert where(progress) == (1, 0)
    assert progress.begin(STEPS) == (5, 0)


def test_a_trainer_that_sets_every_epoch_trains_on_each_of_them_once() -> None:
    progress, begun = Progress(), []
    for epoch in range(4):
        progress.set_epoch(epoch)
        begun.append(progress.begin(STEPS))
        delivered(progress, 4)
    assert begun == [(epoch, 0) for epoch in range(4)]


def test_a_trainer_that_stops_at_the_length_trains_on_each_epoch_once() -> None:
    progress, begun = Progress(), []
    for _ in range(4):
        begun.append(progress.begin(STEPS))
        delivered(progress, len(STEPS))
    assert begun == [(epoch, 0) for epoch in range(4)]


def test_a_resumed_trainer_that_sets_every_epoch_finishes_the_loaded_one_first() -> None:
    progress, begun = resumed(2, 60), []
    for epoch in range(progress.epoch, 5):
        progress.set_epoch(epoch)
        begun.append(progress.begin(STEPS))
        delivered(progress, STEPS.remaining(progress.position))
    assert begun == [(2, 60), (3, 0), (4, 0)]


def test_seek_makes_the_next_pass_begin_at_a_step() -> None:
    progress = Progress()
    progress.seek(2, 3, STEPS)
    assert where(progress) == (2, 90)
    assert progress.begin(STEPS) == (2, 90)


def test_seek_to_the_end_of_an_epoch_is_the_start_of_the_next() -> None:
    for steps in (STEPS, DROPPING):
        progress = Progress()
        progress.seek(2, len(steps), steps)
        assert where(progress) == (3, 0)


def test_seek_survives_set_epoch_of_the_same_epoch() -> None:
    progress = Progress()
    progress.seek(2, 1, STEPS)
    progress.set_epoch(2)
    assert progress.begin(STEPS) == (2, 30)


@pytest.mark.parametrize(
    ("epoch", "step"), [(-1, 0), (0, -1), (0, 5), (1.5, 0), (0, 1.5), ("0", 0), (0, None), (True, 0), (2**62 + 1, 0)]
)
def test_seek_outside_the_epoch_is_refused(epoch: Any, step: Any) -> None:
    with pytest.raises(ArgumentError) as refusal:
        Progress().seek(epoch, step, STEPS)
    assert str(refusal.value) == f"seek: expected an epoch of 0 or more and a step in 0..4, got {epoch!r}, {step!r}"


@pytest.mark.parametrize("epoch", [-1, 1.5, "1", None, True, 2**62 + 1])
def test_what_is_no_epoch_is_refused(epoch: Any) -> None:
    progress = Progress()
    with pytest.raises(ArgumentError) as refusal:
        progress.set_epoch(epoch)
    assert str(refusal.value) == f"set_epoch: expected an epoch of 0 or more, got {epoch!r}"
    assert where(progress) == (0, 0)


def test_numpys_numbers_become_plain_ones_which_a_state_can_hold() -> None:
    progress = Progress()
    progress.set_epoch(np.int64(3))
    assert type(progress.epoch) is int
    progress.seek(np.int64(2), np.int32(1), STEPS)
    assert (type(progress.epoch), type(progress.position)) == (int, int)
