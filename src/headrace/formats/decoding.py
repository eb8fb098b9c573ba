"""What turns payloads (the bytes of an image, say) into rows of a batch."""

from collections.abc import Sequence
from typing import Protocol, TypeAlias

from headrace.errors import SampleError
from headrace.formats.source import Array, Column

Payload: TypeAlias = bytes | bytearray | memoryview


class PayloadError(SampleError):
    """One of the payloads of a batch cannot be decoded.

    Attributes:
        place: Which one, by its place in the batch.
    """

    def __init__(self, text: str, place: int = 0) -> None:
        super().__init__(text)
        self.place = place


class Decoder(Protocol):
    """Payloads of any length to samples of one shape.

    One instance is used by any number of threads at once, and travels to other processes by pickling.
    """

    @property
    def column(self) -> Column:
        """What the decoded samples are: their dtype and shape."""

    def decode(self, payloads: Sequence[Payload], out: Array) -> None:
        """Fills `out` (len(payloads), *column.shape), of the column's dtype and C-contiguous.

        A decoder that draws at random has an attribute `uses_keys` that is true, and takes a third argument `keys`,
        uint64 (len(payloads),): what it draws for a sample depends on nothing but its key; None stands for zeros.

        Raises:
            PayloadError: A payload is not what the decoder takes; `place` says which, and `out` holds anything.
            DependencyError: An optional package is missing.
        """
