"""What was read and decoded, and a word to the user where nearly everything is decoded again and again."""

import logging

_log = logging.getLogger("headrace")

# Samples decoded for each one that is read: where there are more, decoding is what takes the time
_THRASHING = 4

# What `PieceMemory.as_dict` gives before anything was read
NOTHING_COUNTED = dict.fromkeys(
    ("read_samples", "decoded_samples", "decoded_pieces", "decoded_bytes", "held_pieces", "held_bytes"), 0
)


class PieceCounts:
    """Counts of one memory for pieces; who changes them holds its lock.

    Args:
        name: Names the data.
        samples: All that there are.
        total_bytes: About what they take decoded.
        memory_bytes: What there is for them.

    Attributes:
        read_samples: How many samples were read.
        decoded_samples: How many were decoded, those that were decoded again each time.
        decoded_pieces: The pieces that these lay in.
        decoded_bytes: About what they took.
    """

    def __init__(self, name: str, samples: int, total_bytes: int, memory_bytes: int) -> None:
        self._name, self._samples = name, samples
        self._total_bytes, self._memory_bytes = total_bytes, memory_bytes
        self.read_samples = self.decoded_samples = self.decoded_pieces = self.decoded_bytes = 0
        self._advised = False

    def as_dict(self) -> dict[str, int]:
        """The counts by name."""
        return {
            "read_samples": self.read_samples,
            "decoded_samples": self.decoded_samples,
            "decoded_pieces": self.decoded_pieces,
            "decoded_bytes": self.decoded_bytes,
        }

    def advise(self, *, was_announced: bool) -> None:
        """Says once what to do, where samples are decoded many times for each time that they are read.

        Args:
            was_announced: Whether a loader reads that announces its samples, so in windows or in file order.
        """
        if (
            self._advised
            or self.decoded_bytes < 2 * self._memory_bytes
            or self.decoded_samples < _THRASHING * self.read_samples
        ):
            return
        self._advised = True
        window = max(1, self._memory_bytes * self._samples // max(1, self._total_bytes) // 2)
        _log.warning(
            "%s: for each sample that was read, %d were decoded: the decoded columns take %s, and there is memory "
            "for %s; %s, or give the dataset fewer columns or a larger memory_bytes=",
            self._name,
            self.decoded_samples // max(1, self.read_samples),
            _megabytes(self._total_bytes),
            _megabytes(self._memory_bytes),
            f"give the loader a smaller shuffle_window= (about {window} samples)"
            if was_announced
            else 'shuffle them by shuffle="window", in headrace.DataLoader or to_iterable_dataset()',
        )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count < 10**8 else f"{count // 10**6:,} MB"
