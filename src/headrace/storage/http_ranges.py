"""Ranges over HTTP, each answer checked before its bytes count: S3 through signed URLs, and plain servers.

What a range request means: RFC 9110, section 14; If-Match: section 13.1.1. S3's error codes:
https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html

Guarantees: one `HttpRanges` belongs to one process and may be used from any thread.
"""

import base64
import contextlib
import http.client
import re
import socket
import ssl
import threading
from collections.abc import Callable
from typing import TypeAlias
from urllib.parse import SplitResult, quote, unquote

from headrace.storage.access import HTTP, Filesystems
from headrace.storage.connections import Connections, address_of, origin_of
from headrace.storage.faults import AGAIN, MISFITS, Fault, Patience, Refused
from headrace.storage.objects import StoredObject
from headrace.storage.transfers import Part, Probe, Work
from headrace.storage.urls import protocol_of

# Looks at an answer and takes its bytes; returns whether all of them were read.
Receive: TypeAlias = Callable[[http.client.HTTPResponse], bool]

_REDIRECTS = 5
_REDIRECTED = (301, 302, 303, 307, 308)
_AGAIN_CODES = ("InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling")
_THROTTLED_CODES = ("SlowDown", "Throttling", "TooManyRequests")
_REASONS = {
    401: "no permission to read it",
    403: "no permission to read it",
    404: "there is no such object",
    410: "there is no such object any more",
    412: "it has changed since it was opened",
    416: "it is shorter than when it was opened",
}
_MOST_PINNED = 4096  # about a megabyte
_ERROR_BYTES = 8 << 10
_CONTENT_RANGE = re.compile(r"\s*bytes\s+(\d{1,19})-(\d{1,19})/(\d{1,19}|\*)\s*", re.IGNORECASE)
_EMPTY_RANGE = re.compile(r"\s*bytes\s+\*/0\s*", re.IGNORECASE)
_XML_CODE = re.compile(rb"<Code>\s*([A-Za-z0-9.]{1,64})\s*</Code>")
_XML_MESSAGE = re.compile(rb"<Message>([^<]{1,300})</Message>")
_EXPIRED = re.compile(r"expired|TokenRefreshRequired", re.IGNORECASE)
_ETAG, _DATE = "ETag ", "Last-Modified "


class _Resign(Exception):  # noqa: N818 (never leaves this module)
    """The signature is of no use any more, or is for another region than `region`."""

    def __init__(self, text: str, region: str | None = None) -> None:
        super().__init__(text)
        self.region = region


