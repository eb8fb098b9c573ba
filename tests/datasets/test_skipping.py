"""Samples that cannot be read: left out, counted and logged, by streams as by the loader; and random decoding."""

import copy
import logging
import pickle
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, default_collate

import headrace as hr
from headrace.datasets import MapDataset
from headrace.datasets.skipping import SampleReader, Skipped
from headrace.errors import ArgumentError, SampleError, StorageError
from headrace.formats import Column, check_ids, check_out
from headrace.order import hash_words
from tests.datasets.parts import Counting, Workers, numbers

SAMPLES = 40


class Faulty(Counting):
    """Samples of which some cannot be read."""

    error: type[Exception] = ValueError

    def __init__(self, samples, bad):
        super().__init__(samples)
        self.bad = frozenset(bad)

    def read(self, sample_ids, out=None):
        ids = check_ids(sample_ids, len(self))
        if bad := self.bad.intersection(ids.tolist()):
            raise self.error(f"sample {min(bad)} is broken")
        return super().read(ids, out)


def faulty(bad, samples=SAMPLES, **options):
    return MapDataset(Faulty(samples, bad)).to_iterable_dataset(on_error="skip", **options)


class TestBatches:
    @given(st.sets(st.integers(0, SAMPLES - 1), max_size=6), st.integers(7, 12), st.integers(0, 3), st.booleans())
    def test_are_smaller_by_the_bad_samples_and_come_at_their_steps(self, bad, batch_size, num_workers, shuffle):
        options = {"batch_size": batch_size, "shuffle": shuffle, "lanes": 1, "drop_last": True}
        whole = list(MapDataset(Counting(SAMPLES)).to_iterable_dataset(**options))
        view = faulty(bad, **options)
        batches = Workers(view, num_workers, base_seed=1).run()
        expected = [[x for x in batch["x"].tolist() if x not in bad] for batch in whole]
        assert [batch["x"].tolist() for batch in batches] == expected
        assert view.skipped == sum(len(batch["x"]) for batch in whole) - sum(map(len, expected))
        assert view.state_dict(len(expected))["epoch"] == 1

    def test_say_of_the_rows_that_are_left_which_are_real(self):
        view = faulty([1, 8], 9, batch_size=6, pad_last=True)
        assert [(batch["x"].tolist(), batch["__valid__"].tolist()) for batch in view] == [
            ([0, 2, 3, 4, 5], [True] * 5),
            ([6, 7, 0, 2], [True, True, False, False]),
        ]

    def test_of_which_nothing_is_left_are_an_error(self):
        with pytest.raises(SampleError, match="all 5 samples of this rank's share of a step were skipped"):
            list(faulty(range(5, 10), batch_size=5))


class TestSingleSamples:
    @given(st.sets(st.integers(0, SAMPLES - 1)), st.integers(0, 3), st.integers(1, 3))
    def test_are_all_but_the_bad_ones_over_ranks_and_workers(self, bad, num_workers, world_size):
        seen = []
        for rank in range(world_size):
            view = faulty(bad, 36, shuffle=True, rank=rank, world_size=world_size)
            seen += numbers(Workers(view, num_workers, base_seed=1).run())
        assert sorted(seen) == sorted(set(range(36)) - bad)

    @given(st.sets(st.integers(0, SAMPLES - 1)), st.data())
    def test_a_state_counts_the_skipped_ones_so_that_the_rest_comes_once(self, bad, data):
        view = faulty(bad, shuffle=True)
        passing = iter(view)
        first = numbers([next(passing) for _ in range(data.draw(st.integers(0, SAMPLES - len(bad))))])
        resumed = faulty(bad)
        resumed.load_state_dict(view.state_dict())
        rest = numbers(resumed) if view.state_dict()["epoch"] == 0 else []
        assert sorted(first + rest) == sorted(set(range(SAMPLES)) - bad)

    def test_of_which_none_is_left_end_the_epoch(self):
        view = faulty(range(SAMPLES))
        assert list(view) == []
        assert (view.state_dict()["epoch"], view.skipped) == (1, SAMPLES)

    def test_are_collated_as_always(self):
        batches = list(DataLoader(faulty([3, 4]), batch_size=10))
        assert [batch["x"].tolist() for batch in batches] == [
            [0, 1, 2, 5, 6, 7, 8, 9, 10, 11],
            *([*range(start, min(start + 10, SAMPLES))] for start in range(12, SAMPLES, 10)),
        ]


