"""What a set of tar shards holds, in columns: which samples there are, and where their members' payloads lie.

A sample's members are told by its pattern: the tuple of its fields, in the order of the shard. Nearly every set has
one pattern only, and then member j of sample i is member i * fields + j of the set: no table is looked into.

Guarantees: may be used from any number of threads, without locks. Nothing grows after it was made, but the record of
which parts of a large file were checked.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from headrace.formats.column_files import names_below_root
from headrace.formats.local_pin import LocalPin
from headrace.formats.npy import ArrayFile
from headrace.formats.pinning import place_bytes
from headrace.formats.source import Array, Ids, fingerprint
from headrace.formats.tar_table import FieldInfo, ShardPlace

Places: TypeAlias = npt.NDArray[np.int32]

# Bytes that are searched for a key at once, and samples that are looked through at once
_SEARCHED_BYTES = 4 << 20
_SAMPLES_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class IndexArrays:
    """The columns of an index of S shards with B blocks, N samples and M members.

    Attributes:
        shard_samples: int64 (S + 1,), the first sample of each shard, then N.
        shard_members: int64 (S + 1,), the first member of each shard, then M.
        shard_keys: int64 (S + 1,), where each shard's keys begin in `keys`, then where they end.
        shard_blocks: int64 (S + 1,), the first block of each shard, then B.
        shard_bytes: int64 (S,), the bytes of each tar, decompressed.
        ignored: int64 (S, reasons), how many members of each shard belong to no sample.
        has_crc32: uint8 (S,), whether the CRC32 of a shard's blocks are known.
        block_samples: int64 (B + 1,), the first sample of each block, then N.
        block_starts: int64 (B,), the first byte of each block in its shard.
        block_stops: int64 (B,), the byte after its last.
        block_crc32: uint32 (B,), 0 where it isn't known.
        members: int64 (M, 2), each payload's offset in its shard, and its bytes.
        key_starts: int64 (N + 1,), where each key begins in `keys`, then where they end.
        keys: uint8, a NUL, then each key followed by a NUL.
        patterns: uint32 (N,), the pattern of each sample; nothing where there is one only.
        first_members: int64 (N + 1,), the first member of each sample, then M; nothing where there is one pattern.
    """

    shard_samples: Ids
    shard_members: Ids
    shard_keys: Ids
    shard_blocks: Ids
    shard_bytes: Ids
    ignored: Ids
    has_crc32: npt.NDArray[np.uint8]
    block_samples: Ids
    block_starts: Ids
    block_stops: Ids
    block_crc32: npt.NDArray[np.uint32]
    members: Ids
    key_starts: Ids
    keys: npt.NDArray[np.uint8]
    patterns: npt.NDArray[np.uint32]
    first_members: Ids

    def part(self, shard: int) -> list[Array]:
        """What tells of the members, samples and keys of one shard: all that is not small."""
        bounds = self.shard_members, self.shard_keys, self.shard_samples
        members, keys, samples = (slice(int(one[shard]), int(one[shard + 1])) for one in bounds)
        of_samples: list[Array] = [self.key_starts, self.patterns, self.first_members]
        return [self.members[members], self.keys[keys], *(one[samples] for one in of_samples)]


@dataclass(frozen=True, slots=True)
class BadShard:
    """A shard that is damaged and was left out.

    Attributes:
        position: Its place in the list that was given.
        place: The shard.
        why: What is wrong with it.
    """

    position: int
    place: ShardPlace
    why: str


class TarIndex:
    """The samples of a set of shards, numbered through, and where they lie. `build_index` and `load_index` make it.

    Attributes:
        shards: Each shard, pinned when it was opened; those that are bad are left out.
        codecs: How each is compressed; None where it isn't.
        bad: Those that were left out.
        infos: What is known of each field, by name, in the order in which they first occur.
        patterns: The fields of the samples of each pattern, by their place in `infos`, in the order of the shard.
        reasons: Why members may belong to no sample: the columns of `arrays.ignored`.
        arrays: The columns, mapped where they come from a file.
        allowed: What had to be allowed of the bytes of shards, or might have had to.
        head_shards: For each field the shard that has its first payload, whose first bytes `infos` holds.
        samples: How many there are.
        block_shards: int64 (B,), the shard of each block.
    """

    def __init__(
        self,
        shards: Sequence[ShardPlace],
        codecs: Sequence[str | None],
        arrays: IndexArrays,
        *,
        infos: Iterable[FieldInfo],
        patterns: Sequence[tuple[int, ...]],
        reasons: Sequence[str],
        bad: Sequence[BadShard] = (),
        allowed: Iterable[str] = (),
        head_shards: Sequence[int] = (),
    ) -> None:
        self.shards, self.codecs, self.bad = tuple(shards), tuple(codecs), tuple(bad)
        self.infos = {info.name: info for info in infos}
        self.patterns, self.reasons, self.allowed = tuple(patterns), tuple(reasons), frozenset(allowed)
        self.arrays, self.head_shards = arrays, tuple(head_shards)
        self.samples = int(arrays.shard_samples[-1])
        self.shard_samples, self.block_samples = arrays.shard_samples, arrays.block_samples
        self.block_starts, self.block_stops = arrays.block_starts, arrays.block_stops
        self.block_crc32, self.has_crc32 = arrays.block_crc32, arrays.has_crc32.view(np.bool_)
        self.block_shards: Ids = np.repeat(np.arange(len(self.shards)), np.diff(arrays.shard_blocks))
        self._pairs = _as_pairs(arrays.members)
        self._width = len(self.patterns[0]) if len(self.patterns) == 1 else 0

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_pairs"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._pairs = _as_pairs(self.arrays.members)

    @property
    def bad_shards(self) -> tuple[tuple[str, str], ...]:
        """The name of each shard that was left out, and why."""
        return tuple((str(one.place), one.why) for one in self.bad)

    @property
    def ignored(self) -> dict[str, int]:
        """How many members belong to no sample, by why."""
        counts = self.arrays.ignored.sum(axis=0).tolist()
        return {reason: count for reason, count in zip(self.reasons, counts, strict=True) if count}

    @property
    def fingerprint(self) -> str:
        """Of the shards' names below their common folder, bytes and samples, in their order: the same for copies."""
        counts = np.diff(self.shard_samples).tolist()
        named = zip(relative_names(self.shards), self.shards, counts, strict=True)
        return fingerprint((name, place_bytes(place), count) for name, place, count in named)

    def column_places(self, fields: Sequence[str]) -> Places:
        """Where in a sample of each pattern the first of these fields that it has is.

        Returns:
            int32 (patterns,), 0 for a sample's first member; -1 where it has none of the fields.
        """
        numbers = {name: number for number, name in enumerate(self.infos)}
        wanted = [numbers[name] for name in fields if name in numbers]
        places = [next((one.index(number) for number in wanted if number in one), -1) for one in self.patterns]
        return np.array(places, np.int32)

    def locate(self, ids: Ids, places: Places) -> Ids:
        """Where payloads of one column lie: int64 (n, 2), the offset in the shard and the bytes of each.

        Args:
            ids: int64 (n,), samples, each in 0..samples - 1.
            places: As `column_places` gives them. A sample that has none of its fields gets -1, -1.
        """
        if self._width:
            if places[0] < 0:
                return np.full((len(ids), 2), -1, np.int64)
            rows = ids * self._width
            rows += places[0]
            return self._pairs.take(rows).view(np.int64).reshape(-1, 2)
        found = places[self.arrays.patterns[ids]]
        rows = self.arrays.first_members[ids]
        rows += found
        missing = np.flatnonzero(found < 0)
        rows[missing] = 0
        located = self._pairs.take(rows).view(np.int64).reshape(-1, 2)
        located[missing] = -1
        return located

    def lacking(self, fields: Sequence[str]) -> tuple[int, int]:
        """How many samples have none of these fields, and the first such sample, -1 where there is none."""
        lacks = self.column_places(fields) < 0
        if not lacks.any():
            return 0, -1
        if self._width:
            return self.samples, 0 if self.samples else -1
        self.check(np.arange(len(self.shards)))
        count, first = 0, -1
        for start in range(0, self.samples, _SAMPLES_AT_ONCE):
            some = np.flatnonzero(lacks[self.arrays.patterns[start : start + _SAMPLES_AT_ONCE]])
            if len(some) and first < 0:
                first = start + int(some[0])
            count += len(some)
        return count, first

    def shard_of(self, ids: Ids) -> Ids:
        """The shard of each sample: int64, of the shape of `ids`."""
        return np.searchsorted(self.shard_samples, ids, "right") - 1

    def key(self, sample_id: int) -> str:
        """A sample's key."""
        [key] = self.keys(np.array([sample_id], np.int64))
        return key

    def keys(self, ids: Ids) -> list[str]:
        """The key of each sample; bytes that are not UTF-8 become lone surrogates, as in names of files."""
        starts = self.arrays.key_starts[ids].tolist()
        stops = self.arrays.key_starts[ids + 1].tolist()
        blob = self.arrays.keys.data
        return [
            str(blob[start : stop - 1], "utf-8", "surrogateescape") for start, stop in zip(starts, stops, strict=True)
        ]

    def find(self, key: str) -> int:
        """The sample that has this key: the first, where several shards hold it.

        Raises:
            KeyError: No sample has it.
            ShardError: The index of the shards that were searched is damaged.
        """
        name = key.encode("utf-8", "surrogateescape") if isinstance(key, str) else b"\0"
        sought = b"\0" + name + b"\0"
        blob, bounds = self.arrays.keys.data, self.arrays.shard_keys
        if b"\0" not in name:
            for start in range(0, len(blob), _SEARCHED_BYTES):
                stop = min(start + _SEARCHED_BYTES + len(sought) - 1, len(blob))
                # first: a key that is damaged would not be found
                first = max(int(np.searchsorted(bounds, start, "right")) - 1, 0)
                self.check(np.arange(first, np.searchsorted(bounds, stop)))
                found = bytes(blob[start:stop]).find(sought)
                if found >= 0:
                    return self._sample_at(start + found + 1)
        raise KeyError(f"no sample has the key {key!r} in {counted(self.shards)}")

    def _sample_at(self, key_start: int) -> int:
        """The sample whose key begins there, in a shard that was checked: others' `key_starts` are not looked at."""
        shard = int(np.searchsorted(self.arrays.shard_keys, key_start, "right")) - 1
        first, stop = self.shard_samples[shard : shard + 2].tolist()
        return int(first + np.searchsorted(self.arrays.key_starts[first:stop], key_start))

    def check(self, shards: Ids) -> None:
        """Makes sure that what the index says of these shards is what was written, and can be; once a process.

        An index in memory is known to be sound.

        Raises:
            ShardError: It isn't; the text says which file to delete.
        """


def counted(places: Sequence[ShardPlace]) -> str:
    """How many shards these are, and the first of them, for error texts."""
    return f"1 shard: {places[0]}" if len(places) == 1 else f"{len(places)} shards: {places[0]}, ..."


def relative_names(places: Sequence[ShardPlace]) -> list[str]:
    """The name of each shard below the common folder of all."""
    paths = [place.path for place in places if isinstance(place, LocalPin)]
    if len(paths) == len(places) > 0:  # as below, and 20 times as fast, for sets of many thousands
        root = os.path.commonpath([os.path.dirname(path) for path in paths])
        return [path[len(root) :].lstrip("/") for path in paths]
    named = [Path(place.path) if isinstance(place, LocalPin) else place for place in places]
    # named as NumPy files are
    names = names_below_root(ArrayFile(one, np.dtype(np.uint8), (1,)) for one in named)
    return [names[str(place)] for place in places]


def _as_pairs(members: Ids) -> npt.NDArray[np.complex128]:
    """Each payload's offset and bytes as one value of 16 bytes, so that one step gathers both."""
    return members.view(np.complex128).reshape(-1)
