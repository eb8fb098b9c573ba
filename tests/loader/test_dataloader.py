"""DataLoader: what is delivered, compared with plain lists, and what is refused."""

import json
import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import IterableDataset, TensorDataset

import headrace as hr
from headrace.errors import ArgumentError, ResumeError, StalePassError
from tests.loader.stand_ins import delivered, flat, ids_of, numbers, over_ranks, plain_steps, together
from tests.order.strategies import examples

LAST_STEPS = [{}, {"drop_last": True}, {"pad_last": True}]


def state_of(dataset: Any, **options: Any) -> dict[str, Any]:
    return hr.DataLoader(dataset, rank=0, world_size=1, **options).state_dict()


@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("shuffle", [False, True, "global", "window"])
@pytest.mark.parametrize("last", LAST_STEPS, ids=str)
@pytest.mark.parametrize(("batch_size", "world_size"), [(1, 1), (7, 1), (4, 3), (50, 1), (103, 1)])
def test_every_rank_gets_just_the_batches_of_the_plain_lists(num_workers, shuffle, last, batch_size, world_size):
    dataset = numbers(103)
    options = {"shuffle": shuffle, "seed": 5, "shuffle_window": 30 if shuffle == "window" else None}
    for rank in range(world_size):
        place = {"rank": rank, "world_size": world_size}
        loader = hr.DataLoader(dataset, batch_size=batch_size, num_workers=num_workers, **options, **last, **place)
        for epoch in range(2):
            state = loader.state_dict()
            assert state["epoch"] == epoch
            assert delivered(loader) == plain_steps(state, batch_size * world_size, **last, **place)