def test_each_skipped_sample_is_logged_with_its_identity(caplog):
    with caplog.at_level(logging.WARNING, "headrace"):
        list(faulty([3, 17], batch_size=5))
    assert [record.getMessage() for record in caplog.records] == [
        f"skipped sample {i} (number {i}): ValueError: sample {i} is broken" for i in (3, 17)
    ]


def test_more_than_max_errors_are_an_error_that_names_the_last():
    with pytest.raises(SampleError, match=r"3 samples could not .* more than max_errors=2; the last is sample 9 "):
        list(faulty([1, 2, 9], batch_size=5, max_errors=2))


def test_a_sample_that_is_bad_in_every_epoch_is_one_bad_sample():
    view = faulty([1, 2], batch_size=5, max_errors=2)
    for _ in range(3):
        assert len(numbers(view)) == SAMPLES - 2
    assert view.skipped == 6


def test_what_a_store_fails_to_give_is_never_skipped():
    class Unreachable(Faulty):
        error = StorageError

    dataset = MapDataset(Unreachable(SAMPLES, [3]))
    for batch_size in (None, 5):
        with pytest.raises(StorageError, match="sample 3 is broken") as caught:
            list(dataset.to_iterable_dataset(batch_size, on_error="skip"))
        assert "while reading samples 0, 1, 2, 3, 4" in caught.value.__notes__[0]
    with pytest.raises(StorageError, match="sample 3 is broken"):
        list(hr.DataLoader(dataset, 5, on_error="skip"))


def test_a_store_that_fails_when_samples_are_read_one_by_one_is_an_error_too():
    class Fails(Faulty):
        def read(self, sample_ids, out=None):
            if len(sample_ids) == 1:
                raise StorageError("gone")
            return super().read(sample_ids, out)

    for batch_size in (None, 5):
        view = MapDataset(Fails(SAMPLES, [3])).to_iterable_dataset(batch_size, on_error="skip")
        with pytest.raises(StorageError, match="gone"):
            list(view)


def test_without_skip_the_first_bad_sample_is_an_error_that_names_it():
    for batch_size in (None, 5):
        view = MapDataset(Faulty(SAMPLES, [7])).to_iterable_dataset(batch_size)
        with pytest.raises(ValueError, match="sample 7 is broken") as caught:
            list(view)
        assert caught.value.__notes__ == ["while reading sample 7 (number 7)"]
        assert view.skipped == 0


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_the_main_process_sees_what_all_workers_skipped(context):
    view = faulty([3, 17, 30], batch_size=5)
    options = {"multiprocessing_context": context, "persistent_workers": context == "spawn"}  # slow to start
    loader = DataLoader(view, batch_size=None, num_workers=2, **options)
    assert len(numbers(loader)) == SAMPLES - 3
    assert view.skipped == 3
    assert len(numbers(loader)) == SAMPLES - 3
    assert view.skipped == 6


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda view: pickle.loads(pickle.dumps(view))], ids=["copy", "pickle"]
)
def test_a_copy_counts_for_itself(copied):
    view = faulty([3], batch_size=5)
    list(view)
    other = copied(view)
    list(DataLoader(other, batch_size=None, num_workers=2))
    assert (view.skipped, other.skipped) == (1, 2)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"on_error": "ignore"}, 'on_error: expected "raise" or "skip", got \'ignore\''),
        ({"max_errors": -1}, "max_errors: expected a number of samples, 0 or more, got -1"),
        ({"max_errors": "many"}, "max_errors: expected a number of samples, 0 or more, got 'many'"),
        ({"max_errors": True}, "max_errors: expected a number of samples, 0 or more, got True"),
    ],
)
def test_other_arguments_are_refused(options, text):
    for made in (MapDataset(Counting(9)).to_iterable_dataset, lambda **options: hr.DataLoader(list("ab"), **options)):
        with pytest.raises(ArgumentError, match=text):
            made(**options)


