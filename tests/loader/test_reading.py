"""Reading: the user's functions, foreign datasets, and samples that are skipped."""

import functools
import logging
import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

import headrace as hr
from headrace.datasets.mapstyle import MapDataset
from headrace.errors import ArgumentError, SampleError
from tests.loader.stand_ins import Numbers, delivered, flat, ids_of, numbers, over_ranks

WORKERS = pytest.mark.parametrize("num_workers", [0, 2])


def rows(samples: int = 20) -> hr.ArrayDataset:
    return hr.ArrayDataset(torch.arange(2 * samples).reshape(samples, 2), torch.arange(samples))


# -- the user's functions ---------------------------------------------------------------------------------------------


@WORKERS
def test_a_transform_maps_one_sample_to_one(num_workers):
    def swap(sample: tuple[torch.Tensor, torch.Tensor]) -> tuple[int, torch.Tensor]:
        x, y = sample
        return int(y) * 10, x

    first, second = hr.DataLoader(rows(5), batch_size=3, num_workers=num_workers, transform=swap)
    assert first[0].tolist() == [0, 10, 20]
    assert second[1].tolist() == [[6, 7], [8, 9]]


@WORKERS
def test_a_collate_fn_gets_the_list_of_samples_and_makes_the_batch(num_workers):
    def listed(samples: list[Any]) -> str:
        assert type(samples) is list
        assert all(type(sample) is tuple for sample in samples)
        return "+".join(str(int(y)) for _, y in samples)

    assert list(hr.DataLoader(rows(5), batch_size=3, num_workers=num_workers, collate_fn=listed)) == ["0+1+2", "3+4"]


@WORKERS
def test_a_batch_transform_maps_whole_batches_and_may_change_their_rows(num_workers):
    def only_even(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"x": batch["x"][batch["x"][:, 0] % 2 == 0]}

    loader = hr.DataLoader(numbers(20), batch_size=5, num_workers=num_workers, batch_transform=only_even)
    assert delivered(loader) == [[0, 2, 4], [6, 8], [10, 12, 14], [16, 18]]
    assert loader.epoch == 1


def test_the_three_run_one_after_the_other():
    loader = hr.DataLoader(
        [1, 2, 3],
        batch_size=3,
        transform=lambda sample: sample + 1,
        collate_fn=sum,
        batch_transform=lambda total: total * 100,
    )
    assert list(loader) == [900]


def test_a_batch_transform_sees_which_rows_are_real():
    def real(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"x": batch["x"][batch["__valid__"]]}

    assert flat(delivered(hr.DataLoader(numbers(7), batch_size=5, pad_last=True, batch_transform=real))) == [*range(7)]


class Callable1:
    def __call__(self, sample: Any, rng: np.random.Generator) -> Any:
        return rng.integers(1000)


@pytest.mark.parametrize("function", [torch.nn.Identity(), functools.partial(lambda a, b: b, 1), str, Callable1()])
def test_anything_that_can_be_called_with_a_sample_is_a_transform(function):
    assert len(list(hr.DataLoader(list("abc"), batch_size=3, transform=function, collate_fn=list))) == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"transform": 3}, r"transform: expected a function of \(sample\) or \(sample, rng\), got 3"),
        ({"transform": lambda: 0}, r"transform: expected a function of \(sample\) or \(sample, rng\), got one of \(\)"),
        ({"transform": lambda a, b: 0}, r"transform: expected .* got one of \(a, b\)"),
        ({"transform": lambda rng: 0}, r"transform: expected .* got one of \(rng\)"),
        ({"transform": lambda a, *, key: 0}, r"transform: expected .* got one of \(a, \*, key\)"),
        (
            {"batch_transform": lambda a, rng, b: 0},
            r"batch_transform: expected a function of \(batch\) or \(batch, rng",
        ),
        ({"batch_transform": "zscore"}, r"batch_transform: expected a function of \(batch\) .* got 'zscore'"),
        ({"collate_fn": 3}, "collate_fn: expected a function of a list of samples, got 3"),
    ],
)
def test_functions_that_cannot_be_called_so_are_refused_at_construction(options, text):
    with pytest.raises(ArgumentError, match=text):
        hr.DataLoader(numbers(5), **options)


