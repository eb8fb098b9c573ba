"""Maps without descriptors: what they cost, how long they last, and what shows when the file or its name changes."""

import errno
import gc
import mmap
import os
import resource
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from headrace.errors import StorageError
from headrace.storage import LocalFile, local, mapped
from headrace.storage.mapped import MappedFile
from tests.open_files import descriptors_of
from tests.storage.address_space import hold_used_pages

PAGE = mmap.PAGESIZE
CONTENT = bytes(range(256)) * 256


# From 3.13 on, libc's is not the way that is taken.
WAYS = ["as this Python maps", *(["by libc"] if sys.version_info >= (3, 13) else [])]


@pytest.fixture(params=WAYS, autouse=True)
def way(request, monkeypatch):
    if request.param == "by libc":
        monkeypatch.setattr(mapped, "map_untracked", mapped.map_by_libc)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "data.bin"
    path.write_bytes(CONTENT)
    return path


def maps_of(path):
    """How many maps of this file the process has, whether or not it has its name still."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sum(line.removesuffix(" (deleted)").endswith(f" {path}") for line in lines)


def rename_over(path, content=b"another"):
    other = path.with_suffix(".new")
    other.write_bytes(content)
    other.rename(path)


def test_a_file_is_mapped_whole_and_read_at_positions_alike(path):
    file = MappedFile(path)
    assert (file.path, file.opened_bytes, file.opened.st_ino) == (path, 65536, path.stat().st_ino)
    assert (file.mapped.dtype, file.mapped.shape, bytes(file.mapped)) == (np.uint8, (65536,), CONTENT)
    out = np.empty(300, np.uint8)
    file.read_into(out, 1000)
    np.testing.assert_array_equal(out, file.mapped[1000:1300])


def test_the_map_can_not_be_written_nor_made_writable(path):
    array = MappedFile(path).mapped
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True


def test_what_is_written_into_the_file_shows_in_the_map(path):
    file = MappedFile(path)
    with open(path, "r+b") as writer:
        writer.write(b"new")
    assert bytes(file.mapped[:3]) == b"new"


def test_no_descriptor_stays_open(path):
    file = MappedFile(path)
    file.read_into(np.empty(300, np.uint8), 0)
    file.will_need(np.array([0]), 300)
    file.is_resident(0)
    file.status()
    assert (descriptors_of(path), maps_of(path)) == (0, 1)
    kept_open = LocalFile(path)
    assert descriptors_of(path) > 0
    del kept_open


def test_no_descriptor_stays_open_after_an_error(path):
    file = MappedFile(path)
    with pytest.raises(StorageError, match="got the file's end"):
        file.read_into(np.empty(300, np.uint8), 65536)
    rename_over(path)
    with pytest.raises(StorageError, match="another file"):
        file.read_into(np.empty(300, np.uint8), 0)
    assert descriptors_of(path) == 0


MANY = """
import os, resource, sys
from pathlib import Path
from headrace.storage.mapped import MappedFile
folder = Path(sys.argv[1])
for number in range(3000):
    (folder / str(number)).write_bytes(number.to_bytes(2, "little"))
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
before = os.listdir("/proc/self/fd")
files = [MappedFile(folder / str(number)) for number in range(3000)]
assert os.listdir("/proc/self/fd") == before
assert [int.from_bytes(bytes(file.mapped), "little") for file in files] == list(range(3000))
lines = Path("/proc/self/maps").read_text().splitlines()
assert sum(f" {folder}/" in line for line in lines) == 3000
del files
assert str(folder) not in Path("/proc/self/maps").read_text()
print("mapped")
"""


def test_thousands_of_files_are_mapped_at_once_under_a_limit_of_256_descriptors(tmp_path):
    source = Path(mapped.__file__).parents[2]
    command = [sys.executable, "-W", "error", "-c", f"import sys; sys.path.insert(0, {str(source)!r})\n{MANY}"]
    run = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "mapped\n"), run.stderr


def test_arrays_outlive_the_file_and_the_map_goes_with_the_last_of_them(path):
    file = MappedFile(path)
    views = [file.mapped[1:9].view(">u4"), file.mapped.reshape(256, 256)[:, 3], memoryview(file.mapped)[5:7]]
    del file
    gc.collect()
    for expected in (CONTENT[1:9], CONTENT[3::256], CONTENT[5:7]):
        assert maps_of(path) == 1
        view = views.pop(0)
        assert view.tobytes() == expected
        del view
    assert maps_of(path) == 0


def test_a_file_that_is_let_go_leaves_no_map_without_the_collector(path):
    gc.disable()
    try:
        MappedFile(path)
        assert maps_of(path) == 0
    finally:
        gc.enable()


def test_each_map_of_a_file_goes_on_its_own(path):
    first, second = MappedFile(path), MappedFile(path)
    assert maps_of(path) == 2
    del first
    assert maps_of(path) == 1
    assert bytes(second.mapped) == CONTENT


def test_the_map_goes_in_whatever_thread_lets_go_of_it_last(path):
    views = [MappedFile(path).mapped[5:]]
    assert maps_of(path) == 1
    thread = threading.Thread(target=views.clear)
    thread.start()
    thread.join()
    assert maps_of(path) == 0


def test_a_map_in_a_cycle_of_garbage_is_there_until_its_neighbours_are_finalized(path):
    read = []

    class Reader:
        def __del__(self):
            read.append(bytes(self.file.mapped[:4]))

    reader = Reader()
    reader.file = MappedFile(path)
    reader.file.reader = reader
    del reader
    gc.collect()
    assert (read, maps_of(path)) == ([CONTENT[:4]], 0)


def test_many_threads_map_read_and_let_go_at_once(path):
    def read(number):
        file = MappedFile(path)
        view = file.mapped[number:]
        out = np.empty(10, np.uint8)
        file.read_into(out, number)
        del file
        return bytes(view[:10]) == bytes(out) == CONTENT[number : number + 10]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(1000)))
    assert (maps_of(path), descriptors_of(path)) == (0, 0)


def test_a_forked_child_has_the_map_and_lets_go_of_its_own_only(path):
    file = MappedFile(path)
    child = os.fork()
    if child == 0:
        try:
            good = bytes(file.mapped) == CONTENT and maps_of(path) == 1
            del file
            good = good and maps_of(path) == 0 and bytes(MappedFile(path).mapped) == CONTENT
            os._exit(0 if good else 2)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (maps_of(path), bytes(file.mapped)) == (1, CONTENT)


def test_the_end_of_the_program_unmaps_nothing_that_is_still_read(path):
    source = Path(mapped.__file__).parents[2]
    program = f"""
