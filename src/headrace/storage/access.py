"""Filesystems, as fsspec makes them: names, listings, credentials and signed URLs.

Guarantees: one `Filesystems` belongs to one process; whoever forks makes a new one. It may be used from any thread.
"""

import contextlib
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from headrace.errors import DependencyError, HeadraceError, StorageError
from headrace.storage.connections import address_of
from headrace.storage.faults import Refused
from headrace.storage.urls import links_of, protocol_of, redact, secrets_of, server_of, shown

S3 = ("s3", "s3a")
HTTP = ("http", "https")

_PIP = {
    "s3": 'pip install "headrace[s3]"',
    "s3a": 'pip install "headrace[s3]"',
    "gs": "pip install gcsfs",
    "gcs": "pip install gcsfs",
    "az": "pip install adlfs",
    "abfs": "pip install adlfs",
    "http": "pip install aiohttp",
    "https": "pip install aiohttp",
}
_SIGNED_SECONDS = 3600
# Temporary credentials may end before the signature does; a signature is made in 0.3 ms, so it is made again early.
_USED_SECONDS = 600
# What else tells where an object is, besides its URL
_PLACES = ("endpoint_url", "host", "port", "account_name", "project", "fo", "target_protocol")
# What fsspec's S3 options mean for each request, which a signed URL doesn't carry.
_UNSIGNED_S3 = ("requester_pays", "version_aware", "s3_additional_kwargs")


@contextlib.contextmanager
def without_causes() -> Iterator[None]:
    """Takes from errors what led to them: the exceptions of clients, which hold requests with all that was signed."""
    try:
        yield
    except HeadraceError as error:
        error.__cause__ = error.__context__ = None
        raise


