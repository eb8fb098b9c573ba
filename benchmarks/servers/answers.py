"""Harm that shows in an answer's status, headers or bytes.

Each function turns the right answer into the wrong one. `ANSWERS` has them under the names by which `FaultProxy` knows
them; `sending` has the harm that shows only in the way an answer is sent.
"""

import gzip
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from xml.sax.saxutils import escape

from benchmarks.servers.wire import Answer, Headers, Request

BOUNDARY = "headrace-boundary"


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and its right answer.

    Attributes:
        request: What the client asked.
        answer: What the server said.
        whole: Gives all bytes of the object at a path.
        elsewhere: The URL of another host that answers the same, without a slash at its end.
    """

    request: Request
    answer: Answer
    whole: Callable[[str], bytes]
    elsewhere: str

    def range(self) -> tuple[int, int, int]:
        """First byte, the byte after the last, and the object's length."""
        matched = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", self.answer.headers.value("Content-Range"))
        if matched is None:
            return 0, len(self.answer.body), len(self.answer.body)
        first, last, total_bytes = map(int, matched.groups())
        return first, last + 1, total_bytes


def s3_error(exchange: Exchange, status: int, code: str, message: str, *, said: str = "") -> Answer:
    """An error as S3 says it: XML with a code for programs and a message for people."""
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{escape(message)}</Message>{said}'
        f"<Resource>{escape(exchange.request.path)}</Resource><RequestId>4442587FB7D0A2F9</RequestId></Error>"
    )
    return Answer(status, Headers([("Content-Type", "application/xml")]), body.encode())


def _status(status: int) -> Callable[[Exchange], Answer]:
    def answer(_: Exchange) -> Answer:
        headers = Headers([("Content-Type", "text/plain"), *([("Retry-After", "0")] if status in (429, 503) else [])])
        return Answer(status, headers, b"not now\n")

    return answer


def _s3(status: int, code: str, message: str) -> Callable[[Exchange], Answer]:
    return lambda exchange: s3_error(exchange, status, code, message)


def _signature_mismatch(exchange: Exchange) -> Answer:
    """S3 repeats who signed and what, the signature included."""
    signed = escape(exchange.request.query + exchange.request.headers.value("Authorization"))
    return s3_error(
        exchange,
        403,
        "SignatureDoesNotMatch",
        "The request signature we calculated does not match the signature you provided.",
        said=f"<StringToSign>{signed}</StringToSign><SignatureProvided>{signed}</SignatureProvided>",
    )


def _redirect(exchange: Exchange) -> Answer:
    return Answer(307, Headers([("Location", exchange.elsewhere + exchange.request.target)]))


def _short_body(exchange: Exchange) -> Answer:
    return replace(exchange.answer, body=exchange.answer.body[: len(exchange.answer.body) // 2])


def _long_body(exchange: Exchange) -> Answer:
    return replace(exchange.answer, body=exchange.answer.body + b"and more")


def _range_ignored(exchange: Exchange) -> Answer:
    headers = exchange.answer.headers.replaced("Content-Range", None)
    return Answer(200, headers, exchange.whole(exchange.request.path))


def _other_range(exchange: Exchange) -> tuple[int, int, int]:
    """A range beside the one asked for, of the same length where the object has another one."""
    start, stop, total_bytes = exchange.range()
    if stop < total_bytes:
        return start + 1, stop + 1, total_bytes
    return (start - 1, stop - 1, total_bytes) if start else (1, stop, total_bytes)


def _wrong_range(exchange: Exchange) -> Answer:
    start, stop, total_bytes = _other_range(exchange)
    body = exchange.whole(exchange.request.path)[start:stop]
    headers = exchange.answer.headers.replaced("Content-Range", f"bytes {start}-{stop - 1}/{total_bytes}")
    return Answer(206, headers, body)


def _wrong_range_right_headers(exchange: Exchange) -> Answer:
    start, stop, _ = _other_range(exchange)
    body = exchange.whole(exchange.request.path)[start:stop]
    return replace(exchange.answer, body=body.ljust(len(exchange.answer.body), b"\0"))


def _flipped_byte(exchange: Exchange) -> Answer:
    body = bytearray(exchange.answer.body)
    body[len(body) // 2] ^= 0xFF
    return replace(exchange.answer, body=bytes(body))


def _missing_etag(exchange: Exchange) -> Answer:
    return replace(exchange.answer, headers=exchange.answer.headers.replaced("ETag", None))


def _other_etag(exchange: Exchange) -> Answer:
    return replace(exchange.answer, headers=exchange.answer.headers.replaced("ETag", '"another"'))


def _gzip(exchange: Exchange) -> Answer:
    headers = exchange.answer.headers.replaced("Content-Encoding", "gzip")
    return replace(exchange.answer, headers=headers, body=gzip.compress(exchange.answer.body))


def _multipart_range(exchange: Exchange) -> Answer:
    """The right range as the only part of several; RFC 9110, section 14.6, allows that for one range of many only."""
    start, stop, total_bytes = exchange.range()
    part = f"--{BOUNDARY}\r\nContent-Type: application/octet-stream\r\n"
    part += f"Content-Range: bytes {start}-{stop - 1}/{total_bytes}\r\n\r\n"
    body = part.encode() + exchange.answer.body + f"\r\n--{BOUNDARY}--\r\n".encode()
    headers = exchange.answer.headers.replaced("Content-Range", None)
    return Answer(206, headers.replaced("Content-Type", f"multipart/byteranges; boundary={BOUNDARY}"), body)


ANSWERS: dict[str, Callable[[Exchange], Answer]] = {
    **{f"status-{status}": _status(status) for status in (429, 500, 502, 503, 504)},
    "slow-down": _s3(503, "SlowDown", "Please reduce your request rate."),
    "xml-error-200": _s3(200, "InternalError", "We encountered an internal error. Please try again."),
    "expired-token": _s3(403, "ExpiredToken", "The provided token has expired."),
    "expired-request": _s3(403, "AccessDenied", "Request has expired"),
    "access-denied": _s3(403, "AccessDenied", "Access Denied"),
    "signature-mismatch": _signature_mismatch,
    "not-found": _s3(404, "NoSuchKey", "The specified key does not exist."),
    "redirect": _redirect,
    "short-body": _short_body,
    "long-body": _long_body,
    "range-ignored": _range_ignored,
    "wrong-range": _wrong_range,
    "wrong-range-right-headers": _wrong_range_right_headers,
    "flipped-byte": _flipped_byte,
    "missing-etag": _missing_etag,
    "other-etag": _other_etag,
    "gzip": _gzip,
    "multipart-range": _multipart_range,
}
