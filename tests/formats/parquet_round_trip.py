"""Arrow arrays written to a Parquet file and read back, as the source reads them."""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.formats.decoding import PayloadError
from headrace.formats.parquet_columns import ColumnOptions, ParquetColumn, plan_columns
from headrace.formats.source import Column
from headrace.formats.values import Values, concatenate


def written(folder: Path, columns: Mapping[str, pa.Array] | pa.Table, **options) -> Path:
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    path = folder / "x.parquet"
    pq.write_table(table, path, **options)
    return path


def planned(path: Path, names: Sequence[str] | None = None, **options) -> list[ParquetColumn]:
    options = ColumnOptions(**options)
    # columns travel to workers
    return pickle.loads(
        pickle.dumps(plan_columns(pq.ParquetFile(path).schema_arrow, names, options, where="x.parquet"))
    )


def read(path: Path, names: Sequence[str] | None = None, *, batch_rows: int = 65536, **options) -> dict[str, Values]:
    """All rows of each column, read as batches of `batch_rows`."""
    return {column.name: read_column(path, column, batch_rows) for column in planned(path, names, **options)}


def read_column(path: Path, column: ParquetColumn, batch_rows: int = 65536) -> Values:
    file = pq.ParquetFile(path)
    parts = []
    for batch in file.iter_batches(batch_rows, columns=[column.path]):
        array = column.extract(batch)
        if column.stored is not None:
            out = np.full((len(array), *column.stored.shape), 77).astype(column.stored.dtype)
            column.write(array, out)
            parts.append(out)
        else:
            parts.append(column.keep(array))
    if column.stored is not None:
        return concatenate(parts)
    return column.finish(pa.concat_arrays(parts), None)


def read_array(folder: Path, array: pa.Array, *, batch_rows: int = 65536, **options) -> Values:
    """The only column "x" of a file."""
    options = {name: value if name in ("validity", "lists") else {"x": value} for name, value in options.items()}
    return read(written(folder, {"x": array}), batch_rows=batch_rows, **options)["x"]


class Doubling:
    """A decoder: payloads of two bytes become the doubles of their values."""

    column = Column(np.dtype(np.uint8), (2,))

    def decode(self, payloads, out):
        assert out.flags.c_contiguous
        for place, payload in enumerate(payloads):
            if len(payload) != 2:
                raise PayloadError(f"expected 2 bytes, got {len(payload)}", place)
            out[place] = np.frombuffer(payload, np.uint8) * 2
