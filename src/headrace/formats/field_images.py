"""Images at their own size."""

from dataclasses import dataclass, field

import numpy as np

from headrace.formats.field_decoding import DecodeEach, FieldDecoder, Keys, of_images
from headrace.formats.image import ImageDecoder
from headrace.formats.payloads import Payloads
from headrace.formats.source import Array, Column
from headrace.formats.values import Values, stacked

# Decoded pixels take about as many times the bytes of a JPEG
_EXPANDS = 8


@dataclass(frozen=True, eq=False)
class ImagesDecoder(FieldDecoder):
    """Images of any size: an array (n, *shape) where those of a batch are alike, else one of objects."""

    decoder: ImageDecoder
    mean_bytes: int
    column: Column = field(init=False)

    def __post_init__(self) -> None:
        dtype = np.dtype(self.decoder.dtype)
        object.__setattr__(self, "column", of_images(dtype, self.mean_bytes * _EXPANDS * dtype.itemsize))

    def decode(self, payloads: Payloads, out: Array | None = None, keys: Keys | None = None) -> Values:  # noqa: ARG002
        images = np.empty(len(payloads), object)
        with DecodeEach(payloads, "an image") as each:
            for place, view in each:
                images[place] = self.decoder.decoded(view)
        return stacked(images)


def images_decoder(decoder: ImageDecoder, mean_bytes: int) -> FieldDecoder:
    """That for payloads of a mean size."""
    return ImagesDecoder(decoder, mean_bytes)
