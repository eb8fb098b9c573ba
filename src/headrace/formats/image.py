"""Images to arrays of one size.

A JPEG is decoded by libjpeg-turbo (simplejpeg), at a half, a quarter or an eighth of its size where that still has no
fewer pixels than asked for: the decoder then leaves out most of its work. Those that it can't make RGB of, and all
other formats, are decoded by Pillow. What comes is resized by torch's antialiased bilinear filter, a few times as fast
as Pillow's for 8-bit pixels and within one level of it. All of this releases the GIL, but for what Pillow's format
readers do in Python.
"""

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from headrace.errors import ArgumentError
from headrace.formats.decoding import Payload, PayloadError
from headrace.formats.image_crops import Range, centred, random_part, shrunk
from headrace.formats.image_reading import MAX_PIXELS, Part, Pixels, packages, read_pixels
from headrace.formats.source import Array, Column

Mode: TypeAlias = Literal["resize", "center_crop", "random_resized_crop"]
_MODES = ("resize", "center_crop", "random_resized_crop")

# torchvision's defaults
SCALE = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True, slots=True)
class ImageDecoder:
    """Decodes images to RGB; `headrace.image` makes one.

    Attributes:
        size: Height and width, in pixels; None leaves images as large as they are.
        mode: How they are made that large.
        layout: Which axis holds the channels.
        max_pixels: The most pixels that an image may have before it is resized.
        dtype: "uint8", 0 to 255, or "float32", 0 to 1.
        scale: Least and largest share of an image's area in a random crop.
        ratio: Least and largest width over height of a random crop.
    """

    size: tuple[int, int] | None
    mode: Mode = "resize"
    layout: Literal["chw", "hwc"] = "chw"
    max_pixels: int = MAX_PIXELS
    dtype: Literal["uint8", "float32"] = "uint8"
    scale: Range = SCALE
    ratio: Range = RATIO

    @property
    def column(self) -> Column:
        dtype = np.dtype(self.dtype)
        if self.size is None:
            return Column(dtype, python_type=np.ndarray)
        return Column(dtype, (3, *self.size) if self.layout == "chw" else (*self.size, 3))

    @property
    def uses_keys(self) -> bool:
        """Whether images are cropped at random."""
        return self.mode == "random_resized_crop"

    def decode(self, payloads: Sequence[Payload], out: Array, keys: npt.NDArray[np.uint64] | None = None) -> None:
        """Fills `out`, (len(payloads), *column.shape), with images of one size.

        Args:
            payloads: The images.
            out: Of the column's dtype.
            keys: uint64 (len(payloads),), what random crops are drawn by; by default 0 for each.

        Raises:
            PayloadError: One is no image of a known format, ends too early, is damaged, or has too many pixels.
        """
        drawn_by = [0] * len(payloads) if keys is None or not self.uses_keys else keys.tolist()
        for place, payload in enumerate(payloads):
            try:
                pixels = self._read(payload, drawn_by[place])
            except PayloadError as error:
                error.place = place
                raise
            self._write(pixels, out[place])

    def decoded(self, payload: Payload) -> Array:
        """One image at its own size, (3, height, width) or (height, width, 3).

        Raises:
            PayloadError: As `decode`.
        """
        assert self.size is None
        pixels = self._read(payload, 0)
        shape = pixels.shape if self.layout == "hwc" else (3, *pixels.shape[:2])
        out = np.empty(shape, self.dtype)
        self._write(pixels, out)
        return out

    def taken(self, height: int, width: int, key: int = 0) -> Part:
        """Which rows and columns of an image show: all, those in its middle, or random ones."""
        if self.mode == "resize" or self.size is None:
            return slice(0, height), slice(0, width)
        if self.mode == "center_crop":
            return centred(height, width, self.size)
        return random_part(height, width, key, self.scale, self.ratio)

    def _read(self, payload: Payload, key: int) -> Pixels:
        """What is to be resized, (height, width, 3)."""
        taken = functools.partial(self.taken, key=key) if self.uses_keys else self.taken
        return read_pixels(payload, self.max_pixels, self.size, taken, self._reduced)

    def _reduced(self, part: Part, by: int, shape: tuple[int, int]) -> Part:
        """The part of an image that was decoded at a fraction of its size."""
        if self.uses_keys:
            return shrunk(part, by, shape)
        rows, columns = self.taken(*shape)
        # a pixel more where else its middle would be off by a half, which may be four of the whole one
        if (shape[0] - rows.stop + rows.start) % 2:
            rows = slice(rows.start, rows.stop + 1)
        if (shape[1] - columns.stop + columns.start) % 2:
            columns = slice(columns.start, columns.stop + 1)
        return rows, columns

    def _write(self, pixels: Pixels, out: Array) -> None:
        # (height, width, 3) -> (3, height, width), in memory as it is
        channels: Array = pixels.transpose(2, 0, 1)
        if self.size is not None and pixels.shape[:2] != self.size:
            # NumPy does the copying, since torch would wake its pool of threads for it, one pool for each of ours
            given = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
            channels = torch.nn.functional.interpolate(given, self.size, mode="bilinear", antialias=True)[0].numpy()
        laid_out = channels if self.layout == "chw" else channels.transpose(1, 2, 0)
        if self.dtype == "uint8":
            out[...] = laid_out
        else:
            np.divide(laid_out, np.float32(255), out=out)


