"""What a server can send over a raw socket: no answer is waited for longer than it may take, and none is believed.

What a server between two honest ones can do to S3 and HTTP alike is in test_faults.py.
"""

import contextlib
import itertools
import re
import socket
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from headrace.errors import StorageError
from headrace.storage import RangeRead, Store, StoredObject, reader
from headrace.storage import connections as connections_module
from headrace.storage.connections import Connections
from headrace.storage.faults import Fault, Patience
from tests.clock import HandClock

DATA = bytes(range(256)) * 40
PAUSES = {"first_pause_seconds": 0.001, "longest_pause_seconds": 0.01}
# No attempt is cut short (see `_attempts_have_time`), but none begins after 0.3 s.
QUICK = Patience(deadline_seconds=0.3, stall_seconds=20.0, **PAUSES)
PATIENT = Patience(deadline_seconds=60.0, stall_seconds=20.0, **PAUSES)

# Sends an answer to a request; gets how many came before it.
Answer = Callable[["RawServer", socket.socket, bytes, int], None]


def is_header(line: bytes) -> bool:
    return line != b"\r\n"


class RawServer:
    """A server that answers as it likes.

    Attributes:
        requests: All that came.
        ended: Set when the test is over: `ended.wait(s)` is a server's way to be slow.
    """

    def __init__(self, answer: Answer, host: str = "127.0.0.1") -> None:
        self.answer, self.requests, self.ended = answer, [], threading.Event()
        self._socket = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock, sock.makefile("rb") as lines:
            while request := b"".join(itertools.takewhile(is_header, lines)):
                self.requests.append(request)
                self.answer(self, sock, request, len(self.requests) - 1)

    def drip(self, sock: socket.socket, text: bytes, seconds: float = 0.02) -> None:
        """Sends it over and over, a byte at a time."""
        while not self.ended.is_set():
            for i in range(len(text)):
                sock.sendall(text[i : i + 1])
                self.ended.wait(seconds)

    def close(self) -> None:
        self.ended.set()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., RawServer]]:
    with contextlib.ExitStack() as stack:
        yield lambda *arguments: stack.enter_context(contextlib.closing(RawServer(*arguments)))


@pytest.fixture(autouse=True)
def _attempts_have_time(monkeypatch):
    """What an answer holds decides, not how long this machine takes for it."""
    monkeypatch.setattr(reader, "_LEAST_SECONDS", 60.0)


@pytest.fixture
def hurried(monkeypatch) -> Patience:
    """Patience of 10 s with a server, where a second passes with each look at the time and not otherwise."""
    clock = HandClock()

    def look() -> float:
        clock.pass_(1.0)
        return clock()

    for module in (connections_module, reader):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=look))
    return Patience(deadline_seconds=1.0, stall_seconds=10.0, **PAUSES)


