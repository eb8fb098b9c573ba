"""Images to arrays of one size.

A JPEG is decoded by libjpeg-turbo (simplejpeg), at a half, a quarter or an eighth of its size where that still has no
fewer pixels than asked for: the decoder then leaves out most of its work. Those that it can't make RGB of, and all
other formats, are decoded by Pillow. What comes is resized by torch's antialiased bilinear filter, a few times as fast
as Pillow's for 8-bit pixels and within one level of it. All of this releases the GIL, but for what Pillow's format
readers do in Python.
"""

import io
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from headrace.errors import ArgumentError, DependencyError
from headrace.formats.decoding import Payload, PayloadError
from headrace.formats.source import Array, Column

Pixels = npt.NDArray[np.uint8]

MAX_PIXELS = 1 << 26
# Only what reads pixels and nothing else: Pillow's EPS reader, for one, would start Ghostscript
_FORMATS = ("JPEG", "PNG", "PPM", "GIF", "BMP", "WEBP")
_NAMES = "JPEG, PNG, WebP, PPM, GIF or BMP"
# libjpeg-turbo has fast code for these alone: decoding 500x375 at 5/8 took 890 us, in full 670 us
_REDUCTIONS = (8, 4, 2)
_JPEG_BEGINS = b"\xff\xd8"
_JPEG_AS_RGB = ("YCbCr", "RGB", "Gray")


@dataclass(frozen=True, slots=True)
class ImageDecoder:
    """Decodes images to RGB of one size; `headrace.image` makes one.

    Attributes:
        size: Height and width, in pixels.
        mode: How they are made that large.
        layout: Which axis holds the channels.
        max_pixels: The most pixels that an image may have before it is resized.
    """

    size: tuple[int, int]
    mode: Literal["resize", "center_crop"] = "resize"
    layout: Literal["chw", "hwc"] = "chw"
    max_pixels: int = MAX_PIXELS

    @property
    def column(self) -> Column:
        return Column(np.dtype(np.uint8), (3, *self.size) if self.layout == "chw" else (*self.size, 3))

    def decode(self, payloads: Sequence[Payload], out: Array) -> None:
        """Fills `out`, uint8 (len(payloads), *column.shape).

        Raises:
            PayloadError: One is no image of a known format, ends too early, is damaged, or has too many pixels.
        """
        for place, payload in enumerate(payloads):
            try:
                pixels = self._decoded(payload)
            except PayloadError as error:
                error.place = place
                raise
            self._resize(pixels, out[place])

    def _decoded(self, payload: Payload) -> Pixels:
        """What is to be resized, (height, width, 3)."""
        pixels = _from_turbo(self, payload) if bytes(payload[:2]) == _JPEG_BEGINS else None
        if pixels is not None:
            return pixels
        pixels = _from_pillow(self, payload)
        return pixels[self.taken(*pixels.shape[:2])]

    def taken(self, height: int, width: int) -> tuple[slice, slice]:
        """Which rows and columns of an image show: all, or the largest part in its middle of the shape asked for."""
        if self.mode == "resize":
            return slice(0, height), slice(0, width)
        scale = min(height / self.size[0], width / self.size[1])
        rows, columns = (max(1, round(scale * length)) for length in self.size)
        top, left = (height - rows) // 2, (width - columns) // 2
        return slice(top, top + rows), slice(left, left + columns)

    def check_pixels(self, height: int, width: int) -> None:
        """Refuses an image by what its header says, before anything is decoded."""
        if height * width > self.max_pixels:
            raise PayloadError(
                f"an image of {width}x{height} pixels, more than max_pixels={self.max_pixels}: "
                "give image(..., max_pixels=) where it is to be trusted"
            )

    def _resize(self, pixels: Pixels, out: Array) -> None:
        # (height, width, 3) -> (3, height, width), in memory as it is
        channels = pixels.transpose(2, 0, 1)
        if pixels.shape[:2] != self.size:
            # NumPy does the copying, since torch would wake its pool of threads for it, one pool for each of ours
            given = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
            channels = torch.nn.functional.interpolate(given, self.size, mode="bilinear", antialias=True)[0].numpy()
        out[...] = channels if self.layout == "chw" else channels.transpose(1, 2, 0)


