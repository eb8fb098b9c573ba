"""Opens tar shards: finds their index, or scans them and keeps it.

An index is looked for, and kept, in the folder that the user names, beside the shards where they lie in one local
folder, and in the store's cache folder, or the user's; the first of these that can be written to has it. For stored
shards one that lies beside them as an object counts, too.
"""

import contextlib
import hashlib
import logging
import math
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from headrace.errors import ArgumentError, HeadraceError, ShardError, StorageError
from headrace.formats.local_pin import LocalPin
from headrace.formats.pinning import pin_files, place_bytes
from headrace.formats.tar_compressed import CompressedShards, check_room, codec_of, room_of
from headrace.formats.tar_index import BadShard, TarIndex, counted, relative_names
from headrace.formats.tar_index_building import build_index, scan_of
from headrace.formats.tar_index_file import load_known, parse_index, save_index, version_of
from headrace.formats.tar_scanning import Scanning, scan_shards
from headrace.formats.tar_table import ALLOWED, ShardPlace, ShardScan
from headrace.storage import RangeRead, Store, StoredObject, check_cancelled, is_url, shown
from headrace.storage.file_lock import FileLock, LockPatience, take_lock

_log = logging.getLogger("headrace")

# What may be accepted of a shard's bytes; the rest is accepted of shards, or of samples when they are read.
_OF_BYTES = frozenset({"no_end", "data_after_end", "recurring_keys", "duplicate_fields"})
# An index takes less than the headers that it tells of, and a little more than its smallest.
_SMALL_INDEX_BYTES = 1 << 20


def open_tar_index(
    paths: Sequence[str],
    store: Store,
    *,
    index_dir: Path | None = None,
    allow: Collection[str] = (),
    verify: bool = False,
    compressed: str = "cache",
) -> TarIndex:
    """The index of shards: as it was kept, or else made now and kept; shards that haven't changed are scanned once.

    Args:
        paths: URLs or absolute paths, as `Store.expand` gives them, all local or all stored.
        store: What opens URLs, and has a cache for blocks.
        index_dir: A folder for the index. By default it is kept beside the shards, or in a cache folder.
        allow: What is accepted, of `ALLOWED`.
        verify: Whether the CRC32 of the blocks of local shards are to be known, too.
        compressed: "cache": compressed shards are decompressed into the store's cache. "stream": they are not kept.

    Raises:
        ArgumentError: There is no shard, or no sample; one is listed twice, or of a kind that isn't read.
        DependencyError: A store needs a package that is missing.
        ShardError: A shard is damaged, or its members do not make samples.
        StorageError: A shard can't be read, or changes meanwhile; or what is compressed doesn't fit the cache.
    """
    names = [name if is_url(name) else str(Path(name).absolute()) for name in paths]
    _check_names(names, allow)
    codecs = [codec_of(name) for name in names]
    places = pin_files(names, store, stored=is_url(names[0]))
    _check_files(places)
    CompressedShards(store, places, codecs, mode=compressed)  # says now what can't work
    scanning = Scanning(store, _OF_BYTES.intersection(allow), verify, keeps_decompressed=compressed == "cache")
    index = _open(places, codecs, scanning, index_dir, leave_out="bad_shards" in allow)
    for name, why in index.bad_shards:
        _log.warning("left out %s, which is damaged: %s", name, why)
    if not index.samples:
        ignored = ", ".join(f"{count} {why}" for why, count in index.ignored.items()) or "none"
        raise ArgumentError(
            f"expected at least one sample, got none in {counted(places)}; damaged shards: "
            f"{len(index.bad)}; members that belong to no sample: {ignored}"
        )
    if compressed == "cache" and any(codec is not None for codec in index.codecs):
        is_compressed = np.array([codec is not None for codec in index.codecs])[index.block_shards]
        check_room(store, room_of(index.block_starts[is_compressed], index.block_stops[is_compressed]))
    return index


def index_beside(places: Sequence[ShardPlace]) -> str | None:
    """The path or URL beside shards where their index is looked for; None where they have no folder in common."""
    digest = _digest(relative_names(places))
    if isinstance(places[0], LocalPin):
        folders = {os.path.dirname(str(place)) for place in places}
        return os.path.join(folders.pop(), f".headrace-{digest}.index") if len(folders) == 1 else None
    urls = [place.url for place in places if isinstance(place, StoredObject)]
    if any("::" in url or "?" in url or "#" in url for url in urls):
        return None
    protocols = {url.partition("://")[0] for url in urls}
    folder = os.path.commonpath([f"/{url.partition('://')[2].rpartition('/')[0]}" for url in urls])
    if len(protocols) > 1 or folder == "/":  # no bucket or host in common
        return None
    return f"{protocols.pop()}:/{folder}/.headrace-{digest}.index"


