"""Images as webdataset's own names ask for them: exactly what its `decode("rgb8")` gives, decoded by Pillow.

Names: "l", "rgb" or "rgba" for the channels; "8" at the end for uint8, else float32 from 0 to 1; "torch" at the
beginning for channels first, "pil" for Pillow's images.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from headrace.formats.field_decoding import EachDecoder, FieldDecoder, of_images, of_objects
from headrace.formats.image_reading import MAX_PIXELS, check_pixels, load_image, open_image, packages
from headrace.formats.source import Array

# By name: whether NumPy's, torch's or Pillow's, the dtype, and Pillow's mode
WEBDATASET_IMAGES: Mapping[str, tuple[str, str, str]] = {
    "l8": ("numpy", "uint8", "L"),
    "rgb8": ("numpy", "uint8", "RGB"),
    "rgba8": ("numpy", "uint8", "RGBA"),
    "l": ("numpy", "float32", "L"),
    "rgb": ("numpy", "float32", "RGB"),
    "rgba": ("numpy", "float32", "RGBA"),
    "torchl8": ("torch", "uint8", "L"),
    "torchrgb8": ("torch", "uint8", "RGB"),
    "torchrgba8": ("torch", "uint8", "RGBA"),
    "torchl": ("torch", "float32", "L"),
    "torchrgb": ("torch", "float32", "RGB"),
    "torch": ("torch", "float32", "RGB"),
    "torchrgba": ("torch", "float32", "RGBA"),
    "pill": ("pil", "", "L"),
    "pil": ("pil", "", "RGB"),
    "pilrgb": ("pil", "", "RGB"),
    "pilrgba": ("pil", "", "RGBA"),
}
# Pillow's readers that read pixels and nothing else, for the extensions that webdataset takes for images
_FORMATS = (
    *("JPEG", "PNG", "PPM", "GIF", "BMP", "WEBP", "TIFF", "JPEG2000", "TGA", "ICO", "DIB", "PCX", "SGI", "DDS", "XBM"),
    "XPM",
)


def webdataset_decoder(name: str, mean_bytes: int) -> FieldDecoder:
    """That for one of webdataset's names.

    Raises:
        DependencyError: Pillow is missing.
    """
    packages()
    kind, dtype, mode = WEBDATASET_IMAGES[name]
    if kind == "pil":
        return EachDecoder(of_objects(object, mean_bytes), functools.partial(_opened, mode), "an image")
    column = of_images(np.dtype(dtype), mean_bytes)
    return EachDecoder(column, functools.partial(_pixels, kind, dtype, mode), "an image", stacks=True)


def _pixels(kind: str, dtype: str, mode: str, payload: bytes) -> Array:
    pixels: Array = np.array(_opened(mode, payload))
    if dtype == "float32":
        pixels = pixels.astype(np.float32) / 255.0
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)) if kind == "torch" and pixels.ndim == 3 else pixels


def _opened(mode: str, payload: bytes) -> Any:
    with open_image(payload, _FORMATS) as opened:
        check_pixels(opened.height, opened.width, MAX_PIXELS)
        load_image(opened, len(payload))
        return opened.convert(mode)
