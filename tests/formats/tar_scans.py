"""Scans made by hand, for tests of what is done with them."""

from collections.abc import Mapping, Sequence

import numpy as np

from headrace.formats.local_pin import LocalPin
from headrace.formats.tar_table import ShardScan


def scan_made_of(
    samples: Sequence[tuple[str, Mapping[str, int]]],
    *,
    block_samples: int = 2,
    crc32: bool = False,
    ignored: Mapping[str, int] | None = None,
) -> ShardScan:
    """What a plain tar holds of these samples: each a key, and the bytes of each field's payload."""
    fields: list[str] = []
    offsets, sizes, numbers, heads, first_members, ends = [], [], [], {}, [0], []
    at = 0
    for key, payloads in samples:
        for field, size in payloads.items():
            if field not in fields:
                fields.append(field)
                heads[field] = f"{field} of {key}".encode(errors="replace")
            offsets.append(at + 512)
            sizes.append(size)
            numbers.append(fields.index(field))
            at += 512 + -(-size // 512) * 512
        first_members.append(len(offsets))
        ends.append(at)
    firsts = [*range(0, len(samples), block_samples), len(samples)]
    edges = [0, *(ends[first - 1] for first in firsts[1:])] if samples else [0]
    keys = [key.encode("utf-8", "surrogateescape") + b"\0" for key, _ in samples]
    blocks = len(edges) - 1
    return ShardScan(
        file_bytes=at + 1024,
        offsets=np.array(offsets, np.int64),
        sizes=np.array(sizes, np.int64),
        field_ids=np.array(numbers, np.uint32),
        fields=tuple(fields),
        first_members=np.array(first_members, np.int64),
        keys=b"".join(keys),
        key_starts=np.cumsum([0, *map(len, keys)], dtype=np.int64),
        block_samples=np.array(firsts if samples else [0], np.int64),
        block_starts=np.array(edges[:-1], np.int64),
        block_stops=np.array(edges[1:], np.int64),
        block_crc32=np.arange(1, blocks + 1, dtype=np.uint32) if crc32 else None,
        heads=heads,
        ignored=dict(ignored or {}),
    )


def pins(scans: Sequence[ShardScan], *, mtime_ns: int = 7) -> list[LocalPin]:
    """Shards that these may be scans of; no such files are there."""
    return [LocalPin(f"/shards/{i}.tar", scan.file_bytes, mtime_ns, 1000 + i) for i, scan in enumerate(scans)]


def assert_same_scan(found: ShardScan, expected: ShardScan, *, heads: bool = True) -> None:
    for name in ShardScan.__slots__:
        one, other = getattr(found, name), getattr(expected, name)
        if isinstance(other, np.ndarray):
            assert one.dtype == other.dtype, name
            assert one.tolist() == other.tolist(), name
        elif name != "heads" or heads:
            assert one == other or (name == "ignored" and {k: v for k, v in other.items() if v} == one), name
