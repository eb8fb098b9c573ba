"""Which dtypes can become tensors, and which need a word to the user."""

from typing import Any

import numpy as np

_NUMBERS = "biufc"


def native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The same dtype in this machine's byte order (that of all fields for a structured one)."""
    return dtype if dtype.isnative else dtype.newbyteorder("=")


def why_refused(dtype: np.dtype[Any]) -> str | None:
    """Says why no tensor can hold such values and what to do; None where one can, or where it has named fields."""
    if dtype.hasobject:
        return f"{dtype} holds Python objects, and reading them would run code: save numbers, one array per column"
    if dtype.subdtype is not None:
        return f"{dtype} is an array within an array: save it with those axes as the array's own"
    if dtype.fields:
        refused = {name: why_refused(field[0].base) for name, field in dtype.fields.items()}
        return next((f"field {name!r}: {reason}" for name, reason in refused.items() if reason), None)
    if dtype.kind in "mM":
        return f'no tensor holds {dtype}: store it as numbers, array.view("int64")'
    if dtype.kind in "SU":
        return f"no tensor holds text ({dtype}): store class numbers, or the bytes as uint8"
    if dtype.kind == "V":
        return f"{dtype} are bytes without fields: save array.view of an integer dtype of the same size"
    if dtype.kind not in _NUMBERS:
        return f"no tensor holds {dtype}: store numbers"
    if dtype.itemsize > (16 if dtype.kind == "c" else 8):
        return (
            f'no tensor holds {dtype}: store it as array.astype("{"complex128" if dtype.kind == "c" else "float64"}")'
        )
    return None
