"""OrderSampler: our order and state for torch's own DataLoader."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, DistributedSampler

import headrace as hr
from headrace import ArgumentError, ArrayDataset, OrderSampler, ResumeError, StalePassError
from tests.datasets.parts import PerRow, Tenfold, counting, numbers


def order_of(samples: int, **options) -> list[int]:
    """The plain list: all ids of an epoch, from one rank with batches of one."""
    return list(OrderSampler(counting(samples), **options))


class TestOrder:
    @given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 4), st.booleans(), st.booleans())
    def test_over_all_ranks_each_id_comes_once_in_the_order_of_the_steps(self, n, size, world, shuffle, drop_last):
        if drop_last and n < size * world:
            return
        if not drop_last and 0 < n % (size * world) < world:
            with pytest.raises(ArgumentError, match="the last step would hold"):
                OrderSampler(counting(n), size, rank=0, world_size=world)
            return
        samplers = [
            OrderSampler(counting(n), size, shuffle=shuffle, drop_last=drop_last, rank=rank, world_size=world)
            for rank in range(world)
        ]
        drawn = [list(sampler) for sampler in samplers]
        assert [len(ids) for ids in drawn] == [len(sampler) for sampler in samplers]
        steps = max(-(-len(ids) // size) for ids in drawn)
        assert all(-(-len(ids) // size) == steps for ids in drawn)
        together = [i for step in range(steps) for ids in drawn for i in ids[step * size : (step + 1) * size]]
        expected = order_of(n, shuffle=shuffle)
        assert together == expected[: n // (size * world) * size * world if drop_last else n]

    def test_it_is_the_order_of_headraces_own_loader(self):
        dataset = counting(50)
        loader = DataLoader(dataset, batch_size=8, sampler=OrderSampler(dataset, 8, seed=4))
        assert numbers(loader) == numbers(hr.DataLoader(dataset, batch_size=8, shuffle=True, seed=4))

    def test_it_shuffles_unless_told_otherwise(self):
        assert order_of(50) != list(range(50))
        assert order_of(50, shuffle=False) == list(range(50))

    def test_it_serves_any_map_style_dataset(self):
        class Foreign(Dataset):
            def __len__(self):
                return 10

            def __getitem__(self, index):
                return {"x": torch.tensor(index)}

        for dataset in (Foreign(), PerRow({"x": torch.arange(10)}), Tenfold(range(10)), list(range(10))):
            assert sorted(OrderSampler(dataset, 4)) == list(range(10))

    def test_an_iterable_dataset_is_refused(self):
        with pytest.raises(ArgumentError, match="expected a map-style dataset, got IterableView, an IterableDataset"):
            OrderSampler(counting(5).to_iterable_dataset())

    def test_trainers_recognise_it_as_a_distributed_sampler(self):
        sampler = OrderSampler(counting(20), 5, seed=3, drop_last=True, rank=1, world_size=2)
        assert isinstance(sampler, DistributedSampler)
        assert (sampler.rank, sampler.num_replicas, sampler.seed, sampler.drop_last) == (1, 2, 3, True)
        assert sampler.shuffle

    def test_a_trillion_samples_cost_nothing(self):
        sampler = OrderSampler(counting(10**12), 256)
        assert len(sampler) == 10**12
        assert len({next(iter(sampler)) for _ in range(3)}) == 3


class TestEpochs:
    def test_each_pass_is_the_next_epoch_even_after_one_that_was_broken_off(self):
        sampler = OrderSampler(counting(50), 8)
        epochs = [list(sampler) for _ in range(2)]
        next(iter(sampler))
        epochs.append(list(sampler))
        assert len({tuple(ids) for ids in epochs}) == 3
        assert sampler.state_dict()["epoch"] == 4

    def test_a_pass_of_which_nothing_was_drawn_has_not_started_its_epoch(self):
        sampler = OrderSampler(counting(50), 8)
        iter(sampler)
        assert list(sampler) == order_of(50)

    def test_set_epoch_chooses_the_epoch_of_the_next_pass(self):
        sampler, other = OrderSampler(counting(50)), OrderSampler(counting(50))
        epochs = [list(sampler) for _ in range(4)]
        other.set_epoch(3)
        assert list(other) == epochs[3]
        other.set_epoch(1)
        assert list(other) == epochs[1]
        assert list(other) == epochs[2]

    def test_set_epoch_before_each_pass_as_trainers_call_it_changes_nothing(self):
        sampler, other = OrderSampler(counting(50)), OrderSampler(counting(50))
        for epoch in range(3):
            other.set_epoch(epoch)
            assert list(other) == list(sampler)

    def test_a_negative_epoch_is_refused_and_changes_nothing(self):
        sampler = OrderSampler(counting(50))
        with pytest.raises(ArgumentError, match="set_epoch: expected an epoch of 0 or more, got -1"):
            sampler.set_epoch(-1)
        assert sampler.epoch == 0
        assert list(sampler) == order_of(50)


class TestState:
    @given(st.data(), st.integers(20, 150), st.booleans())
    def test_a_run_goes_on_exactly_under_any_other_world_size_and_batch_size(self, data, n, shuffle):
        expected, consumed, state = order_of(n, shuffle=shuffle), 0, None
        while consumed < n:
            sizes, worlds = st.integers(1, 9), st.integers(1, 4)
            size, world = data.draw(sizes), data.draw(worlds)
            if 0 < (n - consumed) % (size * world) < world or 0 < n % (size * world) < world:
                size, world = 1, 1
            samplers = [
                OrderSampler(counting(n), size, shuffle=shuffle, rank=r, world_size=world) for r in range(world)
            ]
            for sampler in samplers:
                if state is not None:
                    sampler.load_state_dict(json.loads(json.dumps(state)))
            drawn = [list(sampler) for sampler in samplers]
            taken = data.draw(st.integers(1, -(-len(drawn[0]) // size)))
            got = [i for step in range(taken) for ids in drawn for i in ids[step * size : (step + 1) * size]]
            assert got == expected[consumed : consumed + len(got)]
            consumed += len(got)
            states = [sampler.state_dict(taken) for sampler in samplers]
            assert all(one == states[0] for one in states)
            state = states[0]
        assert (state["epoch"], state["position"]) == (1, 0)

    def test_steps_count_the_batches_that_the_loop_has_taken_however_far_the_loader_reads_ahead(self):
        dataset = counting(64)
        sampler = OrderSampler(dataset, 4)
        loader = DataLoader(dataset, batch_size=4, sampler=sampler, num_workers=2, prefetch_factor=3)
        batches = iter(loader)
        taken = numbers([next(batches) for _ in range(3)])
        assert sampler.state_dict()["position"] > 12
        resumed = OrderSampler(dataset, 4)
        resumed.load_state_dict(sampler.state_dict(3))
        assert taken + list(resumed) == order_of(64)

    def test_without_workers_steps_may_be_left_out(self):
        sampler = OrderSampler(counting(20), 4)
        ids = iter(sampler)
        for drawn in range(1, 9):
            next(ids)
            if drawn % 4 == 0:
                assert sampler.state_dict()["position"] == drawn
                assert sampler.state_dict() == sampler.state_dict(drawn // 4)

    def test_a_step_that_a_loader_of_another_batch_size_drew_in_part_has_no_state(self):
        dataset = counting(64)
        sampler = OrderSampler(dataset, 32)
        next(iter(DataLoader(dataset, batch_size=8, sampler=sampler)))
        with pytest.raises(ArgumentError, match="a step of 32 ids was drawn in part: expected a DataLoader with the"):
            sampler.state_dict()

    def test_before_the_first_pass_it_is_the_start(self):
        sampler = OrderSampler(counting(20), 4)
        assert sampler.state_dict() == sampler.state_dict(0)
        assert sampler.state_dict()["position"] == 0

    def test_right_after_a_load_it_is_what_was_loaded_for_no_steps_and_counts_on_from_there(self):
        sampler = OrderSampler(counting(20), 4)
        list(sampler)
        saved = {**sampler.state_dict(0), "epoch": 5, "position": 8}
        sampler.load_state_dict(saved)
        assert sampler.state_dict() == sampler.state_dict(0) == saved
        assert sampler.state_dict(1) == {**saved, "position": 12}
        assert len(list(sampler)) == 12
        assert sampler.state_dict(1) == {**saved, "position": 12}

    def test_right_after_set_epoch_it_is_the_start_of_that_epoch(self):
        sampler = OrderSampler(counting(20), 4)
        list(sampler)
        sampler.set_epoch(3)
        for state in (sampler.state_dict(), sampler.state_dict(0)):
            assert (state["epoch"], state["position"]) == (3, 0)

    def test_set_epoch_of_the_epoch_that_was_loaded_keeps_the_position(self):
        sampler = OrderSampler(counting(20), 4)
        saved = {**sampler.state_dict(), "epoch": 2, "position": 8}
        sampler.load_state_dict(saved)
        sampler.set_epoch(2)
        assert sampler.state_dict(0) == saved
        assert len(list(sampler)) == 12

    def test_steps_that_the_pass_has_not_are_refused(self):
        sampler = OrderSampler(counting(20), 4)
        list(sampler)
        with pytest.raises(ArgumentError, match=r"steps: expected the steps taken in this pass, 0\.\.5, got 6"):
            sampler.state_dict(6)

    def test_a_state_of_other_data_is_refused(self):
        with pytest.raises(ResumeError, match="the dataset is not the one"):
            OrderSampler(counting(20)).load_state_dict(OrderSampler(counting(21)).state_dict())

    def test_it_is_interchangeable_with_the_state_of_headraces_own_loader(self):
        dataset = counting(40)
        loader = hr.DataLoader(dataset, batch_size=8, shuffle=True)
        batches = iter(loader)
        first = numbers([next(batches)])
        sampler = OrderSampler(dataset, 3)
        sampler.load_state_dict(loader.state_dict())
        assert first + list(sampler) == order_of(40)


class TestOnePass:
    """A sampler has one live pass, as headrace.DataLoader has: what ended it says so, and nothing is counted twice."""

    def test_a_newer_pass_ends_the_former_one(self):
        sampler = OrderSampler(counting(20), 4)
        old = iter(sampler)
        next(old)
        new = iter(sampler)
        first = [next(new) for _ in range(4)]
        with pytest.raises(StalePassError, match="this pass was ended by a newer one, or by a loaded state"):
            list(old)
        assert sampler.state_dict() == sampler.state_dict(1)
        assert sorted(first + list(new)) == list(range(20))

    def test_a_loaded_state_ends_it_too(self):
        sampler = OrderSampler(counting(20), 4)
        old = iter(sampler)
        [next(old) for _ in range(4)]
        saved = {**sampler.state_dict(), "position": 16}
        sampler.load_state_dict(saved)
        with pytest.raises(StalePassError, match="ended by a newer one, or by a loaded state"):
            list(old)
        assert sampler.state_dict() == saved

    def test_torchs_loader_passes_the_error_on(self):
        dataset = counting(20)
        loader = DataLoader(dataset, batch_size=4, sampler=OrderSampler(dataset, 4))
        old, new = iter(loader), iter(loader)
        next(old)
        next(new)
        with pytest.raises(StalePassError):
            next(old)
        assert len(list(new)) == 4


def test_the_last_step_is_smaller_by_the_same_rule_on_all_ranks():
    samplers = [OrderSampler(counting(23), 4, rank=rank, world_size=2) for rank in range(2)]
    assert [len(list(sampler)) for sampler in samplers] == [8 + 3, 8 + 4]
    assert [len(sampler) for sampler in samplers] == [11, 12]


def test_a_last_step_of_too_few_is_refused_with_what_a_sampler_takes():
    with pytest.raises(ArgumentError, match="the last step would hold 1 samples for 2 ranks") as caught:
        OrderSampler(counting(17), 4, rank=0, world_size=2)
    assert "drop_last=True to leave them out, or another batch_size or world_size" in str(caught.value)


def test_drop_last_leaves_out_what_does_not_fill_a_step():
    sampler = OrderSampler(counting(23), 4, drop_last=True, rank=1, world_size=2)
    assert len(list(sampler)) == len(sampler) == 8


def test_a_named_dataset_in_torchs_loader_reads_a_batch_at_once_in_our_order():
    dataset = ArrayDataset({"x": range(12)})
    loader = DataLoader(dataset, batch_size=5, sampler=OrderSampler(dataset, 5, shuffle=False))
    assert [batch["x"].tolist() for batch in loader] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