@st.composite
def plans(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of a loader, with a step that has a sample for every rank of up to four."""
    shuffle = draw(st.sampled_from([False, "global", "window"]))
    return {
        "shuffle": shuffle,
        "seed": draw(st.integers(0, 2**64 - 1)),
        "lanes": draw(st.sampled_from([None, 1, 2, 8])),
        "shuffle_window": draw(st.integers(1, 80)) if shuffle == "window" else None,
        "global_batch_size": draw(st.integers(4, 40)),
        "drop_last": (drop := draw(st.booleans())),
        "pad_last": not drop,
    }


@given(plans(), st.integers(40, 120), st.sampled_from([0, 0, 0, 2]))
@examples(60)
def test_a_step_put_together_over_the_ranks_is_the_same_for_any_number_of_them(plan, samples, num_workers):
    dataset = numbers(samples)
    steps = [list(together(over_ranks(dataset, world, num_workers=num_workers, **plan))) for world in (1, 2, 3, 4)]
    assert steps[0] == steps[1] == steps[2] == steps[3]
    assert len(steps[0]) == len(hr.DataLoader(dataset, rank=0, world_size=1, **plan))


@given(plans(), st.integers(40, 120))
@examples(60)
def test_every_sample_comes_exactly_once_an_epoch(plan, samples):
    loaders = over_ranks(numbers(samples), 3, **plan)
    real: list[int] = []
    for batches in zip(*loaders, strict=True):
        for batch in batches:
            valid = batch.get("__valid__", torch.ones(len(batch["x"]), dtype=torch.bool)).tolist()
            real += [sample for sample, is_valid in zip(ids_of(batch), valid, strict=True) if is_valid]
    assert len(set(real)) == len(real) == samples - loaders[0].dropped
    assert not plan["pad_last"] or sorted(real) == list(range(samples))


@pytest.mark.parametrize("shuffle", [True, "window"])
def test_epochs_and_seeds_have_orders_of_their_own(shuffle):
    dataset = numbers(200)
    loader = hr.DataLoader(dataset, batch_size=50, shuffle=shuffle, seed=1)
    other = hr.DataLoader(dataset, batch_size=50, shuffle=shuffle, seed=2)
    orders = [flat(delivered(loader)), flat(delivered(loader)), flat(delivered(other))]
    assert len(set(map(tuple, orders))) == 3


def test_batches_have_the_form_of_the_dataset():
    x, y = np.arange(12.0).reshape(6, 2), np.arange(6)
    as_dict = next(iter(hr.DataLoader(hr.ArrayDataset({"x": x, "y": y}), batch_size=3)))
    as_list = next(iter(hr.DataLoader(hr.ArrayDataset(x, y), batch_size=3)))
    assert list(as_dict) == ["x", "y"]
    assert isinstance(as_list, list)
    for one, other in zip(as_dict.values(), as_list, strict=True):
        assert torch.equal(one, other)
        assert isinstance(one, torch.Tensor)
    assert as_dict["x"].dtype == torch.float64
    assert as_dict["y"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_structured_columns_and_bfloat16_come_as_torch_would_have_them(num_workers):
    points = np.array([(1, 0.5), (2, 1.5), (3, 2.5)], [("n", "i4"), ("w", "f8")])
    half = torch.tensor([1.5, 2.5, 3.5], dtype=torch.bfloat16)
    loader = hr.DataLoader(hr.ArrayDataset({"p": points, "h": half}), batch_size=2, num_workers=num_workers)
    first, second = loader
    assert first["p"]["n"].tolist() == [1, 2]
    assert second["p"]["w"].tolist() == [2.5]
    assert torch.equal(torch.cat([first["h"], second["h"]]), half)


def test_views_of_a_dataset_are_loaded_like_any_other():
    parts = numbers(100).split({"train": 0.8, "val": 0.2}, seed=3)
    seen = [sorted(flat(delivered(hr.DataLoader(part, batch_size=9, shuffle=True)))) for part in parts.values()]
    assert [len(part) for part in seen] == [80, 20]
    assert sorted(flat(seen)) == list(range(100))


def test_len_is_the_number_of_steps_of_a_full_epoch():
    def length(**options: Any) -> int:
        return len(hr.DataLoader(numbers(100), **options))

    assert length(batch_size=32) == 4
    assert length(batch_size=32, drop_last=True) == 3
    assert length(batch_size=32, pad_last=True) == 4
    assert length(batch_size=8, rank=1, world_size=4) == 4
    assert length(global_batch_size=40, rank=1, world_size=4) == 3
    assert length() == 100


def test_the_samples_that_drop_last_leaves_out_are_reported():
    assert hr.DataLoader(numbers(100), batch_size=32, drop_last=True).dropped == 4
    assert hr.DataLoader(numbers(100), batch_size=32).dropped == 0


def test_a_global_batch_size_need_not_be_divisible_by_the_ranks():
    loaders = over_ranks(numbers(100), 3, global_batch_size=10)
    sizes = [[len(batch["x"]) for batch in loader] for loader in loaders]
    assert [sorted(step) for step in zip(*sizes, strict=True)] == [[3, 3, 4]] * 10


# -- the last step ----------------------------------------------------------------------------------------------------


def test_pad_last_marks_the_repeats_in_every_batch_of_dicts():
    batches = list(hr.DataLoader(numbers(5), batch_size=2, pad_last=True))
    assert [batch["__valid__"].tolist() for batch in batches] == [[True, True], [True, True], [True, False]]
    assert all(batch["__valid__"].dtype == torch.bool for batch in batches)


def test_pad_last_marks_the_repeats_in_the_last_column_of_lists():
    *_, last = hr.DataLoader(numbers(5, as_tuple=True), batch_size=2, pad_last=True, num_workers=1)
    assert last[0].tolist() == [[4], [0]]
    assert last[-1].tolist() == [True, False]


def test_pad_last_needs_batches_that_can_carry_a_column():
    loader = hr.DataLoader([1, 2, 3], batch_size=2, pad_last=True)
    with pytest.raises(ArgumentError, match="expected batches that are dicts or lists, to carry '__valid__', got Ten"):
        next(iter(loader))


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_evaluation_over_many_ranks_is_exact_with_pad_last(world_size):
    values = np.random.default_rng(0).integers(0, 1000, 101)
    loaders = over_ranks(hr.ArrayDataset({"v": values}), world_size, batch_size=8, shuffle=True, pad_last=True)
    total = count = 0
    for loader in loaders:
        for batch in loader:
            assert len(batch["v"]) == 8
            total += int(batch["v"][batch["__valid__"]].sum())
            count += int(batch["__valid__"].sum())
    assert (total, count) == (values.sum(), 101)


def test_a_last_step_with_fewer_samples_than_ranks_is_refused_naming_both_ways_out():
    with pytest.raises(ArgumentError, match="the last step would hold 1 samples for 4 ranks") as caught:
        hr.DataLoader(numbers(17), batch_size=4, rank=0, world_size=4)
    assert "drop_last=True" in str(caught.value)
    assert "pad_last=True" in str(caught.value)


# -- state ------------------------------------------------------------------------------------------------------------


def test_a_state_is_small_json_and_the_same_on_all_ranks():
    loaders = over_ranks(numbers(1000), 4, batch_size=8, shuffle="window", seed=2**64 - 1, lanes=2)
    passes = [iter(loader) for loader in loaders]
    for batches in passes:
        next(batches), next(batches)
    states = [loader.state_dict() for loader in loaders]
    assert states[0] == states[1] == states[2] == states[3]
    assert states[0]["position"] == 64
    assert len(json.dumps(states[0])) < 1024
    assert json.loads(json.dumps(states[0])) == states[0]
    assert list(states[0]) == [
        *("version", "epoch", "position", "seed", "shuffle", "lanes", "window", "samples", "fingerprint")
    ]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_state_is_that_of_the_last_delivered_batch_however_far_threads_read_ahead(num_workers):
    loader = hr.DataLoader(numbers(100), batch_size=5, num_workers=num_workers)
    positions = [loader.position for _ in loader]
    assert positions == [*range(5, 100, 5), 0]


def test_order_parameters_left_at_their_defaults_are_taken_from_the_state():
    dataset = numbers(100)
    saved = hr.DataLoader(dataset, batch_size=5, shuffle="window", seed=9, lanes=4, shuffle_window=40)
    next(iter(saved))
    plain = hr.DataLoader(dataset, batch_size=8)
    plain.load_state_dict(saved.state_dict())
    assert plain.state_dict() == saved.state_dict()
    assert delivered(plain) == plain_steps(saved.state_dict(), 8)


@pytest.mark.parametrize(("name", "then", "now"), [("seed", 1, 2), ("shuffle", True, False), ("lanes", 1, 2)])
def test_an_explicit_order_parameter_that_differs_from_the_state_s_is_refused(name, then, now):
    dataset = numbers(100)
    state = hr.DataLoader(dataset, batch_size=5, **{"shuffle": True, name: then}).state_dict()
    loader = hr.DataLoader(dataset, batch_size=5, **{"shuffle": True, name: now})
    live = iter(loader)
    next(live)
    with pytest.raises(ResumeError, match=f"cannot resume: {name} differs from the state's"):
        loader.load_state_dict(state)
    assert ids_of(next(live))  # what was refused changed nothing
    assert loader.position == 10


def test_a_state_of_another_dataset_is_refused():
    state = state_of(numbers(100))
    with pytest.raises(ResumeError, match="the dataset is not the one") as caught:
        hr.DataLoader(numbers(99)).load_state_dict(state)
    assert "100 samples" in str(caught.value)
    assert "99 samples" in str(caught.value)


def test_a_state_that_leaves_fewer_samples_than_ranks_is_refused_on_load():
    dataset = numbers(20)
    saved = hr.DataLoader(dataset, batch_size=9)
    passing = iter(saved)
    next(passing), next(passing)
    loader = hr.DataLoader(dataset, batch_size=1, rank=0, world_size=4)
    with pytest.raises(ArgumentError, match="the last step would hold 2 samples for 4 ranks"):
        loader.load_state_dict(saved.state_dict())


# -- arguments --------------------------------------------------------------------------------------------------------


class Endless(IterableDataset):
    def __iter__(self):
        return iter(range(3))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batch_size": 0}, "batch_size: expected a number of samples, 1 or more, got 0"),
        ({"batch_size": 2.5}, "batch_size: expected a number of samples, 1 or more, got 2.5"),
        ({"batch_size": None}, "batch_size: expected a number of samples, got None"),
        ({"batch_size": 4, "global_batch_size": 8}, "expected one of them, got 4 and 8"),
        ({"global_batch_size": 2, "rank": 0, "world_size": 4}, "at least one sample for each of 4 ranks, got 2"),
        ({"batch_size": 300, "drop_last": True}, "no step: expected at least 300 samples with drop_last=True, got 100"),
        ({"drop_last": True, "pad_last": True}, "drop_last and pad_last: expected at most one of them, got both"),
        ({"shuffle": "yes"}, 'shuffle: expected False, True, "global" or "window", got \'yes\''),
        ({"shuffle": True, "shuffle_window": 5}, "shuffle_window: expected no window with shuffle='global', got 5"),
        ({"lanes": 3}, "lanes: expected a power of two in 1..65536, got 3"),
        ({"rank": 1}, "rank and world_size: expected both or neither"),
        ({"rank": 2, "world_size": 2}, "expected 0 <= rank < world_size, got rank=2, world_size=2"),
        ({"num_workers": -1}, "num_workers: expected a number of threads or processes, 0 or more, got -1"),
        ({"num_workers": True}, "num_workers: expected a number of threads or processes, 0 or more, got True"),
        ({"worker_type": "process"}, 'worker_type: "process" needs num_workers of 1 or more, got 0'),
        ({"worker_type": "fiber"}, 'worker_type: expected None, "thread" or "process", got \'fiber\''),
        ({"persistent_workers": 1}, "persistent_workers: expected True or False, got 1"),
        ({"persistent_workers": None}, "persistent_workers: expected True or False, got None"),
        ({"seed_samples": "yes"}, "seed_samples: expected True or False, got 'yes'"),
        ({"seed_samples": True, "num_workers": 2}, "seed_samples: expected worker processes, or num_workers=0, with"),
        ({"worker_init_fn": print}, "worker_init_fn: workers are threads of this process here"),
        (
            {"worker_init_fn": 5, "num_workers": 1, "worker_type": "process"},
            "worker_init_fn: expected a function of a worker's number, got 5",
        ),
        ({"multiprocessing_context": "fork"}, "multiprocessing_context: expected .*, got 'fork'"),
        ({"timeout": -1, "num_workers": 1}, r"timeout: expected seconds, 0 or more \(0 for no limit\), got -1"),
        ({"timeout": float("nan"), "num_workers": 1}, "timeout: expected seconds, .*, got nan"),
        ({"timeout": 5}, "timeout: expected num_workers of 1 or more with it, got timeout=5 and num_workers=0"),
        ({"on_stats": 5}, r"on_stats: expected a function of \(stats\), got 5"),
        ({"stats_seconds": 0}, "stats_seconds: expected more than 0 seconds, got 0"),
        (
            {"prefetch_factor": 2},
            "prefetch_factor: expected 1 or more, with 1 or more workers, got 2 and num_w",
        ),
        ({"prefetch_factor": 0, "num_workers": 1}, "prefetch_factor: expected 1 or more, .* got 0"),
        ({"prefetch_bytes": None}, "prefetch_bytes: expected a number of bytes, 1 or more, got None"),
        ({"prefetch_bytes": 0}, "prefetch_bytes: expected a number of bytes, 1 or more, got 0"),
        ({"on_error": "ignore"}, 'on_error: expected "raise" or "skip", got \'ignore\''),
        ({"max_errors": -1}, "max_errors: expected a number of samples, 0 or more, got -1"),
        ({"seed": 2**64}, "seed: expected a 64-bit integer"),
    ],
    ids=str,
)
def test_arguments_that_cannot_work_are_refused_at_construction(options, text):
    with pytest.raises(ArgumentError, match=text):
        hr.DataLoader(numbers(100), **options)


@pytest.mark.parametrize(
    ("dataset", "text"),
    [
        (Endless(), "expected a map-style dataset, got Endless, an IterableDataset"),
        ([], "expected at least one sample, got an empty list"),
        (object(), "which has no __getitem__"),
    ],
)
def test_datasets_that_cannot_be_planned_are_refused(dataset, text):
    with pytest.raises(ArgumentError, match=text):
        hr.DataLoader(dataset)


def test_an_unknown_keyword_is_a_type_error_as_in_any_function():
    with pytest.raises(TypeError, match="unexpected keyword argument 'batchsize'"):
        hr.DataLoader(numbers(5), batchsize=3)


def test_dataset_sampler_and_batch_sampler_are_never_there_together():
    loader = hr.DataLoader(TensorDataset(torch.arange(4)), batch_size=2)
    assert loader.dataset is not None
    assert not hasattr(loader, "sampler")
    assert not hasattr(loader, "batch_sampler")
    assert not isinstance(loader, torch.utils.data.DataLoader)


def test_the_constructor_reads_nothing():
    dataset = numbers(100)
    loader = hr.DataLoader(dataset, batch_size=10, num_workers=2)
    loader.load_state_dict(loader.state_dict())
    iter(loader)
    assert dataset.source.reads == 0


# -- what a loader says of itself, and its end ------------------------------------------------------------------------


def test_a_loader_tells_its_share_and_where_it_stands():
    loader = hr.DataLoader(numbers(100), global_batch_size=10, shuffle=True, seed=3, rank=1, world_size=3)
    assert (loader.batch_size, loader.global_batch_size, loader.rank, loader.world_size) == (4, 10, 1, 3)
    assert (loader.num_workers, len(loader)) == (0, 10)
    next(iter(loader))
    assert repr(loader) == (
        "DataLoader(100 samples, batch_size=4, rank 1 of 3, shuffle='global', seed=3, num_workers=0; epoch 0, "
        "position 10)"
    )
    assert "num_workers=2 (thread);" in repr(hr.DataLoader(numbers(100), batch_size=10, num_workers=2))


def test_trainers_find_nothing_by_which_they_would_make_a_loader_of_their_own():
    loader = hr.DataLoader(numbers(100))
    for name in ("sampler", "batch_sampler", "worker_init_fn", "_iterator"):
        assert not hasattr(loader, name)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_closed_loader_has_ended_its_pass_and_may_begin_another(num_workers):
    with hr.DataLoader(numbers(100), batch_size=10, num_workers=num_workers) as loader:
        passing = iter(loader)
        next(passing)
    assert not any(thread.name.startswith("headrace") for thread in threading.enumerate())
    with pytest.raises(StalePassError, match=r"at position 10 of epoch 0, was ended by close\(\); call iter"):
        next(passing)
    loader.close()
    assert loader.epoch == 0
    assert flat(delivered(loader)) == list(range(100))
