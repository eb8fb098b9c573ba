"""Channels: connections between this process and a worker process for Python objects.

What is received is unpickled, and that runs code: so a channel connects a process and the workers that it has started,
and carries only what the two have made themselves. No data from files is unpickled.

A message is a few bytes through a socket if it is small. Otherwise its arrays are written into slots of shared memory,
once, and are views of them at the other end: nothing is copied, no page is touched for the first time after the first
few messages, and a descriptor is passed only with a new slot. A large array has a slot of its own, and so goes back as
soon as nobody has it, whatever becomes of the rest of its message.

Guarantees:
- `send` may be called from any thread; messages arrive whole, in the order of the calls. `receive` belongs to one
  thread at a time, which may be another one. `close` may be called from any thread, and ends both.
- Memory that anybody can reach through an array, a tensor or any view of one is not written again. It goes back to the
  other end, with the next message, when the last view is gone. What was received may be kept for any time, also after
  `close`, and written into; when more than `max_lent` messages are kept, further ones are copied, so that a process
  which keeps everything has its own memory and the slots stay few.
- Both ends let go of everything when they are closed or die; no name is left anywhere. Between calls, a channel holds
  one descriptor, its socket.
- A forked child keeps the arrays that it has inherited, but can't use the channel. (Nor do writes by one of both into
  the same array stay hidden from the other.)
- The peer is never waited for in the middle of a message: a time limit is kept wherever it stops.
"""

import contextlib
import errno
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from typing import Any, NamedTuple

from headrace.loader.encoding import (
    MOST_PIECES,
    Encoded,
    Pickler,
    ReplyPickler,
    decode_pieces,
    encode,
    in_one_piece,
    in_pieces,
)
from headrace.loader.slots import LentSlots, SentSlots, Slot
from headrace.metrics import stage

_INLINE_BYTES = 16384  # up to here, the copies through the socket cost less than a slot's turn
_READ_BYTES = 1 << 16
# what no header goes beyond: where no descriptor can be passed, a whole message goes through the socket
_MOST_BYTES, _MOST_NOTICES = 1 << 36, 1 << 16

# the bytes that go through the socket; how many slots the object has, and how many are returned, retired and dropped
_HEADER = struct.Struct("<QIIII")
_SLOT = struct.Struct("<IQQ")  # its number; the bytes that it holds; its own bytes if it is new, or 0


class _Message(NamedTuple):
    """A header. The slots follow, each a `_SLOT`, then the other slots' numbers, then the bytes."""

    inline_bytes: int
    slots: int
    returned: int
    retired: int
    dropped: int

    @property
    def notices(self) -> int:
        """How many slots it only tells of."""
        return self.returned + self.retired + self.dropped

    @property
    def listed_bytes(self) -> int:
        """What tells of slots."""
        return _SLOT.size * self.slots + 4 * self.notices

    @property
    def nbytes(self) -> int:
        """All of it."""
        return _HEADER.size + self.listed_bytes + self.inline_bytes


