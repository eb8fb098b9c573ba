"""Which part of an image shows: the largest in its middle, or a random one, by a key."""

import math
from typing import TypeAlias

from headrace.formats.image_reading import Part

Range: TypeAlias = tuple[float, float]

_TRIES = 10
_BITS = (1 << 64) - 1


def centred(height: int, width: int, size: tuple[int, int]) -> Part:
    """The largest part in the middle that has the proportions of a size."""
    scale = min(height / size[0], width / size[1])
    rows, columns = (max(1, round(scale * length)) for length in size)
    return _part((height - rows) // 2, (width - columns) // 2, rows, columns)


def random_part(height: int, width: int, key: int, scale: Range, ratio: Range) -> Part:
    """A part of random size, proportions and place, distributed as those of torchvision's RandomResizedCrop.

    Its area is drawn evenly from `scale`, in shares of the image's, its width over its height log-evenly from
    `ratio`; where ten draws don't fit the image, it is the largest in the middle of an allowed ratio.

    Args:
        height: Of the image.
        width: Of the image.
        key: 64 bits; the same key gives the same part.
        scale: Least and largest share of the area.
        ratio: Least and largest width over height.
    """
    least, largest = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(_TRIES):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * _draw(key, 4 * attempt))
        shape = math.exp(least + (largest - least) * _draw(key, 4 * attempt + 1))
        columns, rows = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < columns <= width and 0 < rows <= height:
            top = int(_draw(key, 4 * attempt + 2) * (height - rows + 1))
            left = int(_draw(key, 4 * attempt + 3) * (width - columns + 1))
            return _part(top, left, rows, columns)
    rows, columns = height, width
    if width / height < ratio[0]:
        rows = min(height, max(1, round(width / ratio[0])))
    elif width / height > ratio[1]:
        columns = min(width, max(1, round(height * ratio[1])))
    return _part((height - rows) // 2, (width - columns) // 2, rows, columns)


def shrunk(part: Part, by: int, shape: tuple[int, int]) -> Part:
    """The part of an image that was decoded at a fraction of its size, whose height and width are then `shape`."""
    rows, columns = part
    return (
        slice(rows.start // by, min(shape[0], -(-rows.stop // by))),
        slice(columns.start // by, min(shape[1], -(-columns.stop // by))),
    )


def _part(top: int, left: int, rows: int, columns: int) -> Part:
    return slice(top, top + rows), slice(left, left + columns)


def _draw(key: int, counter: int) -> float:
    """A number in [0, 1): 53 bits of a hash of key and counter, part of the public contract as the order's are."""
    state = 0x9E3779B97F4A7C15
    for word in (key, counter):
        state = _mixed(state ^ word)
    return (state >> 11) * 2.0**-53


def _mixed(state: int) -> int:
    """The finaliser of SplitMix64, as in the keyed hash of the order, for one integer."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _BITS
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _BITS
    return state ^ (state >> 31)
