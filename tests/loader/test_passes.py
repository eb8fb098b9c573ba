"""Passes and epochs: where an iteration begins, what ends it, and what the state is meanwhile."""

import gc
import itertools
import threading

import pytest

import headrace as hr
from headrace.errors import ArgumentError, StalePassError
from tests.loader.stand_ins import delivered, flat, ids_of, numbers

WORKERS = pytest.mark.parametrize("num_workers", [0, 2])


def loader_of(samples: int = 20, batch_size: int = 5, **options) -> hr.DataLoader:
    return hr.DataLoader(numbers(samples), batch_size=batch_size, **options)


def state_at(epoch: int, position: int, **options) -> dict:
    return {**loader_of(**options).state_dict(), "epoch": epoch, "position": position}


def take(loader: hr.DataLoader, count: int) -> list[list[int]]:
    return delivered(itertools.islice(loader, count))


@WORKERS
def test_the_last_batch_moves_on_to_the_next_epoch_even_without_seeing_the_end(num_workers):
    loader = loader_of(num_workers=num_workers)
    passing = iter(loader)
    for _ in range(len(loader)):
        next(passing)
    assert (loader.epoch, loader.position) == (1, 0)
    assert list(passing) == []
    assert (loader.epoch, loader.position) == (1, 0)


@WORKERS
def test_each_full_pass_is_an_epoch(num_workers):
    loader = loader_of(shuffle=True, num_workers=num_workers)
    orders = []
    for epoch in range(3):
        assert loader.epoch == epoch
        orders.append(flat(delivered(loader)))
    assert [sorted(order) for order in orders] == [list(range(20))] * 3
    assert len(set(map(tuple, orders))) == 3


@WORKERS
def test_breaking_off_makes_the_next_pass_the_next_epoch(num_workers):
    loader = loader_of(shuffle=True, num_workers=num_workers)
    first = take(loader, 1)
    assert (loader.epoch, loader.position) == (0, 5)
    again = take(loader, 1)
    assert (loader.epoch, loader.position) == (1, 5)
    assert first != again


@WORKERS
def test_a_pass_that_delivered_nothing_does_not_start_its_epoch(num_workers):
    loader = loader_of(num_workers=num_workers)
    iter(loader)
    assert (loader.epoch, loader.position) == (0, 0)
    iter(loader)
    assert len(delivered(loader)) == 4
    assert (loader.epoch, loader.position) == (1, 0)


def test_a_pass_that_delivered_nothing_leaves_a_loaded_state_to_the_next():
    loader = loader_of()
    loader.load_state_dict(state_at(2, 10))
    iter(loader)
    assert flat(delivered(loader)) == list(range(10, 20))
    assert (loader.epoch, loader.position) == (3, 0)


def test_a_loaded_state_is_used_once():
    loader = loader_of()
    loader.load_state_dict(state_at(0, 10))
    assert take(loader, 1) == [[10, 11, 12, 13, 14]]
    assert flat(delivered(loader)) == list(range(20))
    assert (loader.epoch, loader.position) == (2, 0)


def test_a_state_of_a_broken_off_pass_continues_it_in_the_same_loader():
    loader = loader_of(shuffle=True)
    first = take(loader, 2)
    loader.load_state_dict(loader.state_dict())
    assert sorted(flat(first + delivered(loader))) == list(range(20))


def test_a_loaded_state_at_the_start_of_an_epoch_begins_that_epoch():
    loader = loader_of()
    loader.load_state_dict(state_at(4, 0))
    assert len(delivered(loader)) == 4
    assert loader.epoch == 5


def test_a_loaded_state_that_leaves_too_few_samples_for_a_step_moves_on():
    loader = loader_of(batch_size=6, drop_last=True)
    loader.load_state_dict(state_at(0, 15))
    assert (loader.epoch, loader.position) == (1, 0)
    assert len(delivered(loader)) == 3
    assert loader.epoch == 2


def test_a_loaded_state_with_a_short_rest_gives_just_that_rest_without_drop_last():
    loader = loader_of(batch_size=6)
    loader.load_state_dict(state_at(0, 15))
    assert delivered(loader) == [[15, 16, 17, 18, 19]]


def test_set_epoch_makes_the_next_pass_that_epoch():
    loader, same = loader_of(shuffle=True), loader_of(shuffle=True)
    epochs = [delivered(same) for _ in range(4)]
    loader.set_epoch(3)
    assert loader.state_dict()["epoch"] == 3
    assert delivered(loader) == epochs[3]
    loader.set_epoch(1)
    assert delivered(loader) == epochs[1]
    assert delivered(loader) == epochs[2]


def test_set_epoch_leaves_a_loaded_state_of_the_same_epoch_alone():
    loader = loader_of()
    loader.load_state_dict(state_at(3, 10))
    loader.set_epoch(3)
    assert flat(delivered(loader)) == list(range(10, 20))


def test_set_epoch_puts_a_loaded_state_of_another_epoch_aside():
    loader = loader_of()
    loader.load_state_dict(state_at(3, 10))
    loader.set_epoch(4)
    assert flat(delivered(loader)) == list(range(20))
    assert loader.epoch == 5


def test_set_epoch_during_a_pass_leaves_that_pass_alone():
    loader = loader_of()
    passing = iter(loader)
    next(passing)
    loader.set_epoch(7)
    assert len(list(passing)) == 3
    assert loader.state_dict()["epoch"] == 1
    next(iter(loader))
    assert loader.epoch == 7


