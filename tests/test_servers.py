"""The servers that other tests and the benchmarks trust: each does what it says, each fault is the harm of its name."""

import gzip
import http.client
import os
import select
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import fsspec
import pytest

from benchmarks.servers.fault_proxy import FAULTS, FaultProxy, carries_data
from benchmarks.servers.range_server import RangeServer
from benchmarks.servers.wire import Headers, Request

BYTES = bytes(range(256)) * 40


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


class Client:
    """One kept-alive connection."""

    def __init__(self, url):
        self.connection = http.client.HTTPConnection(url.removeprefix("http://"))

    def ask(self, method="GET", path="/x.bin", **headers):
        """Status, headers, body."""
        self.connection.request(method, path, headers={name.replace("_", "-"): text for name, text in headers.items()})
        with self.connection.getresponse() as response:
            return response.status, response.headers, response.read()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()


def raw(url, *, path="/x.bin", range_="bytes=100-299"):
    """All bytes that come until the server closes the connection, and the error that ended it."""
    host, port = url.removeprefix("http://").split(":")
    came = b""
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nRange: {range_}\r\n".encode())
        connection.sendall(b"Connection: close\r\n\r\n")
        try:
            while piece := connection.recv(1 << 16):
                came += piece
        except ConnectionResetError as error:
            return came, error
    return came, None


# ---- the range server ----


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-299", 100, 300),
        ("bytes=10000-", 10000, 10240),
        ("bytes=-7", 10233, 10240),
        ("bytes=10239-99999", 10239, 10240),
        ("bytes=-99999", 0, 10240),
    ],
)
def test_the_range_server_answers_a_range_with_206_and_its_place(untouched, asked, start, stop):
    with Client(untouched.url) as client:
        status, headers, body = client.ask(Range=asked)
    assert (status, body) == (206, BYTES[start:stop])
    assert headers["Content-Range"] == f"bytes {start}-{stop - 1}/10240"
    assert headers["Content-Length"] == str(stop - start)


@pytest.mark.parametrize("asked", [{}, {"Range": "bytes=5-2,9-"}, {"Range": "lines=1-2"}, {"Range": "bytes=-"}])
def test_the_range_server_answers_with_the_whole_file_where_it_is_asked_for_no_single_range(untouched, asked):
    with Client(untouched.url) as client:
        status, headers, body = client.ask(**asked)
    assert (status, body, headers["Content-Range"]) == (200, BYTES, None)


def test_the_range_server_keeps_one_connection_through_every_kind_of_answer(server, tmp_path):
    with Client(server.url) as client:
        status, headers, body = client.ask("HEAD")
        socket_of_first = client.connection.sock
        assert (status, headers["Content-Length"], body) == (200, "10240", b"")
        tag = headers["ETag"]
        assert client.ask(Range="bytes=10240-")[0] == 416
        assert client.ask(path="/nothing")[0] == 404
        assert client.ask("HEAD", path="/nothing")[0] == 404
        assert client.ask(path="/../../etc/passwd")[0] == 404
        assert client.ask(If_Match='"other"')[0] == 412
        assert client.ask(If_Match=f'"other", {tag}')[::2] == (200, BYTES)
        assert client.ask("DELETE")[0] == 405
        (tmp_path / "served" / "x.bin").write_bytes(b"new")
        assert client.ask(If_Match=tag)[0] == 412
        assert client.ask()[2] == b"new"
        assert client.connection.sock is socket_of_first


def test_the_range_server_lists_folders_so_that_fsspec_finds_names(server, tmp_path):
    (tmp_path / "served" / "a b").mkdir()
    (tmp_path / "served" / "a b" / "y.bin").write_bytes(b"y")
    fs = fsspec.filesystem("http", skip_instance_cache=True)
    assert fs.glob(f"{server.url}/*.bin") == [f"{server.url}/x.bin"]
    assert fs.cat_file(f"{server.url}/a%20b/y.bin") == b"y"


