"""Which files a user means, and what the names of their folders say: `year=2024/month=05/part-0.parquet`."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import pyarrow as pa

from headrace.errors import ArgumentError, FormatError, StorageError
from headrace.formats.column_files import PathLike
from headrace.storage import Store, is_url, protocol_of, shown

_NULL = "__HIVE_DEFAULT_PARTITION__"
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class Listing:
    """The files that some paths stand for.

    Attributes:
        places: Their URLs or absolute paths.
        folders: For each the names of the folders that it lies in, below the folder that its path or pattern names.
    """

    places: list[str]
    folders: list[tuple[str, ...]]


def list_files(paths: PathLike | Sequence[PathLike], store: Store, suffix: str) -> Listing:
    """The files that paths, patterns and folders stand for, in their order; those of one pattern by code point.

    A folder, or a URL that ends with "/", stands for all files below it whose names end with `suffix`, but none whose
    name, or whose folder's, begins with "_" or ".": other programs keep their own things there. Folders such as
    "_k=1" are meant.

    Raises:
        ArgumentError: One stands for no file, or some are local and some in a store.
        DependencyError: A store needs a package that is missing.
        StorageError: A store cannot be listed.
    """
    places: list[str] = []
    roots: list[PurePosixPath | None] = []
    for pattern in listed_paths(paths):
        found = _expand(pattern, store, suffix)
        places += found
        roots += [_root(pattern)] * len(found)
    stored = [place for place in places if is_url(place)]
    if stored and len(stored) < len(places):
        local = next(place for place in places if not is_url(place))
        raise ArgumentError(f"expected local files only, or URLs only, got both: {local} and {shown(stored[0])}")
    return Listing(places, _folders([_path_of(place) for place in places], roots))


def partition_values(folders: Sequence[tuple[str, ...]], places: Sequence[str]) -> dict[str, pa.Array]:
    """One value for each file and key of its folders' names: int64 where all are whole numbers, else strings.

    A file that lies below no folder of that key has a null, as below `key=__HIVE_DEFAULT_PARTITION__`.

    Args:
        folders: The names of each file's folders.
        places: The files, for error texts.

    Raises:
        FormatError: A key comes twice in one path.

    >>> found = partition_values([("year=2024", "tag=a%2Fb"), ("year=2025",)], ["x", "y"])
    >>> {key: values.to_pylist() for key, values in found.items()}
    {'year': [2024, 2025], 'tag': ['a/b', None]}
    """
    texts: dict[str, list[str | None]] = {}
    for i, names in enumerate(folders):
        for name in names:
            key, is_partition, value = name.partition("=")
            if not is_partition or not key:
                continue
            values = texts.setdefault(unquote(key), [None] * len(folders))
            if values[i] is not None:
                raise FormatError(
                    f"{shown(places[i])}: expected each key once in the names of its folders, "
                    f"got {unquote(key)!r} twice: {'/'.join(names)}"
                )
            values[i] = unquote(value)
    return {key: _typed([None if text == _NULL else text for text in values]) for key, values in texts.items()}


def _typed(texts: list[str | None]) -> pa.Array:
    known = [text for text in texts if text is not None]
    if known and all(_WHOLE_NUMBER.fullmatch(text) and -(1 << 63) <= int(text) < 1 << 63 for text in known):
        return pa.array([None if text is None else int(text) for text in texts], pa.int64())
    return pa.array(texts, pa.string())


def listed_paths(paths: PathLike | Iterable[PathLike]) -> list[str]:
    """The paths and patterns one by one, of lists within lists too.

    Raises:
        ArgumentError: There is none, or something else among them.
    """
    listed = list(_listed(paths))
    if not listed:
        raise ArgumentError("expected at least one path or URL, got an empty list")
    return listed


def _listed(paths: object) -> Iterator[str]:
    path = os.fspath(paths) if isinstance(paths, str | os.PathLike) else None
    if isinstance(path, str):
        if "\0" in path:
            raise ArgumentError(f"expected a path or URL, got one that holds a null character: {path!r}")
        yield path
    elif isinstance(paths, Iterable) and not isinstance(paths, bytes | bytearray):
        for inner in paths:
            yield from _listed(inner)
    else:
        raise ArgumentError(f"expected a path, a URL, a pattern or a list of them, got {paths!r}")


def _expand(pattern: str, store: Store, suffix: str) -> list[str]:
    if is_url(pattern) and protocol_of(pattern) != "file" and pattern.endswith("/"):
        below = len(_path_of(pattern).parts)
        try:
            found = store.expand([f"{pattern}**/*{suffix}"])
        except ArgumentError:
            found = []
        found = [place for place in found if _is_meant(_path_of(place).parts[below:])]
        if not found:
            raise ArgumentError(f"no file *{suffix} below {shown(pattern)!r}")
        return found
    return [name for place in store.expand([pattern]) for name in _below(place, suffix)]


def _below(place: str, suffix: str) -> list[str]:
    """The files below a local folder, each folder read once however many links lead to it; a file stands for itself."""
    if is_url(place) or not os.path.isdir(place):
        return [place]
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(place, onerror=_refuse_folder, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if _is_meant([name, ""]))
        found += [os.path.join(folder, name) for name in names if name.endswith(suffix) and _is_meant([name])]
    if not found:
        raise ArgumentError(f"no file *{suffix} below {place}")
    return sorted(found)


def _refuse_folder(error: OSError) -> None:
    raise StorageError(f"cannot list {error.filename}: {error.strerror}") from None


def _is_meant(parts: Sequence[str]) -> bool:
    """Whether neither the file's name, the last of these, nor its folders' are those of other programs' own things."""
    *folders, name = parts
    hidden = [folder for folder in folders if folder.startswith(("_", ".")) and "=" not in folder]
    return not hidden and not name.startswith(("_", "."))


def _path_of(place: str) -> PurePosixPath:
    """The path of a file, or that of a URL's first link below its server."""
    if not is_url(place):
        return PurePosixPath(Path(place).expanduser().absolute())
    scheme, _, rest = re.split(r"::(?=[A-Za-z])", place)[0].partition("://")
    if scheme.lower() == "file":
        return PurePosixPath(Path(rest).absolute())
    if scheme.lower() in {"http", "https"}:
        rest = unquote(re.split(r"[?#]", rest, maxsplit=1)[0])
    return PurePosixPath("/", rest.lstrip("/"))


def _root(pattern: str) -> PurePosixPath | None:
    """The folder that a pattern or a folder's name fixes; None where it names one file."""
    path = _path_of(pattern)
    if not is_url(pattern) and os.path.exists(path):
        return path if os.path.isdir(path) else None
    if is_url(pattern) and pattern.endswith("/"):
        path /= "*"
    fixed: list[str] = []
    for part in path.parts:
        if re.search(r"[*?\[{]", part):
            return PurePosixPath(*fixed)
        fixed.append(part)
    return None


def _folders(paths: Sequence[PurePosixPath], roots: Sequence[PurePosixPath | None]) -> list[tuple[str, ...]]:
    """The names of each file's folders below its root: the common one of those that have none of their own."""
    single = [path.parent for path, root in zip(paths, roots, strict=True) if root is None]
    common = PurePosixPath(os.path.commonpath(single)) if single else None
    found = []
    for path, root in zip(paths, roots, strict=True):
        above = root or common
        assert above is not None
        found.append(path.parent.relative_to(above).parts if path.is_relative_to(above) else ())
    return found
