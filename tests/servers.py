"""Servers as fixtures: a real S3 server for the whole run, range servers and fault proxies for one test."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.servers.fault_proxy import FaultProxy
from benchmarks.servers.range_server import RangeServer
from benchmarks.servers.s3 import S3Server


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """An S3 server with the buckets "data" and "public". It is for all tests: use keys of your own."""
    with S3Server() as server:
        yield server


@pytest.fixture
def range_server() -> Iterator[Callable[..., RangeServer]]:
    """Starts range servers of folders; they take what `RangeServer` takes and end with the test."""
    with ExitStack() as stack:

        def serve(folder: Path, **limits: float) -> RangeServer:
            return stack.enter_context(RangeServer(folder, **limits))

        yield serve


@pytest.fixture
def fault_proxy() -> Iterator[Callable[..., FaultProxy]]:
    """Starts proxies before a server; they end with the test."""
    with ExitStack() as stack:

        def stand_before(server: S3Server | RangeServer) -> FaultProxy:
            if isinstance(server, S3Server):
                return stack.enter_context(FaultProxy(server.endpoint, whole=server.whole))
            return stack.enter_context(FaultProxy(server.url))

        yield stand_before
