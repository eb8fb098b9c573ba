"""IterableView: a map-style dataset as a stream that splits itself over ranks and workers (played in this process)."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, default_collate

import headrace as hr
from headrace import ArgumentError, ArrayDataset, ResumeError, StalePassError
from tests.datasets.parts import PerRow, Tenfold, Workers, columns, counting, numbers, same, watched

SEEDS = itertools.count()


def fresh_pass(view, num_workers: int) -> list:
    """A pass of a DataLoader whose workers start anew in each pass."""
    return Workers(view, num_workers, base_seed=next(SEEDS)).run()


def epoch_of(samples: int, epoch: int = 0, **options) -> list[int]:
    """The plain list: all ids of an epoch."""
    view = counting(samples).to_iterable_dataset(batch_size=1, shuffle=True, **options)
    view.set_epoch(epoch)
    return numbers(view)


class TestEachSampleOnce:
    @pytest.mark.parametrize("world", [1, 2, 3])
    @pytest.mark.parametrize("num_workers", [0, 1, 2, 3, 7])
    @pytest.mark.parametrize("size", [None, 1, 4])
    def test_over_ranks_and_workers_in_every_epoch(self, world, num_workers, size):
        n = 66
        views = [
            counting(n).to_iterable_dataset(size, shuffle=True, rank=rank, world_size=world) for rank in range(world)
        ]
        epochs = []
        for _ in range(3):
            items = [fresh_pass(view, num_workers) for view in views]
            epochs.append([i for of_rank in items for i in numbers(of_rank)])
            assert sorted(epochs[-1]) == list(range(n))
        assert len({tuple(epoch) for epoch in epochs}) == 3

    @given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 3), st.integers(0, 5), st.booleans(), st.booleans())
    def test_batches_come_in_the_order_of_the_steps_for_any_number_of_workers(
        self, n, size, world, num_workers, shuffle, pad_last
    ):
        if not pad_last and 0 < n % (size * world) < world:
            return
        options = {"batch_size": size, "shuffle": shuffle, "pad_last": pad_last, "world_size": world, "rank": world - 1}
        expected = list(hr.DataLoader(counting(n), **options))
        assert same(fresh_pass(counting(n).to_iterable_dataset(**options), num_workers), expected)

    def test_single_samples_of_one_worker_come_in_the_order_of_the_epoch(self):
        for num_workers in (0, 1):
            view = counting(3000).to_iterable_dataset(shuffle=True)
            assert numbers(fresh_pass(view, num_workers)) == epoch_of(3000)

    def test_more_workers_than_steps_leave_some_without_work(self):
        view = counting(10).to_iterable_dataset(batch_size=8)
        assert numbers(fresh_pass(view, 5)) == list(range(10))

    def test_drop_last_leaves_out_what_does_not_fill_a_step(self):
        view = counting(10).to_iterable_dataset(batch_size=4, drop_last=True)
        assert numbers(fresh_pass(view, 2)) == list(range(8))
        assert len(view) == 2

    def test_padded_batches_say_which_rows_are_real(self):
        views = [
            counting(9).to_iterable_dataset(batch_size=4, pad_last=True, rank=rank, world_size=2) for rank in range(2)
        ]
        batches = [batch for view in views for batch in fresh_pass(view, 2)]
        assert {len(batch["x"]) for batch in batches} == {4}
        assert sorted(int(x) for batch in batches for x in batch["x"][batch["__valid__"]]) == list(range(9))

    def test_a_padded_batch_of_a_tuple_dataset_has_the_flags_as_its_last_column(self):
        view = ArrayDataset(np.arange(3)).to_iterable_dataset(batch_size=2, pad_last=True)
        assert [[column.tolist() for column in batch] for batch in view] == [
            [[0, 1], [True, True]],
            [[2, 0], [True, False]],
        ]

    def test_what_a_user_does_to_one_batch_in_place_does_not_reach_another(self):
        view = counting(12).to_iterable_dataset(batch_size=4, pad_last=True)
        batches = iter(view)
        first = next(batches)
        first["x"].zero_()
        first["__valid__"].zero_()
        assert [batch["__valid__"].all().item() for batch in batches] == [True, True]


class TestBatches:
    def test_they_are_those_that_a_loader_over_a_dataset_written_by_hand_gives(self):
        for as_tuple in (False, True):
            view = ArrayDataset(columns(), as_tuple=as_tuple).to_iterable_dataset(batch_size=5)
            expected = list(DataLoader(PerRow(columns(), as_tuple=as_tuple), batch_size=5))
            assert same(list(DataLoader(view, batch_size=None)), expected)

    def test_each_batch_is_one_read(self):
        dataset = counting(20)
        source = watched(dataset)
        list(dataset.to_iterable_dataset(batch_size=8))
        assert [len(read) for read in source.reads] == [8, 8, 4]

    def test_a_global_batch_size_is_shared_by_the_ranks(self):
        views = [counting(20).to_iterable_dataset(global_batch_size=5, rank=rank, world_size=2) for rank in range(2)]
        assert [[len(batch["x"]) for batch in view] for view in views] == [[2] * 4, [3] * 4]


class TestSingleSamples:
    @pytest.mark.parametrize("as_tuple", [False, True])
    def test_torchs_default_collation_makes_the_batches_of_a_dataset_written_by_hand_of_them(self, as_tuple):
        view = ArrayDataset(columns(), as_tuple=as_tuple).to_iterable_dataset()
        assert same(
            list(DataLoader(view, batch_size=5)), list(DataLoader(PerRow(columns(), as_tuple=as_tuple), batch_size=5))
        )

    def test_they_are_read_many_at_once_and_collated_by_a_copy_of_a_slice_not_one_by_one(self, monkeypatch):
        dataset = counting(2048)
        source, stacked = watched(dataset), []
        monkeypatch.setattr(torch, "stack", lambda *args, **kwargs: stacked.append(args))
        batches = list(DataLoader(dataset.to_iterable_dataset(), batch_size=256))
        assert numbers(batches) == list(range(2048))
        assert stacked == []
        assert [len(read) for read in source.reads] == [1024, 1024]
        assert all(batch["x"].untyped_storage().nbytes() == batch["x"].nbytes for batch in batches)

    def test_batches_that_cross_from_one_read_to_the_next_are_right_too(self):
        batches = list(DataLoader(counting(2500).to_iterable_dataset(shuffle=True), batch_size=300))
        assert [len(batch["x"]) for batch in batches] == [300] * 8 + [100]
        assert numbers(batches) == epoch_of(2500)

    def test_large_samples_are_read_few_at_a_time(self):
        dataset = ArrayDataset({"x": np.zeros((20, 1 << 18), np.float32)})  # 1 MiB each
        source = watched(dataset)
        assert len(list(dataset.to_iterable_dataset())) == 20
        assert {len(read) for read in source.reads} == {4}

    def test_a_user_may_change_keep_and_shuffle_them(self):
        samples = list(counting(20).to_iterable_dataset())
        samples[3]["x"] = torch.tensor(-1)
        assert default_collate(samples)["x"].tolist() == [0, 1, 2, -1, *range(4, 20)]
        assert default_collate(samples[::-2])["x"].tolist()[:3] == [19, 17, 15]

    def test_they_have_no_length(self):
        view = counting(20).to_iterable_dataset()
        with pytest.raises(TypeError, match=r"single samples has no length; give to_iterable_dataset\(\) a batch_size"):
            len(view)


class TestLength:
    def test_it_is_a_full_epochs_batches_on_this_rank_for_torchs_loader_too(self):
        view = counting(51).to_iterable_dataset(batch_size=4, rank=0, world_size=3)
        loader = DataLoader(view, batch_size=None)
        assert len(view) == len(loader) == 5
        assert len(list(loader)) == 5


class TestRefusals:
    @pytest.mark.parametrize("options", [{"batch_size": 4}, {"global_batch_size": 8}])
    def test_uneven_samples_over_many_ranks_are_refused_with_the_two_ways_out(self, options):
        with pytest.raises(ArgumentError, match="the last step would hold 1 samples for 2 ranks") as caught:
            counting(9).to_iterable_dataset(**options, rank=0, world_size=2)
        assert "give drop_last=True to leave them out, or pad_last=True to fill the step up" in str(caught.value)

    def test_uneven_single_samples_are_refused_with_what_works_without_batches(self):
        said = (
            r"the last step would hold 1 samples for 2 ranks .*\n"
            "  give drop_last=True to leave them out, or another batch_size or world_size$"
        )
        with pytest.raises(ArgumentError, match=said):
            counting(9).to_iterable_dataset(rank=0, world_size=2)
        alone = counting(8).to_iterable_dataset()
        next(iter(alone))
        with pytest.raises(ArgumentError, match=said):
            counting(8).to_iterable_dataset(rank=0, world_size=2).load_state_dict(alone.state_dict())
        for options in ({"drop_last": True}, {"batch_size": 5}, {"world_size": 3}):
            assert list(counting(9).to_iterable_dataset(**{"rank": 0, "world_size": 2, **options}))

    def test_padding_of_single_samples_is_refused(self):
        with pytest.raises(ArgumentError, match="pad_last: expected a batch_size with it"):
            counting(9).to_iterable_dataset(pad_last=True)

    def test_a_subclass_that_makes_its_samples_itself_is_refused_with_the_ways_out(self):
        with pytest.raises(ArgumentError, match=r"Tenfold makes its samples by a __getitem__ of its own") as caught:
            Tenfold([1]).to_iterable_dataset()
        assert "give it to headrace.DataLoader, or to torch's with an OrderSampler" in str(caught.value)

    def test_headraces_loader_refuses_the_view_and_names_what_to_give(self):
        with pytest.raises(ArgumentError, match="give the dataset that it was made from"):
            hr.DataLoader(counting(9).to_iterable_dataset())

    def test_it_is_an_iterable_dataset(self):
        assert isinstance(counting(9).to_iterable_dataset(), IterableDataset)


@pytest.fixture(params=[0, 1, 3], ids=["no worker", "one worker", "three workers"])
def num_workers(request) -> int:
    return request.param


class TestEpochs:
    def test_they_advance_by_themselves_in_fresh_and_in_persistent_workers(self, num_workers):
        expected = [epoch_of(60, epoch) for epoch in range(4)]
        view = counting(60).to_iterable_dataset(batch_size=7, shuffle=True)
        assert [numbers(fresh_pass(view, num_workers)) for _ in range(4)] == expected
        view = counting(60).to_iterable_dataset(batch_size=7, shuffle=True)
        persistent = Workers(view, num_workers, base_seed=next(SEEDS))
        assert [numbers(persistent.run()) for _ in range(4)] == expected

    def test_they_advance_where_torch_is_seeded_alike_before_each_pass_of_persistent_workers(self):
        view = counting(60).to_iterable_dataset(batch_size=7, shuffle=True)
        persistent = Workers(view, 2, base_seed=5)
        assert [numbers(persistent.run()) for _ in range(3)] == [epoch_of(60, epoch) for epoch in range(3)]

    def test_set_epoch_chooses_the_epoch_of_the_next_pass(self, num_workers):
        view = counting(60).to_iterable_dataset(batch_size=7, shuffle=True)
        persistent = Workers(view, num_workers, base_seed=next(SEEDS))
        got = []
        for epoch in (3, 1):
            view.set_epoch(epoch)
            got += [numbers(persistent.run()), numbers(fresh_pass(view, num_workers))]
        assert got == [epoch_of(60, epoch) for epoch in (3, 4, 1, 2)]

    def test_set_epoch_before_each_pass_as_trainers_call_it_changes_nothing(self, num_workers):
        view = counting(60).to_iterable_dataset(batch_size=7, shuffle=True)
        for epoch in range(3):
            view.set_epoch(epoch)
            view.set_epoch(epoch)
            assert numbers(fresh_pass(view, num_workers)) == epoch_of(60, epoch)

    def test_set_epoch_works_where_torch_is_seeded_alike_before_each_pass(self):
        view = counting(60).to_iterable_dataset(batch_size=7, shuffle=True)
        for epoch in (0, 1, 5, 5):
            view.set_epoch(epoch)
            assert numbers(Workers(view, 3, base_seed=77).run()) == epoch_of(60, epoch)

    @pytest.mark.parametrize("epoch", [-1, 1.5, 2**63])
    def test_what_is_no_epoch_is_refused(self, epoch):
        with pytest.raises(ArgumentError, match=f"set_epoch: expected an epoch of 0 or more, got {epoch}"):
            counting(5).to_iterable_dataset().set_epoch(epoch)

    def test_the_pass_after_one_that_was_broken_off_while_some_workers_never_started_is_the_next_epoch(self):
        view = counting(60).to_iterable_dataset(batch_size=7, shuffle=True)
        for started in ([0], [2], [], [0, 2]):
            asked = Workers(view, 3, base_seed=next(SEEDS)).start()
            for number in started:
                asked[number]()
        assert numbers(fresh_pass(view, 3)) == epoch_of(60, 3)


class TestWorkersThatComeLate:
    """A worker may take seconds to start; by then its pass may be over."""

    def test_one_of_an_older_pass_does_not_move_the_newer_pass_on(self):
        view = counting(60).to_iterable_dataset(batch_size=7, shuffle=True)
        old = Workers(view, 2, base_seed=next(SEEDS)).start()
        old[0]()
        new = Workers(view, 2, base_seed=next(SEEDS)).start()
        first = new[0]()
        old[1]()
        second = new[1]()
        assert numbers([first, second]) == epoch_of(60, 1)[:14]
        assert (view.state_dict(2)["epoch"], view.state_dict(2)["position"]) == (1, 14)
        assert numbers(fresh_pass(view, 2)) == epoch_of(60, 2)

    def test_one_of_a_pass_that_began_before_a_load_says_so_and_takes_nothing_from_the_loaded_epoch(self):
        view = counting(60).to_iterable_dataset(batch_size=7, shuffle=True)
        old = Workers(view, 2, base_seed=next(SEEDS)).start()
        old[0]()
        view.load_state_dict({**view.state_dict(0), "epoch": 4, "position": 21})
        with pytest.raises(StalePassError, match="ended by a newer one, or by a loaded state"):
            old[1]()
        assert numbers(fresh_pass(view, 2)) == epoch_of(60, 4)[21:]

    def test_a_pass_that_no_worker_has_begun_takes_the_state_that_is_loaded_meanwhile(self):
        view = counting(60).to_iterable_dataset(batch_size=7, shuffle=True)
        workers = Workers(view, 2, base_seed=next(SEEDS))
        asked = workers.start()
        view.load_state_dict({**view.state_dict(), "epoch": 4, "position": 21})
        assert numbers([ask() for ask in asked]) == epoch_of(60, 4)[21:35]

    def test_the_main_process_may_look_at_the_data_between_the_passes_of_persistent_workers(self):
        view = counting(60).to_iterable_dataset(batch_size=7, shuffle=True)
        workers = Workers(view, 2, base_seed=next(SEEDS))
        assert numbers(workers.run()) == epoch_of(60, 0)
        assert numbers(view) == epoch_of(60, 1)
        asked = workers.start()
        first = asked[0]()
        next(iter(view))
        assert numbers([first, asked[1]()]) == epoch_of(60, 2)[:14]


class TestState:
    @given(st.data(), st.integers(20, 120), st.booleans())
    def test_a_run_goes_on_exactly_under_any_other_world_size_batch_size_and_workers(self, data, n, shuffle):
        expected = numbers(counting(n).to_iterable_dataset(1, shuffle=shuffle))
        consumed, state = 0, None
        while consumed < n:
            size, world = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 3))
            num_workers = data.draw(st.integers(0, 3))
            if 0 < (n - consumed) % (size * world) < world or 0 < n % (size * world) < world:
                size, world = 1, 1
            views = [
                counting(n).to_iterable_dataset(size, shuffle=shuffle, rank=rank, world_size=world)
                for rank in range(world)
            ]
            for view in views:
                if state is not None:
                    view.load_state_dict(state)
            passes = [fresh_pass(view, num_workers) for view in views]
            steps = data.draw(st.integers(1, len(passes[0])))
            got = numbers([batch for step in range(steps) for batch in (of_rank[step] for of_rank in passes)])
            assert got == expected[consumed : consumed + len(got)]
            consumed += len(got)
            states = [view.state_dict(steps) for view in views]
            assert all(one == states[0] for one in states)
            state = states[0]
        assert (state["epoch"], state["position"]) == (1, 0)

    def test_a_load_reaches_fresh_and_persistent_workers_with_its_order(self, num_workers):
        saver = counting(60).to_iterable_dataset(5, shuffle="window", shuffle_window=20, lanes=2, seed=9)
        whole = numbers(saver)
        saved = {**saver.state_dict(), "epoch": 0, "position": 25}
        for kind in ("fresh", "persistent"):
            view = counting(60).to_iterable_dataset(7)
            workers = Workers(view, num_workers, base_seed=next(SEEDS))
            assert numbers(workers.run()) == list(range(60))
            view.load_state_dict(saved)
            resumed = workers if kind == "persistent" else Workers(view, num_workers, base_seed=next(SEEDS))
            # lanes order each step, so only its set is the same for another batch size
            assert sorted(numbers(resumed.run())) == sorted(whole[25:])
            next_epoch = {**saved, "epoch": 1, "position": 0}
            assert view.state_dict(-(-35 // 7)) == next_epoch
            saver.load_state_dict(next_epoch)
            assert sorted(numbers(resumed.run())[:56]) != list(range(56))

    def test_single_samples_count_as_steps(self, num_workers):
        view = counting(60).to_iterable_dataset(shuffle=True)
        fresh_pass(view, num_workers)
        resumed = counting(60).to_iterable_dataset(shuffle=True)
        resumed.load_state_dict(view.state_dict(22))
        assert sorted(numbers(fresh_pass(resumed, num_workers))) == sorted(epoch_of(60)[22:])

    def test_without_workers_steps_may_be_left_out(self):
        view = counting(20).to_iterable_dataset(batch_size=8)
        states = [view.state_dict(), *(view.state_dict() for _ in view)]
        assert [(state["epoch"], state["position"]) for state in states] == [(0, 0), (0, 8), (0, 16), (1, 0)]

    def test_with_workers_steps_must_be_given(self):
        view = counting(20).to_iterable_dataset(batch_size=8)
        fresh_pass(view, 2)
        with pytest.raises(
            ArgumentError, match="expected steps=, the number of batches that the training loop has taken"
        ):
            view.state_dict()

    def test_with_workers_after_a_pass_without_them_too(self):
        view = counting(20).to_iterable_dataset(batch_size=8)
        list(view)
        fresh_pass(view, 2)
        with pytest.raises(ArgumentError, match="expected steps="):
            view.state_dict()
        view.load_state_dict(view.state_dict(1))
        fresh_pass(view, 2)
        with pytest.raises(ArgumentError, match="expected steps="):
            view.state_dict()

    def test_steps_that_the_pass_has_not_are_refused(self):
        view = counting(20).to_iterable_dataset(batch_size=8)
        fresh_pass(view, 2)
        with pytest.raises(ArgumentError, match=r"steps: expected the steps taken in this pass, 0\.\.3, got 4"):
            view.state_dict(4)

    def test_set_epoch_of_the_epoch_that_was_loaded_keeps_the_position(self):
        view = counting(60).to_iterable_dataset(batch_size=7, shuffle=True)
        view.load_state_dict({**view.state_dict(), "epoch": 2, "position": 21})
        view.set_epoch(2)
        assert numbers(fresh_pass(view, 2)) == epoch_of(60, 2)[21:]

    def test_another_datasets_state_and_another_explicit_seed_are_refused(self):
        saved = counting(20).to_iterable_dataset(8, seed=1).state_dict()
        with pytest.raises(ResumeError, match="the dataset is not the one"):
            counting(21).to_iterable_dataset(8).load_state_dict(saved)
        with pytest.raises(ResumeError, match=r"seed differs from the state's\n  state: seed=1\n  now:   seed=2"):
            counting(20).to_iterable_dataset(8, seed=2).load_state_dict(saved)

    def test_it_is_interchangeable_with_the_state_of_headraces_own_loader(self):
        loader = hr.DataLoader(counting(40), batch_size=8, shuffle=True, seed=2**63 + 5)
        batches = iter(loader)
        first = numbers([next(batches)])
        view = counting(40).to_iterable_dataset(3)
        view.load_state_dict(loader.state_dict())
        assert first + numbers(fresh_pass(view, 2)) == numbers(
            hr.DataLoader(counting(40), shuffle=True, seed=2**63 + 5)
        )


class TestOnePass:
    """Without workers, a newer pass or a loaded state ends the former pass, as in headrace.DataLoader."""

    def test_a_newer_pass_ends_the_former_one(self):
        view = counting(20).to_iterable_dataset(batch_size=4)
        old = iter(view)
        next(old)
        new = iter(view)
        next(new)
        with pytest.raises(StalePassError, match="this pass was ended by a newer one, or by a loaded state"):
            next(old)
        assert (view.state_dict()["epoch"], view.state_dict()["position"]) == (1, 4)
        assert len(list(new)) == 4

    def test_a_loaded_state_ends_it_too(self):
        view = counting(20).to_iterable_dataset(batch_size=4)
        old = iter(view)
        next(old)
        saved = {**view.state_dict(), "position": 16}
        view.load_state_dict(saved)
        with pytest.raises(StalePassError, match="ended by a newer one, or by a loaded state"):
            next(old)
        assert view.state_dict() == saved
        assert numbers(view) == [16, 17, 18, 19]
