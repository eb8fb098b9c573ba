"""fit_normalizer: the z-score, in one pass, exact and bounded."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import headrace as hr
from headrace import ArgumentError, ArrayDataset, FormatError, Normalizer, fit_normalizer
from headrace.datasets import normalize
from tests.datasets.parts import Tenfold, Watched, counting, same, watched

RNG = np.random.default_rng(0)
FLOATS = st.floats(-1e6, 1e6, width=32)
SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=12)


def moments(values, **options):
    """What is measured of one column."""
    return fit_normalizer(ArrayDataset({"x": values}), **{"columns": ["x"], **options}).columns["x"]


class Announced(Watched):
    """Another source, and what is announced of it and read from it, in order."""

    read_ahead_bytes = 20 * 8

    def __init__(self, base):
        super().__init__(base)
        self.events = []

    def prefetch(self, sample_ids):
        self.events.append(("prefetch", sample_ids.tolist()))

    def end_prefetch(self):
        self.events.append(("end", []))

    def read(self, sample_ids, out=None):
        self.events.append(("read", sample_ids.tolist()))
        return super().read(sample_ids, out)


class TestMoments:
    @given(hnp.arrays(np.float32, SHAPES, elements=FLOATS), st.integers(1, 5))
    def test_they_are_those_of_numpy_in_float64_however_the_data_is_cut_into_pieces(self, values, rows):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(normalize, "_BYTES_AT_ONCE", rows * values[:1].nbytes)
            got = moments(values)
        exact = values.astype(np.float64)
        scale = np.abs(exact).max(axis=0)
        np.testing.assert_allclose(got.mean, exact.mean(axis=0), rtol=1e-12, atol=1e-12 * scale.max())
        np.testing.assert_allclose(got.std, exact.std(axis=0), rtol=1e-9, atol=1e-12 * scale.max())
        assert got.mean.shape == got.std.shape == values.shape[1:]

    def test_float32_values_with_a_large_mean_lose_no_digits(self):
        values = (1e6 + RNG.standard_normal((100_000, 3))).astype(np.float32)
        exact = values.astype(np.float64)
        got = moments(values)
        np.testing.assert_allclose(got.std, exact.std(axis=0), rtol=1e-10)
        np.testing.assert_allclose(got.mean, exact.mean(axis=0), rtol=1e-15)
        scaled = fit_normalizer(ArrayDataset({"x": values}))({"x": torch.from_numpy(values)})["x"]
        expected = (exact - exact.mean(axis=0)) / exact.std(axis=0)
        assert scaled.dtype == torch.float32
        np.testing.assert_allclose(scaled.numpy(), expected, rtol=1e-6, atol=1e-6)

    def test_float64_values_whose_mean_is_huge_keep_their_deviation(self):
        values = 1e15 + RNG.integers(0, 100, 10_000).astype(np.float64)
        assert moments(values).std == pytest.approx((values - 1e15).std(), rel=1e-12)

    @pytest.mark.parametrize("constant", [0.1, -1e300, 1e-300, 5, 0])
    @pytest.mark.parametrize("rows", [1, 3, 1000])
    def test_values_that_never_vary_have_no_deviation_at_all_and_become_zero(self, constant, rows):
        dataset = ArrayDataset({"x": np.full((rows, 2), constant, np.float64)})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(normalize, "_BYTES_AT_ONCE", 7 * 16)
            normalizer = fit_normalizer(dataset)
        assert (normalizer.columns["x"].std == 0).all()
        assert (normalizer.columns["x"].mean == constant).all()
        assert (normalizer(dataset[:])["x"] == 0).all()

    @pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "i8", "?", "f2", "f8", ">f4"])
    def test_every_real_dtype_is_measured_and_normalised_to_float32(self, dtype):
        values = RNG.integers(0, 2 if dtype == "?" else 100, (500, 2)).astype(dtype)
        dataset = ArrayDataset({"x": values})
        normalizer, exact = fit_normalizer(dataset, ["x"]), values.astype(np.float64)
        got = normalizer(dataset[:])["x"]
        assert got.dtype == torch.float32
        np.testing.assert_allclose(got.numpy(), (exact - exact.mean(0)) / exact.std(0), rtol=1e-5, atol=1e-5)

    def test_integers_beyond_float32_keep_their_differences(self):
        values = 10**12 + RNG.integers(0, 50, 1000)
        got = fit_normalizer(ArrayDataset({"x": values}), ["x"])({"x": torch.from_numpy(values)})["x"]
        np.testing.assert_allclose(got.numpy(), (values - values.mean()) / values.std(), rtol=1e-5, atol=1e-5)

    def test_bfloat16_is_a_floating_point_column_as_any_other(self):
        values = torch.from_numpy(RNG.standard_normal((500, 2))).bfloat16()
        exact = values.double().numpy()
        normalizer = fit_normalizer(ArrayDataset({"x": values}))
        np.testing.assert_allclose(normalizer.columns["x"].std, exact.std(axis=0), rtol=1e-12)
        got = normalizer({"x": values})["x"]
        np.testing.assert_allclose(got.numpy(), (exact - exact.mean(0)) / exact.std(0), rtol=1e-5, atol=1e-5)

    def test_data_is_read_in_pieces_in_file_order_each_sample_once(self):
        dataset = ArrayDataset({"x": np.zeros((40_000, 100), np.float64), "y": np.arange(40_000)})
        source = watched(dataset)
        fit_normalizer(dataset)
        assert [i for read in source.reads for i in read] == list(range(40_000))
        assert max(map(len, source.reads)) * 808 <= 8 << 20

    def test_what_comes_next_is_announced_in_the_order_of_reading_and_the_end_is_told(self):
        dataset = ArrayDataset({"x": np.arange(100, dtype=np.float64)})
        source = dataset.source = Announced(dataset.source)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(normalize, "_BYTES_AT_ONCE", 10 * 8)
            fit_normalizer(dataset)
        announced = [i for kind, ids in source.events if kind == "prefetch" for i in ids]
        assert announced == list(range(100))
        assert source.events[0] == ("prefetch", list(range(30)))  # as far ahead as read_ahead_bytes says, and the first
        assert source.events[-1] == ("end", [])

    def test_the_end_is_told_where_reading_fails_too(self):
        dataset = ArrayDataset({"x": np.array([1.0, np.nan])})
        source = dataset.source = Announced(dataset.source)
        with pytest.raises(ArgumentError, match="expected finite numbers"):
            fit_normalizer(dataset)
        assert source.events[-1] == ("end", [])

    def test_only_the_columns_that_are_measured_are_read(self, tmp_path):
        np.save(tmp_path / "x.npy", np.arange(10.0))
        np.save(tmp_path / "y.npy", np.arange(10.0))
        dataset = hr.NumpyDataset({"y": tmp_path / "y.npy", "x": tmp_path / "x.npy"})
        part = dataset.select(range(2, 6)).select([0, 1, 3])
        (tmp_path / "y.npy").unlink()  # files are opened when they are first read
        moments = fit_normalizer(part, ["x"]).columns["x"]
        assert moments.mean == pytest.approx((2 + 3 + 5) / 3)
        assert moments.position == 1

    def test_one_sample_is_enough(self):
        assert moments(np.array([[1.0, 2.0]])).std.tolist() == [0, 0]

    def test_of_a_view_only_its_samples_are_measured(self):
        dataset = ArrayDataset({"x": np.arange(10.0)})
        assert fit_normalizer(dataset.select([1, 3])).columns["x"].mean == 2


class TestColumns:
    def test_by_default_all_floating_point_ones(self):
        dataset = ArrayDataset({"a": [0.5, 1], "b": [1, 2], "c": torch.ones(2).bfloat16(), "d": np.ones(2, np.float16)})
        assert list(fit_normalizer(dataset).columns) == ["a", "c", "d"]

    def test_they_are_named_or_where_there_are_no_names_counted(self):
        named = ArrayDataset({"a": [0.5, 1.5], "b": [1, 3]})
        assert list(fit_normalizer(named, ["b"]).columns) == ["b"]
        assert list(fit_normalizer(named, "b").columns) == ["b"]
        positional = ArrayDataset([0.5, 1.5], [1, 3])
        normalizer = fit_normalizer(positional, [1])
        assert same(list(normalizer(positional[0])), [torch.tensor(0.5, dtype=torch.float64), torch.tensor(-1.0)])

    @pytest.mark.parametrize(
        ("columns", "text"),
        [
            (["z"], r"columns: expected some of \['x', 'n', 'r', 'c'\], got 'z'"),
            ([7], r"columns: expected some of \['x', 'n', 'r', 'c'\], got '7'"),
            (["r"], r"columns: expected real numbers, got 'r' of \[\('a', '<f4'\)\]"),
            (["c"], "columns: expected real numbers, got 'c' of complex64"),
            ([], "columns: expected at least one, got none"),
        ],
    )
    def test_what_cannot_be_normalised_is_refused(self, columns, text):
        record = np.zeros(2, [("a", "<f4")])
        dataset = ArrayDataset({"x": [0.5, 1], "n": [1, 2], "r": record, "c": np.zeros(2, np.complex64)})
        with pytest.raises(ArgumentError, match=text):
            fit_normalizer(dataset, columns)

    def test_a_dataset_without_floating_point_columns_asks_for_their_names(self):
        with pytest.raises(ArgumentError, match=r"columns: expected at least one, got none; the columns are \['x'\]"):
            fit_normalizer(counting(5))

    def test_samples_that_are_made_by_user_code_are_refused(self):
        for dataset in (Tenfold([1.0]), [1.0, 2.0]):
            with pytest.raises(ArgumentError, match="fit_normalizer: expected a dataset of columns, got "):
                fit_normalizer(dataset)


class TestNumbersThatAreNone:
    @pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("place", [0, 5, 99])
    def test_they_are_refused_and_the_first_sample_that_holds_them_is_named(self, wrong, place, monkeypatch):
        monkeypatch.setattr(normalize, "_BYTES_AT_ONCE", 10 * 16)
        values = RNG.standard_normal((100, 2))
        values[place, 1] = wrong
        with pytest.raises(ArgumentError, match=rf"column 'x': expected finite numbers, got .* sample {place}$"):
            moments(values)

    def test_infinities_of_both_signs_are_refused_without_a_warning(self):
        with pytest.raises(ArgumentError, match="got 2 samples with others, the first of them sample 1"):
            moments(np.array([0, np.inf, -np.inf]))
        with pytest.raises(ArgumentError, match="got 3 samples with others, the first of them sample 0"):
            moments(np.array([np.inf, -np.inf, np.nan]))

    def test_finite_numbers_whose_sums_overflow_are_refused_by_a_text_that_says_so(self):
        for values in ([1e308, 1e308, -1e308, 1.7e308, -1.7e308], [0, 1e200, -1e200]):
            with pytest.raises(ArgumentError, match="column 'x': expected numbers whose squares float64 can add up"):
                moments(np.array(values))


class TestTransform:
    @pytest.fixture
    def dataset(self):
        return ArrayDataset({"x": RNG.standard_normal((20, 3)).astype(np.float32) * 4 + 7, "y": np.arange(20)})

    @pytest.fixture
    def normalizer(self, dataset):
        return fit_normalizer(dataset)

    def test_it_takes_dicts_lists_tuples_and_single_samples_and_gives_back_their_kind(self, dataset, normalizer):
        batch = dataset[[3, 4]]
        x = normalizer(batch)["x"]
        assert same(normalizer(batch), {"x": x, "y": batch["y"]})
        assert same(normalizer(list(batch.values())), [x, batch["y"]])
        assert same(normalizer(tuple(batch.values())), (x, batch["y"]))
        assert same(normalizer(dataset[3]), {"x": x[0], "y": batch["y"][0]})

    def test_it_leaves_its_argument_unchanged(self, dataset, normalizer):
        batch = dataset[[3, 4]]
        before = {name: column.clone() for name, column in batch.items()}
        normalizer(batch)
        assert same(batch, before)

    def test_the_whole_dataset_has_mean_0_and_deviation_1_afterwards(self, dataset, normalizer):
        x = normalizer(dataset[:])["x"].double()
        torch.testing.assert_close(x.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-6, rtol=0)
        torch.testing.assert_close(x.std(0, correction=0), torch.ones(3, dtype=torch.float64), atol=1e-6, rtol=0)

    def test_it_is_a_batch_transform_of_headraces_loader(self, dataset, normalizer):
        loader = hr.DataLoader(dataset, batch_size=20, batch_transform=normalizer)
        assert same(list(loader), [normalizer(dataset[:])])

    @pytest.mark.parametrize(
        ("batch", "text"),
        [
            ({"y": torch.zeros(2)}, "column 'x': expected a tensor of samples of shape (3,), got NoneType"),
            ({"x": torch.zeros(2, 4)}, "column 'x': expected a tensor of samples of shape (3,), got shape (2, 4)"),
            ({"x": torch.tensor(1.0)}, "column 'x': expected a tensor of samples of shape (3,), got shape ()"),
            ([], "column 'x': expected it at place 0 of the batch, got 0"),
        ],
    )
    def test_a_batch_that_does_not_fit_is_refused(self, normalizer, batch, text):
        with pytest.raises(ArgumentError) as caught:
            normalizer(batch)
        assert str(caught.value) == text


class TestFiles:
    @given(hnp.arrays(np.float64, SHAPES, elements=st.floats(-1e100, 1e100)))
    def test_they_hold_the_moments_exactly(self, tmp_path_factory, values):
        path = tmp_path_factory.mktemp("n") / "n.json"
        normalizer = fit_normalizer(ArrayDataset({"x": values, "y": values[:, ...] * 0.5}), ["y", "x"])
        normalizer.save(path)
        again = Normalizer.load(path)
        assert list(again.columns) == ["y", "x"]
        for name, column in normalizer.columns.items():
            loaded = again.columns[name]
            assert loaded.position == column.position
            np.testing.assert_array_equal(loaded.mean, column.mean, strict=True)
            np.testing.assert_array_equal(loaded.std, column.std, strict=True)

    def test_they_are_json(self, tmp_path):
        fit_normalizer(ArrayDataset({"x": [1.0, 3.0]})).save(tmp_path / "n.json")
        assert json.loads((tmp_path / "n.json").read_text()) == {
            "version": 1,
            "columns": {"x": {"position": 0, "mean": 2.0, "std": 1.0}},
        }

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"not json",
            b"\xff\xfe\x00",
            b"null",
            b"[]",
            b"7",
            b"{}",
            b'{"version": 1}',
            b'{"version": "1", "columns": {}}',
            b'{"version": null, "columns": {}}',
            b'{"version": 1, "columns": []}',
            b'{"version": 1, "columns": {"x": 7}}',
            b'{"version": 1, "columns": {"x": {"position": 0, "mean": 1}}}',
            b'{"version": 1, "columns": {"x": {"position": -1, "mean": 1, "std": 1}}}',
            b'{"version": 1, "columns": {"x": {"position": 0.5, "mean": 1, "std": 1}}}',
            b'{"version": 1, "columns": {"x": {"position": 0, "mean": [1], "std": [1, 2]}}}',
            b'{"version": 1, "columns": {"x": {"position": 0, "mean": [[1], [2, 3]], "std": 1}}}',
            b'{"version": 1, "columns": {"x": {"position": 0, "mean": "a", "std": 1}}}',
            b'{"version": 1, "columns": {"x": {"position": 0, "mean": {}, "std": 1}}}',
            b'{"version": 1, "columns": {"x": {"position": 0, "mean": NaN, "std": 1}}}',
            b'{"version": 1, "columns": {"x": {"position": 0, "mean": null, "std": 1}}}',
            b'{"version": 1, "columns": {"x": {"position": 0, "mean": 1, "std": Infinity}}}',
            b'{"version": 1, "columns": {"x": {"position": 0, "mean": 1, "std": -1}}}',
            b'{"version": 1, "columns": {"x": {"position": 0, "mean": 1' + b"0" * 400 + b', "std": 1}}}',
            b'{"version": 1, "columns": {"x": {"position": 0, "mean": 1' + b"0" * 5000 + b', "std": 1}}}',
            b'{"version": 1, "columns": ' + b"[" * 100_000,
            b'{"version": 1, "columns": {"x": {"position": 0, "mean": '
            + b"[" * 80
            + b"1"
            + b"]" * 80
            + b', "std": 1}}}',
        ],
        ids=lambda content: content[:80].decode("latin1"),
    )
    def test_anything_else_is_a_format_error_that_names_the_file(self, tmp_path, content):
        path = tmp_path / "n.json"
        path.write_bytes(content)
        with pytest.raises(FormatError, match=r"n\.json: expected a normalizer as Normalizer\.save writes it, got "):
            Normalizer.load(path)

    def test_a_newer_version_says_so(self, tmp_path):
        (tmp_path / "n.json").write_text('{"version": 2, "contents": 0}')
        with pytest.raises(FormatError, match=r"n\.json: expected version 1 or older, got 2; update headrace"):
            Normalizer.load(tmp_path / "n.json")


def test_deviations_too_small_for_float32_give_finite_numbers():
    dataset = ArrayDataset({"x": np.array([[1e-39], [3e-39]], np.float32)})
    assert fit_normalizer(dataset)(dataset[:])["x"].flatten().tolist() == pytest.approx([-1, 1], abs=1e-3)
