"""What turns the payloads of one field of tar samples into a column of a batch.

A decoder gets all payloads of a batch at once, so that those of one layout need no Python for each sample. Those that
differ are decoded one by one, into an array of Python objects, or into one array where what came is alike.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from headrace.errors import HeadraceError
from headrace.formats.decoding import Decoder, PayloadError
from headrace.formats.payloads import Payloads
from headrace.formats.source import Array, Column
from headrace.formats.values import Values, stacked

Keys = npt.NDArray[np.uint64]
# (start, stop, out, keys): see FieldDecoder.prepare
DecodePart: TypeAlias = Callable[[int, int, Array | None, Keys | None], Values]


class FieldDecoder(ABC):
    """Payloads of any length to samples of one column; used by any number of threads at once.

    Attributes:
        column: What samples become. Those of one shape are an array (rows, *shape). Where `python_type` is set they
            are an array of objects (rows,): of str, bytes or anything; or an array of numbers (rows, *shape) where
            those of the batch can be stacked. Where it is `np.ndarray`, those of a batch must be.
        uses_keys: Whether what it makes depends on the samples' keys.
    """

    column: Column
    uses_keys: bool = False

    @abstractmethod
    def decode(self, payloads: Payloads, out: Array | None = None, keys: Keys | None = None) -> Values:
        """The samples, in the order of the payloads.

        Args:
            payloads: One for each sample.
            out: Of a column of one shape, (len(payloads), *column.shape), C-contiguous: filled and returned.
            keys: uint64 (len(payloads),), what random decoding draws by: by the same key the same.

        Raises:
            PayloadError: A payload is not what the decoder takes; `place` says which, and `out` holds anything.
        """

    def prepare(self, payloads: Payloads) -> DecodePart:
        """Returns a function that decodes the payloads [start, stop); what can be done once for all is done now.

        Raises:
            PayloadError: As `decode`; `place` counts from the first of all payloads, in the function too.
        """

        def part(start: int, stop: int, out: Array | None, keys: Keys | None) -> Values:
            try:
                return self.decode(payloads.part(start, stop), out, keys)
            except PayloadError as error:
                error.place += start
                raise

        return part


@dataclass(frozen=True, eq=False)
class EachDecoder(FieldDecoder):
    """Decodes one payload after the other.

    Attributes:
        column: What samples become.
        function: Makes a sample of a payload's bytes.
        what: What payloads should be, for error texts.
        stacks: Whether the samples of a batch become one array where they are numbers, or arrays of one shape.
    """

    column: Column
    function: Callable[[bytes], Any]
    what: str
    stacks: bool = False

    def decode(self, payloads: Payloads, out: Array | None = None, keys: Keys | None = None) -> Values:  # noqa: ARG002
        samples = np.empty(len(payloads), object)
        with DecodeEach(payloads, self.what) as each:
            for place, view in each:
                samples[place] = self.function(bytes(view))
        return stacked(samples) if self.stacks else samples


@dataclass(frozen=True, eq=False)
class FixedDecoder(FieldDecoder):
    """A decoder to samples of one shape, such as that of images, for the payloads of a tar.

    Attributes:
        decoder: What decodes them.
    """

    decoder: Decoder
    column: Column = field(init=False)
    uses_keys: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "column", self.decoder.column)
        object.__setattr__(self, "uses_keys", bool(getattr(self.decoder, "uses_keys", False)))

    def decode(self, payloads: Payloads, out: Array | None = None, keys: Keys | None = None) -> Values:
        out = room(self.column, len(payloads), out)
        decode: Any = self.decoder.decode  # its third argument is optional
        if self.uses_keys:
            decode(payloads.views(), out, keys)
        else:
            decode(payloads.views(), out)
        return out


class DecodeEach:
    """The payloads of a batch one by one, and whatever goes wrong with one of them as a PayloadError of its place.

    >>> with DecodeEach(Payloads([b"1", b"x"]), "a number") as each:
    ...     numbers = [int(bytes(view)) for _, view in each]
    Traceback (most recent call last):
    headrace.formats.decoding.PayloadError: expected a number, got 1 bytes that fail with ValueError: ...
    """

    def __init__(self, payloads: Payloads, what: str) -> None:
        """Takes the payloads, and what they should be, for error texts."""
        self._views, self._what = payloads.views(), what
        self._place = 0

    def __enter__(self) -> Iterator[tuple[int, memoryview]]:
        for place, view in enumerate(self._views):
            self._place = place
            yield place, view

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, PayloadError):
            error.place = self._place
        # a package that is missing, or bytes that cannot be had, are no fault of the payload
        elif isinstance(error, Exception) and not isinstance(error, HeadraceError | ImportError):
            raise PayloadError(
                f"expected {self._what}, got {len(self._views[self._place])} bytes that fail with "
                f"{type(error).__name__}: {error}",
                self._place,
            ) from error


def room(column: Column, rows: int, out: Array | None) -> Array:
    """The array to fill: the one that is given, or a fresh one."""
    return np.empty((rows, *column.shape), column.dtype) if out is None else out


def of_objects(kind: type, mean_bytes: int) -> Column:
    """A column of Python objects."""
    return Column(np.dtype(object), python_type=kind, mean_bytes=mean_bytes)


def of_images(dtype: np.dtype[Any], mean_bytes: int) -> Column:
    """A column of images of any size, of which a batch wants those of one."""
    return Column(dtype, python_type=np.ndarray, mean_bytes=mean_bytes)


def text_decoder(mean_bytes: int) -> FieldDecoder:
    """UTF-8 to str."""
    return EachDecoder(of_objects(str, mean_bytes), _as_text, "text in UTF-8")


def json_decoder(mean_bytes: int) -> FieldDecoder:
    """JSON to what it holds."""
    return EachDecoder(of_objects(object, mean_bytes), json.loads, "JSON")


def bytes_decoder(mean_bytes: int) -> FieldDecoder:
    """The bytes as they are."""
    return EachDecoder(of_objects(bytes, mean_bytes), bytes, "bytes")


def _as_text(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError as error:
        raise PayloadError(
            f"expected text in UTF-8, got byte {payload[error.start]:#04x} at {error.start} of {len(payload)}: "
            'write the text again in UTF-8, or ask for decode={...: "bytes"}'
        ) from None
