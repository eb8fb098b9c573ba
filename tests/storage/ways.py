"""Ways to an object on a server that can be made to do harm: S3 and HTTP, each read in two manners.

"fast" is our own range reader, "general" are fsspec's clients. The fixtures that make ways are in conftest.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.servers.fault_proxy import FAULTS, FaultProxy
from headrace.storage import RangeRead, Store, StoredObject
from headrace.storage.faults import Patience

BYTES = np.random.default_rng(0).integers(0, 256, 200_000, dtype=np.uint8)
START, STOP = 1_000, 150_000
SECONDS = 20.0

# What only a checksum or a second answer can find: right headers over other bytes
UNSEEN = ("flipped-byte", "wrong-range-right-headers")
# fsspec's clients don't look at the range that an answer says it has
UNSEEN_GENERAL = (*UNSEEN, "wrong-range")
# No harm at all, or a request that is made elsewhere
HARMLESS = ("chunked", "redirect", "missing-etag")
FINAL = {
    "access-denied": "no permission to read it",
    "signature-mismatch": "no permission to read it",
    "not-found": "there is no such object",
    "other-etag": "it has changed since it was opened",
}
SLOW = ("late-first-byte", "stall-in-body", "slow-drip")
PASSING = tuple(fault for fault in FAULTS if fault not in (*UNSEEN, *HARMLESS, *FINAL))
FAST, GENERAL = ("s3-fast", "http-fast"), ("s3-general", "http-general")
WAYS = (*FAST, *GENERAL)
# What a client of fsspec's can't do: see a range, renew the credentials of plain HTTP, follow S3's redirects
BEYOND = {
    "s3-general": (*UNSEEN_GENERAL, "redirect"),
    "http-general": (*UNSEEN_GENERAL, "expired-token", "expired-request"),
}


# More than any answer takes that is not meant to be late
NO_STALL_SECONDS = 15.0


def patience(deadline_seconds: float = SECONDS, stall_seconds: float = NO_STALL_SECONDS) -> Patience:
    return Patience(
        deadline_seconds=deadline_seconds,
        stall_seconds=stall_seconds,
        first_pause_seconds=0.001,
        longest_pause_seconds=0.01,
    )


@dataclass
class Way:
    """One way to an object behind a proxy.

    Attributes:
        name: One of `WAYS`.
        proxy: What can be made to do harm.
        url: The object's.
        write: Replaces its content by an array's bytes.
        delete: Removes it.
        options: The storage options that it takes.
    """

    name: str
    proxy: FaultProxy
    url: str
    write: Callable[[np.ndarray], object]
    delete: Callable[[], object]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def is_fast(self) -> bool:
        return self.name.endswith("fast")

    def store(self, **options) -> Store:
        options.setdefault("patience", patience())
        return Store(storage_options=self.options, direct=self.is_fast, **options)

    def open(self, **options) -> tuple[Store, StoredObject]:
        """A store and an object, before any harm; it is opened without haste, since clients are made then."""
        [source] = self.store().open([self.url])
        self.proxy.clear()
        return self.store(**options), source

    def faults(self, at_least: int = 0) -> list[str]:
        """The faults that were done, in their order, once there are so many.

        A request that a client gives up may come to the proxy's log after the next one's answer has come to the client.
        """

        def found(log) -> list[str]:
            return [entry.fault for entry in log if entry.fault is not None]

        self.proxy.wait_for(lambda log: len(found(log)) >= at_least)
        return found(self.proxy.log)


def read(store, source, start=START, stop=STOP, **options) -> np.ndarray:
    out = np.zeros(stop - start, np.uint8)
    store.read_ranges([RangeRead(source, start, out, **options)])
    return out


def inject(way: Way, fault: str, *, times: int | None) -> None:
    # a slow answer is much slower than the store's patience with it, which is 0.2 s then
    way.proxy.inject(fault, times=times, bytes_per_second=20_000.0)


def stall_seconds(fault: str) -> float:
    return 0.2 if fault in SLOW else NO_STALL_SECONDS