class HttpRanges:
    """Reads ranges into the caller's memory, one attempt at a time."""

    def __init__(self, filesystems: Filesystems, patience: Patience, count: Callable[[str, int], None]) -> None:
        self._filesystems, self._patience, self._count = filesystems, patience, count
        self._connections = Connections(patience.connect_seconds)
        self._pins = _Pins()

    def probe(self, probe: Probe) -> StoredObject:
        """Asks for an object's first byte: its length and version, and whether ranges can be had of it.

        Raises:
            Fault: Another attempt may do better.
            Refused: None will.
        """
        found = self._probe_once(probe)
        if not found.version:  # an answer may have lost the header on its way
            found = self._probe_once(probe)
        if protocol_of(probe.url) not in HTTP and not found.version.startswith(_ETAG):
            raise Fault("no-version", "the answer tells no version of it: expected an ETag", at_most=MISFITS)
        if not found.version:
            self._pins.forget(probe.url)
        return found

    def _probe_once(self, probe: Probe) -> StoredObject:
        found: list[StoredObject] = []

        def look(response: http.client.HTTPResponse) -> bool:
            if response.status == 206:
                object_bytes = _content_range(response)[2]
            elif response.status == 416 or response.getheader("Content-Length") == "0":
                object_bytes = 0
            else:
                raise self._without_range(response)
            if object_bytes is None:
                raise Refused("the server doesn't tell its length (Content-Range: bytes 0-0/*)")
            found.append(StoredObject(probe.url, object_bytes, _version(response)))
            _beginning(response, _ERROR_BYTES)
            return response.length == 0

        self._ask(probe.url, {"Range": "bytes=0-0"}, look, probe)
        return found[0]

    def read(self, part: Part) -> None:
        """Reads what is still missing of a part.

        Raises:
            Fault: The attempt failed; what has arrived stays.
            Refused: No attempt will do better.
        """
        read = part.read
        start = read.offset + part.arrived

        def receive(response: http.client.HTTPResponse) -> bool:
            is_whole = start == 0 and response.getheader("Content-Length") == str(read.source.object_bytes) == str(
                read.stop
            )
            if response.status != 206 and not is_whole:
                raise self._without_range(response)
            _check_answer(response, start, read.stop, read.source)
            if not read.source.version:
                self._pins.check(read.source.url, response)
            self._receive(response, part)
            return not response.chunked  # its last chunk has not been read

        headers = {"Range": f"bytes={start}-{read.stop - 1}", **_condition(read.source.version)}
        self._ask(read.source.url, headers, receive, part)

    def close(self) -> None:
        """Ends idle connections; those in use end when their answers are there."""
        self._connections.close()

    def _ask(self, url: str, headers: dict[str, str], receive: Receive, work: Work) -> None:
        """One attempt: asks where the object is, or where redirects say, and receives the answer."""
        address = address_of(self._filesystems.address(url))
        users = {**_login(address), **self._filesystems.headers(url)}
        try:
            for _ in range(_REDIRECTS + 1):
                location = self._exchange(address, {**users, **headers}, receive, work)
                if location is None:
                    return
                moved = address_of(location, address.geturl())
                if moved.scheme not in ("http", "https") or (address.scheme, moved.scheme) == ("https", "http"):
                    raise Refused(f"it redirects from {address.scheme} to {moved.scheme}, which is not followed")
                if origin_of(moved) != origin_of(address):
                    users = _login(moved)  # others may hold credentials, which are not for others
                address = moved
        except _Resign as stale:
            self._filesystems.forget_address(url, stale.region)
            raise Fault("resigned", str(stale), at_most=MISFITS) from None
        raise Refused(f"it redirects more than {_REDIRECTS} times")

    def _exchange(self, address: SplitResult, headers: dict[str, str], receive: Receive, work: Work) -> str | None:
        """Asks once; returns where to ask instead, None where the answer was received."""
        connection = self._connections.take(origin_of(address), fresh=work.attempts > 0)
        is_clean = has_answered = False
        self._count("requests", 1)
        try:
            with work.abortable(connection.abort):
                response = connection.request(
                    _target(address),
                    {"Accept-Encoding": "identity", "User-Agent": "headrace", **headers},
                    stall_seconds=self._patience.stall_seconds,
                    ends=work.ends,
                )
                has_answered = True
                with response:
                    location = self._judge(response)
                    if location is None:
                        is_clean = receive(response)
                    is_clean = is_clean and not response.will_close
                    return location
        except (OSError, http.client.HTTPException) as error:
            work.check()
            # A server may close an idle connection at any time. Whether it is well, a fresh one will tell.
            was_idle = connection.idle_since is not None and not has_answered
            raise self._as_fault(error, at_once=was_idle) from None
        finally:
            if is_clean:
                self._connections.put(connection)
            else:
                connection.close()

    def _judge(self, response: http.client.HTTPResponse) -> str | None:
        """Returns where an answer redirects to, None where it is data; raises what any other one means."""
        status, location = response.status, response.getheader("Location")
        if status in (200, 206) or (status == 416 and _EMPTY_RANGE.fullmatch(response.getheader("Content-Range", ""))):
            return None
        if status in _REDIRECTED and location:
            return location
        code, text = self._error_of(response)
        said = f"HTTP {status} {text}"
        region = response.getheader("x-amz-bucket-region")
        if region and status in (301, 400) and code not in _AGAIN_CODES:
            raise _Resign(f"{said}; the bucket is in {region}", region)
        if status in (400, 401, 403) and _EXPIRED.search(f"{code} {text}"):
            raise _Resign(said)
        if status in AGAIN or code in _AGAIN_CODES:
            throttled = status in (429, 503) or code in _THROTTLED_CODES
            after = response.getheader("Retry-After", "")
            after_seconds = int(after[:9]) if after.isdecimal() else 0
            raise Fault(f"http-{status}", said, throttled=throttled, after_seconds=after_seconds)
        raise Refused(f"{_REASONS[status]}: {said}" if status in _REASONS else said)

    def _error_of(self, response: http.client.HTTPResponse) -> tuple[str, str]:
        """S3's code for an error, and what to tell of it."""
        body = _beginning(response, _ERROR_BYTES)
        code, message = (
            found[1].decode("utf-8", "replace") if (found := pattern.search(body)) else ""
            for pattern in (_XML_CODE, _XML_MESSAGE)
        )
        return code, self._filesystems.redacted(": ".join(filter(None, (code, message))) or response.reason)

    def _without_range(self, response: http.client.HTTPResponse) -> Fault:
        """What it means that no range came: an error in place of data, or a server that knows no ranges."""
        code, text = self._error_of(response)
        if code:
            return Fault(
                "error-under-200",
                f"HTTP {response.status} with an error in it: {text}",
                throttled=code in _THROTTLED_CODES,
            )
        return Fault(
            "range-ignored",
            f"the server doesn't serve byte ranges: expected HTTP 206, got HTTP {response.status}",
            at_most=MISFITS,
        )

    def _receive(self, response: http.client.HTTPResponse, part: Part) -> None:
        """Receives the missing bytes of a part into its memory."""
        memory = part.read.out.data
        first = part.arrived
        try:
            while part.arrived < len(memory):
                part.check()
                count = _receive_some(response, memory[part.arrived :])
                if count == 0:
                    raise Fault(
                        "ended-early", f"the answer ended after {part.arrived - first} of {len(memory) - first} bytes"
                    )
                part.arrived += count
        finally:
            self._count("received_bytes", part.arrived - first)

    def _as_fault(self, error: Exception, *, at_once: bool) -> Exception:
        said = self._filesystems.said(error)
        if isinstance(error, ssl.SSLCertVerificationError):
            return Refused(
                f"its certificate is not trusted: {said}; Store(direct=False) trusts what fsspec's client does"
            )
        if isinstance(error, socket.gaierror):
            return Fault("no-address", f"its host has no address: {said}", at_most=MISFITS)
        if isinstance(error, TimeoutError):  # an answer's own are faults already
            return Fault("stalled", f"the request could not be sent in {self._patience.stall_seconds:g} s")
        return Fault("connection", said, at_once=at_once)


