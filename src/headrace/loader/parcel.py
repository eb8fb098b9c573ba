"""Parcels: what worker processes start with, in one piece of shared memory for all of them.

A dataset that holds its samples in arrays is not copied for each worker: its arrays are written once, and mapped
copy-on-write by each. Files that are mapped (`np.memmap`) are not written at all but mapped anew. What a parcel holds
is made and unpacked by processes of one loader; no data from files is unpickled.

Guarantees:
- The memory has no name, and is gone when the parcel is closed and its workers have ended.
- What a worker writes into an array stays in that worker, also where the array is a file's.
"""

import bisect
import functools
import io
import itertools
import mmap
import os
import re
from collections.abc import Iterator, Mapping
from operator import itemgetter
from typing import Any, cast

import numpy as np

from headrace.errors import ArgumentError
from headrace.formats import Array
from headrace.loader.encoding import ParcelPickler, decode, encode_with, remember_received
from headrace.loader.slots import map_memory

_DEEPEST = 4  # attributes of attributes that are looked through for what can't be pickled
_MAP = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ")  # how a map's paragraph begins
_GRANULARITY = mmap.ALLOCATIONGRANULARITY  # np.memmap's maps begin at the multiple of this before their array
_WRITE_BYTES = 1 << 30  # the system writes less than 2 GiB at once


class Parcel:
    """A packed object. Keep it as long as its workers live: it keeps the classes whose instances they send back.

    Attributes:
        fd: The descriptor of its memory, to be inherited by workers.
        nbytes: Its size.
    """

    def __init__(self, fd: int, nbytes: int, classes: Mapping[str, type]) -> None:
        """Takes over the descriptor."""
        self.fd, self.nbytes = fd, nbytes
        self._classes = classes

    def close(self) -> None:
        """Closes the descriptor, but not what workers have of it; may be called again."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


def pack(obj: Any, what: str) -> Parcel:
    """Packs an object for worker processes.

    Args:
        obj: Anything that cloudpickle can pickle; functions and classes of a script or a notebook too.
        what: What it is called in errors.

    Raises:
        ArgumentError: It can't be pickled.
        OSError: There is no memory for it.
    """
    try:
        encoded, classes = encode_with(_WorkPickler, obj)
    except Exception as error:
        where, reason = _culprit(obj, what, error)
        raise ArgumentError(
            f"{what}: expected something that can be pickled for worker processes, but {where} can't: {reason}; "
            'make it where it is first used, or use worker_type="thread" or num_workers=0'
        ) from error
    fd = os.memfd_create("headrace-parcel", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, encoded.nbytes)
        for offset, part in ((0, memoryview(encoded.head)), *zip(encoded.offsets, encoded.parts, strict=True)):
            _write(fd, part, offset)
    except BaseException:
        os.close(fd)
        raise
    return Parcel(fd, encoded.nbytes, classes)


def _write(fd: int, part: memoryview, offset: int) -> None:
    while part.nbytes:
        written = os.pwrite(fd, part[:_WRITE_BYTES], offset)
        part, offset = part[written:], offset + written


def unpack(fd: int) -> Any:
    """The object of a parcel. Its arrays are mapped copy-on-write; `fd` is not used afterwards, nor closed.

    Raises:
        Exception: Whatever unpickling raises.
    """
    obj, classes = decode(map_memory(fd, os.fstat(fd).st_size, shared=False).data)
    remember_received(classes)
    return obj


class _WorkPickler(ParcelPickler):
    """Maps files anew that arrays are maps of."""

    def __init__(self, stream: io.BytesIO, buffers: list[Any]) -> None:
        super().__init__(stream, buffers)
        self._maps = _Maps()

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) in (np.ndarray, np.memmap):
            reduced = _reduced_map(obj, self._maps)
            if reduced is not None:
                return reduced
        return super().reducer_override(obj)


def _reduced_map(array: Array, maps: "_Maps") -> Any:
    """How to map the file anew that `array` views; None where it views none, or one that can't be had again."""
    view: Any = array
    while not (isinstance(view, np.memmap) and getattr(view, "_mmap", None) is not None):
        view = getattr(view, "base", None)
        if not isinstance(view, np.ndarray):
            return None
    if view.filename is None or array.dtype.hasobject or not array.size:
        return None
    path = os.path.abspath(view.filename)
    # NumPy doesn't keep where a view of a file's map begins in the file, only the map
    mapped: Array = np.frombuffer(cast(Any, view)._mmap, np.uint8)  # noqa: SLF001
    map_address = mapped.__array_interface__["data"][0]
    low, high = np.lib.array_utils.byte_bounds(array)
    inside = map_address <= low <= high <= map_address + mapped.nbytes
    if not inside or not os.path.exists(path) or not maps.are_as_stored(map_address, map_address + mapped.nbytes):
        return None
    map_offset = view.offset // _GRANULARITY * _GRANULARITY
    span = map_offset + low - map_address, high - low
    layout = array.__array_interface__["data"][0] - low, array.shape, array.strides, array.dtype
    return mapped_anew, (path, "r" if view.mode == "r" else "c", span, layout, isinstance(array, np.memmap))


