"""Map-style datasets: samples and batches by id, and their form."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset, default_collate

import headrace as hr
from headrace import ArgumentError, ArrayDataset, NumpyDataset, Raw
from tests.datasets.parts import N, PerRow, Tenfold, columns, counting, same, tensor_of

NAMED = columns()


@pytest.fixture(scope="module")
def dataset() -> ArrayDataset:
    return ArrayDataset(NAMED)


class TestSamplesAndBatches:
    @pytest.mark.parametrize("index", [0, N - 1, -1, -N, np.int32(3), np.array(3), torch.tensor(3), np.uint8(7)])
    def test_an_integer_of_any_kind_gives_the_sample_that_a_dataset_written_by_hand_gives(self, dataset, index):
        assert same(dataset[index], PerRow(NAMED)[int(index)])

    @pytest.mark.parametrize(
        "index",
        [[0, 2, -1], (5, 5), range(3), np.array([4, 1], np.int16), torch.tensor([N - 1, 0]), [np.int64(2)], [-N]],
    )
    def test_a_list_or_array_of_ids_gives_their_batch(self, dataset, index):
        samples = [PerRow(NAMED)[int(i)] for i in index]
        assert same(dataset[index], default_collate(samples))

    @pytest.mark.parametrize(
        "cut", [slice(None), slice(2, 9, 3), slice(None, None, -1), slice(-3, None), slice(5, 500)]
    )
    def test_a_slice_gives_the_batch_of_its_samples(self, dataset, cut):
        assert same(dataset[cut], {name: tensor_of(values)[list(range(N))[cut]] for name, values in NAMED.items()})

    @pytest.mark.parametrize("empty", [[], (), np.zeros(0, np.int64), torch.zeros(0), slice(0, 0)])
    def test_no_id_gives_a_batch_without_rows(self, dataset, empty):
        batch = dataset[empty]
        assert {name: (column.shape[0], column.dtype) for name, column in batch.items()} == {
            name: (0, tensor_of(values).dtype) for name, values in NAMED.items()
        }

    @pytest.mark.parametrize("index", [N, -N - 1, 2**63 - 1, -(2**63), [0, N], np.array([0, -N - 1])])
    def test_an_id_outside_the_dataset_is_an_index_error_that_shows_it(self, dataset, index):
        wrong = int(np.ravel(index)[-1])
        with pytest.raises(IndexError, match=rf"^sample id {wrong} is out of range: the dataset has {N} samples$"):
            dataset[index]

    def test_an_unsigned_id_that_is_too_large_for_int64_does_not_wrap_around(self, dataset):
        with pytest.raises(IndexError, match="out of range"):
            dataset[np.array([2**64 - 1], np.uint64)]

    @pytest.mark.parametrize(
        "mask", [True, np.True_, [True, False], np.ones(N, np.bool_), torch.ones(N, dtype=torch.bool), np.zeros(0, "?")]
    )
    def test_booleans_are_refused_since_a_mask_would_read_samples_0_and_1(self, dataset, mask):
        with pytest.raises(ArgumentError, match=r"expected sample ids or a slice, got booleans; give np\.flatnonzero"):
            dataset[mask]

    @pytest.mark.parametrize(("index", "got"), [("x", "str"), (1.0, "float64"), ([0.5], "float64"), (None, "object")])
    def test_anything_else_is_refused(self, dataset, index, got):
        with pytest.raises(ArgumentError, match=rf"expected sample ids or a slice, got '{got}"):
            dataset[index]
        with pytest.raises(ArgumentError, match="expected one dimension"):
            dataset[[[0, 1]]]

    def test_iteration_gives_each_sample_once_and_ends(self, dataset):
        assert same(list(dataset), [PerRow(NAMED)[i] for i in range(N)])

    @given(st.lists(st.integers(-50, 49)))
    def test_any_ids_mean_what_they_mean_for_a_list(self, ids):
        assert counting(50)[ids]["x"].tolist() == [list(range(50))[i] for i in ids]

    @given(st.slices(50))
    def test_any_slice_means_what_it_means_for_a_list(self, cut):
        assert counting(50)[cut]["x"].tolist() == list(range(50))[cut]

    def test_a_batch_belongs_to_the_caller_and_does_not_follow_the_data(self):
        data = np.arange(4)
        batch = ArrayDataset({"x": data})[[0, 1]]
        batch["x"].add_(100)
        assert data.tolist() == [0, 1, 2, 3]


class TestForm:
    def test_columns_given_by_position_give_tuples_as_tensor_dataset_does(self):
        tensors = [torch.randn(N, 2), torch.arange(N)]
        ours, theirs = ArrayDataset(*tensors), TensorDataset(*tensors)
        for index in (0, -1, [1, 2], slice(3, 5)):
            assert same(ours[index], theirs[index])

    def test_a_mapping_gives_dicts_in_its_order(self):
        assert list(ArrayDataset({"b": [1], "a": [2]})[0]) == ["b", "a"]

    def test_as_tuple_overrules_both(self):
        assert ArrayDataset({"a": [1], "b": [2]}, as_tuple=True)[0] == (torch.tensor(1), torch.tensor(2))
        assert ArrayDataset([1], [2], as_tuple=False)[0] == {"0": torch.tensor(1), "1": torch.tensor(2)}

    def test_several_mappings_or_a_mix_are_refused(self):
        with pytest.raises(ArgumentError, match="one mapping of columns, or columns one by one, got 2 arguments"):
            ArrayDataset({"a": [1]}, [2])

    def test_numpy_files_follow_the_same_rules(self, tmp_path):
        np.save(tmp_path / "x.npy", np.arange(6).reshape(3, 2))
        np.arange(3, dtype="u1").tofile(tmp_path / "y.bin")
        raw = Raw(tmp_path / "y.bin", dtype="u1", shape=(-1,))
        expected = torch.tensor([2, 3]), torch.tensor(1, dtype=torch.uint8)
        assert same(NumpyDataset(tmp_path / "x.npy", raw)[1], expected)
        assert same(NumpyDataset({"x": tmp_path / "x.npy", "y": raw})[1], dict(zip("xy", expected, strict=True)))
        assert same(NumpyDataset({"x": tmp_path / "x.npy", "y": raw}, as_tuple=True)[1], expected)

    def test_the_schema_tells_dtype_and_shape_of_each_column(self, dataset):
        assert dataset.schema["f32"].shape == (3, 2)
        assert dataset.schema["big"].dtype == np.dtype("=f8")
        assert dataset.schema["bf16"].torch_dtype == torch.bfloat16


RECORD = np.dtype(
    [
        ("a", "u1"),
        ("b", "<f4"),
        ("c", "i2", (2,)),
        ("inner", [("d", ">i8"), ("e", "?")]),
        ("f", "f8"),
        ("g", "u1", (5,)),
    ]
)


class TestStructuredColumns:
    """NumPy's structured dtypes become nested dicts, whatever holes and odd strides their fields have."""

    @pytest.fixture(
        params=[RECORD, np.dtype([(n, RECORD[n]) for n in RECORD.names], align=True)], ids=["packed", "aligned"]
    )
    def records(self, request) -> np.ndarray:
        rng = np.random.default_rng(0)
        return rng.integers(0, 2, (7, request.param.itemsize), np.uint8).view(request.param)[:, 0]

    def leaves(self, value, prefix=()):
        if isinstance(value, dict):
            return {k: v for name, field in value.items() for k, v in self.leaves(field, (*prefix, name)).items()}
        return {prefix: value}

    def field(self, records, path):
        for name in path:
            records = records[name]
        return torch.from_numpy(records.astype(records.dtype.newbyteorder("="), order="C"))

    def test_samples_and_batches_hold_each_field_with_its_dtype_and_values(self, records):
        dataset = ArrayDataset({"r": records})
        for index in (2, [4, 1, 1]):
            leaves = self.leaves(dataset[index]["r"])
            assert list(leaves) == [("a",), ("b",), ("c",), ("inner", "d"), ("inner", "e"), ("f",), ("g",)]
            for path, leaf in leaves.items():
                expected = self.field(records, path)[index]
                assert leaf.dtype == expected.dtype
                assert torch.equal(leaf, expected)

    def test_no_tensor_lies_at_an_address_that_its_dtype_does_not_allow(self, records):
        dataset = ArrayDataset({"r": records})
        for index in (2, [2], [4, 1, 1]):
            for leaf in self.leaves(dataset[index]["r"]).values():
                assert leaf.data_ptr() % leaf.element_size() == 0

    def test_default_collation_of_its_samples_gives_its_batch(self, records):
        dataset = ArrayDataset({"r": records})
        assert same(default_collate([dataset[i] for i in (3, 0)]), dataset[[3, 0]])
        assert same(default_collate(dataset.__getitems__([3, 0])), dataset[[3, 0]])


