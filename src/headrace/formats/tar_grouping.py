"""Members of one shard to samples, and samples to blocks, as the members come.

A sample is a run of consecutive members of one key. It ends where another key begins, so the last run stays open until
more members come or the shard ends.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from headrace.errors import ShardError
from headrace.formats.source import Ids
from headrace.formats.tar_headers import BLOCK, shown
from headrace.formats.tar_names import LONGEST_WORDED_KEY, Words
from headrace.formats.tar_table import BLOCK_BYTES, ShardScan

Texts: TypeAlias = dict[bytes, bytes]

# Odd, random: a key's hash is the sum of its words times these. Equal hashes are compared byte by byte.
_FACTORS: Words = np.random.default_rng(7).integers(0, 1 << 63, 64, np.uint64) * np.uint64(2) + np.uint64(1)
_FLAGGED_FIELDS = 64


@dataclass(slots=True)
class Members:
    """Consecutive members that have a key and a field; m rows.

    Attributes:
        starts: int64 (m,), the first byte of each one's first header.
        offsets: int64 (m,), of each payload.
        sizes: int64 (m,), of each payload.
        field_ids: int64 (m,).
        key_bytes: int64 (m,), the length of each key.
        key_words: uint64 (m, w), each key and zeros, as `tar_names` has them.
    """

    starts: Ids
    offsets: Ids
    sizes: Ids
    field_ids: Ids
    key_bytes: Ids
    key_words: Words

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, rows: "slice | Ids | np.ndarray[tuple[int], np.dtype[np.bool_]]") -> "Members":
        """Some of them."""
        return Members(
            self.starts[rows],
            self.offsets[rows],
            self.sizes[rows],
            self.field_ids[rows],
            self.key_bytes[rows],
            self.key_words[rows],
        )

    @classmethod
    def joined(cls, parts: "list[Members]") -> "Members":
        """All of these, one after the other."""
        if len(parts) == 1:
            return parts[0]
        words = np.zeros((sum(map(len, parts)), max(part.key_words.shape[1] for part in parts)), np.uint64)
        row = 0
        for part in parts:
            words[row : row + len(part), : part.key_words.shape[1]] = part.key_words
            row += len(part)
        return cls(
            np.concatenate([part.starts for part in parts]),
            np.concatenate([part.offsets for part in parts]),
            np.concatenate([part.sizes for part in parts]),
            np.concatenate([part.field_ids for part in parts]),
            np.concatenate([part.key_bytes for part in parts]),
            words,
        )

    def changes(self) -> Ids:
        """int64: where each run of equal keys begins."""
        changed = self.key_bytes[1:] != self.key_bytes[:-1]
        for column in range(self.key_words.shape[1]):
            words = self.key_words[:, column]
            changed |= words[1:] != words[:-1]
        return np.flatnonzero(np.concatenate([[True], changed]))


class Grouper:
    """Makes samples and blocks of one shard's members.

    Args:
        name: The shard, for error texts.
        allow: What is accepted in place of an error: see `tar_table.ALLOWED`.
    """

    def __init__(self, name: str, allow: Collection[str]) -> None:
        self.ignored: dict[str, int] = {}
        self.fields: dict[str, int] = {}
        # keys too long for words, by the hash that stands for them
        self.long_keys: Texts = {}
        self._name = name
        self._allow = allow
        self._open: list[Members] = []
        self._offsets: list[Ids] = []
        self._sizes: list[Ids] = []
        self._field_ids: list[Ids] = []
        self._lengths: list[Ids] = []
        self._keys: list[bytes] = []
        self._key_bytes: list[Ids] = []
        self._hashes: list[Words] = []
        self._blocks = _Blocks()

    def field_id(self, field: str, offset: int) -> int:
        """The number of a field, which may be new; `offset` is where a payload of it begins."""
        number = self.fields.get(field)
        if number is None:
            if field in {"__key__", "__url__", "__local_path__"}:
                raise ShardError(
                    f"{self._name}: expected fields other than {field}, which names what is known of a sample, got a "
                    f"member with that field at byte {offset}: write the shard without it"
                )
            number = self.fields[field] = len(self.fields)
        return number

    def ignore(self, why: str, count: int = 1) -> None:
        """Counts members that belong to no sample."""
        self.ignored[why] = self.ignored.get(why, 0) + count

    def add(self, members: Members) -> None:
        """The next members; samples that end before or among them are closed."""
        if not len(members):
            return
        if self._open:
            # one sample with very many members is joined once, when it ends
            if _last_key(self._open[-1]) == _last_key(members) and len(members.changes()) == 1:
                self._open.append(members)
                return
            members = Members.joined([*self._open, members])
        firsts = members.changes()
        stop = int(firsts[-1])
        if stop:
            self._close(members.take(slice(0, stop)), firsts[:-1])
        self._open = [members.take(np.arange(stop, len(members)))]  # a copy: the chunk's memory may go

    def closed_blocks(self) -> list[tuple[int, int]]:
        """(start, stop) of the blocks that have been closed since the last call."""
        return self._blocks.take_closed()

    def finish(self, file_bytes: int) -> ShardScan:
        """Everything, once all members were added."""
        if self._open:
            self._close(Members.joined(self._open), np.zeros(1, np.int64))
            self._open = []
        self._blocks.finish(file_bytes)
        keys = b"".join(self._keys)
        key_starts = _sums(np.concatenate(self._key_bytes) + 1 if self._key_bytes else np.zeros(0, np.int64))
        first_members = _sums(_joined(self._lengths))
        offsets = _joined(self._offsets)
        field_ids, fields = self._renumbered(_joined(self._field_ids))
        if "recurring_keys" not in self._allow:
            self._check_keys(keys, key_starts, offsets[first_members[:-1]])
        return ShardScan(
            file_bytes=file_bytes,
            offsets=offsets,
            sizes=_joined(self._sizes),
            field_ids=field_ids,
            fields=fields,
            first_members=first_members,
            keys=keys,
            key_starts=key_starts,
            block_samples=np.array([*self._blocks.firsts, len(first_members) - 1], np.int64),
            block_starts=np.array(self._blocks.starts, np.int64),
            block_stops=np.array(self._blocks.stops, np.int64),
            ignored={why: self.ignored[why] for why in sorted(self.ignored)},
        )

    def _close(self, members: Members, firsts: Ids) -> None:
        """Takes whole samples, of which each begins at one of `firsts`."""
        members, firsts = self._without_bad(members, firsts)
        members, firsts = self._without_duplicates(members, firsts)
        if not len(firsts):
            return
        stops = np.append(firsts[1:], len(members))
        ends = members.offsets[stops - 1] + members.sizes[stops - 1]
        self._blocks.add(members.starts[firsts], (ends + (BLOCK - 1)) // BLOCK * BLOCK)
        self._offsets.append(members.offsets)
        self._sizes.append(members.sizes)
        self._field_ids.append(members.field_ids)
        self._lengths.append(stops - firsts)
        words = members.key_words[firsts]
        self._keys.append(self._joined_keys(words, members.key_bytes[firsts]))
        self._key_bytes.append(members.key_bytes[firsts])
        self._hashes.append((words * _FACTORS[: words.shape[1]]).sum(axis=1, dtype=np.uint64))

    def _without_bad(self, members: Members, firsts: Ids) -> tuple[Members, Ids]:
        """Without the samples that have a field `__bad__`, as webdataset drops them."""
        bad = self.fields.get("__bad__")
        if bad is None or not (is_bad := members.field_ids == bad).any():
            return members, firsts
        runs = _run_numbers(firsts, len(members))
        bad_runs = np.zeros(len(firsts), np.bool_)
        bad_runs[runs[is_bad]] = True
        kept = ~bad_runs[runs]
        self.ignore("bad_sample", int(len(members) - kept.sum()))
        return _kept(members, runs, kept)

    def _without_duplicates(self, members: Members, firsts: Ids) -> tuple[Members, Ids]:
        """Without the second and later members of one field in a sample, or an error."""
        if not len(firsts):
            return members, firsts
        if len(self.fields) <= _FLAGGED_FIELDS:
            flags = np.uint64(1) << members.field_ids.astype(np.uint64)
            lengths = np.diff(firsts, append=len(members))
            if (np.bitwise_count(np.bitwise_or.reduceat(flags, firsts)) == lengths).all():
                return members, firsts
        runs = _run_numbers(firsts, len(members))
        order = np.lexsort((np.arange(len(members)), members.field_ids, runs))
        is_later = np.zeros(len(members), np.bool_)
        field_ids, sorted_runs = members.field_ids[order], runs[order]
        is_later[order[1:]] = (field_ids[1:] == field_ids[:-1]) & (sorted_runs[1:] == sorted_runs[:-1])
        if not is_later.any():
            return members, firsts
        if "duplicate_fields" not in self._allow:
            later = int(np.flatnonzero(is_later)[0])
            same = (runs == runs[later]) & (members.field_ids == members.field_ids[later])
            field = list(self.fields)[members.field_ids[later]]
            key = self._joined_keys(members.key_words[later : later + 1], members.key_bytes[later : later + 1])[:-1]
            raise ShardError(
                f"{self._name}: expected one member for each field of a sample, got field {shown(_raw(field))} of key "
                f"{shown(key)} twice (fields are in lower case), with payloads at bytes "
                f"{members.offsets[same][0]} and {members.offsets[later]}: write the shard again with each once, or "
                'take the first of them with allow=["duplicate_fields"]'
            )
        self.ignore("duplicate", int(is_later.sum()))
        return _kept(members, runs, ~is_later)

    def _joined_keys(self, words: Words, key_bytes: Ids) -> bytes:
        """Keys of words, each followed by a NUL."""
        longest = int(key_bytes.max(initial=0))
        raw = np.ascontiguousarray(words).view(np.uint8)
        if longest > LONGEST_WORDED_KEY:
            keys = (
                row[:32] if length > LONGEST_WORDED_KEY else row[:length]
                for row, length in zip(map(bytes, raw), key_bytes.tolist(), strict=True)
            )
            return b"".join(self.long_keys.get(key, key) + b"\0" for key in keys)
        if longest == int(key_bytes.min(initial=longest)):
            return raw[:, : longest + 1].tobytes()
        return raw[np.arange(raw.shape[1]) <= key_bytes[:, None]].tobytes()

    def _renumbered(self, field_ids: Ids) -> tuple[np.ndarray[tuple[int], np.dtype[np.uint32]], tuple[str, ...]]:
        """Fields by their first occurrence among members that count."""
        firsts = np.full(len(self.fields), len(field_ids), np.int64)
        firsts[field_ids[::-1]] = np.arange(len(field_ids))[::-1]
        order = np.argsort(firsts, kind="stable")
        order = order[firsts[order] < len(field_ids)]
        numbers = np.zeros(len(self.fields), np.uint32)
        numbers[order] = np.arange(len(order))
        names = list(self.fields)
        return numbers[field_ids], tuple(names[number] for number in order.tolist())

    def _check_keys(self, keys: bytes, key_starts: Ids, offsets: Ids) -> None:
        """Makes sure that no key stands twice."""
        hashes: Words = np.concatenate(self._hashes) if self._hashes else np.zeros(0, np.uint64)
        ordered = np.sort(hashes)
        twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        if not len(twice):
            return
        seen: dict[bytes, int] = {}
        for sample in np.flatnonzero(np.isin(hashes, twice)).tolist():
            key = keys[key_starts[sample] : key_starts[sample + 1] - 1]
            first = seen.setdefault(key, sample)
            if first != sample:
                raise ShardError(
                    f"{self._name}: expected the members of one key to lie together, got key {shown(key)} again "
                    f"(payloads at bytes {offsets[first]} and {offsets[sample]}, other keys between): sort the members "
                    'by name, or make them samples of their own with allow=["recurring_keys"]'
                )


class _Blocks:
    """Cuts samples into blocks: one ends before a sample that ends more than BLOCK_BYTES after the block's start."""

    def __init__(self) -> None:
        self.firsts: list[int] = []
        self.starts: list[int] = []
        self.stops: list[int] = []
        self._samples = 0
        self._told = 0
        self._stop = 0

    def add(self, starts: Ids, stops: Ids) -> None:
        """The next samples' first and last bytes."""
        at = 0
        if not self.firsts:
            self._begin(0, int(starts[0]))
            at = 1
        while True:
            at = max(at, int(np.searchsorted(stops, self.starts[-1] + BLOCK_BYTES, "right")))
            if at:
                self._stop = int(stops[at - 1])
            if at == len(stops):
                break
            self.stops.append(self._stop)
            self._begin(self._samples + at, int(starts[at]))
            at += 1
        self._samples += len(starts)

    def _begin(self, sample: int, start: int) -> None:
        self.firsts.append(sample)
        self.starts.append(start)

    def take_closed(self) -> list[tuple[int, int]]:
        told = self._told
        self._told = len(self.stops)
        return list(zip(self.starts[told : self._told], self.stops[told:], strict=True))

    def finish(self, file_bytes: int) -> None:
        """No sample follows; padding that the file lacks is no part of its last block."""
        if len(self.stops) < len(self.starts):
            self.stops.append(min(self._stop, file_bytes))


def _last_key(members: Members) -> bytes:
    raw: bytes = members.key_words[-1].tobytes()
    return raw.rstrip(b"\0")


def _run_numbers(firsts: Ids, count: int) -> Ids:
    """int64 (count,): which run each row belongs to, counted from 0."""
    begins = np.zeros(count, np.int64)
    begins[firsts] = 1
    return np.cumsum(begins) - 1


def _kept(members: Members, runs: Ids, kept: "np.ndarray[tuple[int], np.dtype[np.bool_]]") -> tuple[Members, Ids]:
    """Some of the members, and where the runs begin that still have any."""
    runs = runs[kept]
    return members.take(kept), np.flatnonzero(np.diff(runs, prepend=-1))


def _joined(parts: list[Ids]) -> Ids:
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _sums(lengths: Ids) -> Ids:
    """int64 (n + 1,): where each of these begins, then where the last one ends."""
    out = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=out[1:])
    return out


def _raw(field: str) -> bytes:
    return field.encode("utf-8", "surrogateescape")
