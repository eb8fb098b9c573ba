"""The row groups of Parquet files as one table, checked against the files' lengths before anything trusts it."""

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.errors import FormatError
from headrace.formats.parquet_footers import Footer, ParquetPlace, refuse_encrypted
from headrace.formats.parquet_thrift import Group, parse_groups
from headrace.formats.pinning import place_bytes

# More than any file holds; sums of numbers below these don't overflow.
_MOST_ROWS = 1 << 40
_MOST_BYTES = 1 << 50
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 8, "FLOAT": 4, "DOUBLE": 8}
_CODECS = ("UNCOMPRESSED", "SNAPPY", "GZIP", "LZO", "BROTLI", "LZ4", "ZSTD", "LZ4_RAW")


@dataclass(frozen=True, slots=True, eq=False)
class GroupTable:
    """Row groups that hold rows, in the order of the files.

    Attributes:
        group_file: int32 (groups,), the number of each one's file.
        group_number: int32 (groups,), its number within the file.
        group_rows: int64 (groups,), its rows.
        group_bytes: int64 (groups,), the bytes of all its columns before they were compressed.
        chunks: int64 (3, groups, leaves): offset, bytes in the file, and bytes decoded of each column chunk.
        footer_length: int64 (files,), the bytes of each footer.
        footer_crc32: int64 (files,), of these.
    """

    group_file: npt.NDArray[np.int32]
    group_number: npt.NDArray[np.int32]
    group_rows: npt.NDArray[np.int64]
    group_bytes: npt.NDArray[np.int64]
    chunks: npt.NDArray[np.int64]
    footer_length: npt.NDArray[np.int64]
    footer_crc32: npt.NDArray[np.int64]

    def first_lie(self, bytes_of_files: npt.NDArray[np.int64]) -> tuple[int, int] | None:
        """The group and leaf of the first chunk that doesn't lie within its file, if there is one.

        Args:
            bytes_of_files: int64 (files,), the length of each file.
        """
        offsets, compressed, uncompressed = self.chunks
        total = bytes_of_files[self.group_file][:, None]
        sound = (offsets >= 4) & (compressed > 0) & (compressed <= total) & (offsets <= total - compressed)
        sound &= (uncompressed >= 0) & (uncompressed <= _MOST_BYTES)
        wrong = np.argwhere(~sound)
        return (int(wrong[0, 0]), int(wrong[0, 1])) if len(wrong) else None


def table_of(place: ParquetPlace, footer: Footer, columns: Sequence[int]) -> GroupTable:
    """The row groups of one file (number 0).

    Args:
        place: The file.
        footer: Its footer.
        columns: The leaf columns whose chunks are kept.

    Raises:
        FormatError: The footer says what cannot be.
    """
    schema, width = footer.metadata.schema, footer.metadata.num_columns
    leaves = [schema.column(column) for column in columns]
    sized = [column for column, leaf in zip(columns, leaves, strict=True) if leaf.physical_type == "BYTE_ARRAY"]
    try:
        told = parse_groups(footer.raw, columns, sized=sized)
    except ValueError as error:
        raise FormatError(f"{place} is not a sound Parquet file: its footer is corrupt: {error}") from None
    if told.is_encrypted:
        refuse_encrypted(place)
    # pyarrow reads so many bytes more of files of writers that forgot the header of a dictionary
    padding = 100 if _forgets_headers(told.created_by) else 0
    numbers, rows, sizes = [], [], []
    chunks: list[list[tuple[int, int, int]]] = []
    total = place_bytes(place)
    for number, group in enumerate(told.groups):
        if len(group.chunks) != width:
            _refuse(place, number, f"expected chunks of {width} columns, got {len(group.chunks)}")
        if not 0 <= group.rows <= _MOST_ROWS:
            _refuse(place, number, f"it claims {group.rows} rows")
        if not 0 <= group.total_bytes <= _MOST_BYTES:
            _refuse(place, number, f"it claims {group.total_bytes} bytes")
        if group.rows == 0:
            continue
        of_group = [_extent(place, number, group, column, leaf) for column, leaf in zip(columns, leaves, strict=True)]
        if padding:
            of_group = [(at, max(size, min(size + padding, total - at)), plain) for at, size, plain in of_group]
        numbers.append(number)
        rows.append(group.rows)
        sizes.append(max(group.total_bytes, 1))  # of all columns: an order must not depend on those that are read
        chunks.append(of_group)
    if sum(rows) != told.rows or len(told.groups) != footer.metadata.num_row_groups:
        raise FormatError(
            f"{place} is not a sound Parquet file: its {len(told.groups)} row groups hold {sum(rows)} rows, "
            f"but it claims {told.rows} in {footer.metadata.num_row_groups}; write it again"
        )
    table = GroupTable(
        np.zeros(len(rows), np.int32),
        np.array(numbers, np.int32),
        np.array(rows, np.int64),
        np.array(sizes, np.int64),
        np.ascontiguousarray(np.array(chunks, np.int64).reshape(len(rows), len(columns), 3).transpose(2, 0, 1)),
        np.array([len(footer.raw)], np.int64),
        np.array([footer.crc32], np.int64),
    )
    if lie := table.first_lie(np.array([total], np.int64)):
        at, size, plain = (int(value) for value in table.chunks[:, lie[0], lie[1]])
        _refuse(
            place,
            numbers[lie[0]],
            f"column {leaves[lie[1]].path!r} claims {size} bytes at byte {at}, uncompressed {plain}, "
            f"but the file has {total} bytes (is it truncated?)",
        )
    return table


