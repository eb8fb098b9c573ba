"""HTTP connections that are used again, and end on demand; no answer takes longer than it may.

Guarantees: one `Connections` belongs to one process and may be used from any thread; a connection is used by one thread
at a time. `Connection.abort` may be called from another one.
"""

import contextlib
import http.client
import io
import re
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Mapping
from functools import cached_property
from typing import Any, TypeAlias
from urllib.parse import SplitResult, urljoin, urlsplit

from headrace.storage.faults import Fault, Refused

# scheme, host, port
Origin: TypeAlias = tuple[str, str, int]

# Servers close idle connections after 5 s (Node's default) to minutes; a request on a closed one is asked again.
_IDLE_SECONDS = 15.0
_MOST_IDLE = 256  # of all servers: a process may often have no more than 1024 files
# Fewer bytes within `stall_seconds`, though more are to come: it would take hours, another connection may be faster.
_SLOW_BYTES = 64 << 10
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def address_of(url: str, base: str = "") -> SplitResult:
    """The parts of an HTTP URL, or of one that is relative to `base`; its host and port can be asked for.

    Raises:
        Refused: It is no valid URL. The text doesn't show it: a password may have ended up anywhere.
    """
    with contextlib.suppress(ValueError):  # UnicodeError, too: lone surrogates, and labels that are too long
        url.encode()
        address = urlsplit(urljoin(base, url))
        host = address.hostname or ""
        host.encode("idna")
        if host and not re.search(r"\s", host) and address.port != 0 and not _CONTROL.search(url):
            return address
    raise Refused(
        "not a valid URL: expected http(s)://host:port/path, with what has a meaning in URLs quoted (%23 for #)"
    )


def origin_of(url: SplitResult) -> Origin:
    """The server of an HTTP URL."""
    return url.scheme, url.hostname or "", url.port or (443 if url.scheme == "https" else 80)


class _Incoming(io.RawIOBase):
    """What comes on a socket in answer to one request, until `ends`: below `http.client`, which waits for ever.

    It stands in for the socket, too, of which an HTTPResponse wants nothing but `makefile`.
    """

    def __init__(self, sock: socket.socket, stall_seconds: float, ends: float) -> None:
        self._sock, self._raw = sock, sock.makefile("rb", buffering=0)
        self._stall_seconds, self._ends = stall_seconds, ends
        self._watched_from: float | None = None  # None: the first byte has not come
        self._bytes = 0

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, memory: Any) -> int:
        now = time.monotonic()
        left = self._ends - now
        if left <= 0:
            raise _too_late()
        self._check_rate(now)
        if left < self._stall_seconds:
            self._sock.settimeout(left)
        try:
            count = self._sock.recv_into(memory)
        except TimeoutError:
            if left < self._stall_seconds:
                raise _too_late() from None
            raise Fault("stalled", f"nothing came for {self._stall_seconds:g} s") from None
        self._bytes += count
        if self._watched_from is None:
            self._watched_from = time.monotonic()
        return count

    def _check_rate(self, now: float) -> None:
        if self._watched_from is None or now - self._watched_from <= self._stall_seconds:
            return
        if self._bytes < _SLOW_BYTES:
            raise Fault("stalled", f"only {self._bytes} bytes came in {now - self._watched_from:.1f} s")
        self._watched_from, self._bytes = now, 0

    def close(self) -> None:
        self._raw.close()
        super().close()


def _too_late() -> Fault:
    return Fault("too-late", "the answer was still coming when the time for it was over")


class _Response(http.client.HTTPResponse):
    """An answer; what comes before it (103 Early Hints and other 1xx) is skipped."""

    def begin(self) -> None:
        super().begin()
        while 100 <= self.status < 200:
            self.headers = None  # type: ignore[assignment]  # (not begun yet)
            super().begin()