@WORKERS
def test_an_error_in_a_transform_names_its_sample(num_workers):
    loader = hr.DataLoader(numbers(20), batch_size=5, num_workers=num_workers, transform=lambda s: 1 // (12 - s["x"]))
    with pytest.raises((ZeroDivisionError, RuntimeError)) as caught:
        list(loader)
    assert "in transform of sample 12 (row 12 of the numbers)" in caught.value.__notes__
    assert loader.position == 10


@WORKERS
def test_an_error_in_collation_or_a_batch_transform_lists_its_samples(num_workers):
    ragged = [torch.zeros(i) for i in range(1, 13)]
    with pytest.raises(RuntimeError, match="equal size") as caught:
        list(hr.DataLoader(ragged, batch_size=12, num_workers=num_workers, worker_type="thread"))
    assert "while collating samples 0, 1, 2, 3, 4, 5, 6, 7 and 4 more" in caught.value.__notes__

    def failing(batch: Any) -> Any:
        raise KeyError("no")

    with pytest.raises(KeyError, match="no") as caught:
        list(hr.DataLoader(numbers(3), batch_size=3, num_workers=num_workers, batch_transform=failing))
    assert caught.value.__notes__ == ["in batch_transform of samples 0, 1, 2"]


# -- randomness -------------------------------------------------------------------------------------------------------


def augment(sample: dict[str, torch.Tensor], rng: np.random.Generator) -> dict[str, Any]:
    return {"x": sample["x"], "noise": rng.random()}


def augment_batch(batch: dict[str, torch.Tensor], rng: Any) -> dict[str, Any]:
    return {"x": batch["x"], "noise": rng.random(), "more": rng.integers(10**6)}


AUGMENTATIONS = pytest.mark.parametrize(
    "how", [{"transform": augment}, {"batch_transform": augment_batch}], ids=["transform", "batch_transform"]
)


def noise_of(*loaders: Any) -> dict[int, float]:
    """Each sample's noise."""
    noise: dict[int, float] = {}
    for loader in loaders:
        for batch in loader:
            noise.update(zip(ids_of(batch), batch["noise"].tolist(), strict=True))
    return noise


@AUGMENTATIONS
def test_a_sample_is_augmented_in_the_same_way_for_any_workers_ranks_and_batch_size(how):
    how = {**how, "shuffle": True, "seed": 3}
    expected = noise_of(hr.DataLoader(numbers(60), batch_size=7, **how))
    assert len(expected) == 60
    assert noise_of(hr.DataLoader(numbers(60), batch_size=11, num_workers=3, **how)) == expected
    assert noise_of(*over_ranks(numbers(60), 3, batch_size=4, **how)) == expected
    assert noise_of(hr.DataLoader(numbers(60), batch_size=7, **{**how, "shuffle": "window"})) == expected


@AUGMENTATIONS
def test_a_sample_is_augmented_in_the_same_way_after_a_resume(how):
    loader = hr.DataLoader(numbers(60), batch_size=7, shuffle=True, **how)
    expected = noise_of(loader)
    loader.seek(epoch=0, step=4)
    resumed = hr.DataLoader(numbers(60), batch_size=5, num_workers=1, **how)
    resumed.load_state_dict(loader.state_dict())
    noise = noise_of(resumed)
    assert len(noise) == 60 - 28
    assert noise.items() <= expected.items()


@AUGMENTATIONS
def test_epochs_samples_and_seeds_are_augmented_differently(how):
    loader = hr.DataLoader(numbers(60), batch_size=7, **how)
    epochs = [noise_of(loader), noise_of(loader), noise_of(hr.DataLoader(numbers(60), batch_size=7, seed=1, **how))]
    assert len({value for epoch in epochs for value in epoch.values()}) == 180


@AUGMENTATIONS
def test_repeats_that_fill_up_the_last_step_are_augmented_like_the_sample_itself(how):
    batches = list(hr.DataLoader(numbers(7), batch_size=5, pad_last=True, **how))
    assert ids_of(batches[1]) == [5, 6, 0, 1, 2]
    assert batches[1]["noise"].tolist()[2:] == batches[0]["noise"].tolist()[:3]


# -- foreign datasets -------------------------------------------------------------------------------------------------


class Foreign(Dataset[Any]):
    """A torch dataset whose samples are dicts of all that torch's collation knows."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {"n": number, "f": number / 2, "t": (torch.full((2,), number), np.float32(number)), "s": str(number)}


class ForeignBatches(Foreign):
    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def __getitems__(self, sample_ids: list[int]) -> list[Any]:
        self.asked.append(sample_ids)
        return [self[number] for number in sample_ids]


@WORKERS
@pytest.mark.parametrize("kind", [Foreign, ForeignBatches])
def test_samples_of_foreign_datasets_are_collated_as_torch_does(num_workers, kind):
    ours = list(hr.DataLoader(kind(), batch_size=4, num_workers=num_workers))
    theirs = list(torch.utils.data.DataLoader(kind(), batch_size=4))
    assert str(ours) == str(theirs)


def test_a_foreign_dataset_s_getitems_is_called_once_a_batch():
    dataset = ForeignBatches()
    list(hr.DataLoader(dataset, batch_size=4))
    assert dataset.asked == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@WORKERS
def test_a_foreign_dataset_is_shuffled_split_over_ranks_and_resumed_like_any_other(num_workers):
    dataset = TensorDataset(torch.arange(50))
    options = {"batch_size": 3, "shuffle": True, "num_workers": num_workers}
    loaders = over_ranks(dataset, 2, **options)
    passes = [iter(loader) for loader in loaders]
    seen = [next(passing)[0] for _ in range(4) for passing in passes]
    resumed = hr.DataLoader(dataset, **options)
    resumed.load_state_dict(loaders[1].state_dict())
    seen += [batch[0] for batch in resumed]
    assert sorted(torch.cat(seen).tolist()) == list(range(50))


class Negated(MapDataset):
    def __getitem__(self, index: Any) -> Any:
        return {"x": -super().__getitem__(index)["x"]}


@WORKERS
def test_a_subclass_s_own_getitem_makes_the_samples(num_workers):
    dataset = Negated(Numbers(10))
    for part in (dataset, dataset.select(range(5, 10))):
        loader = hr.DataLoader(part, batch_size=4, num_workers=num_workers, worker_type="thread")
        seen = flat(delivered(loader))
        assert seen == [-i for i in range(10)][-len(part) :]


def test_a_column_may_have_any_name_and_samples_any_form():
    first = next(iter(hr.DataLoader(hr.ArrayDataset({"sample": range(4)}), batch_size=2, transform=dict)))
    assert first["sample"].tolist() == [0, 1]


# -- samples that are skipped -----------------------------------------------------------------------------------------


@WORKERS
@pytest.mark.parametrize("in_transform", [False, True])
def test_bad_samples_are_left_out_counted_and_logged_with_their_identity(num_workers, in_transform, caplog):
    bad = {3, 11, 12}

    def picky(sample: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if int(sample["x"]) in bad:
            raise ValueError("not this one")
        return sample

    dataset = numbers(20, bad=() if in_transform else bad)
    options = {"transform": picky} if in_transform else {}
    loader = hr.DataLoader(dataset, batch_size=5, num_workers=num_workers, on_error="skip", **options)
    with caplog.at_level(logging.WARNING, "headrace"):
        positions = []
        seen = []
        for batch in loader:
            seen.append(ids_of(batch))
            positions.append(loader.position)
    assert seen == [[0, 1, 2, 4], [5, 6, 7, 8, 9], [10, 13, 14], [15, 16, 17, 18, 19]]
    assert positions == [5, 10, 15, 0]  # planned samples, not survivors
    assert loader.skipped == 3
    error = "ValueError: not this one" if in_transform else "OSError: the disk is on fire"
    assert sorted(record.getMessage() for record in caplog.records) == [
        f"skipped sample {i} (row {i} of the numbers): {error}" for i in (11, 12, 3)
    ]


@WORKERS
@pytest.mark.parametrize("kind", [Foreign, ForeignBatches])
def test_bad_samples_of_foreign_datasets_are_left_out(num_workers, kind):
    class Picky(kind):
        def __getitem__(self, number: int) -> Any:
            if number in (2, 7):
                raise KeyError(number)
            return super().__getitem__(number)

    loader = hr.DataLoader(Picky(), batch_size=4, num_workers=num_workers, worker_type="thread", on_error="skip")
    assert [batch["n"].tolist() for batch in loader] == [[0, 1, 3], [4, 5, 6], [8, 9]]
    assert loader.skipped == 2


@WORKERS
def test_a_bad_sample_loses_nothing_of_the_other_steps_that_are_read_with_it(num_workers):
    loader = hr.DataLoader(numbers(3000, bad=[777]), batch_size=10, num_workers=num_workers, on_error="skip")
    sizes = [len(batch["x"]) for batch in loader]
    assert sizes == [10] * 77 + [9] + [10] * 222
    assert loader.skipped == 1


def test_more_than_max_errors_are_an_error_that_names_the_last():
    loader = hr.DataLoader(numbers(20, bad=[1, 2, 8]), batch_size=5, on_error="skip", max_errors=2)
    passing = iter(loader)
    assert ids_of(next(passing)) == [0, 3, 4]
    with pytest.raises(
        SampleError, match=r"3 samples could not be .* more than max_errors=2; the last is sample 8 "
    ) as e:
        next(passing)
    assert isinstance(e.value.__cause__, OSError)


def test_a_sample_that_is_bad_in_every_epoch_is_one_bad_sample():
    loader = hr.DataLoader(numbers(20, bad=[1, 2]), batch_size=5, on_error="skip", max_errors=2)
    for _ in range(4):
        assert len(flat(delivered(loader))) == 18
    assert loader.skipped == 8


@WORKERS
@pytest.mark.parametrize("options", [{}, {"transform": lambda sample: sample}], ids=["columns", "samples"])
def test_a_share_of_which_nothing_is_left_is_an_error(num_workers, options):
    loader = hr.DataLoader(
        numbers(20, bad=range(5, 10)), batch_size=5, num_workers=num_workers, on_error="skip", **options
    )
    passing = iter(loader)
    next(passing)
    with pytest.raises(SampleError, match="all 5 samples of this rank's share of a step were skipped"):
        next(passing)


@pytest.mark.parametrize("options", [{}, {"transform": lambda sample: sample}], ids=["columns", "samples"])
def test_skipped_samples_are_left_out_of_valid_too(options):
    loader = hr.DataLoader(numbers(8, bad=[1, 6]), batch_size=5, pad_last=True, on_error="skip", **options)
    first, last = loader
    assert (ids_of(first), first["__valid__"].tolist()) == ([0, 2, 3, 4], [True] * 4)
    assert (ids_of(last), last["__valid__"].tolist()) == ([5, 7, 0], [True, True, False])


def test_augmentation_of_the_others_does_not_depend_on_what_is_skipped():
    whole = noise_of(hr.DataLoader(numbers(20), batch_size=5, batch_transform=augment_batch))
    rest = noise_of(hr.DataLoader(numbers(20, bad=[3]), batch_size=5, batch_transform=augment_batch, on_error="skip"))
    assert rest == {sample: noise for sample, noise in whole.items() if sample != 3}


def test_without_skip_the_first_bad_sample_is_an_error():
    loader = hr.DataLoader(numbers(20, bad=[7]), batch_size=5)
    with pytest.raises(OSError, match="the disk is on fire"):
        list(loader)
    assert loader.skipped == 0


class Flaky(Dataset[int]):
    """Fails at the first and third read of sample 3."""

    def __init__(self):
        self.reads = Counter()

    def __len__(self):
        return 8

    def __getitem__(self, index):
        self.reads[index] += 1
        if index == 3 and self.reads[index] in (1, 3):
            raise OSError("flaky")
        return index


def test_a_sample_that_fails_now_and_then_is_read_once_more_and_not_a_third_time():
    dataset = Flaky()
    batches = [batch.tolist() for batch in hr.DataLoader(dataset, batch_size=4, on_error="skip")]
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert dataset.reads[3] == 2


class Together(Dataset[int]):
    """Each read waits for another one to come."""

    def __init__(self):
        self.together = threading.Barrier(2)

    def __len__(self):
        return 64

    def __getitem__(self, index):
        self.together.wait(30)
        return index


def test_in_threads_a_foreign_dataset_is_read_by_all_of_them_at_once():
    loader = hr.DataLoader(Together(), 4, num_workers=2, worker_type="thread")
    assert sorted(x for batch in loader for x in batch.tolist()) == list(range(64))


def test_a_dataset_that_raises_stop_iteration_does_not_end_the_pass_as_if_all_were_well():
    class Ends(Flaky):
        def __getitem__(self, index):
            raise StopIteration

    with pytest.raises(hr.SampleError, match="the dataset raised StopIteration"):
        list(hr.DataLoader(Ends(), batch_size=4))