class _Pins:
    """What answers tell of the versions of objects of which nothing was told when they were opened."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], str] = {}  # (URL, header), the oldest first
        self._lock = threading.Lock()

    def check(self, url: str, response: http.client.HTTPResponse) -> None:
        """Raises Refused where an earlier answer told another version."""
        for header in ("ETag", "Last-Modified"):
            got = response.getheader(header)
            if got is None:
                continue
            with self._lock:
                expected = self._told.setdefault((url, header), got)
                if len(self._told) > _MOST_PINNED:
                    del self._told[next(iter(self._told))]
            if got != expected:
                raise _changed(response, f"{header} {expected}", f"{header} {got}")

    def forget(self, url: str) -> None:
        """Begins anew: the object is opened again."""
        with self._lock:
            for header in ("ETag", "Last-Modified"):
                self._told.pop((url, header), None)


def _target(address: SplitResult) -> str:
    """What is asked for on a connection."""
    query = f"?{quote(address.query, safe='/%:@!$&()*+,;=~?')}" if address.query else ""
    return quote(address.path or "/", safe="/%:@!$&'()*+,;=~") + query


def _login(address: SplitResult) -> dict[str, str]:
    """The header that stands for a URL's user name and password."""
    if address.username is None:
        return {}
    login = f"{unquote(address.username)}:{unquote(address.password or '')}"
    return {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()}


