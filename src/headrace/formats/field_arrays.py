"""NumPy arrays in payloads: `.npy` of one layout by one gather, others one by one, never by running code."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from headrace.errors import FormatError
from headrace.formats.decoding import PayloadError
from headrace.formats.dtypes import native, why_refused
from headrace.formats.field_decoding import DecodeEach, DecodePart, FieldDecoder, Keys, of_objects, room
from headrace.formats.npy import data_offset, parse_header
from headrace.formats.payloads import Payloads
from headrace.formats.ragged import Pad, Ragged
from headrace.formats.source import Array, Column
from headrace.formats.values import Values

NAME = "the payload"


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """What the header of a `.npy` says.

    Attributes:
        dtype: As stored, so perhaps big-endian.
        shape: Of the array.
        fortran_order: Whether the first axis varies fastest.
        offset: The byte at which the array begins.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran_order: bool
    offset: int

    @classmethod
    def read(cls, start: bytes) -> "ArrayLayout":
        """That of an array that begins with these bytes.

        Raises:
            FormatError: They are no header of an array that a tensor can hold.
        """
        layout = cls(*parse_header(NAME, start))
        if refused := why_refused(layout.dtype):
            raise FormatError(refused)
        return layout

    @property
    def values(self) -> int:
        """Their number. Python's integers: a header may claim any shape."""
        count = 1
        for length in self.shape:
            count *= length
        return count

    @property
    def payload_bytes(self) -> int:
        """Those of header and array."""
        return self.offset + self.values * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class FixedArrayDecoder(FieldDecoder):
    """Arrays of one dtype and shape.

    Attributes:
        layout: That of the first.
        header: Its bytes before the array, which the others have too, as a rule.
    """

    layout: ArrayLayout
    header: bytes
    column: Column = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "column", Column(native(self.layout.dtype), self.layout.shape))

    def decode(self, payloads: Payloads, out: Array | None = None, keys: Keys | None = None) -> Values:
        return self.prepare(payloads)(0, len(payloads), out, keys)

    def prepare(self, payloads: Payloads) -> DecodePart:
        layout, one_by_one = self.layout, EqualArraysDecoder(self.column).prepare(payloads)
        if layout.values == 0 or not payloads.are_all_of(layout.payload_bytes):
            return one_by_one
        is_turned = layout.fortran_order and len(layout.shape) > 1
        fill_headers = payloads.prepare_rows(0, layout.offset)
        fill_rows = payloads.prepare_rows(layout.offset, layout.payload_bytes - layout.offset)

        def part(start: int, stop: int, out: Array | None, keys: Keys | None) -> Values:
            # The headers first: with what they bring into the caches, both take less time than the rows alone would.
            headers = fill_headers(start, stop, np.empty((stop - start, layout.offset), np.uint8))
            # compared as bytes, which lets no other thread go first, as NumPy's comparisons would
            if headers.tobytes() != self.header * (stop - start):
                return one_by_one(start, stop, out, keys)
            out = room(self.column, stop - start, out)
            rows = np.empty((stop - start, *reversed(layout.shape)), out.dtype) if is_turned else out
            fill_rows(start, stop, rows.reshape(len(rows), layout.values).view(np.uint8))
            if not layout.dtype.isnative:
                rows.byteswap(inplace=True)
            if is_turned:
                # (n, ..., b, a), the first axis fastest, is (n, a, b, ...)
                out[...] = rows.transpose(0, *range(rows.ndim - 1, 0, -1))
            return out

        return part


@dataclass(frozen=True, eq=False)
class EqualArraysDecoder(FieldDecoder):
    """Arrays of one dtype and shape, whatever their headers look like."""

    column: Column

    def decode(self, payloads: Payloads, out: Array | None = None, keys: Keys | None = None) -> Values:  # noqa: ARG002
        expected = self.column
        out = room(expected, len(payloads), out)
        with DecodeEach(payloads, "a .npy array") as each:
            for place, view in each:
                array = read_array(view)
                if array.dtype.newbyteorder("=") != expected.dtype or array.shape != expected.shape:
                    raise PayloadError(
                        f"expected an array of {expected.dtype} {expected.shape}, as the first sample has, got "
                        f'{array.dtype} {array.shape}: decode={{...: "npy_list"}} gives lists of arrays'
                    )
                out[place] = array
        return out


