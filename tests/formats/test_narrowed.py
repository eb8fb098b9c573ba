"""narrowed: the same samples with fewer columns, and nothing read of the others."""

import pickle

import numpy as np
import pytest

from headrace.formats import ArraySource, NumpySource
from tests.formats.contract import SourceContract
from tests.formats.files import SAVERS, X, Y, below
from tests.formats.stand_in_store import BASE, stored

SEVERAL = [saver for saver in SAVERS if saver.__name__ in ("one_file", "many_files", "fortran_and_big_endian")]


@pytest.fixture(params=SEVERAL, ids=lambda saver: saver.__name__.replace("_", " "))
def saved(request, tmp_path):
    return request.param(tmp_path)


@pytest.fixture(params=["local", "stored"])
def whole(request, tmp_path, saved):
    if request.param == "local":
        return NumpySource(below(tmp_path, saved[0]))
    return NumpySource(below(BASE, saved[0]), stored(tmp_path))


class TestEveryNarrowedSource(SourceContract):
    @pytest.fixture
    def columns(self, saved):
        name = list(saved[1])[-1]
        return {name: saved[1][name]}

    @pytest.fixture
    def source(self, whole, columns):
        return whole.narrowed(columns)


def test_it_has_the_same_samples_in_the_same_blocks_and_the_same_fingerprint(whole):
    name = next(iter(whole.schema))
    narrow = whole.narrowed([name])
    assert list(narrow.schema) == [name]
    assert narrow.fingerprint == whole.fingerprint
    assert narrow.blocks.lengths.tolist() == whole.blocks.lengths.tolist()
    assert narrow.blocks.bytes.sum() == len(narrow) * narrow.schema[name].sample_bytes
    assert narrow.random_access == whole.random_access


def test_it_stays_narrow_in_other_processes(whole):
    name = list(whole.schema)[-1]
    again = pickle.loads(pickle.dumps(whole.narrowed([name])))
    assert list(again.read([2, 0])) == [name]
    assert again.fingerprint == whole.fingerprint


def test_all_columns_or_a_source_that_gains_nothing_is_the_source_itself(whole):
    assert whole.narrowed(set(whole.schema)) is whole
    arrays = ArraySource({"x": X, "y": Y})
    assert arrays.narrowed(["y"]) is arrays


def test_narrowed_again_it_keeps_what_both_ask_for(tmp_path):
    np.save(tmp_path / "x.npy", X)
    source = NumpySource(dict.fromkeys("abc", tmp_path / "x.npy"))
    assert list(source.narrowed(["c", "a"]).schema) == ["a", "c"]
    assert list(source.narrowed(["c", "a"]).narrowed(["c"]).schema) == ["c"]
    assert list(source.schema) == ["a", "b", "c"]


def test_nothing_is_fetched_of_the_other_columns_and_what_was_fetched_is_shared(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    store = stored(tmp_path)
    source = NumpySource(below(BASE, {"x": "x.npy", "y": "y.npy"}), store)
    store.forget_asked()
    narrow = source.narrowed(["y"])
    narrow.prefetch(np.arange(len(Y)))
    assert narrow.read(np.arange(len(Y)))["y"].tolist() == Y.tolist()
    assert {url for url, *_ in store.asked} == {f"{BASE}/y.npy"}
    store.forget_asked()
    assert source.read([3])["y"].tolist() == Y[[3]].tolist()
    assert {url for url, *_ in store.asked} == {f"{BASE}/x.npy"}
