"""Where the rows of stored files lie."""

import numpy as np
import pytest

from headrace.formats.npy import ArrayFile
from headrace.formats.stored_rows import GAP_BYTES, StoredRows
from headrace.storage import StoredObject


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (5, 250), (990, 1520), (999, 1004), (0, 1520)])
def test_a_run_of_rows_has_the_blocks_places_and_costs_of_its_single_rows(start, stop):
    files = [
        ArrayFile(StoredObject(f"s3://bucket/x{i}.npy", 10**6), np.dtype("f4"), (rows, 7))
        for i, rows in enumerate((1000, 3, 517))
    ]
    rows = StoredRows(files, 100, 1)
    ids = np.arange(start, stop)
    blocks, firsts, counts = rows.run(ids)
    of_rows, within = rows.locate(ids)
    np.testing.assert_array_equal(np.repeat(blocks, counts), of_rows)
    np.testing.assert_array_equal(
        np.concatenate([f + np.arange(c) for f, c in zip(firsts, counts, strict=True)]), within
    )
    distinct, costs = rows.costs(ids)
    np.testing.assert_array_equal(distinct, blocks)
    np.testing.assert_array_equal(costs, GAP_BYTES + counts * rows.row_bytes)
