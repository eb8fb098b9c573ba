"""One gather per array: rows by number, whatever the array's memory order."""

import numpy as np

from headrace.formats.source import Array, Ids


def gather(rows: Array, ids: Ids, out: Array) -> None:
    """Fills `out` (len(ids), *shape) with `rows[ids]`, without a copy of `rows` in between.

    The ids must have been checked: one that is out of range would be clipped. NumPy releases the GIL for the copy.
    """
    # mode="raise" would gather into a buffer first; "clip" writes straight into `out`.
    flags = rows.flags
    if flags.c_contiguous and flags.aligned:
        rows.take(ids, axis=0, out=out, mode="clip")
    elif flags.f_contiguous and flags.aligned:
        # (n, a, b) in Fortran order is (b, a, n) in C order: its samples are columns of the last axis.
        out[...] = np.take(rows.T, ids, axis=-1, mode="clip").T
    else:
        # `take` would copy all of `rows` first to make it contiguous; fancy indexing follows the strides.
        out[...] = rows[ids]