class Connection:
    """One HTTP/1.1 connection.

    Args:
        origin: The server.
        context: For https.
        connect_seconds: How long it may take until it is connected.
    """

    def __init__(self, origin: Origin, context: ssl.SSLContext | None, connect_seconds: float) -> None:
        _, host, port = origin
        self.origin = origin
        self.idle_since: float | None = None  # None: it has not been used yet
        self._http = (
            http.client.HTTPConnection(host, port)
            if context is None
            else http.client.HTTPSConnection(host, port, context=context)
        )
        self._connect_seconds = connect_seconds
        self._sock: socket.socket | None = None  # `http.client` forgets its own when an answer is the last one
        self._aborted = False

    def request(
        self, target: str, headers: Mapping[str, str], *, stall_seconds: float, ends: float
    ) -> http.client.HTTPResponse:
        """Sends a GET and returns the answer once its headers are there.

        Raises:
            Fault: It could not be connected in time, or the answer is too slow.
            Refused: The headers can't be sent.
        """
        if self._sock is None:
            self._sock = self._connect(ends)
        sock = self._sock
        sock.settimeout(max(min(stall_seconds, ends - time.monotonic()), 0.001))
        if self._aborted:
            raise ConnectionAbortedError
        self._http.response_class = lambda _, **options: _Response(  # type: ignore[assignment]
            _Incoming(sock, stall_seconds, ends),  # type: ignore[arg-type]
            **options,
        )
        try:
            self._http.request("GET", target, headers=headers)
        except (ValueError, TypeError):  # whose text shows the value
            raise Refused("a header can't be sent: expected names and values in one line of Latin-1") from None
        sock.settimeout(stall_seconds)
        return self._http.getresponse()

    def _connect(self, ends: float) -> socket.socket:
        seconds = max(min(self._connect_seconds, ends - time.monotonic()), 0.001)
        self._http.timeout = seconds
        try:
            self._http.connect()
        except TimeoutError:
            raise Fault("no-connection", f"no connection within {seconds:.2g} s") from None
        return self._http.sock

    def abort(self) -> None:
        """Makes whoever reads from it stop at once."""
        self._aborted = True
        if self._sock is not None:
            with contextlib.suppress(OSError):
                # not SSLSocket's own, which would first wait for nothing but forget the encryption
                socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Ends it."""
        self._http.close()


class Connections:
    """Idle connections, the last used first."""

    def __init__(self, connect_seconds: float) -> None:
        self._connect_seconds = connect_seconds
        self._idle: deque[Connection] = deque()  # the longest idle first
        self._is_closed = False
        self._lock = threading.Lock()

    @cached_property
    def _context(self) -> ssl.SSLContext:
        """What all TLS connections share: to read the system's certificates takes 20 ms."""
        context = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        return context

    def take(self, origin: Origin, *, fresh: bool = False) -> Connection:
        """A connection to a server: an idle one, unless it must be fresh."""
        idle = None if fresh else self._take_idle(origin)
        return idle or Connection(origin, self._context if origin[0] == "https" else None, self._connect_seconds)

    def _take_idle(self, origin: Origin) -> Connection | None:
        self._prune()
        with self._lock:
            for connection in reversed(self._idle):
                if connection.origin == origin:
                    self._idle.remove(connection)
                    return connection
        return None

    def put(self, connection: Connection) -> None:
        """Keeps a connection whose last answer was read to its end."""
        connection.idle_since = time.monotonic()
        with self._lock:
            is_kept = not self._is_closed
            if is_kept:
                self._idle.append(connection)
        if not is_kept:
            connection.close()
        self._prune()

    def _prune(self) -> None:
        """Ends those that have been idle for too long, whichever their servers, and the oldest of too many."""
        oldest = time.monotonic() - _IDLE_SECONDS
        ended = []
        with self._lock:
            while self._idle and (len(self._idle) > _MOST_IDLE or (self._idle[0].idle_since or 0.0) < oldest):
                ended.append(self._idle.popleft())
        for connection in ended:
            connection.close()

    def close(self) -> None:
        """Ends all idle connections, and from now on each as soon as it is put back."""
        with self._lock:
            self._is_closed = True
            idle = list(self._idle)
            self._idle.clear()
        for connection in idle:
            connection.close()
