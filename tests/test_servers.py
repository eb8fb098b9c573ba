"""The servers that other tests and the benchmarks trust do what they say; the proxy is in test_fault_proxy.py."""

import http.client
import os
import select
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request

import fsspec
import pytest

from tests.raw_client import BYTES, Client, raw


@pytest.fixture
def server(range_server, tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "x.bin").write_bytes(BYTES)
    return range_server(tmp_path / "served")


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
def test_the_range_server_answers_a_range_with_206_and_its_place(server, asked, start, stop):
    with Client(server.url) as client:
        status, headers, body = client.ask(Range=asked)
    assert (status, body) == (206, BYTES[start:stop])
    assert headers["Content-Range"] == f"bytes {start}-{stop - 1}/10240"
    assert headers["Content-Length"] == str(stop - start)


@pytest.mark.parametrize("asked", [{}, {"Range": "bytes=5-2,9-"}, {"Range": "lines=1-2"}, {"Range": "bytes=-"}])
def test_the_range_server_answers_with_the_whole_file_where_it_is_asked_for_no_single_range(server, asked):
    with Client(server.url) as client:
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
    with socket.socket() as held:  # else another process may get the port meanwhile
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", port))
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
            assert select.select([one], [], [], 60.0)[0] == [one]
    finally:
        for one in watched:
            os.close(one)
    assert not kept.exists()