def test_the_range_server_ends_its_connections_and_starts_again_on_its_port(server):
    with Client(server.url) as client:
        assert client.ask()[0] == 200
        port = server.port
        server.stop()
        with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
            client.ask()
    with pytest.raises(ConnectionRefusedError):
        raw(server.url)
    server.start()
    with Client(server.url) as client:
        assert client.ask()[2] == BYTES
    assert server.port == port


def test_a_limited_answer_has_the_same_bytes(range_server, tmp_path):
    (tmp_path / "x.bin").write_bytes(BYTES)
    with Client(range_server(tmp_path, latency_seconds=0.001, bytes_per_second=1e6).url) as client:
        assert client.ask(Range="bytes=1-9000")[2] == BYTES[1:9001]


# ---- the S3 server ----


def test_the_s3_server_lets_in_who_signs_and_nobody_else(s3):
    s3.put("data", "servers/signed", b"abc")
    assert s3.fetch("data", "servers/signed") == b"abc"
    with pytest.raises(urllib.error.HTTPError, match="403") as refused:
        urllib.request.urlopen(f"{s3.endpoint}/data/servers/signed")
    refused.value.close()
    wrong = fsspec.filesystem("s3", **{**s3.storage_options, "secret": "wrong"}, skip_instance_cache=True)
    with pytest.raises(PermissionError):
        wrong.cat_file("data/servers/signed")


def test_anyone_may_read_what_is_public(s3):
    s3.put("public", "servers/open", b"abc")
    with urllib.request.urlopen(f"{s3.endpoint}/public/servers/open") as answer:
        assert answer.read() == b"abc"


def test_the_s3_server_knows_ranges_and_versions_of_signed_urls(s3):
    s3.put("data", "servers/x", BYTES)
    fs = fsspec.filesystem("s3", **s3.storage_options, config_kwargs={"signature_version": "s3v4"})
    url = urllib.parse.urlsplit(fs.sign("data/servers/x"))
    target = f"{url.path}?{url.query}"
    tag = fs.info("data/servers/x")["ETag"]
    with Client(s3.endpoint) as client:
        assert client.ask(path=target, Range="bytes=5-9", If_Match=tag)[::2] == (206, BYTES[5:10])
        s3.put("data", "servers/x", BYTES[::-1])
        assert client.ask(path=target, Range="bytes=5-9", If_Match=tag)[0] == 412
        s3.delete("data", "servers/x")
        assert client.ask(path=target)[0] == 404


def test_a_guarded_program_dies_with_its_starter_and_takes_its_files_along(root, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    starter = """
import sys
from pathlib import Path
from benchmarks.servers import guard
program = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
log = Path(sys.argv[1], "log")
arguments = [f"--log={log}", f"--remove={sys.argv[1]}", "--", sys.executable, "-c", program]
process = guard.start("benchmarks.servers.guard", arguments)
while not log.exists() or not log.read_text().endswith("\\n"):
    pass
print(process.pid, log.read_text(), flush=True)
input()
"""
    command = [sys.executable, "-c", starter, str(kept)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        watched = [os.pidfd_open(int(word)) for word in process.stdout.readline().split()]
        process.kill()
    try:
        for one in watched:  # readable when that process has ended
            assert select.select([one], [], [], 20.0)[0] == [one]
    finally:
        for one in watched:
            os.close(one)
    assert not kept.exists()


# ---- the proxy that does harm ----


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


@pytest.mark.parametrize("fault", ["late-first-byte", "stall-in-body"])
def test_a_late_answer_comes_by_itself_after_its_seconds(proxy, fault):
    proxy.inject(fault, seconds=0.001)
    with Client(proxy.url) as client:
        assert client.ask()[2] == BYTES


def test_a_slow_answer_comes_in_pieces_and_complete(proxy):
    proxy.inject("slow-drip", bytes_per_second=1e6)
    host, port = proxy.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"GET /x.bin HTTP/1.1\r\nHost: x\r\nRange: bytes=100-299\r\n\r\n")
        pieces = []
        while not b"".join(pieces).endswith(BYTES[100:300]):
            pieces.append(connection.recv(1 << 16))
    assert len(pieces) > 2


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
