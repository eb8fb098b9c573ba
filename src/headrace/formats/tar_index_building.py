"""Makes an index of what was found in each shard."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.formats.source import Ids
from headrace.formats.tar_index import BadShard, IndexArrays, TarIndex
from headrace.formats.tar_table import FieldInfo, ShardPlace, ShardScan


def build_index(
    places: Sequence[ShardPlace],
    codecs: Sequence[str | None],
    scans: Sequence[ShardScan],
    *,
    bad: Sequence[BadShard] = (),
    allowed: Iterable[str] = (),
) -> TarIndex:
    """Returns an index in memory of shards that were scanned.

    Args:
        places: Each shard.
        codecs: How each is compressed; None where it isn't.
        scans: What each holds.
        bad: Other shards, that were left out.
        allowed: What was allowed when they were scanned.
    """
    infos: dict[str, FieldInfo] = {}
    known: dict[tuple[int, ...], int] = {}
    patterns: list[npt.NDArray[np.uint32]] = []
    head_shards: list[int] = []
    for shard, scan in enumerate(scans):
        for info in _infos(scan):
            if info.name not in infos:
                head_shards.append(shard)
            infos[info.name] = _joined(infos[info.name], info) if info.name in infos else info
        fields = {name: number for number, name in enumerate(infos)}
        numbers = np.array([fields.get(name, -1) for name in scan.fields], np.int64)
        rows, of_samples = _patterns(scan)
        globally = [known.setdefault(tuple(numbers[list(row)].tolist()), len(known)) for row in rows]
        patterns.append(np.array(globally, np.uint32)[of_samples])
    reasons = list(dict.fromkeys(reason for scan in scans for reason in scan.ignored))
    keys = np.frombuffer(b"".join([b"\0", *(scan.keys for scan in scans)]), np.uint8)
    shard_members = _bounds(len(scan.offsets) for scan in scans)
    shard_keys = _bounds(len(scan.keys) for scan in scans) + 1
    shard_samples = _bounds(scan.samples for scan in scans)
    members = np.empty((shard_members[-1], 2), np.int64)
    for scan, start in zip(scans, shard_members.tolist(), strict=False):
        members[start : start + len(scan.offsets), 0] = scan.offsets
        members[start : start + len(scan.offsets), 1] = scan.sizes
    is_uniform = len(known) == 1
    blocks = [len(scan.block_starts) for scan in scans]
    crc32 = [
        np.zeros(count, np.uint32) if scan.block_crc32 is None else scan.block_crc32
        for scan, count in zip(scans, blocks, strict=True)
    ]
    arrays = IndexArrays(
        shard_samples=shard_samples,
        shard_members=shard_members,
        shard_keys=shard_keys,
        shard_blocks=_bounds(blocks),
        shard_bytes=np.array([scan.file_bytes for scan in scans], np.int64),
        ignored=np.array([[scan.ignored.get(reason, 0) for reason in reasons] for scan in scans], np.int64).reshape(
            len(scans), len(reasons)
        ),
        has_crc32=np.array([scan.block_crc32 is not None for scan in scans], np.uint8),
        block_samples=_shifted([scan.block_samples for scan in scans], shard_samples),
        block_starts=_joined_arrays([scan.block_starts for scan in scans], np.int64),
        block_stops=_joined_arrays([scan.block_stops for scan in scans], np.int64),
        block_crc32=_joined_arrays(crc32, np.uint32),
        members=members,
        key_starts=_shifted([scan.key_starts for scan in scans], shard_keys),
        keys=keys,
        patterns=_joined_arrays([] if is_uniform else patterns, np.uint32),
        first_members=(
            np.empty(0, np.int64) if is_uniform else _shifted([scan.first_members for scan in scans], shard_members)
        ),
    )
    return TarIndex(
        places,
        codecs,
        arrays,
        infos=infos.values(),
        patterns=list(known),
        reasons=reasons,
        bad=bad,
        allowed=allowed,
        head_shards=head_shards,
    )


def scan_of(index: TarIndex, shard: int) -> ShardScan:
    """What was found in one shard, as it was when the index was built; a field whose head isn't known has none."""
    arrays = index.arrays
    first, stop = arrays.shard_samples[shard : shard + 2].tolist()
    member, end = arrays.shard_members[shard : shard + 2].tolist()
    key, keys_end = arrays.shard_keys[shard : shard + 2].tolist()
    block, blocks_end = arrays.shard_blocks[shard : shard + 2].tolist()
    if len(index.patterns) == 1:
        width = len(index.patterns[0])
        first_members = np.arange(0, (stop - first + 1) * width, width)
        numbers = np.tile(np.array(index.patterns[0], np.int64), stop - first)
    else:
        first_members = arrays.first_members[first : stop + 1] - member
        flat = np.array([number for one in index.patterns for number in one], np.int64)
        starts = _bounds(len(one) for one in index.patterns)[arrays.patterns[first:stop]]
        counts = np.diff(first_members)
        numbers = flat[np.repeat(starts - first_members[:-1], counts) + np.arange(end - member)]
    found, firsts, local = np.unique(numbers, return_index=True, return_inverse=True)
    order = np.argsort(firsts)
    names = list(index.infos)
    fields = tuple(names[number] for number in found[order].tolist())
    heads = {name: index.infos[name].head for name in fields if index.head_shards[names.index(name)] == shard}
    has_crc32 = bool(arrays.has_crc32[shard])
    counts_of = zip(index.reasons, arrays.ignored[shard].tolist(), strict=True)
    return ShardScan(
        file_bytes=int(arrays.shard_bytes[shard]),
        offsets=arrays.members[member:end, 0].copy(),
        sizes=arrays.members[member:end, 1].copy(),
        field_ids=np.argsort(order)[local].astype(np.uint32),
        fields=fields,
        first_members=first_members,
        keys=arrays.keys[key:keys_end].tobytes(),
        key_starts=arrays.key_starts[first : stop + 1] - key,
        block_samples=arrays.block_samples[block : blocks_end + 1] - first,
        block_starts=arrays.block_starts[block:blocks_end].copy(),
        block_stops=arrays.block_stops[block:blocks_end].copy(),
        block_crc32=arrays.block_crc32[block:blocks_end].copy() if has_crc32 else None,
        heads=heads,
        ignored={reason: count for reason, count in counts_of if count},
    )


