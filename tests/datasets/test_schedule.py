"""Schedule: the arguments of a run, its steps, and the rules of its state."""

import json

import numpy as np
import pytest

from headrace import ArgumentError, ResumeError
from headrace.datasets.schedule import Schedule
from tests.datasets.parts import Counting, counting


def schedule(samples=100, **options) -> Schedule:
    return Schedule(Counting(samples), **{"batch_size": 10, **options})


class TestBatchSizes:
    def test_batch_size_is_per_rank_and_global_batch_size_over_all(self):
        assert schedule(rank=1, world_size=4, batch_size=5).steps.global_batch_size == 20
        assert schedule(102, rank=1, world_size=4, batch_size=1, global_batch_size=7).steps.global_batch_size == 7
        assert schedule(batch_size=None, global_batch_size=7).steps.global_batch_size == 7

    @pytest.mark.parametrize("wrong", [0, -1, True, 2.0, "8"])
    @pytest.mark.parametrize("name", ["batch_size", "global_batch_size"])
    def test_a_size_that_is_no_positive_integer_is_refused(self, name, wrong):
        with pytest.raises(ArgumentError, match=rf"^{name}: expected a number of samples, 1 or more, got {wrong!r}$"):
            schedule(**{"batch_size": 1, name: wrong})

    def test_both_sizes_are_refused(self):
        with pytest.raises(
            ArgumentError, match="batch_size and global_batch_size: expected one of them, got 10 and 20"
        ):
            schedule(batch_size=10, global_batch_size=20)

    def test_no_size_is_refused_with_the_way_to_single_samples(self):
        with pytest.raises(ArgumentError, match="iterate over the dataset itself for single samples"):
            schedule(batch_size=None)

    def test_too_few_samples_for_all_ranks_are_refused_with_the_ways_out(self):
        with pytest.raises(ArgumentError, match="the last step would hold 1 samples for 3 ranks") as caught:
            schedule(31, rank=0, world_size=3)
        assert "give drop_last=True to leave them out, or pad_last=True" in str(caught.value)


class TestPlan:
    def test_it_gives_the_samples_of_some_steps_one_after_the_other(self):
        plan = schedule(25).plan(0, 5, 2)
        assert plan.sample_ids.tolist() == list(range(5, 25))
        assert plan.bounds.tolist() == [0, 10, 20]
        assert plan.valid is None

    def test_it_may_take_one_step_in_several(self):
        plan = schedule(45).plan(0, 0, 3, every=2)
        assert plan.sample_ids.tolist() == [*range(10), *range(20, 30), *range(40, 45)]
        assert plan.bounds.tolist() == [0, 10, 20, 25]

    def test_ranks_share_each_step(self):
        shares = [schedule(24, batch_size=4, rank=rank, world_size=3).plan(0, 12, 1).sample_ids for rank in range(3)]
        assert [share.tolist() for share in shares] == [[12, 13, 14, 15], [16, 17, 18, 19], [20, 21, 22, 23]]

    def test_a_padded_step_says_which_rows_are_real(self):
        plan = schedule(12, pad_last=True).plan(0, 10, 1)
        assert plan.valid.tolist() == [True, True] + [False] * 8


