"""Opening many files at once: each pinned as it is now, or an error that names the first that can't be."""

import os

import fsspec
import pytest

from headrace.errors import StorageError
from headrace.formats.local_pin import LocalPin
from headrace.formats.pinning import pin_files
from headrace.storage import Store, StoredObject


@pytest.mark.parametrize("count", [1, 16, 300])
def test_files_are_pinned_in_their_order(tmp_path, count):
    paths = [tmp_path / f"{i}.tar" for i in range(count)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes(i))
    pins = pin_files([str(path) for path in paths], Store(), stored=False)
    assert pins == [LocalPin.of(str(path), os.stat(path)) for path in paths]
    assert [pin.file_bytes for pin in pins] == list(range(count))


def test_objects_are_pinned_in_their_order():
    fs = fsspec.filesystem("memory")
    for i in range(300):
        fs.pipe(f"/pinning/{i}.tar", bytes(i))
    try:
        pins = pin_files([f"memory://pinning/{i}.tar" for i in range(300)], Store(), stored=True)
    finally:
        fs.rm("/pinning", recursive=True)
    assert all(isinstance(pin, StoredObject) for pin in pins)
    assert [pin.object_bytes for pin in pins] == list(range(300))


@pytest.mark.parametrize(("count", "gone"), [(3, 1), (40, 33)])
def test_the_first_file_that_cannot_be_opened_is_named(tmp_path, count, gone):
    paths = [tmp_path / f"{i}.tar" for i in range(count)]
    for i, path in enumerate(paths):
        path.mkdir() if i > gone else path.write_bytes(b"x")
    paths[gone].unlink()
    with pytest.raises(StorageError, match=rf"cannot open .*/{gone}\.tar: No such file or directory"):
        pin_files([str(path) for path in paths], Store(), stored=False)
    with pytest.raises(StorageError, match=rf"cannot open .*/{count - 1}\.tar: it is not a regular file"):
        pin_files([str(paths[-1])], Store(), stored=False)
