"""Writes samples as shards: whole, the same bytes on every machine, and with their index beside them.

Guarantees:
    - What has a shard's name is a whole shard (see `tar_destinations`).
    - A shard's bytes depend on its samples alone: times are 0, owners are fixed, fields are sorted. Only what encoders
      make of images, and of what is compressed, depends on their versions.
    - Memory does not grow with the number of samples, but for the keys of one shard.
"""

import contextlib
import os
import tarfile
from collections.abc import Iterable, Mapping
from typing import Any

from headrace.errors import ArgumentError
from headrace.formats.tar_destinations import Destination, destination_of, writing
from headrace.formats.tar_encoding import described, members_of
from headrace.storage import shown

_BLOCK_BYTES = 512
# What a header holds without another one before it
_SHORT_NAME_BYTES = 100
_LARGE_BYTES = 8 << 30
_BUFFER_BYTES = 1 << 20


def write_shards(
    samples: Iterable[Mapping[str, Any]],
    pattern: str | os.PathLike[str],
    *,
    max_bytes: int = 1 << 30,
    max_samples: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Writes samples as WebDataset tar shards, one after the other, and their index beside them.

    Each sample is a mapping: its `__key__`, and for each field a value, which is encoded by the field's last extension
    as webdataset does (`cls` whole numbers, `txt` text, `npy` arrays and tensors, `npz`, `ten`, `json`, `msgpack`,
    images). Bytes are written as they are, but compressed where a field ends with ".gz" and they aren't.

    What would not be read as it was written is an error: a key with a dot after its last "/", one that occurs twice in
    a shard, a value that its field can't hold, fields whose names differ in upper case only. Values that would have to
    be pickled are refused; so are names of fields that begin with "_", except those which readers add (`__url__`,
    `__local_path__`, ...): these are left out.

    An error leaves the shards that are finished, which it names, and nothing of the one that is not.

    Args:
        samples: In the order in which they are written.
        pattern: The shards' path or URL, with one number in the name of the file: "train-%06d.tar". Folders are made.
        max_bytes: The most that a shard may have, as a file. A larger sample has a shard for itself.
        max_samples: The most samples in a shard; by default there is no bound.
        storage_options: What fsspec's filesystem takes: credentials, `endpoint_url`.
        overwrite: Whether to replace shards of this pattern that are there already. Those that are left over of a
            longer set are deleted in the end, and its index. By default they are an error, before anything is written.

    Returns:
        Each shard's absolute path or URL.

    Raises:
        ArgumentError: The pattern or a sample can't be written, there are such shards already, more than the pattern
            has numbers for, no samples, or no iterable of them.
        DependencyError: A package is missing; the text names the pip line.
        StorageError: A shard cannot be written.

    Example:
        >>> samples = ({"__key__": f"{i:03d}", "txt": "hi", "cls": i} for i in range(5))
        >>> write_shards(samples, "hi-%02d.tar", max_samples=3)
        ['...hi-00.tar', '...hi-01.tar']
    """
    _check_iterable(samples)
    _check_numbers(max_bytes, max_samples)
    with destination_of(os.fspath(pattern), dict(storage_options or {}), overwrite=overwrite) as destination:
        found = destination.existing()
        if found and not overwrite:
            raise ArgumentError(
                f"{destination}: expected no such shards, got {len(found)}: {shown(found[0])}, ...: write under "
                "another name, delete them, or give overwrite=True"
            )
        try:
            _write_all(samples, destination, max_bytes, max_samples)
            if found:
                destination.delete_former(found)
            destination.write_index()
        except BaseException as error:
            if stay := destination.written:
                error.add_note(
                    f"{len(stay)} finished shards stay where they are: {shown(stay[0])} to {shown(stay[-1])}"
                    if len(stay) > 1
                    else f"a finished shard stays where it is: {shown(stay[0])}"
                )
                if kept := [name for name in found if name not in set(stay)]:
                    error.add_note(
                        f"beside them are still {len(kept)} of the former shards: {shown(kept[0])} to "
                        f"{shown(kept[-1])}: write all of them again before they are read"
                    )
            raise
        return destination.written


def _check_iterable(samples: Any) -> None:
    is_iterable = isinstance(samples, Iterable) or hasattr(type(samples), "__getitem__")
    if not is_iterable or isinstance(samples, Mapping | str | bytes | bytearray):
        raise ArgumentError(
            f"samples: expected an iterable of samples, dicts with a '__key__' each, got {described(samples)}"
        )


def _check_numbers(max_bytes: int, max_samples: int | None) -> None:
    for name, number in (("max_bytes", max_bytes), ("max_samples", max_samples)):
        if number is None and name == "max_samples":
            continue
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ArgumentError(f"{name}: expected a whole number, 1 or more, got {number!r}")


def _write_all(samples: Iterable[Any], destination: Destination, max_bytes: int, max_samples: int | None) -> None:
    shard: _Shard | None = None
    try:
        for number, sample in enumerate(samples):
            key, members = members_of(sample, number)
            sample_bytes = sum(_member_bytes(f"{key}.{field}", len(data)) for field, data in members.items())
            if shard is not None and (len(shard.keys) == max_samples or shard.bytes_with(sample_bytes) > max_bytes):
                full, shard = shard, None
                full.finish()
            if shard is None:
                shard = _Shard(destination)
            shard.add(key, members, sample_bytes, number)
        if shard is None:
            raise ArgumentError(f"{destination}: expected at least one sample to write, got none")
        full, shard = shard, None
        full.finish()
    finally:
        if shard is not None:
            shard.discard()


class _Shard:
    """A shard that is being written, by webdataset's writer.

    Attributes:
        keys: Of the samples that it has.
    """

    def __init__(self, destination: Destination) -> None:
        from webdataset.writer import TarWriter

        self.keys: set[str] = set()
        self._destination = destination
        self._bytes = 0
        self._name = destination.next_name()
        self._part = destination.part_of(self._name)
        with writing(self._name):
            # not through `tempfile`: the file gets the mode that others have
            fd = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._file = os.fdopen(fd, "wb", _BUFFER_BYTES)
        # a whole number as the time: a fraction would bring a pax header for each member
        self._writer = TarWriter(self._file, encoder=False, mtime=0)

    def bytes_with(self, sample_bytes: int) -> int:
        """The bytes of the file with one more sample."""
        return _padded(self._bytes + sample_bytes + 2 * _BLOCK_BYTES, tarfile.RECORDSIZE)

    def add(self, key: str, members: Mapping[str, bytes], sample_bytes: int, number: int) -> None:
        """Writes a sample."""
        if key in self.keys:
            raise ArgumentError(
                f"sample {number}: key {key!r}: expected one that no other sample of its shard has, got it again in "
                f"{shown(self._name)}: number the keys"
            )
        self.keys.add(key)
        self._bytes += sample_bytes
        with writing(self._name):
            self._writer.write({"__key__": key, **members})
        self._writer.tarstream.members.clear()  # it would keep the headers of all

    def finish(self) -> None:
        """Ends the tar, and puts it in its place."""
        try:
            with writing(self._name):
                self._writer.close()
                self._file.flush()
                assert os.fstat(self._file.fileno()).st_size == self.bytes_with(0)
                os.fsync(self._file.fileno())
                self._file.close()
            self._destination.publish(self._part, self._name)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Leaves nothing of it."""
        for close in (self._writer.close, self._file.close):
            with contextlib.suppress(OSError, ValueError):
                close()
        with contextlib.suppress(OSError):
            os.unlink(self._part)


def _member_bytes(name: str, payload_bytes: int) -> int:
    """The bytes of a member with all its headers."""
    header_bytes = _BLOCK_BYTES
    if not name.isascii() or len(name) > _SHORT_NAME_BYTES or payload_bytes >= _LARGE_BYTES:
        info = tarfile.TarInfo(name)
        info.size = payload_bytes
        header_bytes = len(info.tobuf(tarfile.PAX_FORMAT))
    return header_bytes + _padded(payload_bytes, _BLOCK_BYTES)


def _padded(number: int, unit: int) -> int:
    return -(-number // unit) * unit
