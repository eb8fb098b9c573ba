"""What a scan of tar shards finds, in columns: the types that scanning, the index and reading share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from headrace.formats.pinning import Place
from headrace.formats.source import Ids

ShardPlace: TypeAlias = Place

# A block ends before a sample that would end more than this after the block's first byte. Part of the contract: the
# order of a window shuffle depends on where blocks end.
BLOCK_BYTES = 4 << 20
# The first bytes of one payload of each field are kept, so that what it holds can be told without reading data.
HEAD_BYTES = 1024
# What users may accept instead of an error, by name (`allow=`)
ALLOWED = {
    "no_end": "a shard without the two blocks of zeros that end a tar is taken to be whole",
    "data_after_end": "what follows the end of a tar (another tar, say) is ignored",
    "recurring_keys": "members of one key that lie apart are samples of their own",
    "duplicate_fields": "of members of one key and field that lie together, the first counts",
    "missing_fields": "samples that lack a column are an error when they are read, and may be skipped",
    "bad_shards": "a damaged shard is left out, with a warning",
}


@dataclass(frozen=True, slots=True, eq=False)
class ShardScan:
    """What one shard holds: n samples, m members that belong to them and b blocks, all in file order.

    Attributes:
        file_bytes: The bytes of the tar, decompressed.
        offsets: int64 (m,), where each payload begins.
        sizes: int64 (m,), the bytes of each payload.
        field_ids: uint32 (m,), places in `fields`.
        fields: The fields, in lower case, in the order in which they first occur.
        first_members: int64 (n + 1,), the first member of each sample, then m.
        keys: The keys as they stand in the shard (UTF-8 as a rule), each followed by a NUL.
        key_starts: int64 (n + 1,), where each begins in `keys`, then the length of `keys`.
        block_samples: int64 (b + 1,), the first sample of each block, then n.
        block_starts: int64 (b,), the first byte of each block: the first header of its first member.
        block_stops: int64 (b,), the end of each block's last payload, padded to 512 bytes where the file has them.
        block_crc32: uint32 (b,), of the bytes between; None where they weren't computed.
        heads: By field the first HEAD_BYTES of the first payload with that field.
        ignored: How many members belong to no sample, by why.
    """

    file_bytes: int
    offsets: Ids
    sizes: Ids
    field_ids: npt.NDArray[np.uint32]
    fields: tuple[str, ...]
    first_members: Ids
    keys: bytes
    key_starts: Ids
    block_samples: Ids
    block_starts: Ids
    block_stops: Ids
    block_crc32: npt.NDArray[np.uint32] | None = None
    heads: Mapping[str, bytes] = field(default_factory=dict)
    ignored: Mapping[str, int] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """How many there are."""
        return len(self.first_members) - 1


@dataclass(frozen=True, slots=True)
class FieldInfo:
    """What the index knows of one field over all shards.

    Attributes:
        name: The field, "seg.png".
        count: Samples that have it.
        least_bytes: Of its smallest payload.
        most_bytes: Of its largest payload.
        total_bytes: Of all of them.
        head: The first bytes, up to HEAD_BYTES, of the first payload.
    """

    name: str
    count: int
    least_bytes: int
    most_bytes: int
    total_bytes: int
    head: bytes

    @property
    def extension(self) -> str:
        """What follows the last dot: "png"."""
        return self.name.rpartition(".")[2]
