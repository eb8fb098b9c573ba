"""The contract that every source keeps, over sources of every kind."""

import errno
from pathlib import Path

import numpy as np
import pytest
import torch

from headrace.formats import ArraySource, DatasetSource, NumpySource
from headrace.storage import local
from tests.formats.contract import SourceContract
from tests.formats.files import SAVERS, N, Saver, X, Y, below


def in_memory(_: Path):
    return ArraySource({"x": X, "y": torch.tensor(Y)}), {"x": X, "y": Y}


def in_memory_strided(_: Path):
    wide = np.repeat(X, 2, axis=2)
    return ArraySource({"f": np.asfortranarray(X), "s": wide[:, :, ::2], "b": X.astype(">f4")}), dict.fromkeys("fsb", X)


def in_files(saver: Saver):
    def maker(folder: Path):
        spec, columns = saver(folder)
        return NumpySource(below(folder, spec)), columns

    maker.__name__ = saver.__name__
    return maker


def foreign(_: Path):
    samples = [[i, str(i)] for i in range(N)]
    column = np.empty(N, object)
    for i, sample in enumerate(samples):
        column[i] = sample
    return DatasetSource(samples), {"sample": column}


FILE_MAKERS = [in_files(saver) for saver in SAVERS]
MAKERS = [in_memory, in_memory_strided, *FILE_MAKERS, foreign]


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

    @pytest.fixture(params=FILE_MAKERS, ids=lambda maker: maker.__name__.replace("_", " "))
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
