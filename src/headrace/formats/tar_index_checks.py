"""What an index file says is not believed: here is what must be true of it, so that nothing is read outside a shard.

Each function returns what is wrong, in words, or None. Numbers are compared, never subtracted, before they are known to
be within bounds: differences of wild ones would wrap.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from headrace.formats.source import Array, Ids
from headrace.formats.tar_index import IndexArrays
from headrace.storage.checksum import crc32

_MOST_BYTES = 1 << 60
_HEADER_BYTES = 512
# What is made of them then fits the processor's cache: 400 000 took 1.4 ms, and 3.7 at once.
_MEMBERS_AT_ONCE = 1 << 14


def tables_lie(
    arrays: IndexArrays, patterns: Sequence[Sequence[int]], fields: int, plain_bytes: Sequence[int | None]
) -> str | None:
    """What is wrong with all that is small: the tables of shards and blocks, the patterns, and where parts begin.

    Args:
        arrays: What the file holds, of the right dtypes.
        patterns: The fields of each pattern.
        fields: How many fields there are.
        plain_bytes: The bytes of each shard; None where it is compressed.
    """
    shards, blocks, samples = len(plain_bytes), len(arrays.block_starts), len(arrays.key_starts) - 1
    members, keys_end = len(arrays.members), len(arrays.keys)
    bounds = [
        (arrays.shard_samples, 0, samples),
        (arrays.shard_members, 0, members),
        (arrays.shard_keys, 1, keys_end),
        (arrays.shard_blocks, 0, blocks),
    ]
    if any(one.shape != (shards + 1,) or one[0] != first or one[-1] != last for one, first, last in bounds):
        return "its shards' samples, members, keys and blocks are not those that it holds"
    if arrays.ignored.shape[:1] != (shards,) or arrays.has_crc32.shape != (shards,):
        return "its tables are not of the shards that it names"
    if arrays.keys[0]:
        return "its keys don't begin with a NUL"
    if any((one[1:] < one[:-1]).any() for one, _, _ in bounds) or (arrays.ignored < 0).any():
        return "a shard ends before it begins"
    told = [claimed if plain is None else plain for claimed, plain in zip(arrays.shard_bytes, plain_bytes, strict=True)]
    if not np.array_equal(arrays.shard_bytes, told) or not (0 <= min(told, default=0) <= max(told, default=0)):
        return "its shards are of other sizes"
    if max(told, default=0) > _MOST_BYTES or (arrays.has_crc32 > 1).any():
        return "it says what cannot be of a shard"
    if lie := _patterns_lie(arrays, patterns, fields):
        return lie
    return _blocks_lie(arrays) if samples else None


def parts_lie(
    arrays: IndexArrays, widths: Ids, start: int, stop: int, part_crc32: npt.NDArray[np.uint32]
) -> str | None:
    """What is wrong with the members, samples and keys of the shards [start, stop).

    Args:
        arrays: What the file holds; `tables_lie` found nothing.
        widths: int64 (patterns,), the fields of each pattern.
        start: The first shard.
        stop: The shard after the last.
        part_crc32: The CRC32 of each shard's part.
    """
    for shard in range(start, stop):
        if crc32_of(arrays.part(shard)) != part_crc32[shard]:
            return f"the part of shard {shard} has another CRC32 than expected"
    sample, end = int(arrays.shard_samples[start]), int(arrays.shard_samples[stop])
    if sample == end:
        return None
    key_starts = arrays.key_starts[sample : end + 1]
    if (key_starts[1:] <= key_starts[:-1]).any():
        return "a key ends before it begins"
    if len(widths) > 1:
        patterns, first = arrays.patterns[sample:end], arrays.first_members[sample : end + 1]
        if (patterns >= len(widths)).any() or (first[1:] <= first[:-1]).any():
            return "a sample has no pattern, or no members"
        if not np.array_equal(np.diff(first), widths[patterns]):
            return "a sample has other members than its pattern"
    return _members_lie(arrays, widths, start, stop)


def crc32_of(part: Sequence[Array]) -> int:
    """The CRC32 of arrays, one after the other."""
    crc = 0
    for array in part:
        crc = crc32(array.reshape(-1).view(np.uint8), crc)
    return crc


def _patterns_lie(arrays: IndexArrays, patterns: Sequence[Sequence[int]], fields: int) -> str | None:
    samples, members = len(arrays.key_starts) - 1, len(arrays.members)
    for one in patterns:
        if not one or len(set(one)) < len(one) or not 0 <= min(one) <= max(one) < fields:
            return "a pattern has no fields, or one twice, or one that there isn't"
    if (arrays.key_starts[arrays.shard_samples] != arrays.shard_keys).any():
        return "a shard's keys are not where it begins"
    if len(patterns) == 1:
        width, others = len(patterns[0]), (arrays.patterns, arrays.first_members)
        if any(len(one) for one in others) or (arrays.shard_members != arrays.shard_samples * width).any():
            return "its samples are not of its one pattern"
        return None
    if arrays.patterns.shape != (samples,) or arrays.first_members.shape != (samples + 1,):
        return "its samples' patterns are not those of its samples"
    if (samples and not patterns) or arrays.first_members[-1] != members:
        return "its samples have other members than it holds"
    if (arrays.first_members[arrays.shard_samples] != arrays.shard_members).any():
        return "a shard's members are not where it begins"
    return None


def _blocks_lie(arrays: IndexArrays) -> str | None:
    starts, stops, firsts = arrays.block_starts, arrays.block_stops, arrays.block_samples
    blocks = starts.shape
    if stops.shape != blocks or arrays.block_crc32.shape != blocks or firsts.shape != (len(starts) + 1,):
        return "its tables are not of the blocks that it holds"
    if (firsts[1:] <= firsts[:-1]).any() or (firsts[arrays.shard_blocks] != arrays.shard_samples).any():
        return "its blocks are not of its shards' samples"
    shards = np.repeat(np.arange(len(arrays.shard_bytes)), np.diff(arrays.shard_blocks))
    if (starts < 0).any() or (stops <= starts).any() or (stops > arrays.shard_bytes[shards]).any():
        return "a block lies outside of its shard"
    if ((starts[1:] < stops[:-1]) & (shards[1:] == shards[:-1])).any():
        return "a block begins before the one before it ends"
    return None


def _members_lie(arrays: IndexArrays, widths: Ids, start: int, stop: int) -> str | None:
    first, end = int(arrays.shard_members[start]), int(arrays.shard_members[stop])
    members = arrays.members[first:end]
    # seen as unsigned, what is negative is larger than any shard: one pass checks all of it
    if np.maximum.reduce(members.reshape(-1).view(np.uint64)) > arrays.shard_bytes[start:stop].max():
        return "a member lies outside of its shard"
    borders = set((arrays.shard_members[start + 1 : stop] - first - 1).tolist())
    for one in range(0, len(members) - 1, _MEMBERS_AT_ONCE):
        some = members[one : one + _MEMBERS_AT_ONCE + 1]
        early = some[1:, 0] - _HEADER_BYTES < some[:-1, 0] + some[:-1, 1]
        found = np.flatnonzero(early)
        if len(found) > len(borders) or not borders.issuperset((found + one).tolist()):
            return "a member begins before the one before it ends"
    # Members are in order now: all lie in their blocks where the first and the last of each do.
    blocks = slice(int(arrays.shard_blocks[start]), int(arrays.shard_blocks[stop]))
    samples = arrays.block_samples[blocks.start : blocks.stop + 1]
    bounds = samples * widths[0] if len(widths) == 1 else arrays.first_members[samples]
    bounds = bounds - first
    early = members[bounds[:-1], 0] < arrays.block_starts[blocks] + _HEADER_BYTES
    if (early | (members[bounds[1:] - 1].sum(axis=1) > arrays.block_stops[blocks])).any():
        return "a member lies outside of its block"
    return None
