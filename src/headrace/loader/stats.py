"""What a loader has done so far, in numbers.

A `Recorder` (recorder.py) counts it, `report` (advice.py) says what it means.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from headrace.metrics import Spent

BUSY = ("plan", "read", "decode", "user", "copy")


@dataclass(frozen=True, kw_only=True)
class Stats:
    """What a loader has done since it was made, in all its passes.

    Attributes:
        passes: Passes that were begun.
        epoch: The epoch of the last one.
        samples: Samples delivered on this rank, counting those that were skipped and those that `pad_last` repeats.
        batches: Batches delivered.
        bytes_read: Bytes of the tensors, arrays and texts in these batches; an estimate where a batch is of very many.
        elapsed_seconds: Time within passes: from asking for the first batch of each to its end, or till now.
        wait_seconds: How much of it the consumer waited for batches.
        first_wait_seconds: How much of that for the first batch of a pass.
        busy_seconds: What threads and worker processes together were busy with: "plan", "read", "decode", "user" (the
            user's functions and datasets) and "copy" (to pinned memory, to the device, between processes).
        storage_seconds: How long they waited for stored bytes.
        turn_seconds: How long they waited for each other.
        cpu_seconds: As `busy_seconds`, the CPU time in it; in the consumer's own thread for "user" alone.
        remote_seconds: How much of all of these was spent in worker processes.
        process_cpu_seconds: CPU time of this process within passes, that of the training loop too.
        num_workers: The loader's threads or processes.
        worker_type: "thread" or "process".
        persistent_workers: Whether worker processes outlive a pass.
        num_threads: The threads that read, in this process.
        cores: The cores that there are for this process.
        load: The threads of the whole machine that ran or wanted to, on average over the last minute, for each of its
            cores; 0 where the system doesn't say.
        groups_ready: Groups of batches that are read and wait for the consumer.
        groups_in_flight: Groups that are being read, or wait to be.
        groups_capacity: The most groups of both kinds.
        skipped: Samples that were left out because of an error.
        memory_bytes: Memory that batches read ahead, what was kept of files, and copies to a device under way take.
        counts: What the source counted since the first pass began; see `Source.counts`.
        recent: The same over the last 10 s or so of passes, as far as it is counted in time; None before that.
    """

    passes: int = 0
    epoch: int = 0
    samples: int = 0
    batches: int = 0
    bytes_read: int = 0
    elapsed_seconds: float = 0.0
    wait_seconds: float = 0.0
    first_wait_seconds: float = 0.0
    busy_seconds: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(BUSY, 0.0))
    storage_seconds: float = 0.0
    turn_seconds: float = 0.0
    cpu_seconds: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(BUSY, 0.0))
    remote_seconds: float = 0.0
    process_cpu_seconds: float = 0.0
    num_workers: int = 0
    worker_type: str = "thread"
    persistent_workers: bool = False
    num_threads: int = 0
    cores: int = 1
    load: float = 0.0
    groups_ready: int = 0
    groups_in_flight: int = 0
    groups_capacity: int = 0
    skipped: int = 0
    memory_bytes: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    recent: "Stats | None" = None

    @property
    def wait_share(self) -> float:
        """The share of the time that the consumer waited, 0 to 1."""
        return self.wait_seconds / self.elapsed_seconds if self.elapsed_seconds else 0.0

    @property
    def recent_wait_share(self) -> float:
        """The same over the last 10 s or so."""
        return (self.recent or self).wait_share

    @property
    def samples_per_second(self) -> float:
        """Samples delivered a second."""
        return self.samples / self.elapsed_seconds if self.elapsed_seconds else 0.0

    @property
    def recent_samples_per_second(self) -> float:
        """The same over the last 10 s or so."""
        return (self.recent or self).samples_per_second

    @property
    def cache_hits(self) -> int:
        """Blocks that the disk cache had."""
        return self.counts.get("cache_hits", 0)

    @property
    def cache_misses(self) -> int:
        """Blocks that it had not."""
        return self.counts.get("cache_misses", 0)

    @property
    def requests(self) -> int:
        """Requests to stores."""
        return self.counts.get("requests", 0)

    @property
    def retries(self) -> int:
        """Of these, how many were made again."""
        return self.counts.get("retries", 0)

    @property
    def received_bytes(self) -> int:
        """Bytes that came from stores."""
        return self.counts.get("received_bytes", 0)

    def as_dict(self) -> dict[str, float]:
        """All numbers by one flat name each, as TensorBoard, Prometheus or OpenTelemetry take them."""
        numbers = {
            name: value
            for name, value in vars(self).items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        for name in _DERIVED:
            numbers[name] = getattr(self, name)
        numbers |= {f"busy_{name}_seconds": value for name, value in self.busy_seconds.items()}
        numbers |= {f"cpu_{name}_seconds": value for name, value in self.cpu_seconds.items()}
        return numbers

    def __str__(self) -> str:
        busy = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.busy_seconds.items() if seconds >= 0.05)
        return (
            f"{self.samples} samples in {self.elapsed_seconds:.1f} s ({self.samples_per_second:,.0f} a second), "
            f"waited {self.wait_share:.1%}; busy: {busy or 'less than 0.1 s'}"
        )


_DERIVED = (
    "wait_share",
    "recent_wait_share",
    "samples_per_second",
    "recent_samples_per_second",
    "cache_hits",
    "cache_misses",
    "requests",
    "retries",
    "received_bytes",
)


class Mark(NamedTuple):
    """What was counted up to some moment."""

    samples: int
    batches: int
    bytes_read: int
    elapsed_seconds: float
    wait_seconds: float
    first_wait_seconds: float
    spent: Spent
    remote_seconds: float
    process_cpu_seconds: float

    def fields(self, since: "Mark | None") -> dict[str, Any]:
        """As fields of `Stats`; with another mark, what came since then."""
        spent = self.spent if since is None else self.spent.minus(since.spent)
        seconds, cpu_seconds = spent
        plain: dict[str, Any] = {
            name: value if since is None else value - getattr(since, name)
            for name, value in self._asdict().items()
            if name != "spent"
        }
        return plain | {
            "busy_seconds": {name: seconds[name] for name in BUSY},
            "cpu_seconds": {name: cpu_seconds[name] for name in BUSY},
            "storage_seconds": seconds["storage"],
            "turn_seconds": seconds["turn"],
        }