import sys; sys.path.insert(0, {str(source)!r})
import atexit
from pathlib import Path
atexit.register(lambda: print(len(bytes(view)), flush=True))
from headrace.storage.mapped import MappedFile
view = MappedFile(Path(sys.argv[1])).mapped[1:]
class Last:
    def __del__(self, view=view, write=sys.stdout.write):
        write(str(int(view[0])))
last = Last()
"""
    command = [sys.executable, "-W", "error", "-c", program, str(path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "65535\n1", "")


def test_an_empty_file_has_no_map(tmp_path):
    path = tmp_path / "empty"
    path.touch()
    file = MappedFile(path)
    assert (file.mapped, file.opened_bytes) == (None, 0)


def test_what_the_system_can_not_map_has_no_map(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "mappable_bytes", lambda: sys.maxsize)
    fd = os.open(tmp_path, os.O_RDONLY)  # a folder
    try:
        assert mapped.map_untracked(fd, PAGE) is None
    finally:
        os.close(fd)


@pytest.mark.parametrize("limit_pages", [1, 10**9])
def test_a_map_leaves_half_of_a_limited_address_space_to_the_program(path, monkeypatch, limit_pages):
    used_pages = hold_used_pages(monkeypatch)
    soft = 2 * (used_pages + limit_pages) * PAGE
    os.truncate(path, 1000 * PAGE)
    with monkeypatch.context() as patched:
        patched.setattr(resource, "getrlimit", lambda _: (soft, soft))
        file = MappedFile(path)
    assert (file.mapped is None) == (limit_pages == 1)
    out = np.empty(256, np.uint8)
    file.read_into(out, 256)
    assert bytes(out) == CONTENT[:256]


def test_a_missing_file_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match=r"cannot open .*nothing: No such file"):
        MappedFile(tmp_path / "nothing")


def test_status_is_how_the_file_looks_now(path):
    file = MappedFile(path)
    assert file.status() == file.opened
    os.utime(path, ns=(1, 1))
    assert (file.status().st_mtime_ns, file.status().st_ino) == (1, file.opened.st_ino)


def test_a_file_that_is_truncated_in_place_shows_in_its_status_and_in_reads(path):
    file = MappedFile(path)
    os.truncate(path, 5)
    assert (file.status().st_size, file.opened.st_size) == (5, 65536)
    with pytest.raises(StorageError, match="shrank after it was opened: expected 65536 bytes, got 5"):
        file.read_into(np.empty(300, np.uint8), 0)


def test_a_file_that_another_is_renamed_over_stays_readable_and_looks_as_it_did(path):
    file = MappedFile(path)
    rename_over(path)
    assert file.status() is file.opened
    assert bytes(file.mapped) == CONTENT
    expected = (
        rf"cannot read .*data\.bin: another file has that name since it was opened: expected inode "
        rf"{file.opened.st_ino} of device {file.opened.st_dev}, got inode {path.stat().st_ino} of device .*: don't"
    )
    with pytest.raises(StorageError, match=expected):
        file.read_into(np.empty(300, np.uint8), 0)
    assert file.is_resident(0) is None
    assert file.will_need(np.array([0]), 300) is None


@pytest.mark.parametrize("gone", ["the file", "its folder", "its folder, for a file"])
def test_a_file_that_is_unlinked_stays_readable_and_looks_as_it_did(tmp_path, gone):
    path = tmp_path / "folder" / "data.bin"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    file = MappedFile(path)
    path.unlink()
    if gone != "the file":
        path.parent.rmdir()
    if gone == "its folder, for a file":
        path.parent.touch()
    assert file.status() is file.opened
    assert (bytes(file.mapped), maps_of(path)) == (CONTENT, 1)
    with pytest.raises(StorageError, match=r"cannot open .*data\.bin: (No such file|Not a directory)"):
        file.read_into(np.empty(300, np.uint8), 0)
    assert file.is_resident(0) is None
    assert file.will_need(np.array([0]), 300) is None


def test_the_number_of_a_mapped_inode_is_given_to_no_other_file(path):
    file = MappedFile(path)
    path.unlink()
    for _ in range(100):
        path.write_bytes(CONTENT)
        assert file.status() is file.opened
        path.unlink()


def test_a_pipe_that_has_the_name_now_keeps_nobody_waiting(path):
    file = MappedFile(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(StorageError, match="another file has that name"):
        file.read_into(np.empty(300, np.uint8), 0)


def test_a_file_is_found_again_from_another_working_directory(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    file = MappedFile(Path("data.bin"))
    monkeypatch.chdir("/")
    os.truncate(path, 5)
    assert (file.status().st_size, file.path) == (5, Path("data.bin"))


def test_a_file_that_the_system_says_nothing_about_may_have_changed(path, monkeypatch):
    file = MappedFile(path)

    def stale(_):
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", stale)
        with pytest.raises(StorageError, match=r"cannot look at .*data\.bin: Stale file handle"):
            file.status()


def test_advice_goes_to_the_file_in_whole_pages(path, monkeypatch):
    asked = []
    file = MappedFile(path)
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, *range_: asked.append((os.fstat(fd).st_ino, *range_)))
    file.will_need(np.array([9000, 0, 4096]), 100)
    start, stop = local.page_runs(np.array([9000, 0, 4096]), 100)[0]
    assert asked[0] == (file.opened.st_ino, start, stop - start, os.POSIX_FADV_WILLNEED)


def test_a_file_that_was_just_written_is_resident(path):
    assert MappedFile(path).is_resident(0) in (True, None)


@pytest.mark.parametrize(("error", "resident"), [(BlockingIOError(), False), (OSError(95, "not supported"), None)])
def test_residency_is_what_a_read_that_must_not_wait_says(path, monkeypatch, error, resident):
    def preadv(*_):
        raise error

    file = MappedFile(path)
    monkeypatch.setattr(os, "preadv", preadv)
    assert file.is_resident(0) is resident
