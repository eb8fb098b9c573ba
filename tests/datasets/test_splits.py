"""split, where samples are decoded a block at a time: each part is drawn from every block."""

import pickle
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import ArgumentError, ArrayDataset, DataLoader, ParquetDataset
from headrace.datasets import MapDataset, fit_normalizer
from headrace.formats import Blocks
from headrace.order import hash_words, permute
from tests.datasets.parts import Counting, counting, numbers

SEEDS = st.integers(-(2**63), 2**64 - 1)


class Blocked(Counting):
    """Sample i holds the number i; in blocks of these lengths, which are to be read one after the other."""

    random_access = False
    splits_by_block = True

    def __init__(self, lengths) -> None:
        super().__init__(sum(lengths))
        self.lengths = np.array(lengths, np.int64)

    @property
    def blocks(self):
        return Blocks(self.lengths, self.lengths * 8)


def blocked(*lengths: int) -> MapDataset:
    return MapDataset(Blocked(lengths))


def ids_of(dataset) -> list[int]:
    return dataset[:]["x"].tolist()


@st.composite
def splits(draw):
    """A dataset of some blocks, a few of them empty, and how many samples each of one to four parts is to have."""
    lengths = draw(st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda lengths: sum(lengths) >= 4))
    samples = sum(lengths)
    cuts = sorted(draw(st.sets(st.integers(1, samples - 1), max_size=3)))
    counts = np.diff([0, *cuts, samples]).tolist()
    return blocked(*lengths), {f"part {number}": count for number, count in enumerate(counts)}


class TestParts:
    @given(splits(), SEEDS)
    def test_they_are_disjoint_and_together_hold_every_sample_once_in_exactly_the_numbers_asked_for(self, made, seed):
        dataset, counts = made
        parts = dataset.split(counts, seed=seed)
        assert {name: len(part) for name, part in parts.items()} == counts
        assert sorted(i for part in parts.values() for i in ids_of(part)) == list(range(len(dataset)))

    @given(st.lists(st.integers(20, 300), min_size=1, max_size=9), st.lists(st.integers(1, 9), min_size=1, max_size=4))
    def test_fractions_give_the_same_numbers_as_where_all_samples_are_split_at_once(self, lengths, weights):
        shares = {str(number): weight / sum(weights) for number, weight in enumerate(weights)}
        by_block, at_once = blocked(*lengths).split(shares), counting(sum(lengths)).split(shares)
        assert {name: len(part) for name, part in by_block.items()} == {n: len(part) for n, part in at_once.items()}

    @given(splits(), SEEDS)
    def test_every_block_gives_each_part_its_share_to_within_one_sample_for_each_cut(self, made, seed):
        dataset, counts = made
        lengths = dataset.source.lengths
        ends = np.cumsum(lengths)
        for name, part in dataset.split(counts, seed=seed).items():
            held = np.bincount(np.searchsorted(ends, ids_of(part), side="right"), minlength=len(lengths))
            exact = lengths * counts[name] / len(dataset)
            assert (np.abs(held - exact) < len(counts)).all()

    @given(splits(), SEEDS)
    def test_their_places_run_block_by_block_and_their_blocks_are_what_they_hold_of_each(self, made, seed):
        dataset, counts = made
        ends = np.cumsum(dataset.source.lengths)
        for part in dataset.split(counts, seed=seed).values():
            block = np.searchsorted(ends, ids_of(part), side="right")
            assert (np.diff(block) >= 0).all()
            assert part.source.blocks.lengths.tolist() == np.unique(block, return_counts=True)[1].tolist()
            assert part.source.blocks.bytes.tolist() == (part.source.blocks.lengths * 8).tolist()

    @given(splits(), SEEDS, st.data())
    def test_places_asked_for_in_any_order_give_what_all_of_them_give(self, made, seed, data):
        dataset, counts = made
        for part in dataset.split(counts, seed=seed).values():
            places = data.draw(st.lists(st.integers(0, len(part) - 1), min_size=1, max_size=20))
            everything = ids_of(part)
            assert part[places]["x"].tolist() == [everything[place] for place in places]

    def test_another_seed_gives_other_parts_even_where_a_block_is_one_sample(self):
        for lengths in ([1] * 64, [8] * 8, [64]):
            found = {tuple(ids_of(blocked(*lengths).split({"a": 32, "b": 32}, seed=s)["a"])) for s in range(20)}
            assert len(found) == 20

    @given(splits(), SEEDS)
    def test_what_the_last_part_holds_does_not_depend_on_how_the_others_are_cut(self, made, seed):
        dataset, counts = made
        last = list(counts.values())[-1]
        if len(counts) > 1:
            two = dataset.split({"rest": len(dataset) - last, "last": last}, seed=seed)["last"]
            many = list(dataset.split(counts, seed=seed).values())[-1]
            assert ids_of(two) == ids_of(many)
            assert two.fingerprint == many.fingerprint

    def test_the_numbers_themselves_are_the_same_in_every_release(self):
        parts = blocked(5, 0, 1, 7, 3).split({"train": 11, "val": 3, "test": 2}, seed=5)
        assert {name: ids_of(part) for name, part in parts.items()} == GOLDEN

    def test_they_are_what_the_permutations_of_the_order_layer_say(self):
        part = blocked(40, 60).split({"train": 0.8, "val": 0.2}, seed=5)["val"]
        one = permute(np.arange(32, 40), 40, hash_words(5, 0, 3, 1, 0))
        other = 40 + permute(np.arange(48, 60), 60, hash_words(5, 0, 3, 1, 1))
        assert ids_of(part) == [*one.tolist(), *other.tolist()]

    def test_a_part_that_would_be_empty_is_refused_by_name(self):
        with pytest.raises(ArgumentError, match="split: expected parts of at least one sample, got 'b': 0 of 10"):
            blocked(4, 6).split({"a": 10, "b": 0})

    def test_samples_beyond_what_64_bits_multiply_are_split_exactly(self):
        parts = blocked(2**52, 2**50, 2**49).split({"train": 0.9, "val": 0.1}, seed=1)
        assert sum(map(len, parts.values())) == 2**52 + 2**50 + 2**49
        assert len(set(parts["val"][list(range(1000))]["x"].tolist())) == 1000
        assert parts["val"].source.blocks.lengths.sum() == len(parts["val"])

    def test_they_take_memory_by_the_number_of_blocks_not_of_samples(self):
        dataset = blocked(*[10**12] * 100)
        tracemalloc.start()
        try:
            part = dataset.split({"train": 0.9, "val": 0.1})["val"]
            assert len(part.select(range(0, len(part), 10**10))[:]["x"]) == 1000
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()


