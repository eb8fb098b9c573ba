"""Several arrays in one payload (`.npz`, tenbin), and payloads that are compressed by themselves (gzip)."""

import io
import math
import struct
import zipfile
import zlib
from dataclasses import dataclass, field

import numpy as np

from headrace.errors import FormatError
from headrace.formats.decoding import PayloadError
from headrace.formats.dtypes import native
from headrace.formats.field_arrays import ArrayLayout, read_array
from headrace.formats.field_decoding import DecodeEach, EachDecoder, FieldDecoder, Keys, of_objects
from headrace.formats.npy import parse_header
from headrace.formats.payloads import Payloads
from headrace.formats.source import Array, Column
from headrace.formats.values import Values

# What one payload may become. A gigabyte of zeros is a megabyte of deflate.
MOST_BYTES = 1 << 30
_STEP_BYTES = 1 << 20
_FED_BYTES = 1 << 16  # what zlib hasn't come to is copied at each step

# Tenbin, by webdataset: chunks of a mark, the length and the bytes, padded to 64
_MARK = b"~TenBin~"
_PAD_BYTES = 64
_DTYPES = {code: np.dtype(f"<{code}") for code in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")}
_MOST_AXES = 10


@dataclass(frozen=True, eq=False)
class GzipDecoder(FieldDecoder):
    """Decompresses payloads, and leaves the rest to another decoder.

    Attributes:
        inner: What decodes the decompressed payloads.
        most_bytes: How large one of them may be.
    """

    inner: FieldDecoder
    most_bytes: int = MOST_BYTES
    column: Column = field(init=False)
    uses_keys: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "column", self.inner.column)
        object.__setattr__(self, "uses_keys", self.inner.uses_keys)

    def decode(self, payloads: Payloads, out: Array | None = None, keys: Keys | None = None) -> Values:
        with DecodeEach(payloads, "gzip") as each:
            decompressed = [gunzipped(view, self.most_bytes) for _, view in each]
        return self.inner.decode(Payloads(decompressed), out, keys)


def gunzipped(payload: memoryview | bytes, most_bytes: int) -> bytes:
    """What one gzip, or several one after the other, hold.

    Raises:
        PayloadError: They are damaged or cut, or hold more than `most_bytes`.
    """
    parts = []
    left = most_bytes
    view, position = memoryview(payload), 0
    while position < len(view):
        stream = zlib.decompressobj(16 + zlib.MAX_WBITS)
        while not stream.eof:
            fed: bytes | memoryview = stream.unconsumed_tail
            if not fed:
                fed = view[position : position + _FED_BYTES]
                position += len(fed)
            part = stream.decompress(fed, min(left + 1, _STEP_BYTES))
            left -= len(part)
            if left < 0:
                raise PayloadError(
                    f"gzip of {len(payload)} bytes holds more than {most_bytes}: "
                    'ask for decode={...: "bytes"} where it is to be trusted, and decompress it yourself'
                )
            parts.append(part)
            if not part and not fed and not stream.eof:
                raise PayloadError(f"gzip of {len(payload)} bytes ends before its data: it was cut")
        position = _after_zeros(view, position - len(stream.unused_data))
    return b"".join(parts)


def _after_zeros(view: memoryview, position: int) -> int:
    """Where the next gzip begins: tar-like zeros may lie between, as Python's gzip and webdataset have it."""
    while rest := bytes(view[position : position + _FED_BYTES]):
        stripped = rest.lstrip(b"\0")
        position += len(rest) - len(stripped)
        if stripped:
            break
    return position


def archive_decoder(mean_bytes: int) -> FieldDecoder:
    """`.npz` to a dict of arrays."""
    return EachDecoder(of_objects(object, mean_bytes), read_archive, "a .npz archive")