class TestState:
    def test_it_is_json_and_small_and_the_same_on_all_ranks(self):
        states = [schedule(shuffle=True, rank=rank, world_size=5).state_dict() for rank in range(5)]
        assert all(state == states[0] for state in states)
        assert json.loads(json.dumps(states[0])) == states[0]
        assert len(json.dumps(states[0])) < 1024

    def test_parameters_left_at_their_defaults_are_taken_from_the_state(self):
        saved = schedule(shuffle="window", shuffle_window=30, lanes=2, seed=9).state_at(3, 40)
        other = schedule()
        other.load_state_dict(saved)
        assert other.state_dict() == saved
        assert other.plan(3, 40, 6).sample_ids.tolist() == (
            schedule(shuffle="window", shuffle_window=30, lanes=2, seed=9).plan(3, 40, 6).sample_ids.tolist()
        )

    def test_what_may_change_may_change(self):
        saved = schedule(shuffle=True, seed=3, drop_last=True).state_at(1, 30)
        other = schedule(shuffle=True, batch_size=4, rank=1, world_size=2, pad_last=True)
        other.load_state_dict(saved)
        assert other.state_dict() == saved

    @pytest.mark.parametrize(
        ("name", "then", "now", "given"),
        [
            ("seed", 7, 8, {"shuffle": "window"}),
            ("seed", 7, 0, {"shuffle": "window"}),
            ("shuffle", "window", False, {}),
            ("shuffle", "window", "global", {}),
            ("lanes", 2, 4, {"shuffle": "window"}),
            ("shuffle_window", 30, 20, {"shuffle": "window"}),
        ],
    )
    def test_an_explicit_order_parameter_that_differs_is_refused_and_both_sides_are_shown(self, name, then, now, given):
        saved = schedule(shuffle="window", shuffle_window=30, lanes=2, seed=7).state_dict()
        other = schedule(**given, **{name: now})
        with pytest.raises(ResumeError) as caught:
            other.load_state_dict(saved)
        assert str(caught.value) == (
            f"cannot resume: {name} differs from the state's\n  state: {name}={then!r}\n  now:   {name}={now!r}\n"
            f"  leave {name} out to continue in the state's order"
        )

    def test_a_state_that_is_refused_changes_nothing(self):
        run = schedule(seed=1, shuffle=True)
        before = run.state_dict()
        for bad in (schedule(seed=2, shuffle=True).state_at(2, 10), schedule(99, seed=1).state_at(2, 10), {}, None):
            with pytest.raises(ResumeError, match="cannot resume"):
                run.load_state_dict(bad)
        ranks = schedule(rank=0, world_size=5, batch_size=2)
        with pytest.raises(ArgumentError, match="the last step would hold 1 samples for 5 ranks"):
            ranks.load_state_dict(schedule(batch_size=9).state_at(4, 9))
        assert run.state_dict() == before
        assert ranks.state_dict()["epoch"] == 0

    def test_another_dataset_is_refused_and_both_are_shown(self):
        saved = schedule(99).state_dict()
        with pytest.raises(ResumeError) as caught:
            schedule(100).load_state_dict(saved)
        assert str(caught.value) == (
            "cannot resume: the dataset is not the one that the state was saved with\n"
            f"  state: 99 samples (fingerprint {saved['fingerprint']})\n"
            f"  now:   100 samples (fingerprint {Counting(100).fingerprint})"
        )
        parts = counting(100).split({"a": 50, "b": 50})
        with pytest.raises(ResumeError, match="the dataset is not the one"):
            Schedule(parts["a"].source).load_state_dict(Schedule(parts["b"].source).state_dict())

    def test_a_newer_version_is_refused(self):
        with pytest.raises(ResumeError, match="the state is of version 2, this headrace reads up to 1"):
            schedule().load_state_dict({**schedule().state_dict(), "version": 2})

    def test_the_state_after_some_steps_is_arithmetic(self):
        run = schedule(95)
        assert [(s["epoch"], s["position"]) for s in (run.state_after(2, 5, steps) for steps in (0, 1, 8, 9))] == [
            (2, 5),
            (2, 15),
            (2, 85),
            (3, 0),
        ]

    @pytest.mark.parametrize("steps", [-1, 10, 1200])
    def test_more_steps_than_a_pass_has_are_refused_since_a_count_over_epochs_would_pass_unnoticed(self, steps):
        with pytest.raises(ArgumentError, match=rf"steps: expected the steps taken in this pass, 0\.\.9, got {steps}"):
            schedule(95).state_after(2, 5, steps)

    @pytest.mark.parametrize("steps", [1.5, "1", None, True])
    def test_what_is_no_number_of_steps_is_refused_since_its_state_could_not_be_loaded(self, steps):
        with pytest.raises(
            ArgumentError, match=rf"steps: expected the steps taken in this pass, 0\.\.9, got {steps!r}"
        ):
            schedule(95).state_after(2, 5, steps)

    def test_the_state_after_numpys_number_of_steps_can_be_loaded(self):
        run = schedule(95)
        run.load_state_dict(json.loads(json.dumps(schedule(95).state_after(2, 5, np.int64(3)))))
        assert (run.progress.epoch, run.progress.position) == (2, 35)

    def test_where_too_little_is_left_for_a_step_the_next_epoch_begins(self):
        run = schedule(100, batch_size=30, drop_last=True)
        run.load_state_dict(schedule(100).state_at(4, 80))
        assert (run.progress.epoch, run.progress.position) == (5, 0)
