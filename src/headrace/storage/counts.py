"""What happened on the way: requests, retries, cache hits, each counted by name."""

import threading
from collections import Counter


class Counts:
    """Counters by name, for any number of threads."""

    def __init__(self) -> None:
        self._counter: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, name: str, count: int = 1) -> None:
        """Adds to one of them."""
        with self._lock:
            self._counter[name] += count

    def as_dict(self) -> dict[str, int]:
        """All of them, by name."""
        with self._lock:
            return dict(sorted(self._counter.items()))
