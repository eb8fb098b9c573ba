"""What a source gives for a column: an array, ragged rows, or Arrow's memory."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias, Union, cast

import numpy as np

from headrace.formats.ragged import Ragged
from headrace.formats.source import Array

if TYPE_CHECKING:
    import pyarrow as pa

# Of a fixed column an array (rows, *shape); of a ragged one a Ragged; where `python_type` is set an Arrow array.
Values: TypeAlias = Union[Array, Ragged, "pa.Array"]


def concatenate(parts: Sequence[Values]) -> Values:
    """The rows of several values of one column, one after the other, in memory of their own.

    >>> concatenate([np.array([1, 2]), np.array([3])])
    array([1, 2, 3])
    """
    first = parts[0]
    if isinstance(first, np.ndarray):
        return np.concatenate(cast(Sequence[Array], parts))
    if isinstance(first, Ragged):
        return Ragged.concatenate(cast(Sequence[Ragged], parts))
    import pyarrow as pa

    return pa.concat_arrays(parts)
