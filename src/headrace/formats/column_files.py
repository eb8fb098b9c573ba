"""The files that columns are made of: paths, patterns and URLs, opened as far as their headers."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from headrace.errors import ArgumentError, FormatError
from headrace.formats.dtypes import why_refused
from headrace.formats.npy import ArrayFile, FilePlace, check_file_bytes, read_npy_header, read_stored_headers
from headrace.storage import Store, StoredObject, is_url, protocol_of, read_bytes, shown

PathLike: TypeAlias = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Raw:
    """Raw binary files: nothing but the array's memory in C order, so its dtype and shape must be told.

    Attributes:
        paths: A path or URL, a pattern, or a list of them; each file holds a run of rows.
        dtype: As stored: `">f4"` is big-endian.
        shape: With the rows first; -1 rows are counted from the file's size.

    >>> Raw("tokens.bin", dtype="uint16", shape=(-1, 1025)).shape
    (-1, 1025)
    """

    paths: PathLike | Sequence[PathLike]
    dtype: npt.DTypeLike
    shape: Sequence[int] = (-1,)


ColumnFiles: TypeAlias = PathLike | Sequence[PathLike] | Raw


def open_columns(columns: Mapping[str, ColumnFiles], store: Store) -> dict[str, list[ArrayFile]]:
    """The files of each column, which are alike, as their headers or the arguments describe them.

    Args:
        columns: What the user gave.
        store: What expands patterns and opens URLs.

    Raises:
        ArgumentError: A pattern names no file, or a column lies partly in a store.
        DependencyError: A store needs a package that is missing.
        FormatError: A file is not a sound array file, or differs from its neighbours in dtype or row shape.
        StorageError: A file cannot be opened.
    """
    places = {name: _expand(name, spec, store) for name, spec in columns.items()}
    # the lengths and the headers of all columns are asked for at once
    urls = [place for of_column in places.values() for place in of_column if is_url(place)]
    objects = dict(zip(urls, store.open(urls), strict=True)) if urls else {}
    npy = [
        objects[place]
        for name, of_column in places.items()
        if not isinstance(columns[name], Raw)
        for place in of_column
        if place in objects
    ]
    headers = iter(read_stored_headers(store, npy))
    opened = {}
    for name, spec in columns.items():
        of_column = [objects.get(place) or Path(place) for place in places[name]]
        if isinstance(spec, Raw):
            files = [_raw_file(place, spec) for place in of_column]
        else:
            files = [read_npy_header(place) if isinstance(place, Path) else next(headers) for place in of_column]
        _check_alike(name, files)
        opened[name] = files
    return opened


def names_below_root(files: Iterable[ArrayFile]) -> dict[str, str]:
    """The name of each file (by `str` of its place) below the common folder of those that lie in stores of one kind."""
    by_protocol: dict[str, dict[str, PurePosixPath]] = {}
    for file in files:
        place = file.path
        url = place.url if isinstance(place, StoredObject) else str(place)
        by_protocol.setdefault(protocol_of(url), {})[str(place)] = _path_of(url)
    names = {}
    for paths in by_protocol.values():
        root = os.path.commonpath([path.parent for path in paths.values()])
        names.update({place: path.relative_to(root).as_posix() for place, path in paths.items()})
    return names


def _path_of(url: str) -> PurePosixPath:
    """A URL's host and path, without what is secret or changes: `shown`, less its query; or a local path as it is."""
    if not is_url(url):
        return PurePosixPath(Path(url).as_posix())
    first = re.split(r"::(?=[A-Za-z])", shown(url))[0]
    return PurePosixPath("/", re.sub(r"[?#]\.\.\.$", "", first.partition("://")[2]).lstrip("/"))


def _expand(name: str, spec: ColumnFiles, store: Store) -> list[str]:
    """The URLs or the absolute local paths of a column."""
    paths = _listed(spec.paths if isinstance(spec, Raw) else spec)
    if not paths:
        raise ArgumentError(f"column {name!r}: expected at least one path, got an empty list")
    try:
        places = store.expand(paths)
    except ArgumentError as error:
        raise ArgumentError(f"column {name!r}: {error}") from None
    stored = [place for place in places if is_url(place)]
    if stored and len(stored) < len(places):
        local = next(place for place in places if not is_url(place))
        raise ArgumentError(
            f"column {name!r}: expected local files only, or URLs only, got both: {local} and {shown(stored[0])}"
        )
    return places


def _listed(paths: PathLike | Sequence[PathLike]) -> list[PathLike]:
    """The paths and patterns one by one."""
    if isinstance(paths, str | os.PathLike):
        return [paths]
    return [inner for path in paths for inner in _listed(path)]


def _raw_file(place: FilePlace, raw: Raw) -> ArrayFile:
    """A raw file, its rows counted from its size where they are not given."""
    dtype, shape = np.dtype(raw.dtype), tuple(raw.shape)
    if refused := why_refused(dtype):
        raise ArgumentError(f"Raw: {refused}")
    if not shape or min(shape[1:], default=1) < 1 or shape[0] < -1 or shape[0] == 0 or dtype.itemsize == 0:
        raise ArgumentError(f"Raw: expected a shape of positive lengths, the first perhaps -1, got {shape} of {dtype}")
    file_bytes = place.object_bytes if isinstance(place, StoredObject) else read_bytes(place, 0, 0)[1]
    row = ArrayFile(place, dtype, (1, *shape[1:]))
    if shape[0] == -1:
        if file_bytes == 0 or file_bytes % row.row_bytes:
            raise FormatError(
                f"{place}: expected a multiple of {row.row_bytes} bytes (rows of shape {shape[1:]} of {dtype}), "
                f"got {file_bytes}: check dtype and shape, or write the file again"
            )
        shape = (file_bytes // row.row_bytes, *shape[1:])
    array = ArrayFile(place, dtype, shape)
    check_file_bytes(array, file_bytes)
    return array


def _check_alike(name: str, files: Sequence[ArrayFile]) -> None:
    first = files[0]
    for file in files[1:]:
        if file.dtype != first.dtype or file.shape[1:] != first.shape[1:]:
            raise FormatError(
                f"the files of column {name!r} must hold rows of one dtype and shape\n"
                f"  {first.path}: {first.dtype} rows of shape {first.shape[1:]}\n"
                f"  {file.path}: {file.dtype} rows of shape {file.shape[1:]}"
            )
