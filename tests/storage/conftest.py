"""Servers that can be made to do harm, and ways to objects on them."""

import itertools
from contextlib import ExitStack

import fsspec
import pytest

from benchmarks.servers.fault_proxy import FaultProxy
from benchmarks.servers.range_server import RangeServer
from headrace.storage import transfers
from tests.storage.ways import BYTES, FAST, GENERAL, WAYS, Way

_numbers = itertools.count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def http_server(folder):
    with RangeServer(folder) as server:
        yield server


@pytest.fixture(scope="module")
def proxies(s3, http_server):
    """One for each way: S3's clients take 0.3 s to make, and fsspec keeps them for each address."""
    with ExitStack() as stack:
        servers = {name: s3 if name.startswith("s3") else http_server for name in WAYS}
        kept = {
            name: FaultProxy(of.endpoint, whole=of.whole) if of is s3 else FaultProxy(of.url)
            for name, of in servers.items()
        }
        yield {name: stack.enter_context(proxy) for name, proxy in kept.items()}
    for protocol in ("s3", "http"):
        fsspec.get_filesystem_class(protocol).clear_instance_cache()


@pytest.fixture
def make_way(s3, http_server, folder, fault_proxy, proxies, monkeypatch):
    # threads end at once, as each test waits for that
    monkeypatch.setattr(transfers, "_LINGER_SECONDS", 0.001)

    def make(name: str, *, alone: bool | None = None) -> Way:
        """A way to a new object; by default a general one is alone: its clients go on with what was given up."""
        number = next(_numbers)
        if alone is None:
            alone = name in GENERAL
        proxy = proxies[name] if not alone else fault_proxy(s3 if name.startswith("s3") else http_server)
        if name.startswith("s3"):
            key = f"faults/{number}.bin"
            way = Way(
                name,
                proxy,
                f"s3://data/{key}",
                lambda array: s3.put("data", key, array.tobytes()),
                lambda: s3.delete("data", key),
                # botocore tries again by itself, with pauses that nobody can shorten
                {**s3.options_at(proxy.url), "config_kwargs": {"retries": {"max_attempts": 0}}},
            )
        else:
            path = folder / f"{number}.bin"
            url = f"{proxy.url}/{path.name}"
            way = Way(name, proxy, url, lambda array: path.write_bytes(array.tobytes()), path.unlink)
        way.write(BYTES)
        return way

    yield make
    for proxy in proxies.values():
        proxy.clear()
        proxy.accept_connections()


@pytest.fixture(params=WAYS)
def way(request, make_way) -> Way:
    return make_way(request.param)


@pytest.fixture(params=WAYS)
def shared(request, make_way) -> Way:
    """A way whose clients are used again: for faults after which no client goes on by itself."""
    return make_way(request.param, alone=False)


@pytest.fixture(params=FAST)
def fast(request, make_way) -> Way:
    return make_way(request.param)
