"""Decimal integers in text, as `.cls` fields hold them: a batch of them at once."""

from dataclasses import dataclass

import numpy as np

from headrace.formats.decoding import PayloadError
from headrace.formats.field_decoding import DecodePart, FieldDecoder, Keys, room
from headrace.formats.payloads import Payloads
from headrace.formats.source import Array, Column, Ids
from headrace.formats.values import Values

# Any number of this many digits fits int64
_DIGITS = 18
# int64 (18,): 10**17, 10**16, ..., 1
_POWERS = 10 ** np.arange(_DIGITS - 1, -1, -1, dtype=np.int64)
_NEWLINE = np.uint8(10)
_ZERO = 48


@dataclass(frozen=True, eq=False)
class IntegerDecoder(FieldDecoder):
    """Integers in text to int64: whatever Python's `int` takes, white space around them and signs too."""

    column: Column = Column(np.dtype(np.int64))  # noqa: RUF009 (it is immutable)

    def decode(self, payloads: Payloads, out: Array | None = None, keys: Keys | None = None) -> Values:  # noqa: ARG002
        out = room(self.column, len(payloads), out)
        if len(payloads):
            unusual = _read_digits(payloads, out)
            if unusual is None or len(unusual):
                _read_one_by_one(payloads, out, unusual)
        return out

    def prepare(self, payloads: Payloads) -> DecodePart:
        numbers = self.decode(payloads)

        def part(start: int, stop: int, out: Array | None, keys: Keys | None) -> Values:  # noqa: ARG001
            out = room(self.column, stop - start, out)
            out[...] = numbers[start:stop]
            return out

        return part


def _read_digits(payloads: Payloads, out: Array) -> Ids | None:
    """Fills in the numbers that are nothing but digits, perhaps with a newline; returns the others' places.

    None where that is all of them.
    """
    sizes = payloads.sizes
    width = int(np.maximum.reduce(sizes))
    if not 0 < width <= _DIGITS + 1:
        return None
    # (n, width); digits become 0..9 and all other bytes more
    digits = payloads.beginnings(width, after=_ZERO)
    digits -= np.uint8(_ZERO)
    least = int(np.minimum.reduce(sizes))
    if least > 0 and width <= _DIGITS and int(np.maximum.reduce(digits, axis=None)) <= 9:
        np.matmul(digits.astype(np.int64), _POWERS[_DIGITS - width :], out=out)
        if least < width:  # each came as if it had `width` digits
            out //= _POWERS[_DIGITS - 1 - width + sizes]
        return sizes[:0]
    octets = payloads.beginnings(width)
    digits = octets - np.uint8(_ZERO)
    is_digit = digits <= 9
    found = np.count_nonzero(is_digit)
    if found == int(sizes.sum()):
        count = sizes
        usual = (sizes > 0) & (sizes <= _DIGITS)
    else:
        count = np.add.reduce(is_digit, axis=1, dtype=np.int64)
        last = np.take_along_axis(octets, np.maximum(sizes - 1, 0)[:, None], axis=1)[:, 0]
        # all bytes are digits, or all but the last, which is a newline
        ends = (count == sizes) | ((count == sizes - 1) & (last == _NEWLINE))
        usual = ends & (count > 0) & (count <= _DIGITS)
    width = min(width, _DIGITS)
    values = (digits * is_digit)[:, :width].astype(np.int64) @ _POWERS[_DIGITS - width :]
    # each as if it had `width` digits, so those of fewer are a power of ten too large
    np.floor_divide(values, _POWERS[np.maximum(_DIGITS - 1 - width + count, 0) % _DIGITS], out=out)
    return np.flatnonzero(~usual)


def _read_one_by_one(payloads: Payloads, out: Array, places: Ids | None) -> None:
    """Fills in the numbers at these places, or all of them."""
    chosen = None if places is None else set(places.tolist())
    for place, view in enumerate(payloads.views()):
        if chosen is not None and place not in chosen:
            continue
        text = bytes(view)
        try:
            number = int(text)
        except ValueError:
            shown = f"{text[:32]!r}{'...' if len(text) > 32 else ''}"
            raise PayloadError(f"expected an integer as text, got {len(text)} bytes, {shown}", place) from None
        if not -(1 << 63) <= number < 1 << 63:
            raise PayloadError(f"expected an integer that int64 holds, got {text[:64].decode('latin-1')}", place)
        out[place] = number
