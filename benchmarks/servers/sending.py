"""Harm that shows in the way an answer is sent: too late, too slowly, not to its end, or in another form."""

import enum
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.servers.wire import Answer

# A slow answer sends this much at once, and at least this many pieces
DRIP_BYTES = 1 << 10
DRIPS = 8


class After(enum.Enum):
    """What becomes of the connection when an answer has been sent, or has not."""

    GOES_ON = enum.auto()
    IS_CLOSED = enum.auto()
    IS_RESET = enum.auto()


@dataclass(frozen=True, slots=True)
class Sending:
    """One answer on its way.

    Attributes:
        connection: To the client.
        answer: With all headers that it needs.
        seconds: How long to keep the client waiting.
        bytes_per_second: The rate of a slow answer.
        cut: How many bytes of the body are sent before something happens.
        wait: Waits so many seconds, less where the test or the proxy's end says so.
    """

    connection: socket.socket
    answer: Answer
    seconds: float
    bytes_per_second: float
    cut: int
    wait: Callable[[float], None]

    def send_part(self) -> None:
        """The head and what comes before the cut."""
        self.connection.sendall(self.answer.head() + self.answer.body[: self.cut])


def send(sending: Sending) -> After:
    """As it should be."""
    sending.connection.sendall(sending.answer.head() + sending.answer.body)
    return After.GOES_ON


def _reset_before_answer(_: Sending) -> After:
    return After.IS_RESET


def _close_before_answer(_: Sending) -> After:
    return After.IS_CLOSED


def _half_header(sending: Sending) -> After:
    head = sending.answer.head()
    sending.connection.sendall(head[: len(head) // 2])
    return After.IS_CLOSED


def _reset_in_body(sending: Sending) -> After:
    sending.send_part()
    return After.IS_RESET


def _close_in_body(sending: Sending) -> After:
    sending.send_part()
    return After.IS_CLOSED


def _late_first_byte(sending: Sending) -> After:
    sending.wait(sending.seconds)
    return send(sending)


def _stall_in_body(sending: Sending) -> After:
    sending.send_part()
    sending.wait(sending.seconds)
    sending.connection.sendall(sending.answer.body[sending.cut :])
    return After.GOES_ON


def _slow_drip(sending: Sending) -> After:
    sending.connection.sendall(sending.answer.head())
    body = sending.answer.body
    piece_bytes = max(1, min(DRIP_BYTES, len(body) // DRIPS))
    for start in range(0, len(body), piece_bytes):
        piece = body[start : start + piece_bytes]
        sending.wait(len(piece) / sending.bytes_per_second)
        sending.connection.sendall(piece)
    return After.GOES_ON


def _chunked(sending: Sending) -> After:
    """In two pieces, each with its length before it (RFC 9112, section 7.1)."""
    answer = sending.answer
    headers = answer.headers.replaced("Content-Length", None).replaced("Transfer-Encoding", "chunked")
    pieces = [piece for piece in (answer.body[: sending.cut], answer.body[sending.cut :]) if piece]
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    sending.connection.sendall(Answer(answer.status, headers).head() + body)
    return After.GOES_ON


def _trailing_bytes(sending: Sending) -> After:
    """More than Content-Length says, which a client must not take for the next answer's."""
    sending.connection.sendall(sending.answer.head() + sending.answer.body + b"and more")
    return After.GOES_ON


SENDINGS: dict[str, Callable[[Sending], After]] = {
    "reset-before-answer": _reset_before_answer,
    "close-before-answer": _close_before_answer,
    "half-header": _half_header,
    "reset-in-body": _reset_in_body,
    "close-in-body": _close_in_body,
    "late-first-byte": _late_first_byte,
    "stall-in-body": _stall_in_body,
    "slow-drip": _slow_drip,
    "chunked": _chunked,
    "trailing-bytes": _trailing_bytes,
}


def reset_on_close(connection: socket.socket) -> None:
    """Closing it will send a reset, and forget what was not yet delivered."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
