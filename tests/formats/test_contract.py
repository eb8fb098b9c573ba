"""The contract that every source keeps, over sources of every kind."""

import errno
from pathlib import Path

import numpy as np
import pytest
import torch

from headrace.formats import ArraySource, DatasetSource, NumpySource, Raw
from headrace.storage import local
from tests.formats.contract import SourceContract

N = 13
X = np.random.default_rng(0).standard_normal((N, 3, 2)).astype(np.float32)
Y = np.arange(N) * 7
PAIRS = np.array([(i, i / 3) for i in range(N)], dtype=[("id", "i4"), ("value", "f8")])


def save_split(folder: Path, array: np.ndarray, cuts: list[int]) -> str:
    for number, part in enumerate(np.split(array, cuts)):
        np.save(folder / f"part-{number}.npy", part)
    return str(folder / "part-*.npy")


def in_memory(_: Path):
    return ArraySource({"x": X, "y": torch.tensor(Y)}), {"x": X, "y": Y}


def in_memory_strided(_: Path):
    wide = np.repeat(X, 2, axis=2)
    return ArraySource({"f": np.asfortranarray(X), "s": wide[:, :, ::2], "b": X.astype(">f4")}), dict.fromkeys("fsb", X)


def one_file(folder: Path):
    np.save(folder / "x.npy", X)
    np.save(folder / "y.npy", Y)
    return NumpySource({"x": folder / "x.npy", "y": folder / "y.npy"}), {"x": X, "y": Y}


def many_files(folder: Path):
    np.save(folder / "y.npy", Y)
    return NumpySource({"x": save_split(folder, X, [1, 6, 8]), "y": folder / "y.npy"}), {"x": X, "y": Y}


def fortran_and_big_endian(folder: Path):
    np.save(folder / "f.npy", np.asfortranarray(X))
    np.save(folder / "b.npy", X.astype(">f4"))
    np.save(folder / "fb.npy", np.asfortranarray(X.astype(">f4")))
    return NumpySource({name: folder / f"{name}.npy" for name in ("f", "b", "fb")}), dict.fromkeys(("f", "b", "fb"), X)


def structured(folder: Path):
    mixed = PAIRS.astype([("id", ">i4"), ("value", "<f8")])
    np.save(folder / "native.npy", PAIRS)
    np.save(folder / "mixed.npy", mixed)
    return NumpySource({"n": folder / "native.npy", "m": folder / "mixed.npy"}), {"n": PAIRS, "m": PAIRS}


def raw(folder: Path):
    X.tofile(folder / "x-0.bin")
    Y.astype(">i8").tofile(folder / "y.bin")
    source = NumpySource(
        {
            "x": Raw(folder / "x-*.bin", dtype="f4", shape=(-1, 3, 2)),
            "y": Raw(folder / "y.bin", dtype=">i8", shape=(N,)),
        }
    )
    return source, {"x": X, "y": Y}


def misaligned(folder: Path):
    for name, fortran in (("c", False), ("f", True)):
        text = f"{{'descr': '<f4', 'fortran_order': {fortran}, 'shape': (13, 3, 2)}}".ljust(79).encode()
        start = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text  # 89 bytes: no multiple of 4
        (folder / f"{name}.npy").write_bytes(start + X.tobytes("F" if fortran else "C"))
    return NumpySource({"c": folder / "c.npy", "f": folder / "f.npy"}), {"c": X, "f": X}


def foreign(_: Path):
    samples = [[i, str(i)] for i in range(N)]
    column = np.empty(N, object)
    for i, sample in enumerate(samples):
        column[i] = sample
    return DatasetSource(samples), {"sample": column}


MAKERS = [
    in_memory,
    in_memory_strided,
    one_file,
    many_files,
    fortran_and_big_endian,
    structured,
    raw,
    misaligned,
    foreign,
]


@pytest.fixture(params=MAKERS, ids=lambda maker: maker.__name__.replace("_", " "))
def made(request, tmp_path):
    return request.param(tmp_path)


class TestEverySource(SourceContract):
    @pytest.fixture
    def source(self, made):
        return made[0]

    @pytest.fixture
    def columns(self, made):
        return made[1]


class TestEveryFileSourceWithoutMaps(SourceContract):
    """The same where the address space is too small for a map."""

    @pytest.fixture(params=MAKERS[2:-1], ids=lambda maker: maker.__name__.replace("_", " "))
    def made(self, request, tmp_path, monkeypatch):
        def no_room(*_, **__):
            raise OSError(errno.ENOMEM, "Cannot allocate memory")

        monkeypatch.setattr(local.mmap, "mmap", no_room)
        source, columns = request.param(tmp_path)
        assert all(column._opened[0].file.mapped is None for column in source._columns.values())
        return source, columns

    @pytest.fixture
    def source(self, made):
        return made[0]

    @pytest.fixture
    def columns(self, made):
        return made[1]