def read_archive(payload: bytes, most_bytes: int = MOST_BYTES) -> dict[str, Array | bytes]:
    """The arrays of a `.npz` by name, in memory of their own; what has no `.npy` at its end as bytes.

    Raises:
        PayloadError: It is damaged, or claims more than `most_bytes`, or an array needs code to be read.
    """
    with zipfile.ZipFile(io.BytesIO(payload)) as archive:
        entries = archive.infolist()
        claimed = sum(entry.file_size for entry in entries)
        if claimed > most_bytes:
            raise PayloadError(
                f"a .npz of {len(payload)} bytes claims to hold {claimed}, more than the {most_bytes} that are taken: "
                "give a function as decode= that reads it, where it is to be trusted"
            )
        arrays: dict[str, Array | bytes] = {}
        for entry in entries:
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise PayloadError(f"entry {entry.filename!r} is compressed in a way that np.savez doesn't know")
            # never more than it claims: `read` stops there
            octets = archive.read(entry)
            name = entry.filename.removesuffix(".npy")
            if name == entry.filename:
                arrays[name] = octets
                continue
            try:
                array = _read_entry(octets)
            except PayloadError as error:
                raise PayloadError(f"array {name!r}: {error}") from None
            arrays[name] = np.array(array, native(array.dtype), order="C")
        return arrays


def _read_entry(octets: bytes) -> Array:
    """One array, which may also be text: in a dict it need not become a tensor."""
    try:
        layout = ArrayLayout(*parse_header("the array", octets))
    except FormatError as error:
        raise PayloadError(str(error)) from None
    if layout.dtype.kind in "SU" and layout.dtype.itemsize and layout.payload_bytes == len(octets):
        text: Array = np.lib.format.read_array(io.BytesIO(octets), allow_pickle=False)
        return text
    return read_array(octets)


def tenbin_decoder(mean_bytes: int) -> FieldDecoder:
    """Webdataset's tenbin to a list of arrays."""
    return EachDecoder(of_objects(object, mean_bytes), read_tenbin, "tenbin")


def read_tenbin(payload: bytes) -> list[Array]:
    """The arrays in tenbin, in memory of their own.

    A header chunk (code of the dtype, name, number of axes, lengths, each of 8 bytes) and a data chunk make an array.
    Specification: https://github.com/webdataset/webdataset/blob/main/webdataset/tenbin.py

    Raises:
        PayloadError: It is damaged or cut.
    """
    chunks = _chunks(payload)
    if len(chunks) % 2:
        raise PayloadError(f"expected a header and data for each array, got {len(chunks)} chunks")
    return [_array(header, data) for header, data in zip(chunks[::2], chunks[1::2], strict=True)]


def _chunks(payload: bytes) -> list[memoryview]:
    chunks = []
    offset = 0
    while offset < len(payload):
        if payload[offset : offset + 8] != _MARK or offset + 16 > len(payload):
            raise PayloadError(f"expected {_MARK!r} at byte {offset}, got {payload[offset : offset + 8]!r}")
        (length,) = struct.unpack_from("<q", payload, offset + 8)
        offset += 16
        if not 0 <= length <= len(payload) - offset:
            raise PayloadError(f"a chunk at byte {offset} claims {length} bytes of the {len(payload) - offset} left")
        chunks.append(memoryview(payload)[offset : offset + length])
        offset += -(-length // _PAD_BYTES) * _PAD_BYTES
    return chunks


def _array(header: memoryview, data: memoryview) -> Array:
    words = len(header) // 8
    axes = struct.unpack_from("<q", header, 16)[0] if words >= 3 else -1
    if len(header) % 8 or not 0 <= axes <= _MOST_AXES or words != 3 + axes:
        raise PayloadError(f"an array's header has {len(header)} bytes, which is none of tenbin")
    code = bytes(header[:8]).rstrip(b"\0").decode("latin-1")
    shape = struct.unpack_from(f"<{axes}q", header, 24)
    dtype = _DTYPES.get(code)
    if dtype is None or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data):
        raise PayloadError(f"an array of {code!r} {shape} doesn't fit its {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(shape).astype(native(dtype))
