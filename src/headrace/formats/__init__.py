"""Formats: bytes to columns.

A `Source` knows where samples are, and nothing of their order: it has a length, a `schema` of columns, `blocks` (runs
of samples that are cheap to read together), a `fingerprint`, and one verb, `read(sample_ids)`, which gathers a whole
batch into one array per column, from any number of threads at once. Batches make it fast: no Python runs per sample.

- `ArraySource`: arrays and tensors in memory
- `NumpySource`: `.npy` and raw binary files: local ones memory-mapped, those in a store read in blocks
- `DatasetSource`: any map-style torch Dataset
"""

from headrace.formats.foreign import DatasetSource
from headrace.formats.memory import ArraySource
from headrace.formats.numpy_source import ColumnFiles, NumpySource, Raw
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

__all__ = [
    "Array",
    "ArraySource",
    "Blocks",
    "Column",
    "ColumnFiles",
    "DatasetSource",
    "Ids",
    "NumpySource",
    "Raw",
    "ReadPart",
    "Source",
    "check_ids",
    "check_out",
    "fingerprint",
    "uniform_blocks",
]
