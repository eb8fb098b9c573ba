"""What every Source promises, as tests: subclass SourceContract and give the source and what its columns hold."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from headrace.errors import ArgumentError
from headrace.formats import Source


class SourceContract:
    """Subclasses provide the fixtures `source` and `columns`: what the columns hold, as plain arrays in file order."""

    def test_its_length_is_the_number_of_samples(self, source: Source, columns):
        assert {len(source)} == {len(array) for array in columns.values()}

    def test_its_schema_names_dtype_and_shape_of_every_column(self, source: Source, columns):
        assert list(source.schema) == list(columns)
        for name, column in source.schema.items():
            assert (column.dtype, column.shape) == (columns[name].dtype, columns[name].shape[1:])
            assert column.dtype.isnative
            assert column.sample_bytes == columns[name][:1].nbytes

    def test_its_blocks_sum_to_its_length_and_bytes(self, source: Source, columns):
        blocks = source.blocks
        assert blocks.lengths.dtype == blocks.bytes.dtype == np.int64
        assert blocks.lengths.sum() == len(source)
        assert blocks.bytes.sum() == sum(array.nbytes for array in columns.values())
        assert (blocks.lengths > 0).all()

    @pytest.mark.parametrize("order", ["file order", "backwards", "repeats", "random", "one", "none"])
    def test_a_read_gathers_the_samples_in_the_order_of_the_ids(self, source: Source, columns, order):
        n = len(source)
        ids = {
            "file order": np.arange(n),
            "backwards": np.arange(n)[::-1],
            "repeats": np.array([n - 1, 0, 0, n - 1]),
            "random": np.random.default_rng(0).integers(0, n, 3 * n),
            "one": np.array([n // 2]),
            "none": np.array([], np.int64),
        }[order]
        self.assert_reads(source, columns, ids)

    @pytest.mark.parametrize("kind", [list, tuple, np.int32, np.uint64])
    def test_ids_may_be_any_integers(self, source: Source, columns, kind):
        ids = kind([1, 0]) if kind in (list, tuple) else np.array([1, 0], kind)
        assert_same(source.read(ids), {name: array[[1, 0]] for name, array in columns.items()})

    def test_a_read_fills_and_returns_the_arrays_of_out(self, source: Source, columns):
        out = {name: np.empty((2, *array.shape[1:]), array.dtype) for name, array in columns.items()}
        read = source.read([2, 0], out)
        assert all(read[name] is out[name] for name in columns)
        assert_same(out, {name: array[[2, 0]] for name, array in columns.items()})

    def test_an_out_of_another_shape_dtype_or_layout_is_refused(self, source: Source, columns):
        name, array = next(iter(columns.items()))
        good = np.empty((2, *array.shape[1:]), array.dtype)
        read_only = good.copy()
        read_only.flags.writeable = False
        for wrong in (
            np.empty((3, *array.shape[1:]), array.dtype),
            np.empty(good.shape, "V3"),
            np.empty((4, *array.shape[1:]), array.dtype)[::2],
            read_only,
        ):
            with pytest.raises(ArgumentError, match=rf"out\['{name}'\]: expected a writable C-contiguous"):
                source.read([2, 0], {name: wrong})
        with pytest.raises(ArgumentError, match="out: no column named 'nothing'; the columns are"):
            source.read([2, 0], {"nothing": good})

    @pytest.mark.parametrize("wrong", ["length", "minus one", "smallest", "huge"])
    def test_an_id_out_of_range_is_an_index_error(self, source: Source, wrong):
        bad = {"length": len(source), "minus one": -1, "smallest": -(2**63), "huge": 2**63 - 1}[wrong]
        with pytest.raises(IndexError, match=rf"sample id {bad} is out of range: the source has {len(source)} samples"):
            source.read([0, bad])

    def test_ids_that_are_not_a_row_of_integers_are_refused(self, source: Source):
        with pytest.raises(ArgumentError, match="sample_ids: expected integers, got float64"):
            source.read([0.0, 1.0])
        with pytest.raises(ArgumentError, match="sample_ids: expected integers, got bool"):
            source.read([True, False])
        with pytest.raises(ArgumentError, match=r"sample_ids: expected one dimension, got shape \(1, 2\)"):
            source.read([[0, 1]])

    def test_eight_threads_that_read_at_once_get_their_own_samples(self, source: Source, columns):
        def hammer(seed: int) -> None:
            rng = np.random.default_rng(seed)
            for _ in range(30):
                ids = rng.integers(0, len(source), 7)
                source.prefetch(ids)
                self.assert_reads(source, columns, ids)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(hammer, range(8)))

    def test_parts_of_prepared_samples_are_read_as_they_would_be_by_themselves(self, source: Source, columns):
        ids = np.random.default_rng(1).integers(0, len(source), 11)
        part = source.prepare(ids)
        for start, stop in ((0, 4), (7, 11), (4, 7), (5, 5), (0, 11)):
            out = {name: np.empty((stop - start, *array.shape[1:]), array.dtype) for name, array in columns.items()}
            read = part(start, stop, out)
            assert all(read[name] is out[name] for name in columns)
            assert_same(out, {name: array[ids[start:stop]] for name, array in columns.items()})
        with pytest.raises(IndexError):
            source.prepare([0, len(source)])

    def test_prefetch_is_only_a_hint(self, source: Source, columns):
        assert source.prefetch([2, 0]) is None
        self.assert_reads(source, columns, np.array([2, 0]))

    def test_its_fingerprint_is_hexadecimal_and_stable(self, source: Source):
        assert len(source.fingerprint) >= 16
        assert int(source.fingerprint, 16) >= 0
        assert source.fingerprint == source.fingerprint

    def test_it_names_the_place_of_a_sample(self, source: Source):
        assert str(source.where(0)) != str(source.where(len(source) - 1))

    @staticmethod
    def assert_reads(source: Source, columns, ids) -> None:
        assert_same(source.read(ids), {name: array[ids] for name, array in columns.items()})


def assert_same(got, expected) -> None:
    """Same columns, dtypes, shapes and values."""
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(got[name], array)