def join_tables(tables: Sequence[GroupTable]) -> GroupTable:
    """One table of the tables of files 0, 1, ..."""

    def joined(arrays: Iterable[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
        return np.concatenate(list(arrays))

    counts = [len(table.group_rows) for table in tables]
    return GroupTable(
        np.repeat(np.arange(len(tables), dtype=np.int32), counts),
        np.concatenate([table.group_number for table in tables]),
        joined(table.group_rows for table in tables),
        joined(table.group_bytes for table in tables),
        np.concatenate([table.chunks for table in tables], axis=1),
        joined(table.footer_length for table in tables),
        joined(table.footer_crc32 for table in tables),
    )


def _extent(place: ParquetPlace, number: int, group: Group, column: int, leaf: pq.ColumnSchema) -> tuple[int, int, int]:
    """Where a column chunk lies: offset, bytes, and bytes when it is decoded, or what is known of these."""
    chunk = group.chunks[column]
    if chunk.file_path:
        _refuse(
            place, number, f"column {leaf.path!r} lies in another file, {chunk.file_path.decode(errors='replace')!r}"
        )
    if not _reads_codec(chunk.codec):
        name = _CODECS[chunk.codec] if 0 <= chunk.codec < len(_CODECS) else f"codec {chunk.codec}"
        raise FormatError(
            f"{place}: row group {number}: column {leaf.path!r} is compressed with {name}, which this "
            f"pyarrow ({pa.__version__}) does not read: write it again with compression='zstd'"
        )
    # each row has a value, or a place where one is missing; rows of lists have one or more
    is_right = chunk.values >= group.rows if leaf.max_repetition_level else chunk.values == group.rows
    if not is_right:
        _refuse(place, number, f"column {leaf.path!r} claims {chunk.values} values for {group.rows} rows")
    start = chunk.data_page_offset
    if 0 < chunk.dictionary_page_offset < start:
        start = chunk.dictionary_page_offset
    for claim in (start, chunk.compressed, chunk.uncompressed):
        if not 0 <= claim <= _MOST_BYTES:
            _refuse(place, number, f"column {leaf.path!r} claims {chunk.compressed} bytes at byte {start}")
    # dictionaries and run lengths take less than the values that they stand for
    plain = max(chunk.uncompressed, chunk.unencoded, chunk.values * _WIDTHS.get(leaf.physical_type, 0))
    return start, chunk.compressed, min(plain, _MOST_BYTES)


@functools.cache
def _reads_codec(codec: int) -> bool:
    if not 0 <= codec < len(_CODECS):
        return False
    try:
        return codec == 0 or bool(pa.Codec.is_available(_CODECS[codec].removesuffix("_RAW").lower()))
    except ValueError:
        return False


def _forgets_headers(created_by: str) -> bool:
    """Whether the writer is parquet-mr before 1.2.9 (PARQUET-816)."""
    if not created_by.startswith("parquet-mr"):
        return False
    version = re.search(r"version (\d+)\.(\d+)\.(\d+)", created_by)
    return version is None or tuple(map(int, version.groups())) < (1, 2, 9)


def _refuse(place: ParquetPlace, number: int, reason: str) -> NoReturn:
    raise FormatError(f"{place} is not a sound Parquet file: row group {number}: {reason}; write it again")
