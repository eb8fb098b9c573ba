"""How the memory for stored blocks is shared among the columns of a source, and how large their blocks are."""

from collections.abc import Mapping, Sequence

from headrace.errors import ArgumentError
from headrace.formats.npy import ArrayFile
from headrace.formats.stored_column import StoredColumn
from headrace.storage import Store, available_bytes
from headrace.storage.local import mappable_bytes

_LARGE_BLOCK_BYTES = 4 << 20
# A request for fewer bytes takes as long, and such blocks take 2 % of the memory of those of 4 MiB.
_SMALL_BLOCK_BYTES = 64 << 10
# Labels and the like: such a column is kept in memory as a whole where that takes no more than a quarter of what there
# is. Its blocks may be large then, since each is fetched once.
_KEPT_COLUMN_BYTES = 256 << 20
_KEPT_SHARE = 4
_LEAST_SLOTS = 2
# The memory of a column that is kept, in shares of its bytes, at most: blocks of small files leave room unused.
_MOST_WASTE = 2


def default_memory_bytes(most_bytes: int) -> int:
    """So many bytes, or less where that is more than a quarter of what is free or may be used."""
    return max(1, min(most_bytes, available_bytes() // 4, mappable_bytes()))


def checked_store(store: Store | None, memory_bytes: int | None) -> Store:
    """The store, by default one without options.

    Raises:
        ArgumentError: It is no store, or the memory no number of bytes.
    """
    is_count = isinstance(memory_bytes, int) and not isinstance(memory_bytes, bool) and memory_bytes >= 1
    if memory_bytes is not None and not is_count:
        raise ArgumentError(f"memory_bytes: expected a number of bytes, an int of 1 or more, got {memory_bytes!r}")
    store = Store() if store is None else store
    if isinstance(store, type) or not hasattr(store, "read_ranges"):
        raise ArgumentError(f"store: expected a Store, as headrace.Store(...) makes it, got {store!r}")
    return store


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
    Where all of them fit into memory, each gets as much as it needs instead.

    Args:
        columns: Their files.
        store: What reads them.
        block_samples: Samples of the source's blocks.
        cut_files: The files of the column whose blocks those are.
        memory_bytes: For all of them together.
    """
    lengths: dict[str, int] = {}
    shares: dict[str, int] = {}  # bytes of memory for each of those that fit into memory
    left_bytes, may_keep_bytes = memory_bytes, memory_bytes // _KEPT_SHARE
    column_bytes = {name: sum(file.rows for file in files) * files[0].row_bytes for name, files in columns.items()}
    for name in sorted(columns, key=lambda name: (column_bytes[name], name)):
        is_small = column_bytes[name] <= _KEPT_COLUMN_BYTES
        lengths[name] = block_samples
        if columns[name] is not cut_files:
            largest = _LARGE_BLOCK_BYTES if is_small else _SMALL_BLOCK_BYTES
            lengths[name] = _grown(block_samples, columns[name][0].row_bytes, largest)
        if is_small and column_bytes[name] <= may_keep_bytes:
            may_keep_bytes -= column_bytes[name]
            left_bytes -= column_bytes[name]
            shares[name] = _MOST_WASTE * column_bytes[name]
    sharing = [name for name in columns if name not in shares]
    sharing_bytes = sum(column_bytes[name] for name in sharing)
    if sharing_bytes <= left_bytes:
        shares |= {name: left_bytes * column_bytes[name] // sharing_bytes for name in sharing}
    made = {name: _column(files, store, lengths[name], shares.get(name)) for name, files in columns.items()}
    shared_bytes = sum(made[name].rows.block_bytes for name in sharing)
    for name in sharing:
        rows = made[name].rows
        slots = shares[name] // rows.block_bytes if name in shares else left_bytes // shared_bytes
        made[name].slots = min(len(rows), max(_LEAST_SLOTS, slots))
    return made


def _column(files: Sequence[ArrayFile], store: Store, block_samples: int, share_bytes: int | None) -> StoredColumn:
    """A column in blocks of so many samples, or of fewer where only then all of them fit into its share of memory.

    Every block takes as much room as the largest, also those of small files and at the ends of files.
    """
    column = StoredColumn(files, store, block_samples=block_samples)
    rows = column.rows
    if share_bytes is None or rows.by_value:
        return column
    least_bytes = max(rows.row_bytes, _SMALL_BLOCK_BYTES)
    while rows.block_bytes > least_bytes and len(rows) * rows.block_bytes > share_bytes:
        column = StoredColumn(files, store, block_samples=rows.block_rows // 2)
        rows = column.rows
    return column


def _grown(samples: int, row_bytes: int, block_bytes: int) -> int:
    """The samples, doubled as long as they fit into a block of that many bytes."""
    while 2 * samples * row_bytes <= block_bytes:
        samples *= 2
    return samples