def _beginning(response: http.client.HTTPResponse, most_bytes: int) -> bytes:
    """The first bytes of an answer, as far as they come: it is judged by its status, whatever happens to its text."""
    found = bytearray()
    with contextlib.suppress(Fault, OSError, http.client.HTTPException):
        # not `read`, which believes chunks of less than no bytes
        while len(found) < most_bytes and (some := response.read1(most_bytes - len(found))):
            found += some
    return bytes(found[:most_bytes])


def _receive_some(response: http.client.HTTPResponse, memory: memoryview) -> int:
    """Receives what there is, at least a byte; 0 at the end."""
    if response.chunked:
        some = response.read1(len(memory))
        if len(some) > len(memory) or (response.chunk_left is not None and response.chunk_left < 0):
            raise Fault("wrong-chunk", "expected the length of a chunk, got a negative number")
        memory[: len(some)] = some
        return len(some)
    # As `readinto`, which would wait for all of it and not notice that a server drips. The length was checked before.
    return int(response.fp.readinto1(memory))


def _version(response: http.client.HTTPResponse) -> str:
    etag, date = response.getheader("ETag"), response.getheader("Last-Modified")
    return f"{_ETAG}{etag}" if etag else f"{_DATE}{date}" if date else ""


def _condition(version: str) -> dict[str, str]:
    """The header that makes a server refuse another version; none for weak ETags, which must not be used so."""
    if version.startswith(f'{_ETAG}"'):
        return {"If-Match": version.removeprefix(_ETAG)}
    if version.startswith(_DATE):
        return {"If-Unmodified-Since": version.removeprefix(_DATE)}
    return {}


def _content_range(response: http.client.HTTPResponse) -> tuple[int, int, int | None]:
    """First byte, last byte and, where it is told, the length of the whole."""
    header = response.getheader("Content-Range", "")
    found = _CONTENT_RANGE.fullmatch(header)
    if found is None:
        kind = response.getheader("Content-Type", "")
        raise Fault(
            "no-range",
            f"expected the answer to say its range, got Content-Range {header[:80]!r} ({kind[:80]})",
            at_most=MISFITS,
        )
    return int(found[1]), int(found[2]), None if found[3] == "*" else int(found[3])


def _check_answer(response: http.client.HTTPResponse, start: int, stop: int, source: StoredObject) -> None:
    """Raises unless an answer claims to hold [start, stop) of this very object, as it is."""
    for header, prefix in (("ETag", _ETAG), ("Last-Modified", _DATE)):
        told = response.getheader(header)
        if told is not None and source.version.startswith(prefix) and prefix + told != source.version:
            raise _changed(response, source.version, prefix + told)
    if response.status == 206:
        first, last, total = _content_range(response)
        if total is not None and total != source.object_bytes:
            raise _changed(response, f"{source.object_bytes} bytes in all", str(total))
        if (first, last) != (start, stop - 1):
            raise Fault("wrong-range", f"expected the bytes {start}-{stop - 1}, got {first}-{last}")
    length = response.getheader("Content-Length")
    if length is not None and length != str(stop - start):
        raise Fault("wrong-length", f"expected an answer of {stop - start} bytes, got {length[:40]}")
    if (encoding := response.getheader("Content-Encoding", "identity")) not in ("identity", ""):
        raise Fault(
            "encoded", f"expected the bytes as they are, got Content-Encoding {encoding[:40]!r}", at_most=MISFITS
        )


def _changed(response: http.client.HTTPResponse, expected: str, got: str) -> Exception:
    """What another version means, or no more than a header that was cut off in its middle: then no body follows."""
    if not _beginning(response, 1):
        return Fault("ended-early", "the answer ended before its first byte")
    return Refused(f"it has changed since it was opened: expected {expected}, got {got}")
