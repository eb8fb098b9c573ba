"""Local files: maps, positional reads, advice in whole pages, a bounded number of open files."""

import mmap
import os
import resource
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import StorageError
from headrace.storage import LocalFile, OpenFiles, local, read_bytes
from tests.storage.address_space import hold_used_pages

PAGE = mmap.PAGESIZE


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "data.bin"
    path.write_bytes(bytes(range(256)) * 256)
    return LocalFile(path)


def test_a_file_is_mapped_and_read_at_positions_alike(file):
    out = np.empty(300, np.uint8)
    file.read_into(out, 1000)
    np.testing.assert_array_equal(out, file.mapped[1000:1300])


def test_the_map_of_a_file_can_not_be_written(file):
    with pytest.raises(ValueError, match="read-only"):
        file.mapped[0] = 1


def test_a_read_beyond_the_end_is_an_error(file):
    with pytest.raises(StorageError, match=r"data\.bin: expected 44 bytes more at byte 65536, got the file's end"):
        file.read_into(np.empty(300, np.uint8), 65536 - 256)


def test_a_short_read_goes_on_where_it_stopped(file, monkeypatch):
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: whole(fd, [views[0][:7]], offset))
    out = np.empty(300, np.uint8)
    file.read_into(out, 1000)
    np.testing.assert_array_equal(out, file.mapped[1000:1300])


def test_a_file_that_shrank_is_noticed(file):
    file.check_size()
    os.truncate(file.path, 5)
    with pytest.raises(StorageError, match="shrank after it was opened: expected 65536 bytes, got 5"):
        file.check_size()


def test_an_array_keeps_its_map_when_the_file_is_let_go(tmp_path):
    path = tmp_path / "data.bin"
    path.write_bytes(b"abc")
    mapped = LocalFile(path).mapped
    assert bytes(mapped) == b"abc"


def test_a_missing_file_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match=r"cannot open .*nothing: No such file"):
        LocalFile(tmp_path / "nothing")
    with pytest.raises(StorageError, match=r"cannot read .*nothing: No such file"):
        read_bytes(tmp_path / "nothing", 0, 1)


@pytest.mark.parametrize("limit_pages", [1, 10**9])
def test_a_map_leaves_half_of_a_limited_address_space_to_the_program(tmp_path, monkeypatch, limit_pages):
    used_pages = hold_used_pages(monkeypatch)
    soft = 2 * (used_pages + limit_pages) * PAGE
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, soft))
    path = tmp_path / "data.bin"
    path.write_bytes(bytes(1000 * PAGE))
    assert (LocalFile(path).mapped is None) == (limit_pages == 1)


@given(
    offsets=st.lists(st.integers(0, 10 * PAGE), max_size=20),
    length_bytes=st.integers(1, 3 * PAGE),
)
def test_page_runs_cover_every_byte_asked_for_and_no_page_besides(offsets, length_bytes):
    runs = local.page_runs(np.array(offsets, np.int64), length_bytes)
    pages = {page for start, stop in runs for page in range(start // PAGE, stop // PAGE)}
    assert pages == {page for o in offsets for page in range(o // PAGE, (o + length_bytes - 1) // PAGE + 1)}
    assert all(start % PAGE == stop % PAGE == 0 for start, stop in runs)
    assert all(stop < start for (_, stop), (start, _) in pairwise(runs))


def test_advice_is_cut_into_pieces_that_the_kernel_takes_whole(file, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, start, length, advice: asked.append((start, length, advice)))
    file.will_need(np.array([0]), 300 << 10)
    willneed = os.POSIX_FADV_WILLNEED
    assert asked == [(0, 128 << 10, willneed), (128 << 10, 128 << 10, willneed), (256 << 10, 44 << 10, willneed)]


def test_read_ahead_is_switched_only_when_it_changes(file, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: asked.append(arguments[-1]))
    for wanted in (True, False, False, True, True):
        file.read_ahead(wanted=wanted)
    assert asked == [os.POSIX_FADV_RANDOM, os.POSIX_FADV_NORMAL]


def test_a_file_that_was_just_written_is_resident(file):
    assert file.is_resident(0) in (True, None)


@pytest.mark.parametrize(("error", "resident"), [(BlockingIOError(), False), (OSError(95, "not supported"), None)])
def test_residency_is_what_a_read_that_must_not_wait_says(file, monkeypatch, error, resident):
    def preadv(*_):
        raise error

    monkeypatch.setattr(os, "preadv", preadv)
    assert file.is_resident(0) is resident


def test_open_files_are_bounded_and_the_first_opened_leaves_first():
    opened = []
    files = OpenFiles(lambda number: opened.append(number) or [number], limit=2)
    for number in (0, 1, 0, 2, 1, 0):
        assert files[number] == [number]
    assert len(files) == 2
    assert opened == [0, 1, 2, 0]