class TestPickling:
    def test_a_numpy_dataset_pickles_paths_and_options_and_nothing_that_grows_with_the_data(self, tmp_path):
        sizes = []
        for n in (10, 1_000_000):
            np.save(tmp_path / f"x{n:07}.npy", np.zeros((n, 4), np.uint8))
            dataset = NumpyDataset({"x": tmp_path / f"x{n:07}.npy"}, as_tuple=True)
            fresh = len(pickle.dumps(dataset))
            _ = dataset[0], dataset.source.blocks, dataset.fingerprint, dataset.take(5)[0]
            assert len(pickle.dumps(dataset)) == fresh
            sizes.append(fresh)
        assert max(sizes) < 1000
        assert abs(sizes[0] - sizes[1]) < 16

    def test_it_comes_back_with_the_same_samples_form_and_fingerprint(self, tmp_path):
        np.save(tmp_path / "x.npy", np.arange(6).reshape(3, 2))
        for dataset in (NumpyDataset(tmp_path / "x.npy"), NumpyDataset({"x": tmp_path / "x.npy"}).select([2, 0])):
            again = pickle.loads(pickle.dumps(dataset))
            assert again.fingerprint == dataset.fingerprint
            assert same(list(again), list(dataset))

    def test_a_split_pickles_no_ids(self):
        parts = counting(10**9).split({"a": 0.5, "b": 0.5})
        assert len(pickle.dumps(parts["a"])) < 1000