class Filesystems:
    """The filesystems of one process under one set of options.

    Args:
        storage_options: Given to fsspec untouched.
        clock: Seconds.
    """

    def __init__(self, storage_options: Mapping[str, Any], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._options, self._clock = dict(storage_options), clock
        self._secrets = secrets_of(storage_options)
        self._made: dict[str, tuple[Any, str]] = {}
        self._regions: dict[str, str] = {}  # of buckets that are elsewhere than the options say
        self._signers: dict[tuple[str, str | None], Any] = {}
        self._signed: dict[str, tuple[str, float]] = {}  # the oldest first
        self._lock = threading.Lock()

    def resolve(self, url: str) -> tuple[Any, str]:
        """The filesystem of a URL and its path there.

        Raises:
            DependencyError: A package is missing; the text names the pip line.
            StorageError: No such protocol, or options that don't fit it.
        """
        import fsspec

        is_chain = len(links_of(url)) > 1
        # Clients are made for a server, not for each URL, and not for each thread as fsspec would.
        server = url if is_chain else server_of(url)
        with self._lock:
            made = self._made.get(server)
            try:
                if protocol_of(url) in HTTP and not is_chain:
                    address_of(url)  # a client's text would show what is wrong with it
                if made is None:
                    # fsspec takes the address of [::1] for a chain
                    is_plain = "::" in url and not is_chain
                    made = self._made[server] = (
                        (fsspec.filesystem(protocol_of(url), **self._options), "")
                        if is_plain
                        else fsspec.core.url_to_fs(url, **self._options)
                    )
                return made[0], made[1] if is_chain else made[0]._strip_protocol(url)  # noqa: SLF001
            except ImportError as error:
                raise self._missing(url, error) from None
            except Refused as refusal:
                raise StorageError(f"cannot open {shown(url)}: {refusal}") from None
            except Exception as error:  # noqa: BLE001 (clients raise whatever they like)
                raise StorageError(f"cannot open {shown(url)}: {self.said(error)}") from None

    def forget(self) -> None:
        """Makes all filesystems anew when next asked for: their credentials are of no use any more."""
        with self._lock:
            for fs, _ in self._made.values():
                type(fs).clear_instance_cache()
            self._made.clear()

    def is_direct(self, url: str) -> bool:
        """Whether headrace's own range reader can read it: S3 by signed URLs, HTTP as it is."""
        protocol = protocol_of(url)
        if len(links_of(url)) > 1:
            return False
        if protocol in S3:
            client = self._options.get("client_kwargs") or {}
            asks_for_more = any(self._options.get(name) for name in _UNSIGNED_S3) or "verify" in client
            return not asks_for_more and not _is_behind_proxy(self.address(url))
        # what else fsspec may be told about HTTP (authentication, cookies, timeouts) is aiohttp's
        return protocol in HTTP and self._options.keys() <= {"headers"}

    def headers(self, url: str) -> dict[str, str]:
        """What the user wants to be sent with each request."""
        return dict(self._options.get("headers", {})) if protocol_of(url) in HTTP else {}

    def address(self, url: str) -> str:
        """The HTTP URL to read it from; for S3 a signed one, used for some minutes.

        Raises:
            DependencyError: s3fs is missing.
            StorageError: It names no object, or cannot be signed.
        """
        if protocol_of(url) in HTTP:
            return url
        now = self._clock()
        signed, made_at = self._signed.get(url, ("", 0.0))
        if not signed or now - made_at > _USED_SECONDS:
            signed = self._sign(url)
            with self._lock:
                self._signed.pop(url, None)
                self._signed[url] = signed, now
                while now - self._signed[oldest := next(iter(self._signed))][1] > _USED_SECONDS:
                    del self._signed[oldest]
        return signed

    def identity(self, url: str) -> str:
        """What tells an object from one of the same name elsewhere: where it is read from, or what options say."""
        if self.is_direct(url):
            address = urlsplit(self.address(url))
            query = address.query if protocol_of(url) in HTTP else ""
            return f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path}?{query}"
        places = (self._options, self._options.get("client_kwargs") or {})
        return "\n".join([url, *(f"{name}={place[name]}" for place in places for name in _PLACES if place.get(name))])

    def forget_address(self, url: str, region: str | None = None) -> None:
        """Makes the next `address` sign again; where a region is given, the URL's bucket is there."""
        with self._lock:
            self._signed.pop(url, None)
            if region is not None:
                self._regions[server_of(url)] = region

    def redacted(self, text: str) -> str:
        """A text without secrets."""
        return redact(text, self._secrets)

    def said(self, error: BaseException) -> str:
        """What an exception says, in one line and without secrets."""
        text = self.redacted(" ".join(str(error).split()))
        return f"{type(error).__name__}: {text}"[:500] if text else type(error).__name__

    def _sign(self, url: str) -> str:
        protocol, bucket = protocol_of(url), server_of(url)
        if not bucket.partition("://")[2]:
            raise StorageError(f"cannot open {shown(url)}: there is no such object: the URL names no bucket")
        if not url.removeprefix(bucket).strip("/"):
            raise StorageError(f"cannot open {shown(url)}: it is a bucket, not an object")
        try:
            # held while signing too: a client is made at first use, and two at once would make two
            with self._lock:
                kind = protocol, self._regions.get(bucket)
                fs = self._signers.get(kind)
                if fs is None:
                    fs = self._signers[kind] = self._signer(*kind)
                return str(fs.sign(url, expiration=_SIGNED_SECONDS))
        except ImportError as error:
            raise self._missing(url, error) from None
        except Exception as error:  # noqa: BLE001 (clients raise whatever they like)
            raise StorageError(
                f"cannot sign a request for {shown(url)}: {self.said(error)}\n"
                '  credentials come from storage_options, the environment or profiles; public data needs {"anon": True}'
            ) from None

    def _signer(self, protocol: str, region: str | None) -> Any:
        import fsspec

        options = dict(self._options)
        # s3fs signs in the old form unless told otherwise, which most stores no longer take
        options["config_kwargs"] = {"signature_version": "s3v4", **options.get("config_kwargs", {})}
        if region is not None:
            options["client_kwargs"] = {**(options.get("client_kwargs") or {}), "region_name": region}
        return fsspec.filesystem(protocol, **options)

    def _missing(self, url: str, error: ImportError) -> DependencyError:
        protocol = protocol_of(url)
        line = _PIP.get(protocol)
        return DependencyError(
            f"reading {protocol}:// needs a package that is not installed: {line}"
            if line
            else f"reading {protocol}:// needs a package that is not installed: {self.said(error)}"
        )


def _is_behind_proxy(url: str) -> bool:
    """Whether the system says that a server is reached through a proxy, as S3's own clients then do."""
    address = urlsplit(url)
    return address.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(address.hostname or "")
