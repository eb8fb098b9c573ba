"""`.npy` headers: every version and dtype that NumPy writes, and files that lie."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import FormatError, StorageError
from headrace.formats.npy import read_npy_header

X = np.arange(24, dtype="<f4").reshape(6, 4)


def npy_bytes(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=version, allow_pickle=True)
    return stream.getvalue()


def with_header(text: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    length = len(text.encode()).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    return b"\x93NUMPY" + version + length + text.encode() + data


def header(descr: str = "'<f4'", shape: str = "(6, 4)", fortran: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n"


@pytest.fixture
def read(tmp_path):
    def read_these_bytes(content: bytes):
        path = tmp_path / "x.npy"
        path.write_bytes(content)
        return read_npy_header(path)

    return read_these_bytes


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_format_is_read(read, version):
    array = read(npy_bytes(X, version))
    assert (array.dtype, array.shape, array.fortran_order) == (X.dtype, X.shape, False)
    assert array.file_bytes == array.offset + X.nbytes


@pytest.mark.parametrize(
    "dtype", ["?", "i1", "u1", "<i2", ">u2", "<i4", ">i8", "<u8", "<f2", ">f4", "<f8", "<c8", ">c16"]
)
def test_numbers_of_every_kind_are_read_as_stored(read, dtype):
    assert read(npy_bytes(np.zeros((2, 3), dtype))).dtype == np.dtype(dtype)


def test_named_fields_are_kept(read):
    dtype = np.dtype([("id", ">i4"), ("point", "<f4", (3,)), ("größe", "u1")])
    assert read(npy_bytes(np.zeros(5, dtype))).dtype == dtype


def test_fortran_order_is_noticed(read):
    assert read(npy_bytes(np.asfortranarray(X))).is_columnwise
    assert not read(with_header(header(shape="(6,)", fortran="True"), bytes(24))).is_columnwise


def test_the_long_integers_that_python_2_wrote_are_read(read):
    assert read(with_header(header(shape="(6L, 4L)"), X.tobytes())).shape == (6, 4)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", r"x\.npy is empty \(0 bytes\)"),
        (b"PK\x03\x04 a zip archive", r"is not a \.npy file: expected it to begin with .*NUMPY.*, got b'PK"),
        (b"\x93NUMPY\x01", r"is not a \.npy file"),
        (b"\x93NUMPY\x04\x00" + bytes(90), r"expected \.npy version 1\.0, 2\.0 or 3\.0, got 4\.0"),
        (
            b"\x93NUMPY\x02\x00" + (10**9).to_bytes(4, "little"),
            "the header claims 1000000000 bytes, more than the 65536",
        ),
        (npy_bytes(X)[:50], "the file ends within its header: expected 128 bytes of it, got 50"),
        (with_header("__import__('os').abort()"), "its header is not a dict literal"),
        (with_header("(" * 5000), "its header is not a dict literal"),
        (with_header("-" * 60000 + "1"), "its header is not a dict literal"),
        (with_header("{1: [}"), "its header is not a dict literal"),
        (with_header("\x00"), "its header is not a dict literal"),
        (with_header("[1, 2]"), "its header must have the keys descr, fortran_order and shape"),
        (with_header("{'shape': (2,)}"), "its header must have the keys"),
        (with_header(header(shape="[6, 4]"), X.tobytes()), "expected a shape of whole numbers, got"),
        (with_header(header(shape="(-6, -4)"), X.tobytes()), "expected a shape of whole numbers, got"),
        (with_header(header(shape="(True, 4)"), X.tobytes()), "expected a shape of whole numbers, got"),
        (with_header(header(shape=str((1,) * 64)), bytes(4)), "expected a shape of at most 63 lengths, got 64"),
        (with_header(header(shape=f"(0, {2**62})")), f"expected a shape that an array can have, got .0, {2**62}"),
        (with_header(header(shape=f"({2**63}, 0)")), "expected a shape that an array can have, got"),
        (with_header(header(fortran="1"), X.tobytes()), "expected fortran_order True or False, got 1"),
        (with_header(header(descr="'<f5'"), X.tobytes()), "its dtype makes no sense: '<f5'"),
        (with_header(header(descr="[('a',)]"), X.tobytes()), "its dtype makes no sense"),
        (with_header(header(descr="None"), X.tobytes()), "its dtype makes no sense|no tensor"),
    ],
)
def test_what_is_no_npy_file_is_refused_and_the_text_says_why(read, content, text):
    with pytest.raises(FormatError, match=text):
        read(content)


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.array([1, "a"], object), "object holds Python objects, and reading them would run code"),
        (np.zeros(2, [("a", "O")]), "holds Python objects"),
        (np.zeros(2, "M8[s]"), r'no tensor holds datetime64\[s\]: store it as numbers, array\.view\("int64"\)'),
        (np.zeros(2, "m8[ns]"), r'no tensor holds timedelta64\[ns\]: .*array\.view\("int64"\)'),
        (np.zeros(2, np.longdouble), r'no tensor holds .*: store it as array\.astype\("float64"\)'),
        (np.zeros(2, np.clongdouble), r'no tensor holds .*: store it as array\.astype\("complex128"\)'),
        (np.zeros(2, [("a", "f4"), ("when", "M8[s]")]), "field 'when': no tensor holds"),
        (np.zeros(2, [("name", "U3")]), "field 'name': no tensor holds text"),
        (np.zeros(2, "V2"), "are bytes without fields"),
        (np.array(["a", "b"]), "no tensor holds text"),
        (np.array([b"a", b"b"]), "no tensor holds text"),
        (np.float32(1), r"expected one row per sample, got a single value \(a 0-d array\)"),
        (X[:0], r"expected at least one row, got an empty array of shape \(0, 4\)"),
        (X[:, :0], r"expected at least one row, got an empty array of shape \(6, 0\)"),
    ],
)
def test_arrays_that_can_not_become_samples_are_refused(read, array, text):
    with pytest.raises(FormatError, match=rf"x\.npy: .*{text}"):
        read(npy_bytes(np.asanyarray(array)))


def test_a_truncated_file_is_refused_with_both_sizes(read):
    with pytest.raises(
        FormatError, match=r"is truncated: shape \(6, 4\) of float32 needs 224 bytes .*, got 223: write"
    ):
        read(npy_bytes(X)[:-1])


def test_bytes_after_the_data_are_refused(read):
    with pytest.raises(FormatError, match=r"goes on after its data: .* needs 224 bytes .*, got 225"):
        read(npy_bytes(X) + b"\0")


def test_a_header_that_lies_about_the_shape_is_refused_however_large_its_numbers(read):
    with pytest.raises(FormatError, match="is truncated"):
        read(with_header(header(shape=f"({2**63}, {2**63})"), X.tobytes()))


def test_a_missing_file_and_a_folder_are_storage_errors(tmp_path):
    with pytest.raises(StorageError, match=r"cannot read .*nothing\.npy: No such file or directory"):
        read_npy_header(tmp_path / "nothing.npy")
    with pytest.raises(StorageError, match=r"cannot read .*: Is a directory"):
        read_npy_header(tmp_path)


@given(place=st.integers(0, 127), byte=st.integers(0, 255))
def test_a_header_with_any_byte_changed_is_read_or_refused(tmp_path_factory, place, byte):
    content = bytearray(npy_bytes(X))
    content[place] = byte
    path = tmp_path_factory.mktemp("npy") / "x.npy"
    path.write_bytes(content)
    try:
        array = read_npy_header(path)
    except FormatError:
        return
    assert array.file_bytes == len(content)
