"""TrackedLoader: the state of the batches that came, also where torch's workers have drawn more; what is missing."""

import pytest
from torch.utils.data import DataLoader

import headrace as hr
from headrace.integrations.frameworks import framework
from headrace.integrations.tracking import TrackedLoader
from tests.integrations.parts import BATCH, SEED, STEPS, dataset, order

SIZE = 2 * BATCH  # of the steps of order(), here of one rank


def ours(**options):
    return hr.DataLoader(dataset(), SIZE, shuffle=True, seed=SEED, **options)


def over_sampler(num_workers=0):
    data = dataset()
    return DataLoader(data, SIZE, sampler=hr.OrderSampler(data, SIZE, seed=SEED), num_workers=num_workers)


def over_batches(num_workers=0):
    view = dataset().to_iterable_dataset(batch_size=SIZE, shuffle=True, seed=SEED)
    return DataLoader(view, batch_size=None, num_workers=num_workers)


@pytest.mark.parametrize("make", [ours, over_sampler, over_batches])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_state_after_each_batch_is_of_the_batches_that_came(make, num_workers):
    loader = TrackedLoader(make(num_workers=num_workers))
    found = [(loader.is_last, loader.state_dict(), loader.step) for _ in range(2) for _ in loader]
    assert [is_last for is_last, _, _ in found] == [step % STEPS == STEPS - 1 for step in range(2 * STEPS)]
    places = [divmod(step, STEPS) for step in range(1, 2 * STEPS + 1)]
    assert [(state["epoch"], state["position"]) for _, state, _ in found] == [(e, s * SIZE) for e, s in places]
    assert [step for _, _, step in found] == [step for _, step in places]


@pytest.mark.parametrize("make", [ours, over_sampler, over_batches])
def test_a_state_that_is_loaded_after_iter_is_where_the_pass_begins(make):
    loader = TrackedLoader(make())
    batches = iter(loader)
    loader.load_state_dict({**ours().state_dict(), "epoch": 3, "position": 2 * SIZE})
    assert [sample for batch in batches for sample in batch["labels"].tolist()] == order(3)[2 * SIZE :]
    assert loader.is_last
    assert (len(loader), loader.samples, loader.rank, loader.world_size) == (STEPS, STEPS * SIZE, 0, 1)


def test_a_trainer_that_sets_the_epoch_once_workers_have_begun_to_draw_does_not_falsify_the_state():
    loader = over_sampler(num_workers=1)
    batches, sampler = iter(loader), loader.sampler
    sampler.set_epoch(0)  # Lightning says it here, when torch's worker has two batches before it
    states = []
    for step, _ in enumerate(batches, start=1):
        states.append(sampler.state_dict(steps=step))
    assert [state["position"] for state in states] == [*range(SIZE, STEPS * SIZE, SIZE), 0]
    assert [state["epoch"] for state in states] == [0] * (STEPS - 1) + [1]


def test_a_loader_without_an_order_of_ours_is_refused():
    with pytest.raises(hr.ArgumentError, match=r"expected a headrace\.DataLoader, or torch's over .*, got DataLoader"):
        TrackedLoader(DataLoader(dataset(), SIZE))


def test_a_stream_of_single_samples_is_refused_since_workers_mix_them():
    stream = dataset().to_iterable_dataset(shuffle=True)
    with pytest.raises(hr.ArgumentError, match="give the batch_size to the dataset, and batch_size=None"):
        TrackedLoader(DataLoader(stream, SIZE))


def test_a_framework_that_is_missing_is_named_with_the_line_that_brings_it():
    with pytest.raises(hr.DependencyError, match=r'no_such_framework .* pip install "headrace\[lightning\]"'):
        framework("no_such_framework.callbacks", "lightning")
