"""A proxy that does harm: it forwards HTTP requests, and spoils chosen answers in one of many known ways.

    with FaultProxy(s3.endpoint, whole=s3.whole) as proxy:
        proxy.inject("reset-in-body", times=2)
        ...  # a client of proxy.url
        assert [entry.fault for entry in proxy.log] == ["reset-in-body", "reset-in-body", None]

Guarantees:
    - Everything public may be called from any thread, at any time.
    - Each client connection has a thread and a connection to the server of its own; `close` ends all of them.
    - An exchange is in the log before the client gets its first byte.
"""

import contextlib
import http.client
import random
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from benchmarks.servers.answers import ANSWERS, Exchange
from benchmarks.servers.sending import SENDINGS, After, Sending, reset_on_close
from benchmarks.servers.wire import HOP_BY_HOP, Answer, Headers, Request, read_request, wants_close

FAULTS = (*ANSWERS, *SENDINGS)
# Parameters of requests to S3 that ask for something else than an object's bytes
NOT_DATA = {
    "list-type",
    "prefix",
    "delimiter",
    "location",
    "uploads",
    "versions",
    "acl",
    "policy",
    "tagging",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One exchange.

    Attributes:
        method: "GET" and so on.
        path: Without the query.
        query: The rest of the target.
        range: The Range header; "" where there was none.
        if_match: The If-Match header; "" where there was none.
        status: What the client got, or would have got.
        fault: What was done to it; None for nothing.
        connection: The number of the client's connection, from 0.
    """

    method: str
    path: str
    query: str
    range: str
    if_match: str
    status: int
    fault: str | None
    connection: int


@dataclass(slots=True)
class _Rule:
    """When something is done, and what: a fault's name or a call."""

    fault: str
    action: Callable[[], object]
    times: int | None
    share: float | None
    after: int
    match: Callable[[Request], bool] | None
    seconds: float = 0.0
    bytes_per_second: float = 0.0
    at_byte: int | None = None
    release: threading.Event | None = None

    def applies(self, request: Request, answer: Answer | None, dice: random.Random) -> bool:
        """Whether it is done to this exchange, which then counts."""
        if self.match is not None:
            fits = self.match(request)
        else:
            fits = carries_data(request) and (answer is None or (answer.status in (200, 206) and bool(answer.body)))
        if not fits or self.times == 0 or (self.share is not None and dice.random() >= self.share):
            return False
        if self.after > 0:
            self.after -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True


class FaultProxy:
    """A server on the loopback interface that answers as another one does, but for the faults that are injected.

    Args:
        upstream: The URL of the server behind it, "http://host:port".
        whole: Gives all bytes of the object at a path, for the faults that answer with other ranges; by default the
            server is asked as the client asked it, without the range.
        seed: Of the random shares.

    Attributes:
        url: Where it listens, without a slash at its end.
        elsewhere: The same on another host, which "redirect" points to.
        log: What went through it, an entry for each answered request.
    """

    def __init__(self, upstream: str, *, whole: Callable[[str], bytes] | None = None, seed: int = 0) -> None:
        self._upstream = urllib.parse.urlsplit(upstream)
        self._whole = whole
        self._dice = random.Random(seed)  # noqa: S311
        self._rules: list[_Rule] = []
        self._actions: list[_Rule] = []
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._listeners: list[socket.socket] = []
        self._held: list[socket.socket] = []
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._count = 0
        self._hosts = ["127.0.0.1", "127.0.0.2"]
        self._ports = [0, 0]
        self.log: list[Entry] = []

    @property
    def url(self) -> str:
        return f"http://{self._hosts[0]}:{self._ports[0]}"

    @property
    def elsewhere(self) -> str:
        return f"http://{self._hosts[1]}:{self._ports[1]}"

    def inject(
        self,
        fault: str,
        *,
        times: int | None = 1,
        share: float | None = None,
        after: int = 0,
        match: Callable[[Request], bool] | None = None,
        seconds: float = 3600.0,
        bytes_per_second: float = 1000.0,
        at_byte: int | None = None,
        release: threading.Event | None = None,
    ) -> None:
        """Spoils answers from now on. Of several faults that apply, the one injected first is done.

        Args:
            fault: One of `FAULTS`.
            times: How many answers; None for all.
            share: The probability with which each is chosen.
            after: How many that fit are left alone first.
            match: Which requests; by default those whose answer carries an object's bytes.
            seconds: How long "late-first-byte" and "stall-in-body" keep a client waiting.
            bytes_per_second: The rate of "slow-drip".
            at_byte: Where in the body a cut or a pause comes; by default in the middle.
            release: Ends every waiting of this fault at once when it is set.
        """
        if fault not in FAULTS:
            raise ValueError(f"fault: expected one of {', '.join(FAULTS)}, got {fault!r}")
        rule = _Rule(fault, bool, times, share, after, match, seconds, bytes_per_second, at_byte, release)
        with self._changed:
            self._rules.append(rule)

    def before_forwarding(
        self,
        action: Callable[[], object],
        *,
        times: int | None = 1,
        after: int = 0,
        match: Callable[[Request], bool] | None = None,
    ) -> None:
        """Calls `action` before a request is handed on: whatever happens to the object between two requests."""
        with self._changed:
            self._actions.append(_Rule("", action, times, None, after, match))

    def clear(self) -> None:
        """Forgets all faults and actions, ends what keeps clients waiting, and empties the log."""
        with self._changed:
            self._rules.clear()
            self._actions.clear()
            self.log.clear()

    def wait_for(self, condition: Callable[[Sequence[Entry]], bool], *, timeout_seconds: float = 60.0) -> bool:
        """Waits until the log fulfils a condition; False when it does not in time."""
        with self._changed:
            return self._changed.wait_for(lambda: condition(self.log), timeout_seconds)

    def start(self) -> Self:
        """Begins to listen."""
        self.accept_connections()
        return self

    def accept_connections(self) -> None:
        """Listens, again on the same ports: the server is back. Nothing happens where it listens already."""
        for i, host in enumerate(self._hosts if not self._listeners else ()):
            listener = socket.create_server((host, self._ports[i]), backlog=256)
            self._ports[i] = listener.getsockname()[1]
            self._listeners.append(listener)
            self._run(self._accept, listener, i)
        self._let_ports_go()

    def refuse_connections(self) -> None:
        """Ends all connections and refuses new ones: the server is stopped."""
        with self._changed:
            listeners, self._listeners = self._listeners, []
            for listener in listeners:
                listener.shutdown(socket.SHUT_RDWR)  # accept() returns; close() alone does not wake it
                listener.close()
            if listeners and not self._closing.is_set():
                self._hold_ports()
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _hold_ports(self) -> None:
        """Keeps the ports from being given to others; as nobody listens, connections are refused."""
        for place in zip(self._hosts, self._ports, strict=True):
            held = socket.socket()
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(place)
            self._held.append(held)

    def _let_ports_go(self) -> None:
        while self._held:
            self._held.pop().close()

    def close(self) -> None:
        """Ends everything, clients that are kept waiting included."""
        self._closing.set()
        self.refuse_connections()
        self._let_ports_go()
        for thread in self._threads:
            thread.join(timeout=10.0)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, name="fault-proxy", daemon=True)
        with self._changed:
            self._threads = [one for one in self._threads if one.is_alive()]
            thread.start()
            self._threads.append(thread)

    def _accept(self, listener: socket.socket, place: int) -> None:
        while True:
            try:
                connection = listener.accept()[0]
            except OSError:
                return
            with self._changed:
                number, self._count = self._count, self._count + 1
                if self._listeners:
                    self._connections.add(connection)
                else:  # refused meanwhile
                    connection.close()
                    return
            self._run(self._serve, connection, number, place)

    def _serve(self, connection: socket.socket, number: int, place: int) -> None:
        """All exchanges of one client connection."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = http.client.HTTPConnection(str(self._upstream.hostname), self._upstream.port)
        try:
            # a client that goes away is no event
            with connection.makefile("rb") as stream, contextlib.suppress(OSError, ValueError):
                while (request := read_request(connection, stream)) is not None:
                    if place == 1:  # as if the other host had the same name, which signatures cover
                        host = self.url.removeprefix("http://")
                        request = replace(request, headers=request.headers.replaced("Host", host))
                    after = self._exchange(connection, number, server, request)
                    if after is After.IS_RESET:
                        reset_on_close(connection)
                    if after is not After.GOES_ON or wants_close(request.headers):
                        break
        finally:
            server.close()
            with self._changed:
                self._connections.discard(connection)
                connection.close()

    def _exchange(
        self, connection: socket.socket, number: int, server: http.client.HTTPConnection, request: Request
    ) -> After:
        with self._changed:
            actions = [rule for rule in self._actions if rule.applies(request, None, self._dice)]
        for rule in actions:
            rule.action()
        answer = self._ask(server, request)
        with self._changed:
            chosen = next((rule for rule in self._rules if rule.applies(request, answer, self._dice)), None)
        if chosen is not None and chosen.fault in ANSWERS:
            whole = self._whole or (lambda _: self._ask(server, _without_range(request)).body)
            answer = ANSWERS[chosen.fault](Exchange(request, answer, whole, self.elsewhere))
        if request.method != "HEAD" and answer.status not in (204, 304):
            answer = replace(answer, headers=answer.headers.replaced("Content-Length", str(len(answer.body))))
        if request.method == "HEAD":
            answer = replace(answer, body=b"")
        headers, fault = request.headers, None if chosen is None else chosen.fault
        entry = Entry(
            request.method,
            request.path,
            request.query,
            headers.value("Range"),
            headers.value("If-Match"),
            answer.status,
            fault,
            number,
        )
        with self._changed:
            self.log.append(entry)
            self._changed.notify_all()
        return self._send(connection, answer, chosen)

    def _send(self, connection: socket.socket, answer: Answer, rule: _Rule | None) -> After:
        if rule is None or rule.fault not in SENDINGS:
            connection.sendall(answer.head() + answer.body)
            return After.GOES_ON
        cut = len(answer.body) // 2 if rule.at_byte is None else min(rule.at_byte, len(answer.body))

        def wait(seconds: float) -> None:
            ends = time.monotonic() + seconds
            while any(known is rule for known in self._rules) and (left := ends - time.monotonic()) > 0:
                if self._closing.is_set() or (rule.release or self._closing).wait(min(left, 0.05)):
                    return

        return SENDINGS[rule.fault](Sending(connection, answer, rule.seconds, rule.bytes_per_second, cut, wait))

    def _ask(self, server: http.client.HTTPConnection, request: Request) -> Answer:
        """The server's own answer; a connection that it has closed meanwhile is opened again."""
        for attempt in range(2):
            try:
                server.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=True)
                for name, value in request.headers.without(HOP_BY_HOP | {"content-length"}):
                    server.putheader(name, value)
                if request.body or request.method in ("PUT", "POST"):
                    server.putheader("Content-Length", str(len(request.body)))
                server.endheaders(request.body or None)
                with server.getresponse() as response:
                    body = response.read()
                    headers = Headers(response.getheaders()).without(HOP_BY_HOP)
                    return Answer(response.status, headers, body)
            except (OSError, http.client.HTTPException) as error:
                server.close()
                if attempt == 1:
                    return Answer(502, Headers([("Content-Type", "text/plain")]), f"no answer: {error}\n".encode())
        raise AssertionError("unreachable")


def carries_data(request: Request) -> bool:
    """Whether a request asks for an object's bytes, not for a listing or a property."""
    names = {part.partition("=")[0] for part in request.query.split("&")}
    return request.method == "GET" and not request.path.endswith("/") and not names & NOT_DATA


def _without_range(request: Request) -> Request:
    return replace(request, headers=request.headers.without({"range", "if-match"}))