def image(
    size: int | tuple[int, int] | None = None,
    mode: Mode = "resize",
    layout: Literal["chw", "hwc"] = "chw",
    *,
    dtype: Literal["uint8", "float32"] = "uint8",
    max_pixels: int = MAX_PIXELS,
    scale: Range = SCALE,
    ratio: Range = RATIO,
) -> ImageDecoder:
    """A decoder for `decode={"image": headrace.image(224)}`: RGB images, uint8 unless asked otherwise.

    Takes JPEG, PNG, WebP, PPM, GIF and BMP; of an animation the first frame. Grey, palette and CMYK images become RGB,
    16-bit ones lose their low bits, transparency is dropped. An EXIF orientation is not applied: pixels come as they
    are stored.

    Resizing is bilinear with antialiasing. A JPEG at least twice as large as asked for is decoded at a half, a quarter
    or an eighth of its size first, which differs a little from decoding it in full.

    Args:
        size: Pixels: one number for squares, or (height, width). None leaves each image as large as it is, for tar
            shards: batches need images of one size then.
        mode: "resize" stretches an image to the size; "center_crop" keeps its proportions, and takes of it the largest
            part in the middle that has those of the size; "random_resized_crop" stretches a random part of it to the
            size, as torchvision's RandomResizedCrop does. Of a sample it is another part in each epoch, and the same
            in every run with the same seed, for any number of workers and ranks.
        layout: "chw" as torch's models want it, (3, height, width), or "hwc".
        dtype: "uint8", or "float32" from 0 to 1.
        max_pixels: Larger images are refused by their headers; 67 million by default. Pillow's own limit,
            `PIL.Image.MAX_IMAGE_PIXELS`, holds as well where Pillow decodes.
        scale: Of a random part the least and the largest area, as a share of the image's.
        ratio: Of a random part the least and the largest width over height.

    Raises:
        ArgumentError: An argument is none of these.
        DependencyError: Pillow or simplejpeg is missing.

    >>> image((192, 256)).column.shape
    (3, 192, 256)
    """
    try:
        shape = None if size is None else _shape(size)
    except (TypeError, ValueError):
        raise ArgumentError(f"image: expected a size of 1 or more pixels, or (height, width), got {size!r}") from None
    _check_one_of("mode", mode, _MODES)
    _check_one_of("layout", layout, ("chw", "hwc"))
    _check_one_of("dtype", dtype, ("uint8", "float32"))
    if shape is None and mode != "resize":
        raise ArgumentError(f'image: mode="{mode}" needs a size, image(224, "{mode}")')
    try:
        _whole(max_pixels)
    except (TypeError, ValueError):
        raise ArgumentError(f"image: expected max_pixels of 1 or more, got {max_pixels!r}") from None
    scale, ratio = _range("scale", scale, 1.0), _range("ratio", ratio, float("inf"))
    packages()
    return ImageDecoder(shape, mode, layout, int(max_pixels), dtype, scale, ratio)


def _check_one_of(name: str, given: object, known: Sequence[str]) -> None:
    if given not in known:
        expected = " or ".join(f'"{one}"' for one in known)
        raise ArgumentError(f"image: expected {name}={expected}, got {given!r}")


def _shape(size: Any) -> tuple[int, int]:
    height, width = map(_whole, (size, size) if isinstance(size, int | np.integer) else size)
    return height, width


def _range(name: str, given: Any, most: float) -> Range:
    try:
        least, largest = map(float, given)
        is_one = 0 < least <= largest <= most and largest < float("inf")
    except (TypeError, ValueError):
        is_one = False
    if not is_one:
        end = " to 1" if most == 1 else ""
        raise ArgumentError(f"image: expected {name}=(least, largest), numbers above 0{end}, got {given!r}")
    return least, largest


def _whole(number: Any) -> int:
    if isinstance(number, bool) or operator.index(number) < 1:
        raise ValueError
    return operator.index(number)