class TestUse:
    def test_a_part_of_a_part_and_of_a_range_is_split_by_block_too_and_of_a_list_at_once(self):
        dataset = blocked(30, 30, 30)
        train = dataset.split({"train": 60, "val": 30}, seed=1)["train"]
        for view, splits_by_block in ((train, True), (dataset.take(70), True), (dataset.select([5, 40, 3, 80]), False)):
            assert view.source.splits_by_block is splits_by_block
            parts = view.split({"a": 0.5, "b": 0.5}, seed=2)
            assert sorted(i for part in parts.values() for i in ids_of(part)) == sorted(ids_of(view))
        assert train.split({"a": 0.5, "b": 0.5})["a"].source.blocks.lengths.tolist() == [10, 10, 10]

    def test_a_window_shuffle_of_a_part_gives_each_of_its_samples_once(self):
        part = blocked(30, 1, 0, 29, 40).split({"train": 0.7, "val": 0.3}, seed=3)["train"]
        loader = DataLoader(part, batch_size=7, shuffle="window", shuffle_window=20)
        assert sorted(numbers(loader)) == sorted(ids_of(part))

    def test_a_part_travels_to_other_processes(self):
        part = blocked(30, 40).split({"a": 0.5, "b": 0.5})["a"]
        before = ids_of(part)
        again = pickle.loads(pickle.dumps(part))
        assert ids_of(again) == before
        assert again.fingerprint == part.fingerprint

    def test_fingerprints_tell_parts_seeds_and_shares_apart(self):
        dataset = blocked(30, 40)
        made = [dataset.split({"a": a, "b": 70 - a}, seed=seed) for a in (30, 35) for seed in (0, 1)]
        assert len({part.fingerprint for parts in made for part in parts.values()}) == 8

    def test_moments_of_a_part_are_those_of_its_samples(self):
        part = blocked(30, 40).split({"a": 0.5, "b": 0.5})["a"]
        moments = fit_normalizer(part, ["x"]).columns["x"]
        assert moments.mean == pytest.approx(np.mean(ids_of(part)))
        assert moments.std == pytest.approx(np.std(ids_of(part)))

    def test_parts_of_parquet_files_are_drawn_from_every_row_group_and_normalised_by_their_own_samples(self, tmp_path):
        values = np.random.default_rng(0).standard_normal(1000)
        pq.write_table(pa.table({"x": values, "y": ["text"] * 1000}), tmp_path / "x.parquet", row_group_size=300)
        parts = ParquetDataset(tmp_path / "x.parquet").split({"train": 0.9, "val": 0.1}, seed=1)
        lengths = {name: part.source.blocks.lengths.tolist() for name, part in parts.items()}
        assert lengths == {"train": [270, 270, 270, 90], "val": [30, 30, 30, 10]}
        train = np.concatenate([batch["x"] for batch in DataLoader(parts["train"], batch_size=64, shuffle=True)])
        assert sorted([*train, *parts["val"][:]["x"]]) == sorted(values)
        moments = fit_normalizer(parts["train"]).columns["x"]
        assert moments.mean == pytest.approx(train.mean())
        assert moments.std == pytest.approx(train.std())

    def test_arrays_are_split_at_once_as_ever(self):
        part = ArrayDataset({"x": np.arange(100)}).split({"train": 0.8, "val": 0.2}, seed=5)["val"]
        assert ids_of(part) == permute(np.arange(80, 100), 100, hash_words(5, 0, 3)).tolist()


# Changing it is a change of the public contract: it needs a line under "Changed order" in CHANGELOG.md.
GOLDEN = {"train": [0, 3, 4, 5, 6, 10, 12, 11, 15, 13, 14], "val": [2, 9, 8], "test": [1, 7]}