def image(
    size: int | tuple[int, int],
    mode: Literal["resize", "center_crop"] = "resize",
    layout: Literal["chw", "hwc"] = "chw",
    *,
    max_pixels: int = MAX_PIXELS,
) -> ImageDecoder:
    """A decoder for `decode={"image": headrace.image(224)}`: uint8 RGB images of exactly one size.

    Takes JPEG, PNG, WebP, PPM, GIF and BMP; of an animation the first frame. Grey, palette and CMYK images become RGB,
    16-bit ones lose their low bits, transparency is dropped. An EXIF orientation is not applied: pixels come as they
    are stored.

    Resizing is bilinear with antialiasing. A JPEG at least twice as large as asked for is decoded at a half, a quarter
    or an eighth of its size first, which differs a little from decoding it in full.

    Args:
        size: Pixels: one number for squares, or (height, width).
        mode: "resize" stretches an image to the size; "center_crop" keeps its proportions, and takes of it the largest
            part in the middle that has those of the size.
        layout: "chw" as torch's models want it, (3, height, width), or "hwc".
        max_pixels: Larger images are refused by their headers; 67 million by default. Pillow's own limit,
            `PIL.Image.MAX_IMAGE_PIXELS`, holds as well where Pillow decodes.

    Raises:
        ArgumentError: An argument is none of these.
        DependencyError: Pillow or simplejpeg is missing.

    >>> image((192, 256)).column.shape
    (3, 192, 256)
    """
    try:
        height, width = map(_whole, (size, size) if isinstance(size, int | np.integer) else size)
    except (TypeError, ValueError):
        raise ArgumentError(f"image: expected a size of 1 or more pixels, or (height, width), got {size!r}") from None
    if mode not in ("resize", "center_crop"):
        raise ArgumentError(f'image: expected mode="resize" or "center_crop", got {mode!r}')
    if layout not in ("chw", "hwc"):
        raise ArgumentError(f'image: expected layout="chw" or "hwc", got {layout!r}')
    try:
        _whole(max_pixels)
    except (TypeError, ValueError):
        raise ArgumentError(f"image: expected max_pixels of 1 or more, got {max_pixels!r}") from None
    _packages()
    return ImageDecoder((height, width), mode, layout, int(max_pixels))


def _whole(number: Any) -> int:
    if isinstance(number, bool) or operator.index(number) < 1:
        raise ValueError
    return operator.index(number)


def _packages() -> tuple[Any, Any]:
    """The modules simplejpeg and Pillow's Image module."""
    try:
        import simplejpeg
        from PIL import Image
    except ImportError as error:
        raise DependencyError(
            f'decoding images needs {error.name}, which is not installed: pip install "headrace[image]"'
        ) from error
    return simplejpeg, Image


def _from_turbo(decoder: ImageDecoder, payload: Payload) -> Pixels | None:
    """What is taken of a JPEG, perhaps of a reduced size; None where libjpeg-turbo can't make it or has doubts."""
    simplejpeg, _ = _packages()
    try:
        height, width, color, _ = simplejpeg.decode_jpeg_header(payload)
    except ValueError:
        return None
    decoder.check_pixels(height, width)
    if color not in _JPEG_AS_RGB:
        return None
    rows, columns = decoder.taken(height, width)
    by = next(
        (
            by
            for by in _REDUCTIONS
            if (rows.stop - rows.start) // by >= decoder.size[0]
            and (columns.stop - columns.start) // by >= decoder.size[1]
        ),
        1,
    )
    # the smallest size that is no less than this is this one
    least = {"min_height": -(-height // by), "min_width": -(-width // by)} if by > 1 else {}
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(payload, "RGB", **least)
    except ValueError as error:
        if "premature end of data segment" in str(error):  # Pillow would make up the rest
            raise PayloadError(f"cannot decode the {width}x{height} pixels of a JPEG image: {error}") from None
        return None
    rows, columns = decoder.taken(*pixels.shape[:2])
    # of a reduced image a pixel more where else its middle would be off by a half, which may be four of the whole one
    if by > 1 and (pixels.shape[0] - rows.stop + rows.start) % 2:
        rows = slice(rows.start, rows.stop + 1)
    if by > 1 and (pixels.shape[1] - columns.stop + columns.start) % 2:
        columns = slice(columns.start, columns.stop + 1)
    return pixels[rows, columns]


def _from_pillow(decoder: ImageDecoder, payload: Payload) -> Pixels:
    _, image_module = _packages()
    try:
        opened = image_module.open(io.BytesIO(payload), formats=_FORMATS)
    except (image_module.DecompressionBombError, image_module.DecompressionBombWarning) as error:
        raise PayloadError(f"an image of too many pixels: {error}") from None
    except Exception as error:  # noqa: BLE001 (its readers raise whatever they stumble over)
        raise PayloadError(_not_an_image(payload, error)) from None
    with opened:
        width, height = opened.size
        decoder.check_pixels(height, width)
        try:
            opened.load()
        except Exception as error:  # noqa: BLE001 (as above)
            raise PayloadError(
                f"cannot decode the {width}x{height} pixels of a {opened.format} image from its {len(payload)} bytes: "
                f"{error}"
            ) from None
        return _as_rgb(opened)


def _as_rgb(opened: Any) -> Pixels:
    if opened.mode == "F":
        raise PayloadError("expected an image of 8 or 16 bits a channel, got floating-point numbers")
    if opened.mode.startswith("I"):
        grey = (np.asarray(opened).astype(np.int32) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if opened.mode != "RGB":
        opened.info.pop("transparency", None)  # which is dropped: with it, Pillow warns of that
        opened = opened.convert("RGB")
    return np.array(opened)


def _not_an_image(payload: Payload, error: Exception) -> str:
    begins = bytes(payload[:16])
    if len(payload) == 0:
        return f"expected a {_NAMES} image, got 0 bytes"
    detail = "" if type(error).__name__ == "UnidentifiedImageError" else f": {error}"
    return f"expected a {_NAMES} image, got {len(payload)} bytes that begin with {begins!r}{detail}"
