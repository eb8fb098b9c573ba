"""The pixels of images, by libjpeg-turbo where it can, else by Pillow."""

import io
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from headrace.errors import DependencyError
from headrace.formats.decoding import Payload, PayloadError

Pixels: TypeAlias = npt.NDArray[np.uint8]
# Which rows and columns of an image
Part: TypeAlias = tuple[slice, slice]

MAX_PIXELS = 1 << 26
# Only what reads pixels and nothing else: Pillow's EPS reader, for one, would start Ghostscript
_FORMATS = ("JPEG", "PNG", "WEBP", "PPM", "GIF", "BMP")
# libjpeg-turbo has fast code for these alone: decoding 500x375 at 5/8 took 890 us, in full 670 us
_REDUCTIONS = (8, 4, 2)
_JPEG_BEGINS = b"\xff\xd8"
_JPEG_AS_RGB = ("YCbCr", "RGB", "Gray")


def packages() -> tuple[Any, Any]:
    """The modules simplejpeg and Pillow's Image module.

    Raises:
        DependencyError: One is missing.
    """
    try:
        import simplejpeg
        from PIL import Image
    except ImportError as error:
        raise DependencyError(
            f'decoding images needs {error.name}, which is not installed: pip install "headrace[image]"'
        ) from error
    return simplejpeg, Image


def read_pixels(
    payload: Payload,
    max_pixels: int,
    size: tuple[int, int] | None,
    taken: Callable[[int, int], Part],
    reduced: Callable[[Part, int, tuple[int, int]], Part],
) -> Pixels:
    """What is taken of an image, (height, width, 3), of a JPEG perhaps smaller than it is stored.

    Args:
        payload: The image.
        max_pixels: The most that it may have.
        size: What its part will be resized to; None for as it is.
        taken: The part that shows, of an image's height and width.
        reduced: The same part of the image as it was decoded, given it, by how much the image is smaller, and its
            height and width then.

    Raises:
        PayloadError: It is no image of a known format, ends too early, is damaged, or has too many pixels.
    """
    if bytes(payload[:2]) == _JPEG_BEGINS:
        pixels = _from_turbo(payload, max_pixels, size, taken, reduced)
        if pixels is not None:
            return pixels
    pixels = _from_pillow(payload, max_pixels)
    return pixels[taken(*pixels.shape[:2])]


def check_pixels(height: int, width: int, max_pixels: int) -> None:
    """Refuses an image by what its header says, before anything is decoded."""
    if height * width > max_pixels:
        raise PayloadError(
            f"an image of {width}x{height} pixels, more than max_pixels={max_pixels}: "
            "give image(..., max_pixels=) where it is to be trusted"
        )


def open_image(payload: Payload, formats: Sequence[str]) -> Any:
    """Pillow's image of a payload, its header read and no pixel yet.

    Raises:
        PayloadError: It is none of these formats.
    """
    _, image_module = packages()
    try:
        return image_module.open(io.BytesIO(payload), formats=formats)
    except (image_module.DecompressionBombError, image_module.DecompressionBombWarning) as error:
        raise PayloadError(f"an image of too many pixels: {error}") from None
    except Exception as error:  # noqa: BLE001 (its readers raise whatever they stumble over)
        raise PayloadError(_not_an_image(payload, formats, error)) from None


def load_image(opened: Any, payload_bytes: int) -> None:
    """Decodes the pixels of an image that Pillow has opened.

    Raises:
        PayloadError: They are damaged, or end too early.
    """
    try:
        opened.load()
    except Exception as error:  # noqa: BLE001 (its readers raise whatever they stumble over)
        raise PayloadError(
            f"cannot decode the {opened.size[0]}x{opened.size[1]} pixels of a {opened.format} image from its "
            f"{payload_bytes} bytes: {error}"
        ) from None


def _from_turbo(
    payload: Payload,
    max_pixels: int,
    size: tuple[int, int] | None,
    taken: Callable[[int, int], Part],
    reduced: Callable[[Part, int, tuple[int, int]], Part],
) -> Pixels | None:
    """What is taken of a JPEG, perhaps of a reduced size; None where libjpeg-turbo can't make it or has doubts."""
    simplejpeg, _ = packages()
    try:
        height, width, color, _ = simplejpeg.decode_jpeg_header(payload)
    except ValueError:
        return None
    check_pixels(height, width, max_pixels)
    if color not in _JPEG_AS_RGB:
        return None
    part = taken(height, width)
    by = 1 if size is None else _reduction(part, size)
    # the smallest size that is no less than this is this one
    least = {"min_height": -(-height // by), "min_width": -(-width // by)} if by > 1 else {}
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(payload, "RGB", **least)
    except ValueError as error:
        if "premature end of data segment" in str(error):  # Pillow would make up the rest
            raise PayloadError(f"cannot decode the {width}x{height} pixels of a JPEG image: {error}") from None
        return None
    return pixels[part if by == 1 else reduced(part, by, (pixels.shape[0], pixels.shape[1]))]


def _reduction(part: Part, size: tuple[int, int]) -> int:
    """By how much an image may be smaller so that its part has still no fewer pixels than asked for."""
    rows, columns = part
    for by in _REDUCTIONS:
        if (rows.stop - rows.start) // by >= size[0] and (columns.stop - columns.start) // by >= size[1]:
            return by
    return 1


def _from_pillow(payload: Payload, max_pixels: int) -> Pixels:
    with open_image(payload, _FORMATS) as opened:
        width, height = opened.size
        check_pixels(height, width, max_pixels)
        load_image(opened, len(payload))
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


def _not_an_image(payload: Payload, formats: Sequence[str], error: Exception) -> str:
    begins = bytes(payload[:16])
    *others, last = ("WebP" if name == "WEBP" else name for name in formats)
    names = f"{', '.join(others)} or {last}"
    if len(payload) == 0:
        return f"expected a {names} image, got 0 bytes"
    detail = "" if type(error).__name__ == "UnidentifiedImageError" else f": {error}"
    return f"expected a {names} image, got {len(payload)} bytes that begin with {begins!r}{detail}"