def test_a_trainer_that_calls_set_epoch_before_every_pass_resumes_exactly():
    seen = []
    loader = loader_of(shuffle=True)
    for batch in loader:
        seen += ids_of(batch)
        if loader.position == 10:
            break
    resumed = loader_of(shuffle=True)
    resumed.load_state_dict(loader.state_dict())
    for epoch in range(resumed.epoch, 2):
        resumed.set_epoch(epoch)
        seen += flat(delivered(resumed))
    assert sorted(seen[:20]) == sorted(seen[20:]) == list(range(20))


def test_seek_jumps_to_a_step_of_an_epoch():
    loader, same = loader_of(shuffle=True), loader_of(shuffle=True)
    epochs = [delivered(same) for _ in range(3)]
    loader.seek(epoch=2, step=3)
    assert (loader.epoch, loader.position) == (2, 15)
    assert delivered(loader) == epochs[2][3:]
    loader.seek(epoch=1)
    assert delivered(loader) == epochs[1]


def test_seek_to_the_end_of_an_epoch_begins_the_next():
    loader = loader_of()
    loader.seek(epoch=2, step=4)
    assert (loader.epoch, loader.position) == (3, 0)


@pytest.mark.parametrize(("epoch", "step"), [(-1, 0), (0, -1), (0, 5)])
def test_seek_outside_the_epochs_and_steps_is_refused(epoch, step):
    with pytest.raises(ArgumentError, match=f"epoch of 0 or more and a step in 0..4, got {epoch}, {step}"):
        loader_of().seek(epoch=epoch, step=step)


def test_a_negative_epoch_is_refused():
    with pytest.raises(ArgumentError, match="set_epoch: expected an epoch of 0 or more, got -1"):
        loader_of().set_epoch(-1)


@WORKERS
@pytest.mark.parametrize(
    ("end", "text"),
    [
        (iter, r"ended by a newer one; call iter\(loader\) for the current pass"),
        (
            lambda loader: loader.load_state_dict({**loader.state_dict(), "epoch": 3, "position": 10}),
            "at position 5 of epoch 0, was ended by a state of position 10 of epoch 3 that was loaded meanwhile; call",
        ),
        (lambda loader: loader.seek(epoch=2, step=1), r"ended by seek\(epoch=2, step=1\); call iter\(loader\)"),
    ],
    ids=["a new pass", "a loaded state", "seek"],
)
def test_a_pass_that_was_ended_says_so_and_by_what(num_workers, end, text):
    loader = loader_of(num_workers=num_workers)
    former = iter(loader)
    next(former)
    end(loader)
    for _ in range(2):
        with pytest.raises(StalePassError, match=text):
            next(former)


@WORKERS
def test_a_pass_that_is_ended_while_its_batch_is_on_its_way_delivers_it_no_more_and_leaves_progress_alone(num_workers):
    loader = loader_of(num_workers=num_workers, on_stats=lambda _: loader.seek(epoch=3, step=1), stats_seconds=1e-9)
    passing = iter(loader)
    with pytest.raises(StalePassError, match="was ended by seek"):
        list(passing)
    assert (loader.epoch, loader.position) == (3, 5)


def test_a_pass_may_be_ended_while_the_caller_s_thread_reads_for_it():
    def seeking(samples):
        thread = threading.Thread(target=loader.seek, kwargs={"epoch": 3})
        thread.start()
        thread.join()
        return samples

    loader = loader_of(collate_fn=seeking)
    with pytest.raises(StalePassError, match="was ended by seek"):
        list(loader)
    assert (loader.epoch, loader.position) == (3, 0)


@WORKERS
def test_a_finished_pass_stays_finished(num_workers):
    passing = iter(loader_of(num_workers=num_workers))
    assert len(list(passing)) == 4
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(passing)


@WORKERS
def test_a_pass_that_an_error_ended_says_so_instead_of_going_on_without_some_batches(num_workers):
    loader = hr.DataLoader(numbers(20, bad=[7]), batch_size=5, num_workers=num_workers)
    passing = iter(loader)
    next(passing)
    with pytest.raises(OSError, match="the disk is on fire"):
        next(passing)
    for _ in range(2):
        with pytest.raises(StalePassError, match=r"ended by OSError; to go on .*load_state_dict\(loader.state_d"):
            next(passing)


@WORKERS
def test_after_an_error_a_pass_can_be_taken_up_where_it_stood(num_workers):
    dataset = numbers(20, bad=[7])
    loader = hr.DataLoader(dataset, batch_size=5, num_workers=num_workers)
    with pytest.raises(OSError, match="the disk is on fire"):
        list(loader)
    dataset.source.bad = set()
    loader.load_state_dict(loader.state_dict())
    assert flat(delivered(loader)) == list(range(5, 20))


@WORKERS
def test_two_loaders_over_one_dataset_have_passes_of_their_own(num_workers):
    dataset = numbers(20)
    one, other = (hr.DataLoader(dataset, batch_size=5, num_workers=num_workers) for _ in range(2))
    pairs = [(ids_of(a), ids_of(b)) for a, b in zip(one, other, strict=True)]
    assert len(pairs) == 4
    assert all(a == b for a, b in pairs)


@WORKERS
def test_a_pass_outlives_the_loader_that_it_came_from(num_workers):
    loader = loader_of(num_workers=num_workers)
    passing = iter(loader)
    seen = [ids_of(next(passing))]
    del loader
    gc.collect()
    assert flat(seen + delivered(passing)) == list(range(20))