@dataclass(frozen=True, eq=False)
class ArraysDecoder(FieldDecoder):
    """Arrays of any dtype and shape, as an array of objects: a list of them in a batch."""

    column: Column

    def decode(self, payloads: Payloads, out: Array | None = None, keys: Keys | None = None) -> Values:  # noqa: ARG002
        samples = np.empty(len(payloads), object)
        with DecodeEach(payloads, "a .npy array") as each:
            for place, view in each:
                array = read_array(view)
                # in memory of its own, that of the payloads is needed for others
                samples[place] = np.array(array, native(array.dtype), order="C")
        return samples


@dataclass(frozen=True, eq=False)
class PaddedArraysDecoder(FieldDecoder):
    """Arrays whose first axes differ in length, made equally long.

    Attributes:
        column: What comes: (pad.length, *shape).
        pad: How they are filled up.
    """

    column: Column
    pad: Pad

    def decode(self, payloads: Payloads, out: Array | None = None, keys: Keys | None = None) -> Values:  # noqa: ARG002
        out = room(self.column, len(payloads), out)
        shape = self.column.shape[1:]
        parts = []
        with DecodeEach(payloads, "a .npy array") as each:
            for _, view in each:
                array = read_array(view)
                if native(array.dtype) != self.column.dtype or array.ndim == 0 or array.shape[1:] != shape:
                    raise PayloadError(
                        f"expected an array of {self.column.dtype} {('any length', *shape)} to pad, as the first "
                        f"sample has, got {array.dtype} {array.shape}: the first axis alone may differ"
                    )
                parts.append(array)
        return self.pad.write(_joined(parts, self.column.dtype, shape), out)


def _joined(parts: Sequence[Array], dtype: np.dtype[Any], shape: tuple[int, ...]) -> Ragged:
    """Arrays (any, *shape) as rows of different lengths."""
    values = np.concatenate([np.empty((0, *shape), dtype), *parts])
    return Ragged.from_arrays(values, np.cumsum([0, *map(len, parts)]))


def read_array(payload: memoryview | bytes) -> Array:
    """The array in the bytes of a `.npy`, over their memory.

    Raises:
        PayloadError: They are no `.npy`, or hold fewer or more bytes than they say, or values that no tensor holds.
    """
    try:
        layout = _layout(bytes(payload[: data_offset(NAME, bytes(payload[:12]))]))
    except FormatError as error:
        raise PayloadError(str(error)) from None
    if len(payload) != layout.payload_bytes:
        raise PayloadError(
            f"the payload has {len(payload)} bytes, but {layout.dtype} {layout.shape} takes {layout.payload_bytes} "
            f"({layout.offset} of them header): it was cut or is damaged"
        )
    if layout.values == 0:
        return np.empty(layout.shape, layout.dtype)
    order: Literal["F", "C"] = "F" if layout.fortran_order else "C"
    return np.frombuffer(payload, layout.dtype, layout.values, layout.offset).reshape(layout.shape, order=order)


@lru_cache(64)  # most arrays have one of a few headers, and parsing one takes 20 us
def _layout(header: bytes) -> ArrayLayout:
    return ArrayLayout.read(header)


def arrays_decoder(head: bytes, least_bytes: int, most_bytes: int, mean_bytes: int) -> FieldDecoder:
    """That for `.npy` payloads of which all that is known is their sizes and how the first begins.

    Raises:
        FormatError: They hold what no tensor can hold.
    """
    layout = first_layout(head)
    if layout is None or least_bytes != most_bytes or layout.payload_bytes != most_bytes:
        return ArraysDecoder(of_objects(object, mean_bytes))
    return FixedArrayDecoder(layout, head[: layout.offset])


def padded_decoder(head: bytes, pad: Pad) -> FieldDecoder:
    """That for `.npy` payloads that are filled up along their first axis.

    Raises:
        FormatError: The first is no array, has no axis, or holds what no tensor can hold.
    """
    layout = first_layout(head)
    if layout is None or not layout.shape:
        raise FormatError("expected arrays of one axis or more")
    return PaddedArraysDecoder(Column(native(layout.dtype), (pad.length, *layout.shape[1:])), pad)


def first_layout(head: bytes) -> ArrayLayout | None:
    """The layout of the array that begins so; None where its header is damaged or longer than what is known.

    Raises:
        FormatError: It holds what no tensor can hold.
    """
    try:
        layout = ArrayLayout(*parse_header(NAME, head))
    except FormatError:
        return None
    if refused := why_refused(layout.dtype):
        raise FormatError(refused)
    return layout
