"""Payloads as people write them, and what an index says of them."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from headrace.formats.payloads import Payloads
from headrace.formats.tar_columns import TarColumn, plan_tar_columns
from headrace.formats.tar_table import HEAD_BYTES, FieldInfo
from headrace.formats.values import Values


def npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asanyarray(array), version)
    return stream.getvalue()


def npz(compressed: bool = False, **arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **arrays)
    return stream.getvalue()


def encoded_image(width: int, height: int, kind: str = "PNG", mode: str = "RGB") -> bytes:
    """Slopes of colours."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], -1).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind)
    return stream.getvalue()


def info(name: str, payloads: Sequence[bytes]) -> FieldInfo:
    sizes = [len(payload) for payload in payloads]
    return FieldInfo(name, len(sizes), min(sizes), max(sizes), sum(sizes), payloads[0][:HEAD_BYTES])


def planned(name: str, payloads: Sequence[bytes], **options) -> TarColumn:
    """The only column of samples that have one field."""
    (column,) = plan_tar_columns({name: info(name, payloads)}, None, **options)
    return column


def decoded(name: str, payloads: Sequence[bytes], **options) -> Values:
    """What the payloads of a field become."""
    decoder = planned(name, payloads, **options).decoder
    assert decoder is not None
    return decoder.decode(Payloads(payloads), None, None)
