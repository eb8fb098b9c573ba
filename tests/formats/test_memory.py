"""Arrays and tensors in memory."""

import pickle
import tracemalloc

import numpy as np
import pytest
import torch

from headrace.errors import ArgumentError
from headrace.formats import ArraySource


def test_tensors_that_numpy_has_no_dtype_for_are_read_as_bits():
    for dtype, bits in ((torch.bfloat16, "int16"), (torch.float8_e4m3fn, "uint8"), (torch.float8_e5m2, "uint8")):
        tensor = torch.arange(8.0).reshape(4, 2).to(dtype)
        source = ArraySource({"x": tensor})
        column = source.schema["x"]
        assert (column.dtype, column.shape, column.torch_dtype) == (np.dtype(bits), (2,), dtype)
        read = torch.from_numpy(source.read([3, 0])["x"]).view(dtype)
        assert torch.equal(read.float(), tensor[[3, 0]].float())


def test_tensors_with_gradients_or_lazy_conjugates_are_read_as_values():
    values = torch.tensor([1 + 2j, 3 - 4j])
    source = ArraySource({"g": torch.ones(2, requires_grad=True), "c": values.conj(), "n": values.conj().imag})
    read = source.read([1])
    assert (read["g"], read["c"], read["n"]) == (1, 3 + 4j, 4)


def test_arrays_are_not_copied_and_later_changes_are_seen():
    array = np.zeros(3)
    source = ArraySource({"x": array})
    array[1] = 5
    assert source.read([1])["x"] == 5


def test_a_list_of_numbers_is_an_array():
    assert ArraySource({"x": [[1, 2], [3, 4]]}).read([1])["x"].tolist() == [[3, 4]]


@pytest.mark.parametrize("layout", ["strided", "fortran"])
def test_reading_one_row_of_a_large_array_does_not_copy_it_whole(layout):
    large = np.zeros((1000, 2000), order="F" if layout == "fortran" else "C")
    source = ArraySource({"x": large if layout == "fortran" else large[:, ::2]})
    tracemalloc.start()
    source.read([3])
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 100_000


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({}, "expected at least one column, got none"),
        ({"x": np.zeros(3), "y": np.zeros(2)}, "same number of samples: 'x' has 3, 'y' has 2"),
        ({"x": np.zeros((0, 2))}, "expected at least one sample, got an empty array in column 'x'"),
        ({"x": np.float32(1)}, r"column 'x': expected one row per sample, got a single value \(a 0-d array\)"),
        ({"x": torch.tensor(1)}, "column 'x': expected one row per sample"),
        ({"x": np.array([None])}, "column 'x': object holds Python objects"),
        ({"x": ["a"]}, "column 'x': no tensor holds text"),
        ({"x": [[1], [1, 2]]}, "column 'x': expected an array of numbers, got list"),
        ({"x": np.zeros(2, "M8[D]")}, r"column 'x': no tensor holds datetime64\[D\]"),
        ({"x": np.ma.masked_array([1, 2], [True, False])}, "a masked array would lose its mask"),
        ({"x": torch.ones(2, device="meta")}, r"expected a tensor on the CPU, got one on meta: pass tensor\.cpu\(\)"),
        ({"x": torch.eye(2).to_sparse()}, r"expected a dense tensor, got torch\.sparse_coo"),
    ],
)
def test_what_can_not_be_a_column_is_refused_by_name(columns, text):
    with pytest.raises(ArgumentError, match=text):
        ArraySource(columns)


def test_its_fingerprint_is_of_names_dtypes_and_shapes():
    def of(**columns):
        return ArraySource(columns).fingerprint

    assert of(x=np.zeros((3, 2))) == of(x=np.ones((3, 2)))
    assert (
        len({of(x=np.zeros((3, 2))), of(y=np.zeros((3, 2))), of(x=np.zeros((2, 3))), of(x=np.zeros((3, 2), "f4"))}) == 4
    )


def test_it_can_be_pickled():
    source = pickle.loads(pickle.dumps(ArraySource({"x": np.arange(4)})))
    assert source.read([2])["x"] == 2


def test_it_names_row_and_columns():
    assert ArraySource({"x": [1, 2], "y": [3, 4]}).where(1) == "row 1 of 'x', 'y' in memory"