def right(extra: str = 'ETag: "one"\r\n', before: bytes = b"") -> Answer:
    """The right answer, with other headers, and with something before it."""

    def answer(server, sock, request, number):
        start, stop = (int(found) for found in re.search(rb"bytes=(\d+)-(\d+)", request).groups())
        body = DATA[start : stop + 1]
        head = f"HTTP/1.1 206 Partial\r\nContent-Range: bytes {start}-{stop}/{len(DATA)}\r\n{extra}"
        sock.sendall(before + f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    return answer


def headers(*lines: str) -> bytes:
    return "\r\n".join([*lines, "", ""]).encode()


def read(store: Store, source: StoredObject, start: int = 0, stop: int = 5_000) -> bytes:
    out = np.zeros(stop - start, np.uint8)
    store.read_ranges([RangeRead(source, start, out)])
    return out.tobytes()


def error_of_read(server: RawServer, patience: Patience = QUICK) -> str:
    source = StoredObject(server.url + "/x", len(DATA), 'ETag "one"')
    with pytest.raises(StorageError) as caught:
        read(Store(patience=patience), source)
    return str(caught.value)


# ---- answers without an end ----

# What comes at once, and what drips then, again and again
ENDLESS = {
    "headers": (b"HTTP/1.1 206 Partial\r\n", b"X-More: yes\r\n"),
    "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "early-hints": (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "body": (b"Content-Length: %d\r\n\r\n", b"x"),
    "chunks": (b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "chunk-extension": (b"Transfer-Encoding: chunked\r\n\r\n1;", b"x"),
}


def partial(request: bytes) -> tuple[bytes, int]:
    """The beginning of a right answer, and the length of its body."""
    start, stop = (int(found) for found in re.search(rb"bytes=(\d+)-(\d+)", request).groups())
    lines = ("HTTP/1.1 206 Partial", f"Content-Range: bytes {start}-{stop}/{len(DATA)}", 'ETag: "one"')
    return "".join(f"{line}\r\n" for line in lines).encode(), stop + 1 - start


@pytest.mark.parametrize("kind", ENDLESS)
def test_an_answer_that_drips_is_given_up(serve, hurried, kind):
    at_once, dripping = ENDLESS[kind]

    def answer(server, sock, request, number):
        head, length = partial(request)
        if kind in ("body", "chunks", "chunk-extension"):
            sock.sendall(head + at_once.replace(b"%d", str(length).encode()))
        else:
            sock.sendall(at_once)
        server.drip(sock, dripping)

    assert re.search(r"only \d+ bytes came in 1\d\.0 s", error_of_read(serve(answer), hurried))


@pytest.mark.parametrize("kind", ["headers", "continue"])
def test_an_answer_that_drips_while_an_object_is_opened_is_given_up(serve, hurried, kind):
    def answer(server, sock, request, number):
        sock.sendall(ENDLESS[kind][0])
        server.drip(sock, ENDLESS[kind][1])

    with pytest.raises(StorageError, match=r"cannot open .*: only \d+ bytes came in"):
        Store(patience=hurried).open([serve(answer).url + "/x"])


def test_an_answer_that_comes_fast_but_has_no_end_is_over_with_the_deadline(serve, monkeypatch):
    monkeypatch.setattr(reader, "_LEAST_SECONDS", QUICK.deadline_seconds)

    def answer(server, sock, request, number):
        while True:
            sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 4_000)

    assert "the answer was still coming when the time for it was over" in error_of_read(serve(answer))


def test_a_silent_server_is_told_from_a_slow_one(serve):
    patience = Patience(deadline_seconds=0.1, stall_seconds=0.2)
    text = error_of_read(serve(lambda server, *_: server.ended.wait()), patience)
    assert "nothing came for 0.2 s" in text


def test_a_server_that_is_not_reached_is_told_from_a_silent_one(serve, monkeypatch):
    def connect(*_):
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(Fault, match=r"no connection within 5 s") as caught:
        Connections(5.0).take(("http", "host.test", 80)).request("/", {}, stall_seconds=1.0, ends=float("inf"))
    assert caught.value.kind == "no-connection"


@pytest.mark.parametrize(("status", "reason"), [("404", "there is no such object: HTTP 404"), ("500", "HTTP 500")])
def test_the_text_of_an_error_may_be_late_its_status_counts(serve, hurried, status, reason):
    def answer(server, sock, request, number):
        sock.sendall(headers(f"HTTP/1.1 {status} Oh", "Content-Length: 5000"))
        server.drip(sock, b"x")

    assert reason in error_of_read(serve(answer), hurried)


@pytest.mark.parametrize("status", ["500 Oh", "206 Partial"])
def test_chunks_of_less_than_no_bytes_are_not_believed(serve, status):
    def answer(server, sock, request, number):
        head = partial(request)[0].replace(b"206 Partial", status.encode())
        sock.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n")
        while True:  # until the client has had enough
            sock.sendall(b"x" * 10_000)

    text = error_of_read(serve(answer))
    assert ("HTTP 500" if status.startswith("500") else "got a negative number") in text


# ---- what comes before an answer, and where it is ----


def test_early_hints_are_skipped(serve):
    server = serve(right(before=b"HTTP/1.1 103 Early Hints\r\nLink: </x.css>\r\n\r\n" * 2))
    store = Store(patience=PATIENT)
    [source] = store.open([server.url + "/x"])
    assert read(store, source) == DATA[:5_000]
    assert "retries" not in store.counts()


def test_an_ipv6_address_is_no_chain(serve):
    try:
        server = serve(right(), "::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    store = Store(patience=PATIENT)
    [source] = store.open(store.expand(server.url + "/x"))
    assert read(store, source) == DATA[:5_000]


INVALID = [
    "http://host.test:99999/x",
    "http://host.test:0/x",
    "http://host.test:port/x",
    "http://[::1/",
    "http://[::1/x]",
    "http://" + "a" * 70 + ".test/x",
    "http://a..b/x",
    "http://a b/x",
    "http:///x",
    "http://host.test/a\0b",
    "http://host.test/a\nb",
    "http://host.test/\ud800",
    "http://user:hunter2#x@host.test/x",
    "http://user:hunter2?x@host.test/x",
]


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("url", INVALID)
def test_what_is_no_valid_url_is_refused_and_its_password_not_shown(url, direct):
    with pytest.raises(StorageError, match=r"(?s)cannot open .*: not a valid URL: expected http\(s\)://host") as caught:
        Store(patience=QUICK, direct=direct).open([url])
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("location", [url for url in INVALID if not re.search("[\0\n\ud800]|///", url)])
def test_a_redirect_to_what_is_no_valid_url_is_refused(serve, location):
    def answer(server, sock, request, number):
        sock.sendall(headers("HTTP/1.1 302 Found", f"Location: {location}", "Content-Length: 0"))

    assert "not a valid URL" in error_of_read(serve(answer))


@pytest.mark.parametrize("value", ["Bearer s3cr3tTOKEN\n", "Bearer s3cr3tTOKEN\u20ac", None])
def test_a_header_that_cannot_be_sent_is_refused_and_not_shown(serve, value):
    store = Store(storage_options={"headers": {"X-Auth": value}}, patience=QUICK)
    with pytest.raises(StorageError, match="a header can't be sent: expected names and values in one line") as caught:
        store.open([serve(right()).url + "/x"])
    assert "s3cr3t" not in str(caught.value)


def test_a_server_that_asks_to_wait_for_ages_is_asked_again_soon(serve):
    def answer(server, sock, request, number):
        if number == 0:
            sock.sendall(headers("HTTP/1.1 503 Oh", "Retry-After: " + "9" * 5_000, "Content-Length: 0"))
        else:
            right()(server, sock, request, number)

    [source] = Store(patience=PATIENT).open([serve(answer).url + "/x"])
    assert source.object_bytes == len(DATA)


def test_credentials_of_a_url_stay_with_its_server(serve):
    other = serve(right())

    def answer(server, sock, request, number):
        locations = {b"/x": f"{server.url}/y", b"/y": f"{other.url}/z"}
        location = locations[request.split()[1]]
        sock.sendall(headers("HTTP/1.1 302 Found", f"Location: {location}", "Content-Length: 0"))

    server = serve(answer)
    Store(patience=PATIENT).open([server.url.replace("://", "://me:pass@") + "/x"])
    assert [b"Authorization: Basic" in request for request in server.requests] == [True, True]
    assert [b"Authorization" in request for request in other.requests] == [False]


# ---- versions ----


def test_an_answer_without_a_version_is_asked_for_once_more(serve):
    def answer(server, sock, request, number):
        right("" if number == 0 else 'ETag: "one"\r\n')(server, sock, request, number)

    [source] = Store(patience=PATIENT).open([serve(answer).url + "/x"])
    assert source.version == 'ETag "one"'


def test_where_no_version_was_told_all_that_is_told_later_must_agree(serve):
    etags = iter(["", "", "one", "", "one", "two"])  # two when it is opened

    def answer(server, sock, request, number):
        etag = next(etags)
        right(f'ETag: "{etag}"\r\n' if etag else "")(server, sock, request, number)

    store = Store(patience=PATIENT)
    [source] = store.open([serve(answer).url + "/x"])
    assert source.version == ""
    for _ in range(3):
        assert read(store, source) == DATA[:5_000]
    with pytest.raises(StorageError, match='it has changed since it was opened: expected ETag "one", got ETag "two"'):
        read(store, source)


def test_an_object_in_s3_has_a_version_or_is_not_opened(make_way):
    way = make_way("s3-fast")
    way.proxy.inject("missing-etag", times=2)
    [source] = way.store().open([way.url])
    assert source.version.startswith("ETag ")
    way.proxy.inject("missing-etag", times=None)
    with pytest.raises(StorageError, match="the answer tells no version of it: expected an ETag"):
        way.store().open([way.url])


# ---- what is kept ----


class Idle:
    """Stands in for a connection."""

    def __init__(self, origin) -> None:
        self.origin, self.idle_since, self.is_closed = origin, None, False

    def close(self) -> None:
        self.is_closed = True


def test_idle_connections_end_whichever_their_servers(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(connections_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    connections = Connections(1.0)
    old = [Idle(("http", f"{i}.test", 80)) for i in range(20)]
    for connection in old:
        connections.put(connection)
    now[0] += 20
    connections.put(new := Idle(("http", "host.test", 80)))
    assert all(connection.is_closed for connection in old)
    assert connections.take(new.origin) is new
    assert not new.is_closed


def test_there_are_never_more_idle_connections_than_files_to_spare():
    connections = Connections(1.0)
    idle = [Idle(("http", f"{i}.test", 80)) for i in range(300)]
    for connection in idle:
        connections.put(connection)
    assert [connection.is_closed for connection in idle] == [True] * 44 + [False] * 256


def test_all_tls_connections_share_what_they_trust():
    connections = Connections(1.0)
    one, other = (connections.take(("https", f"{name}.test", 443)) for name in "ab")
    assert one._http._context is other._http._context


def test_an_object_shows_no_secret_of_its_url():
    source = StoredObject("https://me:pass@host/x?token=t", 5, 'ETag "one"')
    assert repr(source) == """StoredObject('https://host/x?...', object_bytes=5, version='ETag "one"')"""