class Channel:
    """One end of a connection to another process, for Python objects; their arrays travel in reused shared memory.

    Attributes:
        bytes_sent: The bytes of all objects that were sent.
        bytes_received: The bytes of all that were received.
    """

    def __init__(self, sock: socket.socket, *, max_lent: int = 4) -> None:
        """Takes over one end of a `socket.socketpair()`; `close` closes it.

        Args:
            sock: A connected Unix stream socket, blocking. Where another process has made it, objects whose classes
                came from there in a parcel are of those very classes when they arrive.
            max_lent: The most received messages whose arrays are views of shared memory at once.
        """
        sock.settimeout(None)
        self.bytes_sent = self.bytes_received = 0
        self._sock, self._process = sock, os.getpid()
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        maker = struct.unpack("3i", credentials)[0]
        self._pickler: type[Pickler] = Pickler if maker == self._process else ReplyPickler
        self._sent, self._lent = SentSlots(), LentSlots(max_lent)
        self._sending = threading.Lock()
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)
        self._buffer = bytearray()
        self._fds: deque[int] = deque()  # of new slots whose messages are not yet complete
        self._closed = False

    @property
    def slots_bytes(self) -> int:
        """The shared memory that this end has mapped now, for both directions; without what only views keep."""
        return self._sent.nbytes + self._lent.nbytes

    def send(self, obj: Any) -> None:
        """Sends an object; waits only while the other end doesn't receive and the socket is full of messages.

        Raises:
            EOFError: The other end is gone, or this one closed.
            OSError: There is no memory for it; nothing was sent.
            Exception: It can't be pickled; nothing was sent.
        """
        self._check()
        with stage("copy"):
            self._send(obj)

    def _send(self, obj: Any) -> None:
        encoded = encode(obj, pickler=self._pickler)
        inline, *apart = in_pieces(encoded, inline_bytes=_INLINE_BYTES)
        body, sizes = inline.in_bytes(), [piece.nbytes for piece in apart]
        with self._sending:
            try:
                slots = self._written(apart)
                notices = _drained(self._lent.returned), _drained(self._lent.retired), self._sent.dropped()
                if not self._send_message(body, slots, sizes, notices):
                    body, sizes = in_one_piece(encoded).in_bytes(), []
                    self._send_message(body, [], sizes, notices)
                self.bytes_sent += len(body) + sum(sizes)
            finally:
                if self._closed:
                    self._sent.clear()

    def _written(self, pieces: list[Encoded]) -> list[Slot]:
        slots = self._sent.take([piece.nbytes for piece in pieces])
        try:
            for piece, slot in zip(pieces, slots, strict=True):
                piece.write_into(slot.memory.data)
        except BaseException:
            self._sent.put_back(slots)
            raise
        return slots

    def _send_message(
        self, body: bytearray, slots: list[Slot], sizes: list[int], notices: tuple[list[int], ...]
    ) -> bool:
        """Sends a message; False where the system passes no more descriptors: then the slots are put back."""
        numbers = [number for listed in notices for number in listed]
        fds = [slot.fd for slot in slots if slot.fd is not None]
        listed = [
            _SLOT.pack(slot.number, nbytes, 0 if slot.fd is None else slot.memory.nbytes)
            for slot, nbytes in zip(slots, sizes, strict=True)
        ]
        header = _HEADER.pack(len(body), len(slots), *map(len, notices))
        message = memoryview(b"".join((header, *listed, struct.pack(f"<{len(numbers)}I", *numbers), body)))
        try:
            sent = socket.send_fds(self._sock, [message], fds, socket.MSG_NOSIGNAL) if fds else 0
            self._sock.sendall(message[sent:], socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError) as error:
            # not closed: what it sent before it went can still be received
            raise EOFError("the other end of the channel is gone") from error
        except OSError as error:
            if error.errno == errno.ETOOMANYREFS:  # a user may have `ulimit -n` under way at once, in all processes
                self._sent.put_back(slots)
                return False
            self.close()
            raise EOFError("the other end of the channel is gone") from error
        except BaseException:
            self.close()  # the other end may have half of it
            raise
        finally:
            for slot in slots:
                slot.close_fd()
        return True

    def receive(self, timeout: float | None = None) -> Any:
        """The next object. Its arrays are the caller's own, and may be kept and written into.

        Args:
            timeout: The most seconds to wait; None waits as long as the other end lives.

        Raises:
            TimeoutError: None came in time. The next call goes on where this one stopped.
            EOFError: The other end is gone, or this one closed.
            OSError: There is no memory, or no descriptor, for a new slot; the channel is closed.
            Exception: The object can't be unpickled; the next call gives the next one.
        """
        self._check()
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            message = self._complete()
            if message is not None:
                return self._object(message)
            # without a limit too: what interrupts this wait loses nothing
            left = None if deadline is None else max(deadline - time.monotonic(), 0) * 1000
            if not self._readable.poll(left) and not self._closed:
                raise TimeoutError(f"nothing came through the channel within {timeout} seconds")
            self._read_more()

    def _read_more(self) -> None:
        try:
            data, fds, flags, _ = socket.recv_fds(self._sock, _READ_BYTES, MOST_PIECES, socket.MSG_CMSG_CLOEXEC)
            self._fds.extend(fds)
            self._buffer += data
        except OSError as error:
            self.close()
            raise EOFError("the other end of the channel is gone") from error
        except BaseException:
            self.close()  # what was read may be lost
            raise
        if self._closed:
            self.close()  # by another thread, which may not have seen these descriptors
        if flags & socket.MSG_CTRUNC:
            self.close()
            raise OSError("a worker's shared memory could not be received: there are too many open files: ulimit -n")
        if not data:
            inside = " in the middle of a message" if self._buffer else ""
            self.close()
            raise EOFError(f"the other end of the channel is gone{inside}")

    def _complete(self) -> _Message | None:
        """The header of the next message if all of it is here."""
        if len(self._buffer) < _HEADER.size:
            return None
        message = _Message(*_HEADER.unpack_from(self._buffer))
        most = _Message(_MOST_BYTES, MOST_PIECES, *[_MOST_NOTICES] * 3)
        if any(got > limit for got, limit in zip(message, most, strict=True)):
            raise self._refused(f"a header of {message}")
        return message if len(self._buffer) >= message.nbytes else None

    def _object(self, message: _Message) -> Any:
        start = _HEADER.size + message.listed_bytes
        listed, inline = self._buffer[_HEADER.size : start], self._buffer[start : message.nbytes]
        del self._buffer[: message.nbytes]
        try:
            # memory of its own, so that arrays in it are aligned
            pieces = [memoryview(inline), *self._opened(message, listed)]
        except ValueError as error:
            self._check()
            raise self._refused(str(error)) from error
        except BaseException:
            self.close()
            raise
        self.bytes_received += sum(piece.nbytes for piece in pieces)
        with stage("copy"):
            return decode_pieces(pieces)

    def _opened(self, message: _Message, listed: bytearray) -> list[memoryview]:
        """Takes notice of what a message says of slots; gives what they hold of its object."""
        slots_bytes = _SLOT.size * message.slots
        numbers = struct.unpack_from(f"<{message.notices}I", listed, slots_bytes)
        first_dropped = message.notices - message.dropped
        self._sent.returned.extend(numbers[: message.returned])
        self._sent.retired.extend(numbers[message.returned : first_dropped])
        for number in numbers[first_dropped:]:
            self._lent.forget(number)
        held: list[tuple[int, int]] = []
        for number, nbytes, slot_bytes in _SLOT.iter_unpack(listed[:slots_bytes]):
            if slot_bytes:
                self._add(number, slot_bytes)
            held.append((number, nbytes))
        return self._lent.lend(held)

    def _add(self, number: int, slot_bytes: int) -> None:
        """Maps a new slot."""
        try:
            fd = self._fds.popleft()
        except IndexError:
            raise ValueError(f"slot {number} without a descriptor") from None
        try:
            self._lent.add(number, fd, slot_bytes)
        finally:
            os.close(fd)

    def _refused(self, got: str) -> Exception:
        self.close()
        return ConnectionError(f"the other end of the channel doesn't speak as this one does: got {got}")

    def _check(self) -> None:
        if self._process != os.getpid():
            raise RuntimeError(
                f"a channel of process {self._process} was used in {os.getpid()}, which was forked from it: make a "
                "loader in the process that uses it"
            )
        if self._closed:
            raise EOFError("the channel is closed")

    def close(self) -> None:
        """Ends the connection: the other end's `receive` raises EOFError. May be called from any thread, again too."""
        self._closed = True
        if self._process == os.getpid():
            # a copy of the socket may be in a forked child; and a thread may wait in `receive`
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        while self._fds:
            with contextlib.suppress(IndexError):
                os.close(self._fds.popleft())
        self._lent.clear()
        if self._sending.acquire(blocking=False):  # else who sends does this
            self._sent.clear()
            self._sending.release()


def _drained(numbers: deque[int]) -> list[int]:
    drained = []
    with contextlib.suppress(IndexError):
        while True:
            drained.append(numbers.popleft())
    return drained
