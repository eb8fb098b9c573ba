"""The row groups of footers: what pyarrow reads in them, and nothing but ValueError for bytes that are none."""

import io
import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.formats.parquet_thrift import Chunk, _Reader, parse_groups


def written(**options):
    numbers = range(300)
    table = pa.table(
        {
            "id": pa.array(numbers, pa.int64()),
            "real": np.random.default_rng(0).random(300),
            "text": [None if i % 7 == 0 else f"text {i}" * (i % 40) for i in numbers],
            "lists": [[{"x": i, "y": [str(i)]}] * (i % 3) for i in numbers],
            "fixed": pa.array([[i, i] for i in numbers], pa.list_(pa.float32(), 2)),
            "a name of more than thirty-two characters": pa.array([i % 2 == 0 for i in numbers]),
            "null": pa.nulls(300, pa.int32()),
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    whole = sink.getvalue()
    return whole[-8 - int.from_bytes(whole[-8:-4], "little") : -8], pq.read_metadata(io.BytesIO(whole))


OPTIONS = [
    {"row_group_size": 100},
    {"row_group_size": 7, "write_statistics": False},
    {"compression": "none", "use_dictionary": False},
    {"version": "1.0", "store_schema": False, "write_page_index": True},
    {"data_page_version": "2.0", "column_encoding": None, "sorting_columns": [pq.SortingColumn(0)]},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("with_statistics", [False, True])
@pytest.mark.parametrize("is_usual", [True, False])
def test_row_groups_are_as_pyarrow_reads_them(options, with_statistics, is_usual, monkeypatch):
    if not is_usual:
        monkeypatch.setattr(_Reader, "usual_chunk", lambda _self, _number: None)
    raw, metadata = written(**options)
    told = parse_groups(raw, with_statistics=with_statistics)
    assert (told.rows, len(told.groups), told.created_by) == (300, metadata.num_row_groups, metadata.created_by)
    assert told.has_orders
    assert not told.is_encrypted
    for i, group in enumerate(told.groups):
        expected = metadata.row_group(i)
        assert (group.rows, group.total_bytes) == (expected.num_rows, expected.total_byte_size)
        assert len(group.chunks) == expected.num_columns
        for j, chunk in enumerate(group.chunks):
            column = expected.column(j)
            assert ("UNCOMPRESSED", "SNAPPY")[chunk.codec] == column.compression
            assert chunk.values == column.num_values
            assert chunk.uncompressed == column.total_uncompressed_size
            assert chunk.compressed == column.total_compressed_size
            assert chunk.data_page_offset == column.data_page_offset
            assert chunk.dictionary_page_offset == (column.dictionary_page_offset or -1)
            if with_statistics and column.is_stats_set:
                assert chunk.nulls == column.statistics.null_count
                assert (chunk.smallest is not None) == column.statistics.has_min_max
                if column.path_in_schema == "text":
                    assert chunk.smallest.decode() == column.statistics.min
                    assert chunk.largest.decode() == column.statistics.max


def test_chunks_that_are_not_wanted_are_only_told_to_be_there():
    raw, _ = written(row_group_size=100)
    every, some = parse_groups(raw), parse_groups(raw, [1])
    for all_chunks, chosen in zip(every.groups, some.groups, strict=True):
        assert chosen.chunks[1] == all_chunks.chunks[1]
        assert len(chosen.chunks) == len(all_chunks.chunks)
        assert chosen.chunks[0] == Chunk()


def test_a_footer_cut_short_is_a_value_error():
    raw, _ = written(row_group_size=100)
    for length in range(len(raw) - 1):
        with pytest.raises(ValueError, match="it ends too early"):
            parse_groups(raw[:length])


RAW = written(row_group_size=100)[0]


@given(st.binary(max_size=200) | st.builds(bytes.__add__, st.sampled_from([b"\x15\x02\x49", b"\x49\xfc"]), st.binary()))
def test_bytes_that_are_no_footer_are_a_value_error_or_few_row_groups(raw):
    try:
        told = parse_groups(raw)
    except ValueError:
        return
    assert len(told.groups) <= len(raw)


@given(st.lists(st.tuples(st.integers(0, len(RAW) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_footer_is_a_value_error_or_read(changes):
    raw = bytearray(RAW)
    for at, value in changes:
        raw[at] = value
    for with_statistics in (False, True):
        try:
            told = parse_groups(bytes(raw), with_statistics=with_statistics)
        except ValueError:
            continue
        assert len(list(itertools.chain(*(group.chunks for group in told.groups)))) <= len(raw)


def test_lists_of_more_than_there_is_and_structs_within_structs_end_at_once():
    many = b"\xff" * 8 + b"\x01"
    for raw in (b"\x49\xfc" + many, b"\x19\xf1" + many, b"\x1b" + many + b"\x11", b"\x1c" * 100_000, b"\x18" + many):
        with pytest.raises(ValueError, match=r"it ends too early, or nests too deep|64 bits"):
            parse_groups(raw)
