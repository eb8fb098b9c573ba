"""The fastest plain client: threads that ask for one range after another, each into its own memory, unchecked."""

import http.client
import threading
from collections import deque
from collections.abc import Sequence
from urllib.parse import urlsplit

RANGE_BYTES = 8 << 20


def fetch_all(urls: Sequence[str], object_bytes: int, requests: int) -> int:
    """Reads objects of one length through, several ranges at once; returns how many bytes came.

    Args:
        urls: HTTP URLs, signed where need be, all of one server.
        object_bytes: The length of each.
        requests: How many ranges at once.
    """
    ranges = deque((url, start) for url in urls for start in range(0, object_bytes, RANGE_BYTES))
    received: list[int] = []
    threads = [threading.Thread(target=_fetch, args=(ranges, object_bytes, received)) for _ in range(requests)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(received)


def _fetch(ranges: deque[tuple[str, int]], object_bytes: int, received: list[int]) -> None:
    connection: http.client.HTTPConnection | None = None
    memory = memoryview(bytearray(RANGE_BYTES))
    total = 0
    while True:
        try:
            url, start = ranges.popleft()
        except IndexError:
            break
        parts = urlsplit(url)
        if connection is None:
            connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80)
        stop = min(start + RANGE_BYTES, object_bytes)
        headers = {"Range": f"bytes={start}-{stop - 1}"}
        connection.request("GET", f"{parts.path}?{parts.query}" if parts.query else parts.path, headers=headers)
        with connection.getresponse() as response:
            if response.status != 206:
                raise RuntimeError(f"expected HTTP 206, got {response.status}")
            while count := response.readinto(memory):
                total += count
    if connection is not None:
        connection.close()
    received.append(total)