def mapped_anew(
    path: str,
    mode: Any,
    span: tuple[int, int],
    layout: tuple[int, tuple[int, ...], tuple[int, ...], np.dtype[Any]],
    is_memmap: bool,  # noqa: FBT001 (pickled by place)
) -> Array:
    """An array over bytes of a file.

    Args:
        path: The file.
        mode: "r", or "c" for an array that can be written into.
        span: The offset and the number of the bytes.
        layout: Where in them the first element is, the array's shape, its strides and its dtype.
        is_memmap: Whether it is to be a `np.memmap`.
    """
    offset, nbytes = span
    first, shape, strides, dtype = layout
    mapped = np.memmap(path, np.uint8, mode, offset, (nbytes,))
    element = mapped[first : first + dtype.itemsize].view(dtype)
    array: Array = np.lib.stride_tricks.as_strided(element, shape, strides, subok=is_memmap)
    return array


class _Maps:
    """The files that are mapped in this process, as the kernel lists them when it is first asked."""

    @functools.cached_property
    def _known(self) -> list[tuple[int, int, bool]]:
        """Where each map begins and ends, in order, and whether it is a file's that is there, with its bytes."""
        maps: list[tuple[int, int, bool]] = []
        is_there = False
        with open("/proc/self/smaps", encoding="utf-8", errors="surrogateescape") as listed:
            for line in listed:
                if found := _MAP.match(line):
                    begin, end = int(found[1], 16), int(found[2], 16)
                    is_there = not line.rstrip("\n").endswith(" (deleted)")
                elif line.startswith("Anonymous:"):  # pages that were written into and aren't the file's any more
                    maps.append((begin, end, is_there and int(line.split()[1]) == 0))
        return maps

    def are_as_stored(self, low: int, high: int) -> bool:
        """Whether what is mapped at [low, high) still is what its file holds."""
        first = bisect.bisect_right(self._known, low, key=itemgetter(1))
        overlapping = list(itertools.takewhile(lambda known: known[0] < high, self._known[first:]))
        return bool(overlapping) and all(is_stored for _, _, is_stored in overlapping)


def _culprit(obj: Any, where: str, error: Exception) -> tuple[str, Exception]:
    """Which part of an object can't be pickled, as an expression, and why."""
    seen: set[int] = set()
    for _ in range(_DEEPEST):
        for name, part in _parts(obj, where):
            if id(part) not in seen:
                seen.add(id(part))
                try:
                    encode_with(_WorkPickler, part)
                except Exception as reason:  # noqa: BLE001 (whatever it is, this is the part)
                    obj, where, error = part, name, reason
                    break
        else:
            break
    return where, error


def _parts(obj: Any, where: str) -> Iterator[tuple[str, Any]]:
    if isinstance(obj, Mapping):
        yield from ((f"{where}[{key!r}]", part) for key, part in obj.items())
    elif isinstance(obj, list | tuple):
        yield from ((f"{where}.{name}", getattr(obj, name)) for name in getattr(obj, "_fields", ()))
        yield from ((f"{where}[{i}]", part) for i, part in enumerate(obj))
    closure = getattr(obj, "__closure__", None) or ()
    free = getattr(getattr(obj, "__code__", None), "co_freevars", ())
    yield from ((name, cell.cell_contents) for name, cell in zip(free, closure, strict=False))
    yield from ((f"{where}.{name}", part) for name, part in getattr(obj, "__dict__", {}).items())
