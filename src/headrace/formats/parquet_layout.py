"""How the row groups of a table are cut into pieces, and which samples lie in each."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from headrace.errors import ArgumentError
from headrace.formats.parquet_decoding import ParquetDecoder, Slices
from headrace.formats.parquet_index import load_arrays, save_arrays
from headrace.formats.parquet_table import Table
from headrace.formats.piece_reading import Pieces
from headrace.formats.progress import Progress
from headrace.formats.source import Ids

# What is decoded at once, and of a large group what is kept or dropped: row groups of usual size are one piece each
_PIECE_BYTES = 16 << 20
# Of the memory, so that a window and what is read ahead have several
_LEAST_PIECES = 16
# What text takes once it is decoded isn't known where dictionaries stand for it and the writer doesn't say.
_MOST_ROWS_OF_TEXT = 1 << 15
_COUNTING_THREADS = 8


def row_bytes(table: Table) -> Ids:
    """What a row of each group takes in memory once it is decoded, int64 (groups,); of strings and lists about that."""
    fixed_bytes = sum(column.stored.sample_bytes for column in table.columns if column.stored is not None)
    others = replace(table, columns=[column for column in table.columns if column.stored is None], row_filter=None)
    rows = table.files.group_rows
    other_bytes = table.files.chunks(others.paths).decoded.sum(axis=1) if others.paths else np.zeros_like(rows)
    # 8 bytes for its place among the values of each
    return fixed_bytes + 8 * len(others.columns) + -(-other_bytes // rows)


def slices_of(table: Table, memory_bytes: int) -> Slices:
    """Slices of a useful size, of which several fit into memory.

    Where rows are filtered they depend on the files alone, so that counting once is enough.
    """
    files = table.files
    if table.row_filter is not None:
        return Slices.cut(files.group_rows, -(-files.group_bytes // files.group_rows), _PIECE_BYTES)
    slice_bytes = max(1, min(_PIECE_BYTES, memory_bytes // _LEAST_PIECES))
    has_others = any(column.stored is None for column in table.columns)
    most_rows = _MOST_ROWS_OF_TEXT if has_others else 1 << 40
    return Slices.cut(files.group_rows, row_bytes(table), slice_bytes, most_rows=most_rows)


def pieces_of(table: Table, slices: Slices, kept_rows: Ids | None) -> Pieces:
    """The pieces and their samples: all rows, or so many of each, int64 (pieces,)."""
    counts = np.diff(slices.first_pieces)
    rows = slices.rows(table.files.group_rows) if kept_rows is None else kept_rows
    piece_bytes = rows * np.repeat(row_bytes(table), counts)
    return Pieces(np.concatenate(([0], np.cumsum(rows))), np.repeat(np.arange(len(counts)), counts), piece_bytes)


def count_kept(table: Table, slices: Slices, memory_bytes: int) -> Ids:
    """How many rows of each piece the filter keeps, int64 (pieces,): reads only the columns that it refers to.

    Row groups whose statistics say that nothing in them is kept aren't read. Files are read by up to 8 threads, which
    end before this returns. What was counted is kept beside the files' index, where there is one.

    Raises:
        ArgumentError: It keeps nothing at all.
    """
    kept_at = None
    if table.files.index is not None:
        assert table.row_filter is not None
        kept_at = table.files.index.with_suffix(f".{table.row_filter.identity}.rows")
        known = (load_arrays(kept_at) or {}).get("kept")
        if known is not None and known.shape == (slices.first_pieces[-1],) and _can_be(known, table, slices):
            return known
    kept = _counted(replace(table, columns=()), slices, memory_bytes)
    if not kept.any():
        raise ArgumentError(f"row_filter: expected a filter that keeps at least one row, got {table.row_filter}")
    if kept_at is not None:
        save_arrays(kept_at, {"kept": kept})
    return kept


def _can_be(kept: Ids, table: Table, slices: Slices) -> bool:
    return bool(kept.any() and (kept >= 0).all() and (kept <= slices.rows(table.files.group_rows)).all())


def _counted(table: Table, slices: Slices, memory_bytes: int) -> Ids:
    assert table.row_filter is not None
    groups: list[int] = np.flatnonzero(table.row_filter.matching(table.files)).tolist()
    threads = min(_COUNTING_THREADS, os.cpu_count() or 1)
    decoder = ParquetDecoder(table, slices, table.fetch_ahead(lambda _: True, memory_bytes))
    kept = np.zeros(slices.first_pieces[-1], np.int64)

    def count(group: int) -> None:
        for piece, batch in enumerate(decoder.batches(group), int(slices.first_pieces[group])):
            kept[piece] = len(batch)

    with (
        Progress(len(groups), "counting the rows that row_filter keeps") as progress,
        ThreadPoolExecutor(threads, thread_name_prefix="headrace-count") as pool,
    ):
        for _ in pool.map(count, groups):
            progress.add(1)
    return kept
