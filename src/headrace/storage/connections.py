"""HTTP connections that are used again, and end on demand.

Guarantees: one `Connections` belongs to one process and may be used from any thread; a connection is used by one thread
at a time. `Connection.abort` may be called from another one.
"""

import contextlib
import http.client
import socket
import threading
import time
from collections import defaultdict
from typing import TypeAlias
from urllib.parse import SplitResult

# scheme, host, port
Origin: TypeAlias = tuple[str, str, int]

# Servers close idle connections after 5 s (Node's default) to minutes; a request on a closed one is asked again.
_IDLE_SECONDS = 15.0


def origin_of(url: SplitResult) -> Origin:
    """The server of an HTTP URL."""
    return url.scheme, url.hostname or "", url.port or (443 if url.scheme == "https" else 80)


class Connection:
    """One HTTP/1.1 connection."""

    def __init__(self, origin: Origin, connect_seconds: float) -> None:
        scheme, host, port = origin
        self.origin = origin
        self.idle_since: float | None = None  # None: it has not been used yet
        kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
        self._http = kind(host, port, timeout=connect_seconds)
        self._aborted = False

    def request(self, target: str, headers: dict[str, str], stall_seconds: float) -> http.client.HTTPResponse:
        """Sends a GET and returns the answer once its headers are there."""
        if self._http.sock is None:
            self._http.connect()
        sock = self._http.sock
        sock.settimeout(stall_seconds)
        if self._aborted:
            raise ConnectionAbortedError
        self._http.request("GET", target, headers=headers)
        return self._http.getresponse()

    def abort(self) -> None:
        """Makes whoever reads from it stop at once."""
        self._aborted = True
        if (sock := self._http.sock) is not None:
            with contextlib.suppress(OSError):
                # not SSLSocket's own, which would first wait for nothing but forget the encryption
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Ends it."""
        self._http.close()


class Connections:
    """Idle connections by server, the last used first."""

    def __init__(self, connect_seconds: float) -> None:
        self._connect_seconds = connect_seconds
        self._idle: dict[Origin, list[Connection]] = defaultdict(list)
        self._is_closed = False
        self._lock = threading.Lock()

    def take(self, origin: Origin, *, fresh: bool = False) -> Connection:
        """A connection to a server: an idle one, unless it must be fresh."""
        while not fresh:
            with self._lock:
                idle = self._idle[origin]
                if not idle:
                    break
                connection = idle.pop()
            if connection.idle_since is not None and time.monotonic() - connection.idle_since < _IDLE_SECONDS:
                return connection
            connection.close()
        return Connection(origin, self._connect_seconds)

    def put(self, connection: Connection) -> None:
        """Keeps a connection whose last answer was read to its end."""
        connection.idle_since = time.monotonic()
        with self._lock:
            if not self._is_closed:
                self._idle[connection.origin].append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Ends all idle connections, and from now on each as soon as it is put back."""
        with self._lock:
            self._is_closed = True
            idle = [connection for of_origin in self._idle.values() for connection in of_origin]
            self._idle.clear()
        for connection in idle:
            connection.close()