def _open(
    places: Sequence[ShardPlace],
    codecs: Sequence[str | None],
    scanning: Scanning,
    index_dir: Path | None,
    *,
    leave_out: bool,
) -> TarIndex:
    if not all(version_of(place) for place in places):  # else shards may change unnoticed
        index = _built(places, codecs, scanning, None, [False] * len(places), leave_out=leave_out)
        return _kept(index, [], places, scanning)
    files = _files(places, scanning.store, index_dir)
    old, known = _looked_for(places, files, scanning, leave_out=leave_out)
    if old is not None and all(known):
        return old
    if all(isinstance(place, LocalPin) for place in places) and not any(codecs):
        return _kept(_built(places, codecs, scanning, old, known, leave_out=leave_out), files, places, scanning)
    with contextlib.nullcontext() if not files else _alone(files[-1]):
        old, known = _looked_for(places, files, scanning, leave_out=leave_out)
        if old is not None and all(known):
            return old
        return _kept(_built(places, codecs, scanning, old, known, leave_out=leave_out), files, places, scanning)


def _looked_for(
    places: Sequence[ShardPlace], files: Sequence[Path], scanning: Scanning, *, leave_out: bool
) -> tuple[TarIndex | None, list[bool]]:
    """The kept index that tells of the most shards as they are, and of which."""
    old: TarIndex | None = None
    known = [False] * len(places)
    for number in range(len(files) + 1):
        found = load_known(files[number], places) if number < len(files) else _stored_index(places, scanning)
        if found is None and number < len(files) and os.path.exists(files[number]):
            _log.warning(
                "the index %s is damaged, or of other shards or another version: it is made anew", files[number]
            )
        if found is None:
            continue
        same = _still_good(*found, scanning, leave_out=leave_out)
        if all(same):
            return found[0] if number < len(files) else _kept(found[0], files, places, scanning), same
        if sum(same) > sum(known):
            old, known = found[0], same
    return old, known


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Lets one process of the machine at a time stream the shards whose index may be at `path`; the others wait for it.

    Each rank of a node would fetch all of them otherwise. Where locks can't be had, each does.
    """
    lock: FileLock | None = None
    try:
        path.parent.mkdir(0o700, parents=True, exist_ok=True)
        for attempt, _ in enumerate(LockPatience(math.inf).attempts(check_cancelled)):
            lock = take_lock(str(path.with_suffix(".lock")))
            if lock is not None:
                break
            if attempt == 0:
                _log.info("another process scans the same tar shards: waiting for its index")
    except OSError as error:
        _log.debug("no lock of %s can be had: %s", path, error.strerror)
    try:
        yield
    finally:
        if lock is not None:
            with contextlib.suppress(OSError):
                os.unlink(path.with_suffix(".lock"))
            lock.close()


def _still_good(index: TarIndex, same: Sequence[bool], scanning: Scanning, *, leave_out: bool) -> list[bool]:
    """Which places the index tells of as they are, with all that is asked of it."""
    allowed = {*scanning.allow, "bad_shards"} if leave_out else set(scanning.allow)
    if not index.allowed <= allowed:
        return [False] * len(same)
    # a shard that was bad may be good by what is allowed now
    as_bad = index.allowed == allowed
    bad = {one.position for one in index.bad}
    has_crc32 = iter(index.has_crc32.tolist())
    has_all = [as_bad if position in bad else next(has_crc32) or not scanning.verify for position in range(len(same))]
    return [one and other for one, other in zip(same, has_all, strict=True)]


def _built(
    places: Sequence[ShardPlace],
    codecs: Sequence[str | None],
    scanning: Scanning,
    old: TarIndex | None,
    known: Sequence[bool],
    *,
    leave_out: bool,
) -> TarIndex:
    """An index of all shards, of which those that are known are taken over."""
    results: list[ShardScan | ShardError | None] = [None] * len(places)
    if old is not None:
        results = _taken_over(old, known)
    fresh: set[int] = set()
    while True:
        todo = [position for position, result in enumerate(results) if result is None]
        scanned = scan_shards(
            [places[position] for position in todo],
            [codecs[position] for position in todo],
            scanning,
            leave_out=leave_out,
        )
        for position, result in zip(todo, scanned, strict=True):
            results[position] = result
        fresh.update(todo)
        good = [position for position, result in enumerate(results) if isinstance(result, ShardScan)]
        scans = [result for result in results if isinstance(result, ShardScan)]
        bad = [
            BadShard(position, places[position], str(result))
            for position, result in enumerate(results)
            if isinstance(result, ShardError)
        ]
        index = build_index(
            [places[position] for position in good],
            [codecs[position] for position in good],
            scans,
            bad=bad,
            allowed=_had_to_be_allowed(scanning.allow, scans, bad),
        )
        # a field's first payload may now be one whose first bytes weren't kept
        headless = {
            good[shard]
            for name, shard in zip(index.infos, index.head_shards, strict=True)
            if name not in scans[shard].heads and good[shard] not in fresh
        }
        if not headless:
            return index
        for position in headless:
            results[position] = None


def _taken_over(old: TarIndex, known: Sequence[bool]) -> list[ShardScan | ShardError | None]:
    bad = {one.position: one.why for one in old.bad}
    results: list[ShardScan | ShardError | None] = []
    shard = 0
    for position, is_known in enumerate(known):
        result: ShardScan | ShardError | None = None
        if position in bad:
            result = ShardError(bad[position])
        elif is_known:
            with contextlib.suppress(ShardError):  # that part of the index is damaged
                old.check(np.array([shard]))
                result = scan_of(old, shard)
        shard += position not in bad
        results.append(result if is_known else None)
    return results


def _had_to_be_allowed(allow: Collection[str], scans: Sequence[ShardScan], bad: Sequence[BadShard]) -> set[str]:
    """What an index owes to what was allowed, or may: who doesn't allow that can't use it."""
    if bad:  # for all that was allowed
        return {*allow, "bad_shards"}
    allowed = set(allow)
    if not any(scan.ignored.get("duplicate") for scan in scans):
        allowed.discard("duplicate_fields")
    return allowed


def _kept(index: TarIndex, files: Sequence[Path], places: Sequence[ShardPlace], scanning: Scanning) -> TarIndex:
    """The index, mapped from the first file that could be written."""
    for path in files:
        try:
            path.parent.mkdir(0o700, parents=True, exist_ok=True)
            save_index(path, index)
        except OSError as error:
            _log.info("cannot keep the index of tar shards in %s: %s", path.parent, error.strerror)
            continue
        # another process may have put one in its place that tells of other versions, or of less, or owes to what isn't
        # allowed here
        found = load_known(path, places)
        is_good = found is not None and all(_still_good(*found, scanning, leave_out=bool(index.bad)))
        return found[0] if found is not None and is_good else index
    _log.warning(
        "the index of %d tar shards is kept nowhere, so they are scanned whenever they are opened: %s",
        len(places),
        f"none of {', '.join(str(path.parent) for path in files)} can be written to; give index_dir="
        if files
        else "their store tells no versions",
    )
    return index


def _files(places: Sequence[ShardPlace], store: Store, index_dir: Path | None) -> list[Path]:
    """Where an index may be, best first."""
    name = f"tar-{_digest([str(place) for place in places])}.index"
    files = [] if index_dir is None else [index_dir / name]
    beside = index_beside(places) if isinstance(places[0], LocalPin) else None
    if beside is not None:
        files.append(Path(beside))
    if store.cache_dir is not None:
        files.append(store.cache_dir / "indexes" / name)
    else:
        with contextlib.suppress(RuntimeError):  # no home
            files.append(Path("~/.cache/headrace/indexes").expanduser() / name)
    return files


def _stored_index(places: Sequence[ShardPlace], scanning: Scanning) -> tuple[TarIndex, list[bool]] | None:
    """The index that lies beside stored shards, as an object."""
    url = None if isinstance(places[0], LocalPin) else index_beside(places)
    if url is None:
        return None
    most_bytes = _SMALL_INDEX_BYTES + sum(place_bytes(place) for place in places)
    try:
        [source] = scanning.store.open([url])
        if source.object_bytes > most_bytes:
            raise StorageError(f"expected at most {most_bytes} bytes, got {source.object_bytes}")
        data = np.empty(source.object_bytes, np.uint8)
        scanning.store.read_ranges([RangeRead(source, 0, data)])
    except HeadraceError as error:
        _log.debug("no index is taken from %s: %s", shown(url), error)
        return None
    found = parse_index(data.tobytes(), places)
    if found is None:
        _log.warning("the index %s is damaged, or of other shards or another version: it is left aside", shown(url))
    return found


def _check_names(names: Sequence[str], allow: Collection[str]) -> None:
    if unknown := sorted(set(allow) - ALLOWED.keys()):
        raise ArgumentError(f"allow: expected some of {', '.join(ALLOWED)}, got {unknown[0]!r}")
    if not names:
        raise ArgumentError("expected at least one shard, got an empty list")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ArgumentError(
                f"expected each shard once, got {shown(name)} twice: its samples would count twice in every epoch"
            )
        seen.add(name)
    stored = [name for name in names if is_url(name)]
    if stored and len(stored) < len(names):
        local = next(name for name in names if not is_url(name))
        raise ArgumentError(f"expected local files only, or URLs only, got both: {local} and {shown(stored[0])}")


def _check_files(places: Sequence[ShardPlace]) -> None:
    """Makes sure that no two paths lead to one file: links, or names with `..`; another name of it is another shard."""
    seen: dict[tuple[int, int, int], list[str]] = {}
    for place in places:
        if isinstance(place, LocalPin):
            alike = seen.setdefault((place.inode, place.mtime_ns, place.file_bytes), [])
            for path in alike:
                if os.path.realpath(path) == os.path.realpath(place.path):
                    raise ArgumentError(
                        f"expected each shard once, got {path} and {place.path}, which are one file: its samples "
                        "would count twice in every epoch"
                    )
            alike.append(place.path)


def _digest(names: Sequence[str]) -> str:
    text = "".join(f"{name}\0" for name in names)
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