def _patterns(scan: ShardScan) -> tuple[list[tuple[int, ...]], npt.NDArray[np.intp]]:
    """The different rows of fields of a shard's samples, in the order in which they first occur, and each's number."""
    counts = np.diff(scan.first_members)
    if not len(counts):
        return [], np.empty(0, np.intp)
    width = int(counts[0])
    if (counts == width).all():
        rows = scan.field_ids.reshape(-1, width)
        if (rows == rows[0]).all():
            return [tuple(rows[0].tolist())], np.zeros(len(rows), np.intp)
    found: list[tuple[int, tuple[int, ...]]] = []
    numbers = np.empty(len(counts), np.intp)
    by_count = np.argsort(counts, kind="stable")
    for some in np.split(by_count, np.flatnonzero(np.diff(counts[by_count])) + 1):
        width = int(counts[some[0]])
        rows = scan.field_ids[scan.first_members[some][:, None] + np.arange(width)]
        as_bytes = rows.view(f"V{rows.itemsize * width}").reshape(-1)
        _, firsts, inverse = np.unique(as_bytes, return_index=True, return_inverse=True)
        numbers[some] = inverse + len(found)
        found += [(int(some[first]), tuple(rows[first].tolist())) for first in firsts]
    order = sorted(range(len(found)), key=lambda number: found[number][0])
    ranks = np.empty(len(found), np.intp)
    ranks[order] = np.arange(len(found))
    return [found[number][1] for number in order], ranks[numbers]


def _infos(scan: ShardScan) -> list[FieldInfo]:
    if not len(scan.field_ids):
        return []
    sizes = scan.sizes[np.argsort(scan.field_ids, kind="stable")]
    counts = np.bincount(scan.field_ids)
    has = np.flatnonzero(counts)  # a field may have lost all its members with a sample that was left out
    counts = counts[has]
    starts = np.cumsum(counts) - counts
    reduced: list[Any] = [counts, *(one.reduceat(sizes, starts) for one in (np.minimum, np.maximum, np.add))]
    columns = [one.tolist() for one in reduced]
    names = [scan.fields[number] for number in has]
    return [
        FieldInfo(name, count, least, most, total, scan.heads.get(name, b""))
        for name, count, least, most, total in zip(names, *columns, strict=True)
    ]


def _joined(one: FieldInfo, other: FieldInfo) -> FieldInfo:
    """What is known of a field over some shards and another; the head is that of the first."""
    return replace(
        one,
        count=one.count + other.count,
        least_bytes=min(one.least_bytes, other.least_bytes),
        most_bytes=max(one.most_bytes, other.most_bytes),
        total_bytes=one.total_bytes + other.total_bytes,
    )


def _bounds(counts: Iterable[int]) -> Ids:
    return np.cumsum([0, *counts], dtype=np.int64)


def _shifted(bounds: Sequence[Ids], by: Ids) -> Ids:
    """Bounds of each shard as bounds of all: each but its last, raised by where the shard begins; then the end."""
    parts = [one[:-1] + start for one, start in zip(bounds, by.tolist(), strict=False)]
    return np.concatenate([*parts, by[-1:]]) if parts else by[-1:].copy()


def _joined_arrays(arrays: Sequence[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *arrays]).astype(dtype, copy=False)
