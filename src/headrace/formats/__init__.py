"""Formats: bytes to columns.

A `Source` knows where samples are, and nothing of their order: it has a length, a `schema` of columns, `blocks` (runs
of samples that are cheap to read together), a `fingerprint`, and one verb, `read(sample_ids)`, which gathers a whole
batch, from any number of threads at once: a column of one shape into an array, another one as `Ragged` rows or as an
Arrow array. Batches make it fast: no Python runs per sample.

- `ArraySource`: arrays and tensors in memory
- `NumpySource`: `.npy` and raw binary files: local ones memory-mapped, those in a store read in blocks
- `DatasetSource`: any map-style torch Dataset
- `ParquetSource` (in `parquet_source`, which loads pyarrow): Parquet files, local ones and those in a store
- `TarSource` (in `tar_source`): WebDataset tar shards, local ones, mapped, and those in a store, read in blocks

How Parquet is read:

    parquet_files         ParquetFiles: checked footers as a table of groups (footers, groups, thrift, leaves, index)
      hive                which files a folder or pattern means, and the columns in folders' names
    parquet_columns       plan_columns: what becomes of each column (kinds, types, casts, fixed, kept, options)
    parquet_filter        RowFilter: which rows count, and what statistics rule out (statistics)
    parquet_table         Table: all of these together
    parquet_layout        how row groups are cut into pieces; how many rows a filter keeps
    parquet_memory        what one process has: reads samples
      piece_memory        decoded pieces under a byte budget, each made by one thread (room, piece_counts)
      piece_reading       which pieces a read needs, and the gather
      parquet_decoding    pieces of a row group, in their order (parquet_reader)
      fetch_ahead         stored bytes before they are decoded (stored_file)

How tar shards are read:

    tar_shards            open_tar_index: the shards, pinned, and their index, found or made (pinning)
      tar_index           TarIndex: which samples there are, and where payloads lie (tar_index_file, _checks, _building)
      tar_scanning        many shards at once, wherever they lie
      tar_scan            one shard's headers, in columns (tar_rows) or one by one (tar_headers, tar_extensions)
      tar_grouping        members to samples, samples to blocks (tar_names, tar_fields, tar_table)
    tar_columns           plan_tar_columns: what decodes each column (field_choices, field_*, image, webdataset_images)
    tar_memory            what one process has: maps of local shards, blocks of others (piece_memory, fetch_ahead,
                          block_buffers)
      tar_compressed      blocks of shards that are compressed (tar_decompression)
      payloads            many payloads gathered at once, wherever in memory they lie
    tar_writer            write_shards (tar_encoding, tar_destinations)
"""

from headrace.formats.decoding import Decoder, Payload, PayloadError
from headrace.formats.foreign import DatasetSource
from headrace.formats.image import ImageDecoder
from headrace.formats.memory import ArraySource
from headrace.formats.numpy_source import ColumnFiles, NumpySource, Raw
from headrace.formats.ragged import Pad, Ragged
from headrace.formats.source import (
    Array,
    Blocks,
    Column,
    Ids,
    ReadPart,
    Source,
    check_ids,
    check_out,
    fingerprint,
    uniform_blocks,
)
from headrace.formats.values import Values, concatenate

__all__ = [
    "Array",
    "ArraySource",
    "Blocks",
    "Column",
    "ColumnFiles",
    "DatasetSource",
    "Decoder",
    "Ids",
    "ImageDecoder",
    "NumpySource",
    "Pad",
    "Payload",
    "PayloadError",
    "Ragged",
    "Raw",
    "ReadPart",
    "Source",
    "Values",
    "check_ids",
    "check_out",
    "concatenate",
    "fingerprint",
    "uniform_blocks",
]
