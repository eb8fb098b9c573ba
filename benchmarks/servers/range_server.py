"""`python -m benchmarks.servers.range_server`: ranges of a folder's files over HTTP/1.1, as fast as loopback goes.

    with RangeServer(folder, latency_seconds=0.02, bytes_per_second=80e6) as server:
        urllib.request.urlopen(server.url + "/x.npy")

With a latency before each answer and a rate for each, it is what an object store looks like from one machine. It runs
in a process of its own, with a thread for each connection; the kernel copies the bytes (sendfile), so that one core
serves more than 1.5 GB/s.
"""

import argparse
import contextlib
import email.utils
import html
import os
import socket
import subprocess
import threading
import time
import urllib.parse
from pathlib import Path
from typing import Any, Self

from benchmarks.servers import guard
from benchmarks.servers.wire import Headers, Request, head, read_request, wants_close

# What a limited answer sends at once lasts this long at its rate
SLICE_SECONDS = 0.01


class RangeServer:
    """A range server in a process of its own.

    Args:
        folder: Whose files are served.
        latency_seconds: Passes before each answer begins.
        bytes_per_second: The rate of each answer's body; None for as fast as possible.

    Attributes:
        port: Where it listens; the same after `stop` and `start`.
    """

    def __init__(
        self, folder: str | Path, *, latency_seconds: float = 0.0, bytes_per_second: float | None = None
    ) -> None:
        self.port = 0
        self._arguments = ["--folder", str(Path(folder).resolve()), "--latency-seconds", str(latency_seconds)]
        if bytes_per_second is not None:
            self._arguments += ["--bytes-per-second", str(bytes_per_second)]
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """The folder's URL, without a slash at its end."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Starts the server; returns when it listens.

        Raises:
            RuntimeError: It ended instead.
        """
        arguments = [*self._arguments, "--port", str(self.port)]
        self._process = guard.start("benchmarks.servers.range_server", arguments, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        if not said.strip().isdigit():
            self.stop()
            raise RuntimeError(f"the range server did not start: expected its port, got {said!r}")
        self.port = int(said)
        return self

    def stop(self) -> None:
        """Ends the server and its connections."""
        if self._process is not None:
            guard.stop(self._process)
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Folder:
    """Answers requests for a folder's files."""

    def __init__(self, folder: Path, latency_seconds: float, bytes_per_second: float | None) -> None:
        self.folder = folder
        self.latency_seconds = latency_seconds
        self.bytes_per_second = bytes_per_second

    def serve(self, connection: socket.socket) -> None:
        """Answers all requests of one connection."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # a client that goes away is no event
        with connection, connection.makefile("rb") as stream, contextlib.suppress(OSError, ValueError):
            while (request := read_request(connection, stream)) is not None:
                if self.latency_seconds:
                    time.sleep(self.latency_seconds)
                self._answer(connection, request)
                if wants_close(request.headers):
                    return

    def _answer(self, connection: socket.socket, request: Request) -> None:
        if request.method not in ("GET", "HEAD"):
            return self._say(connection, 405)
        path = (self.folder / urllib.parse.unquote(request.path).lstrip("/")).resolve()
        if not path.is_relative_to(self.folder):
            return self._say(connection, 404)
        if path.is_dir():
            return self._list(connection, request, path)
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return self._say(connection, 404, is_head=request.method == "HEAD")
        try:
            return self._send(connection, request, file)
        finally:
            os.close(file)

    def _send(self, connection: socket.socket, request: Request, file: int) -> None:
        about = os.fstat(file)
        total_bytes = about.st_size
        tag = f'"{about.st_mtime_ns:x}-{about.st_ino:x}-{total_bytes:x}"'
        is_head = request.method == "HEAD"
        expected = request.headers.value("If-Match")
        if expected not in ("", "*") and tag not in (part.strip() for part in expected.split(",")):
            return self._say(connection, 412, ("ETag", tag), is_head=is_head)
        try:
            wanted = request.range_in(total_bytes)
        except ValueError:
            return self._say(connection, 416, ("Content-Range", f"bytes */{total_bytes}"), is_head=is_head)
        start, stop = wanted or (0, total_bytes)
        headers = Headers(
            [
                ("Content-Length", str(stop - start)),
                ("Content-Type", "application/octet-stream"),
                ("Accept-Ranges", "bytes"),
                ("ETag", tag),
                ("Last-Modified", email.utils.formatdate(about.st_mtime, usegmt=True)),
            ]
        )
        if wanted is not None:
            headers.append(("Content-Range", f"bytes {start}-{stop - 1}/{total_bytes}"))
        more = socket.MSG_MORE if start < stop and not is_head else 0  # the head waits for the body's first bytes
        connection.sendall(head(206 if wanted is not None else 200, headers), more)
        if not is_head:
            self._send_bytes(connection, file, start, stop)
        return None

    def _send_bytes(self, connection: socket.socket, file: int, start: int, stop: int) -> None:
        if self.bytes_per_second is None:
            while start < stop:
                start += self._send_some(connection, file, start, stop)
            return
        began, first = time.monotonic(), start
        slice_bytes = max(1, int(self.bytes_per_second * SLICE_SECONDS))
        while start < stop:
            start += self._send_some(connection, file, start, min(stop, start + slice_bytes))
            ahead_seconds = (start - first) / self.bytes_per_second - (time.monotonic() - began)
            if ahead_seconds > 0:
                time.sleep(ahead_seconds)

    @staticmethod
    def _send_some(connection: socket.socket, file: int, start: int, stop: int) -> int:
        sent = os.sendfile(connection.fileno(), file, start, stop - start)
        if sent == 0:
            raise OSError("the file shrank: the client gets fewer bytes than it was promised")
        return sent

    def _list(self, connection: socket.socket, request: Request, folder: Path) -> None:
        """The folder as a page of links, which is how fsspec finds names over HTTP."""
        names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
        page = "".join(f'<a href="{urllib.parse.quote(name)}">{html.escape(name)}</a>\n' for name in names)
        self._say(connection, 200, ("Content-Type", "text/html"), page.encode(), is_head=request.method == "HEAD")

    @staticmethod
    def _say(
        connection: socket.socket,
        status: int,
        header: tuple[str, str] = ("Content-Type", "text/plain"),
        body: bytes = b"",
        *,
        is_head: bool = False,
    ) -> None:
        headers = [header, ("Content-Length", str(len(body)))]
        connection.sendall(head(status, headers) + (b"" if is_head else body))


def main() -> None:
    """Listens, prints the port, and serves until the starter ends."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.servers.range_server", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--latency-seconds", type=float, default=0.0)
    parser.add_argument("--bytes-per-second", type=float)
    given = parser.parse_args()
    served = _Folder(given.folder.resolve(), given.latency_seconds, given.bytes_per_second)
    with socket.create_server((given.host, given.port), backlog=1024) as listener:
        print(listener.getsockname()[1], flush=True)
        guard.when_starter_ends(lambda: os._exit(0))
        while True:
            connection: Any = listener.accept()[0]
            threading.Thread(target=served.serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
