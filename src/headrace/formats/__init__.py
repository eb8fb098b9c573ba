"""Formats: bytes to columns.

A `Source` knows where samples are, and nothing of their order: it has a length, a `schema` of columns, `blocks` (runs
of samples that are cheap to read together), a `fingerprint`, and one verb, `read(sample_ids)`, which gathers a whole
batch, from any number of threads at once: a column of one shape into an array, another one as `Ragged` rows or as an
Arrow array. Batches make it fast: no Python runs per sample.

- `ArraySource`: arrays and tensors in memory
- `NumpySource`: `.npy` and raw binary files: local ones memory-mapped, those in a store read in blocks
- `DatasetSource`: any map-style torch Dataset
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
