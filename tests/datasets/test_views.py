"""select, take and split: parts of a dataset that are datasets again."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from headrace import ArgumentError, ArrayDataset, DataLoader
from headrace.datasets import MapDataset
from headrace.formats import Blocks
from headrace.order import hash_words, permute
from tests.datasets.parts import Counting, counting, numbers, watched

BILLION = 10**9


def slices_of_some(samples: int) -> st.SearchStrategy[slice]:
    """Slices that hold at least one sample."""
    return st.slices(samples).filter(lambda cut: range(samples)[cut])


def ids_of(dataset) -> list[int]:
    return dataset[:]["x"].tolist()


class TestSelect:
    @given(st.lists(st.integers(0, 49), min_size=1))
    def test_a_list_gives_its_samples_in_its_order_with_repeats(self, ids):
        assert ids_of(counting(50).select(ids)) == ids

    @given(slices_of_some(50))
    def test_a_slice_or_range_gives_what_a_list_would(self, cut):
        assert ids_of(counting(50).select(cut)) == list(range(50))[cut]
        assert ids_of(counting(50).select(range(50)[cut])) == list(range(50))[cut]

    @pytest.mark.parametrize("kind", [tuple, np.array, torch.tensor, lambda ids: np.array(ids, np.uint8)])
    def test_ids_may_be_any_integers(self, kind):
        assert ids_of(counting(50).select(kind([3, 1]))) == [3, 1]

    def test_what_the_caller_does_to_the_list_later_changes_nothing(self):
        ids = np.array([3, 1])
        part = counting(50).select(ids)
        ids[:] = 0
        assert ids_of(part) == [3, 1]

    @pytest.mark.parametrize("ids", [[0, 50], [-1], range(45, 51), range(3, -2, -1), np.array([2**63 - 1])])
    def test_an_id_outside_the_dataset_is_an_index_error(self, ids):
        with pytest.raises(IndexError, match=r"is out of range: the source has 50 samples, 0\.\.49"):
            counting(50).select(ids)

    @pytest.mark.parametrize("nothing", [[], range(5, 5), slice(7, 3), np.zeros(0, np.int64)])
    def test_a_selection_of_nothing_is_refused(self, nothing):
        with pytest.raises(ArgumentError, match="expected a selection of at least one sample, got none"):
            counting(50).select(nothing)

    def test_masks_and_other_things_are_refused(self):
        with pytest.raises(ArgumentError, match=r"expected sample ids, got booleans; give np\.flatnonzero\(mask\)"):
            counting(50).select(np.ones(50, np.bool_))
        with pytest.raises(ArgumentError, match="expected integers, got float64"):
            counting(50).select([0.5])
        with pytest.raises(ArgumentError, match="expected one dimension"):
            counting(50).select([[1, 2]])

    def test_each_batch_of_a_view_is_one_read_of_the_sources_own_ids(self):
        dataset = counting(50)
        source = watched(dataset)
        _ = dataset.select(range(10, 20)).select([9, 0, 3])[[0, 1]]
        assert source.reads == [[19, 10]]

    def test_it_names_the_place_of_a_sample_in_the_files(self):
        assert counting(50).select([7, 3]).source.where(1) == "number 3"

    def test_ids_beyond_the_view_are_errors_even_where_the_source_has_them(self):
        part = counting(50).take(5)
        with pytest.raises(IndexError, match="sample id 5 is out of range: the dataset has 5 samples"):
            part[5]
        with pytest.raises(IndexError, match="sample id 5 is out of range"):
            part.source.read([5])
        with pytest.raises(IndexError, match="sample id -1 is out of range"):
            part.source.read([-1])


class TestTake:
    def test_it_gives_the_first_samples_in_file_order(self):
        assert ids_of(counting(50).take(3)) == [0, 1, 2]
        assert ids_of(counting(50).take(50)) == list(range(50))

    @pytest.mark.parametrize("samples", [0, -1, 51])
    def test_more_than_there_are_or_none_is_refused(self, samples):
        with pytest.raises(ArgumentError, match=rf"take: expected 1\.\.50 samples, got {samples}"):
            counting(50).take(samples)


class TestSplit:
    @given(st.integers(3, 400), st.integers(-(2**63), 2**64 - 1), st.data())
    def test_parts_are_disjoint_and_together_hold_every_sample_once(self, samples, seed, data):
        cut = data.draw(st.integers(1, samples - 2))
        other = data.draw(st.integers(cut + 1, samples - 1))
        shares = {"a": cut, "b": other - cut, "c": samples - other}
        parts = counting(samples).split(shares, seed=seed)
        assert {name: len(part) for name, part in parts.items()} == shares
        assert sorted(i for part in parts.values() for i in ids_of(part)) == list(range(samples))

    @given(st.integers(10, 10**15), st.lists(st.integers(1, 100), min_size=1, max_size=5))
    def test_fractions_are_rounded_at_the_cuts_and_leave_nothing_out(self, samples, weights):
        shares = {str(i): weight / sum(weights) for i, weight in enumerate(weights)}
        assume(min(shares.values()) * samples > 1)  # else a part may be empty
        parts = counting(samples).split(shares)
        assert sum(map(len, parts.values())) == samples
        for name, part in parts.items():
            assert abs(len(part) - shares[name] * samples) <= 1 + 1e-9 * samples

    def test_fractions_that_sum_to_one_only_almost_leave_nothing_out_either(self):
        parts = counting(10**13).split({"a": 0.5, "b": 0.4999999999})
        assert sum(map(len, parts.values())) == 10**13

    def test_the_same_seed_gives_the_same_parts_and_another_seed_others(self):
        def val(seed):
            return ids_of(counting(100).split({"train": 0.8, "val": 0.2}, seed=seed)["val"])

        assert val(1) == val(1)
        assert len({tuple(val(seed)) for seed in range(20)}) == 20

    def test_the_parts_are_those_that_the_permutation_of_the_order_layer_says(self):
        part = counting(100).split({"train": 0.8, "val": 0.2}, seed=5)["val"]
        assert ids_of(part) == permute(np.arange(80, 100), 100, hash_words(5, 0, 3)).tolist()

    def test_which_samples_are_in_the_last_part_does_not_depend_on_how_the_rest_is_named_or_cut(self):
        two = counting(100).split({"train": 80, "val": 20})
        three = counting(100).split({"train": 50, "more": 30, "test": 20})
        assert ids_of(two["val"]) == ids_of(three["test"])

    def test_counts_may_be_numpys(self):
        parts = counting(10).split({"a": np.int64(4), "b": np.int64(6)})
        assert [len(part) for part in parts.values()] == [4, 6]

    @pytest.mark.parametrize(
        "shares",
        [
            {},
            {"a": 0.5},
            {"a": 0.7, "b": 0.7},
            {"a": 4, "b": 5},
            {"a": 1.5, "b": -0.5},
            {"a": float("nan")},
            {"a": float("inf"), "b": 0.1},
            {"a": 0.9, "b": 1},
        ],
    )
    def test_shares_that_do_not_sum_up_are_refused(self, shares):
        with pytest.raises(
            ArgumentError, match="fractions that sum to 1, or numbers of samples that sum to 10, got "
        ) as e:
            counting(10).split(shares)
        assert "name one more part for the samples that you don't want" in str(e.value)

    @pytest.mark.parametrize("shares", [{"a": 0.99, "b": 0.01}, {"a": 10, "b": 0}])
    def test_a_part_without_samples_is_refused_by_name(self, shares):
        with pytest.raises(ArgumentError, match=r"split: expected parts of at least one sample, got 'b': \S+ of 10"):
            counting(10).split(shares)

    @pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 0.5, "a", True])
    def test_a_seed_that_is_no_64_bit_integer_is_refused(self, seed):
        with pytest.raises(ArgumentError, match="seed: expected a 64-bit integer, got"):
            counting(10).split({"a": 0.5, "b": 0.5}, seed=seed)


class TestViewsOfViews:
    @given(st.data())
    def test_they_hold_what_lists_of_lists_would(self, data):
        dataset, ids = counting(60), list(range(60))
        for _ in range(data.draw(st.integers(1, 4))):
            match data.draw(st.sampled_from(["list", "slice", "take", "split"])):
                case "list":
                    chosen = data.draw(st.lists(st.integers(0, len(ids) - 1), min_size=1, max_size=60))
                    dataset, ids = dataset.select(chosen), [ids[i] for i in chosen]
                case "slice":
                    cut = data.draw(slices_of_some(len(ids)))
                    dataset, ids = dataset.select(cut), ids[cut]
                case "take":
                    count = data.draw(st.integers(1, len(ids)))
                    dataset, ids = dataset.take(count), ids[:count]
                case "split" if len(ids) > 1:
                    places = permute(np.arange(len(ids)), len(ids), hash_words(9, 0, 3)).tolist()
                    dataset, ids = dataset.split({"a": 1, "b": len(ids) - 1}, seed=9)["b"], [ids[i] for i in places[1:]]
            assert ids_of(dataset) == ids
            assert dataset.source.blocks.lengths.sum() == len(dataset) == len(ids)


class TestMemory:
    def test_ranges_and_splits_take_none_that_grows_with_the_samples(self):
        dataset = counting(BILLION)
        tracemalloc.start()
        try:
            parts = dataset.split({"train": 0.9, "val": 0.1}, seed=3)
            view = parts["train"].select(slice(100, None, 2)).take(10_000_000).split({"a": 0.5, "b": 0.5})["b"]
            assert len(view) == 5_000_000
            assert len(set(ids_of(view.take(100)))) == 100
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()


class TestBlocks:
    class Uneven(Counting):
        """Blocks of many lengths, one of them empty."""

        @property
        def blocks(self):
            return Blocks(np.array([10, 1, 0, 29, 20]), np.array([100, 7, 0, 290, 200]))

    @given(st.integers(0, 59), st.integers(1, 60))
    def test_those_of_a_plain_range_are_the_parts_of_the_sources_own(self, start, length):
        view = MapDataset(self.Uneven(60)).select(range(start, min(start + length, 60)))
        ends = np.cumsum(view.source.blocks.lengths) + start
        assert ends[-1] == start + len(view)
        assert set(ends[:-1].tolist()) <= {10, 11, 40}
        assert (view.source.blocks.lengths > 0).all()
        assert (view.source.blocks.bytes > 0).all()

    @given(st.sampled_from([slice(None, None, 2), slice(None, None, -1), [5, 3, 3]]))
    def test_those_of_other_views_are_runs_in_the_views_order(self, ids):
        view = MapDataset(self.Uneven(60)).select(ids)
        assert view.source.blocks.lengths.sum() == len(view)
        assert view.source.blocks.bytes.sum() == len(view) * (597 // 60)

    def test_a_window_shuffle_of_a_view_gives_each_of_its_samples_once(self):
        view = MapDataset(self.Uneven(60)).select(range(5, 55))
        loader = DataLoader(view, batch_size=7, shuffle="window", shuffle_window=20)
        assert sorted(numbers(loader)) == list(range(5, 55))


class TestFingerprints:
    def test_they_are_stable_and_differ_between_the_data_and_each_view(self):
        def views():
            dataset = ArrayDataset({"x": np.arange(100)})
            parts, others = dataset.split({"a": 0.5, "b": 0.5}), dataset.split({"a": 0.5, "b": 0.5}, seed=1)
            return [
                dataset,
                dataset.take(50),
                dataset.select(range(50, 100)),
                dataset.select(range(0, 100, 2)),
                dataset.select(range(49, -1, -1)),
                dataset.select([1, 2]),
                dataset.select([2, 1]),
                dataset.take(50).take(20),
                *parts.values(),
                *others.values(),
            ]

        first, again = ([view.fingerprint for view in views()] for _ in range(2))
        assert first == again
        assert len(set(first)) == len(first)

    def test_ranges_with_the_same_samples_have_the_same(self):
        dataset = counting(100)
        assert dataset.select(range(0, 10, 3)).fingerprint == dataset.select(range(0, 12, 3)).fingerprint
        assert dataset.select(slice(10)).fingerprint == dataset.take(10).fingerprint

    def test_a_seed_and_the_same_seed_modulo_2_to_the_64_have_the_same(self):
        one, other = (counting(10).split({"a": 5, "b": 5}, seed=seed)["a"] for seed in (-1, 2**64 - 1))
        assert one.fingerprint == other.fingerprint
        assert ids_of(one) == ids_of(other)