# -- samples that make no batch together ------------------------------------------------------------------------------


class Unequal(Counting):
    """Images of different sizes, which are no batch; image i has i + 1 rows. Those in `bad` can't be read."""

    def __init__(self, samples, bad=()):
        super().__init__(samples)
        self.schema = {"image": Column(np.dtype(object), python_type=np.ndarray, mean_bytes=8)}
        self.bad, self.reads = frozenset(bad), []

    def read(self, sample_ids, out=None):
        ids = check_ids(sample_ids, len(self))
        self.reads.append(len(ids))
        if self.bad.intersection(ids.tolist()):
            raise SampleError("no image")
        if len(set(ids.tolist())) > 1:
            raise SampleError("images of different sizes")
        return {"image": np.stack([np.full((i + 1, 2), i) for i in ids.tolist()])}


def test_images_of_different_sizes_are_single_samples_all_the_same():
    dataset = MapDataset(Unequal(6))
    samples = list(dataset.to_iterable_dataset())
    assert [sample["image"].shape for sample in samples] == [(i + 1, 2) for i in range(6)]
    transform = {"transform": lambda sample: {"image": sample["image"].sum()}}
    batches = list(hr.DataLoader(dataset, batch_size=2, **transform))
    assert [batch["image"].tolist() for batch in batches] == [[0, 4], [12, 24], [40, 60]]


def test_they_are_read_one_by_one_from_the_first_time_on():
    dataset = MapDataset(Unequal(6))
    list(hr.DataLoader(dataset, batch_size=2, transform=lambda sample: len(sample["image"])))
    assert dataset.source.reads == [2, *[1] * 6]


def test_bad_ones_among_them_are_skipped_or_errors():
    dataset = MapDataset(Unequal(6, bad=[2]))
    for options in ({}, {"batch_size": 1}):
        with pytest.raises(SampleError, match="no image"):
            list(dataset.to_iterable_dataset(**options))
    view = dataset.to_iterable_dataset(on_error="skip")
    assert [len(sample["image"]) for sample in view] == [1, 2, 4, 5, 6]
    assert view.skipped == 1


def test_a_batch_of_them_is_the_sources_error():
    with pytest.raises(SampleError, match="images of different sizes"):
        list(MapDataset(Unequal(6)).to_iterable_dataset(batch_size=3))


def test_the_loaders_collation_of_them_names_the_ways_out():
    loader = hr.DataLoader(MapDataset(Unequal(6)), batch_size=3, transform=lambda sample: sample)
    with pytest.raises(RuntimeError, match="equal size") as caught:
        list(loader)
    assert caught.value.__notes__[-1].startswith("column 'image' has samples of different shapes: decode images to one")


def test_a_read_that_fails_now_and_then_is_an_error_of_its_own_not_repeated():
    class Flaky(Counting):
        failed = False

        def read(self, sample_ids, out=None):
            if not self.failed:
                self.failed = True
                raise OSError("flaky")
            return super().read(sample_ids, out)

    with pytest.raises(OSError, match="flaky"):
        list(MapDataset(Flaky(5)).to_iterable_dataset())