def test_a_subclass_that_makes_its_samples_itself_is_noticed():
    assert Tenfold([1]).overrides_samples
    assert not ArrayDataset([1]).overrides_samples


class Half(ArrayDataset):
    def __len__(self):
        return 4


class Doubled(ArrayDataset):
    def __getitems__(self, ids):
        return [(2 * x,) for (x,) in super().__getitems__(ids)]


@pytest.mark.parametrize("kind", [Half, Doubled])
def test_a_subclass_s_own_length_and_batches_hold_in_every_loader(kind):
    dataset = kind(np.arange(8))
    batches = [[x.tolist() for (x,) in loader(dataset, batch_size=3)] for loader in (DataLoader, hr.DataLoader)]
    assert batches[0] == batches[1]


@pytest.mark.parametrize("ids", [np.arange(3), torch.arange(3)])
def test_a_batch_sampler_may_yield_arrays(ids):
    (batch,) = DataLoader(ArrayDataset(np.arange(8)), batch_sampler=[ids])
    assert batch[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: hr.NumpyDataset(np.arange(3)),
            "column '0': expected a path, .* got ndarray; give arrays to ArrayDataset",
        ),
        (
            lambda: hr.NumpyDataset({"x": "s3://bucket/x.npy"}, store=hr.Store(), storage_options={"anon": True}),
            "expected store= or storage_options=, got both: give the options to the store",
        ),
        (lambda: ArrayDataset("x.npy"), "expected arrays, got a path; give files to NumpyDataset"),
        (lambda: ArrayDataset(np.arange(3), as_tuple="no"), "as_tuple: expected True or False, got 'no'"),
        (lambda: ArrayDataset(np.arange(3)).take(1.5), r"take: expected 1\.\.3 samples, got 1\.5"),
        (lambda: ArrayDataset(np.arange(3)).take(True), r"take: expected 1\.\.3 samples, got True"),
        (
            lambda: ArrayDataset(np.arange(4)).split([0.5, 0.5]),
            r"split: expected each part's share by its name, as \{'train': 0\.9, 'val': 0\.1\}, got \[0\.5, 0\.5\]",
        ),
        (lambda: ArrayDataset(np.arange(4)).split({"a": "x"}), "split: expected each part's share .* got {'a': 'x'}"),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused_by_name(make, text):
    with pytest.raises(hr.ArgumentError, match=text):
        make()
