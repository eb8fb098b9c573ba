"""How the memory for stored blocks is shared among the columns of a source, and how large their blocks are."""

from collections.abc import Mapping, Sequence

from headrace.formats.npy import ArrayFile
from headrace.formats.stored_column import StoredColumn
from headrace.storage import Store, available_bytes
from headrace.storage.local import mappable_bytes

_MOST_MEMORY_BYTES = 2 << 30
_LARGE_BLOCK_BYTES = 4 << 20
# A request for fewer bytes takes as long, and such blocks take 2 % of the memory of those of 4 MiB.
_SMALL_BLOCK_BYTES = 64 << 10
# Labels and the like: such a column is kept in memory as a whole where that takes no more than a quarter of what there
# is. Its blocks may be large then, since each is fetched once.
_KEPT_COLUMN_BYTES = 256 << 20
_KEPT_SHARE = 4
_LEAST_SLOTS = 2


def default_memory_bytes() -> int:
    """2 GiB, or less where that is more than a quarter of what is free or may be used."""
    return max(1, min(_MOST_MEMORY_BYTES, available_bytes() // 4, mappable_bytes()))


def store_columns(
    columns: Mapping[str, Sequence[ArrayFile]],
    store: Store,
    block_samples: int,
    cut_files: Sequence[ArrayFile],
    memory_bytes: int,
) -> dict[str, StoredColumn]:
    """The columns of a source that lie in a store.

    A shuffled window reads blocks of the source: from every column the samples of each, which lie in one or two of the
    column's blocks. So every column gets memory for the same number of blocks, and small blocks if it has small rows.

    Args:
        columns: Their files.
        store: What reads them.
        block_samples: Samples of the source's blocks.
        cut_files: The files of the column whose blocks those are.
        memory_bytes: For all of them together.
    """
    made: dict[str, StoredColumn] = {}
    sharing: list[StoredColumn] = []
    kept_bytes = 0
    for name in sorted(columns, key=lambda name: (_column_bytes(columns[name]), name)):
        files = columns[name]
        column_bytes = _column_bytes(files)
        is_small = column_bytes <= _KEPT_COLUMN_BYTES
        length = block_samples
        if files is not cut_files:
            length = _grown(block_samples, files[0].row_bytes, _LARGE_BLOCK_BYTES if is_small else _SMALL_BLOCK_BYTES)
        column = made[name] = StoredColumn(files, store, block_samples=length)
        if is_small and kept_bytes + column_bytes <= memory_bytes // _KEPT_SHARE:
            kept_bytes += column_bytes
        else:
            sharing.append(column)
    shared_bytes = max(1, sum(column.rows.block_bytes for column in sharing))
    for column in sharing:
        column.slots = min(len(column.rows), max(_LEAST_SLOTS, (memory_bytes - kept_bytes) // shared_bytes))
    return {name: made[name] for name in columns}


def _column_bytes(files: Sequence[ArrayFile]) -> int:
    return sum(file.rows for file in files) * files[0].row_bytes


def _grown(samples: int, row_bytes: int, block_bytes: int) -> int:
    """The samples, doubled as long as they fit into a block of that many bytes."""
    while 2 * samples * row_bytes <= block_bytes:
        samples *= 2
    return samples
