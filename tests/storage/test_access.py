"""Signed URLs, and which URLs headrace reads by itself."""

from typing import ClassVar

import pytest

from headrace.errors import StorageError
from headrace.storage.access import Filesystems
from headrace.storage.faults import Fault, Patience
from headrace.storage.http_ranges import HttpRanges
from headrace.storage.transfers import Probe


class Signer:
    """Signs as often as it is asked, each time with another signature."""

    def __init__(self) -> None:
        self.signed = 0

    def sign(self, url: str, expiration: int) -> str:
        self.signed += 1
        return f"http://store.test/{url.removeprefix('s3://')}?X-Amz-Signature=secret{self.signed}"


@pytest.fixture
def clock():
    return [1000.0]


@pytest.fixture
def signer(monkeypatch):
    made = Signer()
    monkeypatch.setattr(Filesystems, "_signer", lambda self, protocol, region: made)
    return made


def test_a_signed_url_is_used_for_some_minutes_and_then_signed_again(signer, clock):
    filesystems = Filesystems({}, clock=lambda: clock[0])
    addresses = []
    for _ in range(3):
        addresses += [filesystems.address("s3://bucket/x.npy") for _ in range(2)]
        clock[0] += 601
    assert [address[-1] for address in addresses] == ["1", "1", "2", "2", "3", "3"]


def test_each_object_has_a_signature_of_its_own(signer):
    filesystems = Filesystems({})
    assert filesystems.address("s3://bucket/x.npy") != filesystems.address("s3://bucket/y.npy")


def test_a_signature_that_is_of_no_use_any_more_is_forgotten(signer):
    filesystems = Filesystems({})
    filesystems.address("s3://bucket/x.npy")
    filesystems.forget_address("s3://bucket/x.npy")
    assert filesystems.address("s3://bucket/x.npy").endswith("secret2")


class RegionSigner:
    def __init__(self, region):
        self.region = region

    def sign(self, url, expiration):
        return f"http://{self.region}.test/{url.removeprefix('s3://')}"


def test_each_bucket_is_in_a_region_of_its_own_and_each_region_has_one_signer(monkeypatch):
    regions = []
    monkeypatch.setattr(
        Filesystems, "_signer", lambda self, protocol, region: regions.append(region) or RegionSigner(region)
    )
    filesystems = Filesystems({})
    places = {"s3://a/x": "eu-west-1", "s3://b/x": "us-west-2", "s3://c/x": None}
    for url in places:
        filesystems.address(url)
    for url, region in places.items():
        filesystems.forget_address(url, region)
    for _ in range(2):
        for bucket, region in (("a", "eu-west-1"), ("b", "us-west-2"), ("c", None)):
            assert filesystems.address(f"s3://{bucket}/y") == f"http://{region}.test/{bucket}/y"
    assert regions == [None, "eu-west-1", "us-west-2"]


def test_signatures_that_are_of_no_use_any_more_do_not_pile_up(signer, clock):
    filesystems = Filesystems({}, clock=lambda: clock[0])
    for i in range(100):
        filesystems.address(f"s3://bucket/{i}")
        filesystems.address("s3://bucket/x")
        clock[0] += 60
    assert len(filesystems._signed) < 15


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3://bucket", "it is a bucket, not an object"),
        ("s3://bucket/", "it is a bucket, not an object"),
        ("s3:///x.npy", "there is no such object: the URL names no bucket"),
    ],
)
def test_a_url_that_names_no_object_is_told_so(signer, url, reason):
    with pytest.raises(StorageError) as caught:
        Filesystems({}).address(url)
    assert str(caught.value) == f"cannot open {url}: {reason}"


def test_a_bucket_in_another_region_is_asked_there(signer, range_server, tmp_path):
    filesystems = Filesystems({})
    ranges = HttpRanges(filesystems, Patience(), lambda name, number: None)

    class Elsewhere:
        status, reason = 301, "Moved Permanently"
        body: ClassVar = [b"<Error><Code>PermanentRedirect</Code></Error>"]

        def getheader(self, name, default=None):
            return {"x-amz-bucket-region": "eu-west-1"}.get(name, default)

        def read1(self, most):
            return self.body.pop() if self.body else b""

    def exchange(*_):
        ranges._judge(Elsewhere())

    ranges._exchange = exchange
    with pytest.raises(Fault, match="the bucket is in eu-west-1") as caught:
        ranges.probe(Probe("s3://bucket/x.npy"))
    assert caught.value.kind == "resigned"
    assert filesystems._regions == {"s3://bucket": "eu-west-1"}


@pytest.mark.parametrize(
    ("url", "options", "is_direct"),
    [
        ("s3://bucket/x.npy", {}, True),
        ("s3://bucket/x.npy", {"anon": True, "endpoint_url": "http://store.test"}, True),
        ("s3://bucket/x.npy", {"requester_pays": True}, False),
        ("s3://bucket/x.npy", {"version_aware": True}, False),
        ("s3://bucket/x.npy", {"client_kwargs": {"verify": "/ca.pem"}}, False),
        ("simplecache::s3://bucket/x.npy", {}, False),
        ("https://host.test/x.npy", {}, True),
        ("http://[::1]:8000/x.npy", {}, True),
        ("https://host.test/x.npy", {"headers": {"Authorization": "Bearer token"}}, True),
        ("https://host.test/x.npy", {"client_kwargs": {"trust_env": True}}, False),
        ("gs://bucket/x.npy", {}, False),
        ("memory://x.npy", {}, False),
    ],
)
def test_urls_whose_options_only_a_client_understands_are_left_to_it(signer, url, options, is_direct):
    assert Filesystems(options).is_direct(url) is is_direct


def test_a_store_behind_the_systems_proxy_is_left_to_its_own_client(signer, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://proxy.test:3128")
    monkeypatch.delenv("no_proxy", raising=False)
    assert not Filesystems({}).is_direct("s3://bucket/x.npy")
    monkeypatch.setenv("no_proxy", "store.test")
    assert Filesystems({}).is_direct("s3://bucket/x.npy")


def test_what_identifies_an_object_holds_no_signature_but_where_it_is(signer):
    assert Filesystems({}).identity("s3://bucket/x.npy") == "http://store.test/bucket/x.npy?"
    one, other = (Filesystems({"endpoint_url": f"http://{host}"}) for host in ("a", "b"))
    assert one.identity("gs://bucket/x.npy") != other.identity("gs://bucket/x.npy")
    assert Filesystems({}).identity("http://me:pass@host.test/x?v=2") == "http://host.test/x?v=2"


def test_credentials_that_are_not_there_are_named_with_what_to_do(monkeypatch):
    class NoCredentials:
        def sign(self, url, expiration):
            raise RuntimeError("Unable to locate credentials for key=AKIASECRET")

    monkeypatch.setattr(Filesystems, "_signer", lambda self, protocol, region: NoCredentials())
    with pytest.raises(StorageError, match=r"cannot sign a request for s3://bucket/x\.npy: ") as caught:
        Filesystems({"key": "AKIASECRET"}).address("s3://bucket/x.npy")
    assert '"anon": True' in str(caught.value)
    assert "AKIASECRET" not in str(caught.value)


def test_filesystems_of_an_ipv6_address_and_of_a_chain_are_told_apart():
    filesystems = Filesystems({})
    fs, path = filesystems.resolve("http://[::1]:8000/x.npy")
    assert (fs.protocol, path) == (("http", "https"), "http://[::1]:8000/x.npy")