def test_threads_may_skip_at_once_and_none_is_lost():
    skipped = Skipped(1000)
    reader = SampleReader(Faulty(800, range(800)), skipped)
    threads = [
        threading.Thread(target=reader.samples, args=(np.arange(start, start + 100), lambda *_: []))
        for start in range(0, 800, 100)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert skipped.count == 800


# -- random decoding --------------------------------------------------------------------------------------------------


class Drawing(Counting):
    """Samples whose column "draw" is their key."""

    def __init__(self, samples, keys_of=None):
        super().__init__(samples)
        self.schema = {"x": Column(np.dtype(np.int64)), "draw": Column(np.dtype(np.int64))}
        self._keys_of = keys_of

    def keyed(self, keys_of):
        return Drawing(len(self), keys_of)

    def read(self, sample_ids, out=None):
        ids = check_ids(sample_ids, len(self))
        filled = check_out(out, self.schema, len(ids))
        filled["x"][...] = ids
        filled["draw"][...] = 0 if self._keys_of is None else self._keys_of(ids).view(np.int64)
        return filled


def draws(items) -> dict[int, int]:
    pairs = [pair for item in items for pair in zip(item["x"].reshape(-1), item["draw"].reshape(-1), strict=True)]
    return {int(x): int(draw) for x, draw in pairs}


def test_each_sample_draws_by_seed_epoch_and_its_number_alone():
    dataset = MapDataset(Drawing(30))
    loader = hr.DataLoader(dataset, batch_size=4, shuffle=True, seed=3)
    epochs = [draws(loader), draws(loader)]
    assert len({*epochs[0].values(), *epochs[1].values()}) == 60
    threaded = hr.DataLoader(dataset, batch_size=7, num_workers=2, seed=3, transform=lambda sample: sample)
    assert [draws(threaded), draws(threaded)] == epochs
    for options in ({}, {"batch_size": 5}, {"batch_size": 8, "shuffle": "window"}):
        view = dataset.to_iterable_dataset(seed=3, **options)
        assert [draws(view), draws(Workers(view, 2, base_seed=1).run())] == epochs
    other = dataset.to_iterable_dataset(seed=4)
    assert not set(draws(other).values()) & set(epochs[0].values())


def test_the_keys_stay_the_same_in_every_release():
    loader = hr.DataLoader(MapDataset(Drawing(3)), batch_size=3, seed=7)
    list(loader)
    (batch,) = loader  # epoch 1
    assert batch["draw"].tolist() == hash_words(7, 1, 5, np.arange(3)).view(np.int64).tolist()


def test_a_resumed_run_draws_as_the_whole_one():
    dataset = MapDataset(Drawing(30))
    loader = hr.DataLoader(dataset, batch_size=4, shuffle=True)
    expected = draws(loader)
    loader.seek(epoch=0, step=3)
    resumed = dataset.to_iterable_dataset(batch_size=5)
    resumed.load_state_dict(loader.state_dict())
    assert draws(resumed).items() <= expected.items()


def test_a_part_of_a_dataset_draws_as_the_whole_does():
    whole = draws(hr.DataLoader(MapDataset(Drawing(30)), batch_size=4))
    part = hr.DataLoader(MapDataset(Drawing(30)).select([7, 3, 7]).select([1, 2]), batch_size=4)
    assert [sample["draw"].tolist() for sample in part] == [[whole[3], whole[7]]]


def test_sources_without_random_decoding_are_read_as_they_are():
    source = Counting(5)
    assert source.keyed(lambda ids: ids) is source
    part = MapDataset(source).take(3).source
    assert part.keyed(lambda ids: ids) is part


# -- objects ----------------------------------------------------------------------------------------------------------


class Objects(Counting):
    """Columns of objects as arrays: lists of them in a batch; and a column that came as numbers."""

    def __init__(self, samples):
        super().__init__(samples)
        kinds = {"text": str, "raw": bytes, "tree": object, "stacked": object}
        self.schema = {name: Column(np.dtype(object), python_type=kind, mean_bytes=8) for name, kind in kinds.items()}

    def read(self, sample_ids, out=None):
        ids = check_ids(sample_ids, len(self)).tolist()
        trees = np.empty(len(ids), object)
        for place, i in enumerate(ids):
            trees[place] = tree(i)
        return {
            "text": np.array([f"t{i}" for i in ids], object),
            "raw": np.array([bytes([i]) * i for i in ids], object),
            "tree": trees,
            "stacked": np.array([[i, i + 1] for i in ids]).reshape(-1, 2),
        }


def tree(i):
    frozen = np.arange(2)
    frozen.flags.writeable = False
    return {
        "values": np.full(i, i),
        "list": [np.arange(3.0)[::-1], "é", None, (np.array(i, ">i4"), i)],
        "frozen": frozen,
        "text": np.array(["no", "tensor"]),
        "fields": np.zeros(2, [("a", "u1"), ("b", "<f4")]),
    }


def test_arrays_of_objects_come_as_lists_with_tensors_for_the_arrays_in_them():
    dataset = MapDataset(Objects(5))
    batch = dataset[[3, 1]]
    assert (batch["text"], batch["raw"]) == (["t3", "t1"], [b"\x03\x03\x03", b"\x01"])
    assert torch.equal(batch["stacked"], torch.tensor([[3, 4], [1, 2]]))
    first = batch["tree"][0]
    assert torch.equal(first["values"], torch.tensor([3, 3, 3]))
    assert first["list"][0].tolist() == [2, 1, 0]
    assert first["list"][1:3] == ["é", None]
    assert (first["list"][3][0].dtype, int(first["list"][3][0]), first["list"][3][1]) == (torch.int32, 3, 3)
    assert first["frozen"].tolist() == [0, 1]
    assert isinstance(first["text"], np.ndarray)
    assert first["fields"]["b"].tolist() == [0, 0]


def test_they_come_alike_from_every_face():
    dataset = MapDataset(Objects(7))
    expected = str([dataset[start : start + 3] for start in (0, 3, 6)])
    assert str(list(hr.DataLoader(dataset, batch_size=3))) == expected
    assert str(list(hr.DataLoader(dataset, batch_size=3, num_workers=2))) == expected
    assert str(list(dataset.to_iterable_dataset(batch_size=3))) == expected
    assert str(list(DataLoader(dataset, batch_size=3))) == expected
    assert str(list(DataLoader(dataset.to_iterable_dataset(), batch_size=3))) == expected
    assert str(list(dataset.to_iterable_dataset())) == str([dict(dataset[i]) for i in range(7)])


@pytest.mark.parametrize("as_tuple", [False, True])
@pytest.mark.parametrize("batch_size", [3, 10, 24])
def test_batches_of_samples_that_were_read_apart_are_as_if_read_at_once(monkeypatch, batch_size, as_tuple):
    monkeypatch.setattr("headrace.datasets.iterable._SAMPLES_AT_ONCE", 7)
    dataset = MapDataset(Objects(24), as_tuple=as_tuple)
    expected = list(dataset.to_iterable_dataset(batch_size=batch_size))
    assert str(list(DataLoader(dataset.to_iterable_dataset(), batch_size=batch_size))) == str(expected)


def test_of_images_that_were_read_apart_different_sizes_are_refused_with_the_way_out():
    with pytest.raises(SampleError, match=r"got \(1, 2\) and \(2, 2\): .*headrace\.image\(224\)"):
        list(DataLoader(MapDataset(Unequal(6)).to_iterable_dataset(), batch_size=3))


def test_a_sample_of_them_survives_a_worker():
    samples = list(DataLoader(MapDataset(Objects(5)).to_iterable_dataset(), batch_size=None, num_workers=1))
    assert samples[4]["tree"]["values"].tolist() == [4] * 4
    assert default_collate([{"text": sample["text"]} for sample in samples[:2]]) == {"text": ["t0", "t1"]}
