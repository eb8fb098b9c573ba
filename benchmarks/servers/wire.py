"""HTTP/1.1 requests and answers as bytes on a connection (RFC 9110, RFC 9112): no more than the servers here need."""

import http.client
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import BinaryIO

# Of one connection, so never handed on
HOP_BY_HOP = {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "te", "trailer", "upgrade", "expect"}
RANGE = re.compile(r"bytes=(\d*)-(\d*)", re.ASCII)


class Headers(list[tuple[str, str]]):
    """Names and values in their order; names are compared without case."""

    def value(self, name: str, otherwise: str = "") -> str:
        """The first value under this name."""
        return next((value for known, value in self if known.lower() == name.lower()), otherwise)

    def replaced(self, name: str, value: str | None) -> "Headers":
        """The same with this name once, at the end; with None, without it."""
        kept = Headers((known, was) for known, was in self if known.lower() != name.lower())
        return kept if value is None else Headers([*kept, (name, value)])

    def without(self, names: Iterable[str]) -> "Headers":
        """The same without these names, which are in lower case."""
        left_out = set(names)
        return Headers((known, value) for known, value in self if known.lower() not in left_out)


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks.

    Attributes:
        method: "GET" and so on.
        target: Path and query as they came, quoted.
        headers: In their order.
        body: What came after them.
    """

    method: str
    target: str
    headers: Headers = field(default_factory=Headers)
    body: bytes = b""

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        """The target's query."""
        return self.target.partition("?")[2]

    def range_in(self, total_bytes: int) -> tuple[int, int] | None:
        """The half-open interval of bytes that is asked for; None for all, and where the header means nothing.

        Raises:
            ValueError: It lies outside the object.
        """
        matched = RANGE.fullmatch(self.headers.value("Range").strip())
        if matched is None or matched.group() == "bytes=-":
            return None
        first, last = matched.groups()
        if not first:
            start, stop = max(0, total_bytes - int(last)), total_bytes
        else:
            start, stop = int(first), min(total_bytes, int(last) + 1) if last else total_bytes
        if start >= stop:
            raise ValueError(f"bytes {start} to {stop} of {total_bytes}")
        return start, stop


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server says.

    Attributes:
        status: 200 and so on.
        headers: In their order. Those that tell the body's length are added when it is sent.
        body: The bytes after them.
    """

    status: int
    headers: Headers = field(default_factory=Headers)
    body: bytes = b""

    def head(self) -> bytes:
        """The status line and the headers."""
        return head(self.status, self.headers)


def head(status: int, headers: Iterable[tuple[str, str]]) -> bytes:
    """A status line with these headers, and the empty line that ends them."""
    reason = http.client.responses.get(status, "Unknown")
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in headers)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def read_request(connection: socket.socket, stream: BinaryIO) -> Request | None:
    """The next request on a connection; None where the client has closed it."""
    line = stream.readline(1 << 16)
    if not line.endswith(b"\n"):
        return None
    method, target, _ = line.decode("latin-1").split(None, 2)
    headers = Headers()
    while (line := stream.readline(1 << 16)) not in (b"\r\n", b"\n"):
        if not line.endswith(b"\n"):
            return None
        name, _, value = line.decode("latin-1").partition(":")
        headers.append((name, value.strip()))
    if headers.value("Expect").lower() == "100-continue":
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    if headers.value("Transfer-Encoding").lower() == "chunked":
        body = b"".join(_read_pieces(stream))
    else:
        body = stream.read(int(headers.value("Content-Length", "0")))
    return Request(method, target, headers, body)


def _read_pieces(stream: BinaryIO) -> Iterable[bytes]:
    while length := int(stream.readline(1 << 10).partition(b";")[0], 16):
        yield stream.read(length)
        stream.readline(1 << 10)
    while stream.readline(1 << 16).strip():
        pass


def wants_close(headers: Headers) -> bool:
    """Whether the sender of these headers closes the connection after this exchange."""
    return headers.value("Connection").lower() == "close"
