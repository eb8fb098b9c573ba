"""The proxy that other tests and the benchmarks trust to do harm: each fault is the harm of its name, and no other."""

import gzip
import http.client
import socket
import threading
import urllib.parse
from pathlib import Path

import fsspec
import pytest

from benchmarks.servers.fault_proxy import FAULTS, FaultProxy, carries_data
from benchmarks.servers.range_server import RangeServer
from benchmarks.servers.wire import Headers, Request
from tests.raw_client import BYTES, Client, raw


@pytest.fixture
def server(range_server, tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "x.bin").write_bytes(BYTES)
    return range_server(tmp_path / "served")


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """A range server for all tests that leave it and its file as they are."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "x.bin").write_bytes(BYTES)
    with RangeServer(folder) as server:
        yield server


@pytest.fixture
def proxy(fault_proxy, untouched):
    return fault_proxy(untouched)


def test_what_is_not_spoilt_goes_through_untouched_on_connections_that_are_kept(proxy, untouched):
    with Client(proxy.url) as through, Client(untouched.url) as direct:
        for method, headers in [("HEAD", {}), ("GET", {}), ("GET", {"Range": "bytes=5-9"}), ("DELETE", {})] * 2:
            seen, expected = through.ask(method, **headers), direct.ask(method, **headers)
            assert seen[::2] == expected[::2]
            assert dict(seen[1].items()) == dict(expected[1].items())
        assert through.ask(Range="bytes=5-9", If_Match='"other"')[0] == 412
    assert {entry.connection for entry in proxy.log} == {0}
    last = proxy.log[-1]
    assert (last.method, last.path, last.range, last.if_match) == ("GET", "/x.bin", "bytes=5-9", '"other"')
    assert (last.status, last.fault) == (412, None)


def test_signatures_hold_through_the_proxy_whatever_is_asked(fault_proxy, s3):
    proxy = fault_proxy(s3)
    fs = fsspec.filesystem("s3", **s3.options_at(proxy.url), use_listings_cache=False)
    fs.pipe_file("data/servers/through/a", BYTES)
    with fs.open(
        "data/servers/through/b", "wb", block_size=5 << 20
    ) as file:  # several requests, of which some in pieces
        file.write(bytes(6 << 20))
    assert fs.cat_file("data/servers/through/a", start=3, end=9) == BYTES[3:9]
    assert fs.size("data/servers/through/b") == 6 << 20
    assert sorted(fs.find("data/servers/through")) == ["data/servers/through/a", "data/servers/through/b"]
    fs.rm("data/servers/through", recursive=True)
    assert not fs.exists("data/servers/through/a")
    assert all(entry.fault is None and entry.status in (200, 204, 206, 404) for entry in proxy.log)


@pytest.mark.parametrize(
    ("fault", "status", "said"),
    [(f"status-{status}", status, b"not now") for status in (429, 500, 502, 503, 504)]
    + [
        ("slow-down", 503, b"<Error><Code>SlowDown</Code>"),
        ("xml-error-200", 200, b"<Error><Code>InternalError</Code>"),
        ("expired-token", 403, b"<Code>ExpiredToken</Code>"),
        ("expired-request", 403, b"<Code>AccessDenied</Code><Message>Request has expired</Message>"),
        ("access-denied", 403, b"<Code>AccessDenied</Code><Message>Access Denied</Message>"),
        ("signature-mismatch", 403, b"<SignatureProvided>X-Amz-Signature=abc&amp;b=1</SignatureProvided>"),
        ("not-found", 404, b"<Code>NoSuchKey</Code>"),
    ],
)
def test_an_answer_that_is_an_error_says_which(proxy, fault, status, said):
    proxy.inject(fault)
    with Client(proxy.url) as client:
        seen, headers, body = client.ask(path="/x.bin?X-Amz-Signature=abc&b=1", Range="bytes=0-9")
        assert (seen, said in body, headers["Content-Length"]) == (status, True, str(len(body)))
        assert (headers["Retry-After"] == "0") == (fault in ("status-429", "status-503"))
        assert client.ask(Range="bytes=0-9")[2] == BYTES[:10]
    assert [(entry.fault, entry.status) for entry in proxy.log] == [(fault, status), (None, 206)]


RIGHT = "bytes 100-299/10240"


@pytest.mark.parametrize(
    ("fault", "status", "content_range", "body"),
    [
        ("short-body", 206, RIGHT, BYTES[100:200]),
        ("long-body", 206, RIGHT, BYTES[100:300] + b"and more"),
        ("range-ignored", 200, None, BYTES),
        ("wrong-range", 206, "bytes 101-300/10240", BYTES[101:301]),
        ("wrong-range-right-headers", 206, RIGHT, BYTES[101:301]),
        ("flipped-byte", 206, RIGHT, BYTES[100:200] + bytes([BYTES[200] ^ 0xFF]) + BYTES[201:300]),
        ("missing-etag", 206, RIGHT, BYTES[100:300]),
        ("other-etag", 206, RIGHT, BYTES[100:300]),
        ("chunked", 206, RIGHT, BYTES[100:300]),
    ],
)
def test_an_answer_with_other_bytes_or_headers_is_complete_in_itself(proxy, fault, status, content_range, body):
    with Client(proxy.url) as client:
        tag = client.ask("HEAD")[1]["ETag"]
        proxy.inject(fault)
        seen, headers, came = client.ask(Range="bytes=100-299")
        assert (seen, headers["Content-Range"], came) == (status, content_range, body)
        assert headers["Content-Length"] == (None if fault == "chunked" else str(len(body)))
        assert headers["Transfer-Encoding"] == ("chunked" if fault == "chunked" else None)
        assert headers["ETag"] == {"missing-etag": None, "other-etag": '"another"'}.get(fault, tag)
        assert client.ask(Range="bytes=100-299")[2] == BYTES[100:300]
    assert [entry.connection for entry in proxy.log] == [0, 0, 0]


@pytest.mark.parametrize(
    ("asked", "elsewhere", "body"),
    [("bytes=10000-", "bytes 9999-10238/10240", BYTES[9999:10239]), ("bytes=0-", "bytes 1-10239/10240", BYTES[1:])],
)
def test_a_wrong_range_is_another_one_at_the_end_and_for_the_whole_too(proxy, asked, elsewhere, body):
    proxy.inject("wrong-range")
    with Client(proxy.url) as client:
        status, headers, came = client.ask(Range=asked)
    assert (status, headers["Content-Range"], came) == (206, elsewhere, body)


def test_gzip_packs_the_right_bytes_though_nobody_asked_for_it(proxy):
    proxy.inject("gzip")
    with Client(proxy.url) as client:
        status, headers, body = client.ask(Range="bytes=100-299")
    assert (status, headers["Content-Encoding"], gzip.decompress(body)) == (206, "gzip", BYTES[100:300])


def test_a_multipart_range_has_the_right_bytes_as_its_only_part(proxy):
    proxy.inject("multipart-range")
    with Client(proxy.url) as client:
        status, headers, body = client.ask(Range="bytes=100-299")
    boundary = headers["Content-Type"].removeprefix("multipart/byteranges; boundary=")
    assert (status, headers["Content-Range"]) == (206, None)
    before, between, after = body.split(f"--{boundary}".encode())
    assert (before, after) == (b"", b"--\r\n")
    part_headers, _, part = between.partition(b"\r\n\r\n")
    assert RIGHT.encode() in part_headers
    assert part == BYTES[100:300] + b"\r\n"


def test_a_redirect_leads_to_another_host_that_has_the_same(proxy):
    proxy.inject("redirect")
    with Client(proxy.url) as client:
        status, headers, body = client.ask(path="/x.bin?a=b")
    assert (status, body) == (307, b"")
    assert headers["Location"] == f"{proxy.elsewhere}/x.bin?a=b"
    assert urllib.parse.urlsplit(proxy.elsewhere).hostname != urllib.parse.urlsplit(proxy.url).hostname
    with Client(proxy.elsewhere) as client:
        assert client.ask(path="/x.bin?a=b")[2] == BYTES


@pytest.mark.parametrize(
    ("fault", "is_reset", "has_head", "body_bytes"),
    [
        ("reset-before-answer", True, False, 0),
        ("close-before-answer", False, False, 0),
        ("half-header", False, False, 0),
        ("reset-in-body", True, True, 100),
        ("close-in-body", False, True, 100),
        ("trailing-bytes", False, True, 208),
    ],
)
def test_a_broken_answer_ends_where_its_name_says(proxy, fault, is_reset, has_head, body_bytes):
    proxy.inject(fault)
    came, error = raw(proxy.url)
    head, is_complete, body = came.partition(b"\r\n\r\n")
    assert bool(error) == is_reset
    if not is_reset:  # a reset may overtake what was sent before it
        assert bool(is_complete) == has_head
        assert len(body) == body_bytes
        assert bool(head) == (fault != "close-before-answer")
    assert (BYTES[100:300] + b"and more").startswith(body)
    assert raw(proxy.url)[0].endswith(BYTES[100:300])


@pytest.mark.parametrize(("fault", "early"), [("late-first-byte", b""), ("stall-in-body", BYTES[100:107])])
def test_a_late_answer_waits_until_it_is_released_and_is_then_complete(proxy, fault, early):
    release = threading.Event()
    proxy.inject(fault, release=release, at_byte=7)
    host, port = proxy.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection, connection.makefile("rb") as stream:
        connection.sendall(b"GET /x.bin HTTP/1.1\r\nHost: x\r\nRange: bytes=100-299\r\n\r\n")
        assert proxy.wait_for(lambda log: len(log) == 1)
        if early:
            while stream.readline().strip():
                pass
            assert stream.read(7) == early
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.recv(1)
        connection.setblocking(True)
        release.set()
        if not early:
            while stream.readline().strip():
                pass
        assert stream.read(200 - len(early)) == BYTES[100 + len(early) : 300]


@pytest.mark.parametrize("fault", ["late-first-byte", "stall-in-body", "slow-drip"])
def test_a_late_or_slow_answer_comes_by_itself_after_its_seconds(proxy, fault):
    proxy.inject(fault, seconds=0.001, bytes_per_second=1e6)
    with Client(proxy.url) as client:
        assert client.ask()[2] == BYTES


class Turn(threading.Event):
    """Set, it ends one wait."""

    def wait(self, timeout=None):
        came = super().wait(timeout)
        self.clear()
        return came


def test_a_slow_answer_waits_before_each_piece_and_is_complete(proxy):
    turn = Turn()
    proxy.inject("slow-drip", bytes_per_second=1e-6, release=turn)
    host, port = proxy.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"GET /x.bin HTTP/1.1\r\nHost: x\r\nRange: bytes=100-299\r\n\r\n")
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += connection.recv(1 << 16)
        for start in range(100, 300, 25):
            turn.set()
            assert connection.recv(1 << 16) == BYTES[start : start + 25]


def test_clearing_the_proxy_ends_what_keeps_a_client_waiting(proxy):
    proxy.inject("stall-in-body")
    ended = []
    client = threading.Thread(target=lambda: ended.append(raw(proxy.url)[0]))
    client.start()
    assert proxy.wait_for(lambda log: len(log) == 1)
    proxy.clear()
    client.join()
    assert ended[0].endswith(BYTES[100:300])


def test_closing_the_proxy_ends_clients_that_it_keeps_waiting(untouched):
    with FaultProxy(untouched.url) as proxy:
        proxy.inject("late-first-byte")
        ended = []
        client = threading.Thread(target=lambda: ended.append(raw(proxy.url)))
        client.start()
        assert proxy.wait_for(lambda log: len(log) == 1)
    client.join()
    assert len(ended) == 1


def test_a_fault_is_done_so_often_after_so_many_to_what_it_is_meant_for(proxy):
    proxy.inject("status-500", times=2, after=1)
    proxy.inject("not-found", times=None, match=lambda request: request.method == "HEAD")
    with Client(proxy.url) as client:
        assert [client.ask()[0] for _ in range(5)] == [200, 500, 500, 200, 200]
        assert [client.ask("HEAD")[0] for _ in range(3)] == [404, 404, 404]
        proxy.clear()
        assert client.ask("HEAD")[0] == 200
    assert len(proxy.log) == 1


def test_a_random_share_is_the_same_for_the_same_seed(untouched):
    def statuses(seed):
        with FaultProxy(untouched.url, seed=seed) as proxy, Client(proxy.url) as client:
            proxy.inject("status-500", times=None, share=0.5)
            return [client.ask(Range="bytes=0-0")[0] for _ in range(40)]

    first = statuses(1)
    assert set(first) == {206, 500}
    assert statuses(1) == first
    assert statuses(2) != first


def test_only_answers_with_an_objects_bytes_are_spoilt(proxy):
    proxy.inject("flipped-byte", times=None)
    with Client(proxy.url) as client:
        assert client.ask("HEAD")[0] == 200
        assert client.ask(path="/nothing")[0] == 404
        assert client.ask(path="/")[2] == b'<a href="x.bin">x.bin</a>\n'
    assert [entry.fault for entry in proxy.log] == [None, None, None]
    listing = Request("GET", "/data?list-type=2&prefix=a", Headers())
    assert not carries_data(listing)
    assert carries_data(Request("GET", "/data/a?X-Amz-Signature=abc", Headers()))


def test_something_may_happen_to_an_object_between_two_requests(fault_proxy, server, tmp_path):
    proxy = fault_proxy(server)
    proxy.before_forwarding(lambda: (tmp_path / "served" / "x.bin").write_bytes(b"new"), after=1)
    with Client(proxy.url) as client:
        assert [client.ask()[2] for _ in range(3)] == [BYTES, b"new", b"new"]


def test_a_stopped_server_ends_its_connections_refuses_new_ones_and_comes_back_at_its_address(proxy):
    with Client(proxy.url) as client:
        assert client.ask()[0] == 200
        proxy.refuse_connections()
        with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
            client.ask()
    for url in (proxy.url, proxy.elsewhere):
        with pytest.raises(ConnectionRefusedError):
            raw(url)
    url = proxy.url
    proxy.accept_connections()
    proxy.accept_connections()
    assert proxy.url == url
    assert raw(url)[0].endswith(BYTES[100:300])


def test_a_proxy_whose_server_is_gone_says_so(fault_proxy, server):
    proxy = fault_proxy(server)
    server.stop()
    with Client(proxy.url) as client:
        assert client.ask()[0] == 502


def test_an_unknown_fault_is_refused_with_the_names_of_the_known_ones(proxy):
    with pytest.raises(ValueError, match=r"expected one of status-429, .*, got 'no-such'"):
        proxy.inject("no-such")


def test_every_fault_is_shown_above():
    shown = Path(__file__).read_text()
    assert [fault for fault in FAULTS if f'"{fault}"' not in shown and not fault.startswith("status-")] == []
