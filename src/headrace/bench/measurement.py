"""What was measured of one loader under one setting."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

SettingValue = str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one loader delivered in a stretch of time, and what it cost.

    The stretch begins after the warm-up. Figures that are not known on this system are None.

    Attributes:
        name: The loader.
        settings: What it was measured with, such as `batch_size` and `num_workers`; None stands for "does not apply".
        step: The training step that consumed the batches, or None for loading alone.
        batches: Batches delivered.
        samples: Samples in them.
        bytes: Bytes of their arrays.
        seconds: Wall time.
        first_batch_seconds: From making the loader to its first batch in hand, before the warm-up.
        wait_seconds: The part of `seconds` in which the loop waited for its next batch.
        wait_p50_seconds: The median wait for a batch.
        wait_p99_seconds: The wait that one batch in a hundred exceeds.
        cpu_seconds: CPU time of this process and its workers within `seconds`, the training step's included.
        memory_bytes: The most memory held by this process and its workers. Pages of mapped files do not count: the
            system takes them back when it needs them. Memory shared by processes counts once.
        idle_memory_bytes: The same before the loader was made.
    """

    name: str
    settings: Mapping[str, SettingValue] = field(default_factory=dict)
    step: str | None = None
    batches: int
    samples: int
    bytes: int
    seconds: float
    first_batch_seconds: float
    wait_seconds: float
    wait_p50_seconds: float
    wait_p99_seconds: float
    cpu_seconds: float | None = None
    memory_bytes: int | None = None
    idle_memory_bytes: int | None = None

    @property
    def samples_per_second(self) -> float:
        """Samples delivered a second of wall time."""
        return self.samples / self.seconds

    @property
    def megabytes_per_second(self) -> float:
        """Megabytes (10^6 bytes) delivered a second of wall time."""
        return self.bytes / self.seconds / 1e6

    @property
    def stall_share(self) -> float:
        """The share of wall time, 0 to 1, in which the loop waited for data."""
        return self.wait_seconds / self.seconds

    @property
    def cpu_seconds_per_million(self) -> float | None:
        """CPU seconds for a million samples."""
        return None if self.cpu_seconds is None else self.cpu_seconds / self.samples * 1e6

    @property
    def added_memory_bytes(self) -> int | None:
        """Memory that the loader, its batches and its workers added to the process."""
        if self.memory_bytes is None or self.idle_memory_bytes is None:
            return None
        return max(self.memory_bytes - self.idle_memory_bytes, 0)

    def describe(self) -> str:
        """One line for people."""
        known = [
            f"{self.name}: {self.samples_per_second:,.0f} samples/s ({self.megabytes_per_second:,.0f} MB/s)",
            f"waiting for data {self.stall_share:.0%} of the time",
            f"first batch after {self.first_batch_seconds * 1e3:,.0f} ms",
        ]
        if self.cpu_seconds_per_million is not None:
            known.append(f"{self.cpu_seconds_per_million:.2g} CPU seconds per million samples")
        if self.added_memory_bytes is not None:
            known.append(f"{self.added_memory_bytes / 1e6:,.0f} MB of memory")
        return ", ".join(known)

    def as_dict(self) -> dict[str, object]:
        """Every figure, the derived ones too, ready for JSON."""
        return {
            **asdict(self),
            "settings": dict(self.settings),
            "samples_per_second": self.samples_per_second,
            "megabytes_per_second": self.megabytes_per_second,
            "stall_share": self.stall_share,
            "cpu_seconds_per_million": self.cpu_seconds_per_million,
            "added_memory_bytes": self.added_memory_bytes,
        }
