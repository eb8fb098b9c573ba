"""One worker process, as the loader's process sees it.

Guarantees:
- It is a new interpreter: nothing of this process is forked, and the program that was started is not run again.
- It sees what this process sees of files, environment and `sys.path`, and writes to the same standard output. It
  doesn't get the terminal's interrupts.
- Between calls, this end holds two descriptors: the channel's, and that of the file for stacks.
"""

import contextlib
import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing import spawn
from typing import Any

from headrace.errors import LoaderError
from headrace.loader.channel import Channel
from headrace.loader.tunables import restoring_code, tuned_environment

_GROWTH_SECONDS = 0.02  # between two pieces of the stacks that a process writes, far more than it takes
_START_SECONDS = 60.0  # what a process may take to start before a shorter time limit is held against it
_DEATH_SECONDS = 5.0  # how long a process may take to end that has closed its channel
_KILL_SECONDS = 1.0  # how long a killed process may take to end
_REASONS = {
    signal.SIGKILL: "the system does this when memory runs out (dmesg tells): give fewer workers, smaller batches or a "
    "smaller prefetch_bytes",
    signal.SIGBUS: "a file that it had mapped was cut short, or shared memory ran out",
}
_log = logging.getLogger("headrace")
_CODE = """\
import sys
sys.path[:] = {path!r}
{restoring}
from headrace.loader.worker import serve
serve({fds}, worker={worker}, num_workers={num_workers}, parent={parent})
"""


class WorkerProcess:
    """A process that does jobs.

    Attributes:
        pid: Its number in the system.
        is_ready: Whether it has begun to work.
        sent: How many jobs it was given.
    """

    def __init__(self, worker: int, num_workers: int, *, parcel_fd: int, done_fd: int) -> None:
        """Starts it; comes back before it is ready.

        Args:
            worker: Its number.
            num_workers: How many there are.
            parcel_fd: The parcel with everything that it works with.
            done_fd: Memory in which it counts the jobs that it is done with.
        """
        self._worker = worker
        self.is_ready = False
        self.sent = 0
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._trace_fd = os.memfd_create("headrace-stacks", os.MFD_CLOEXEC)
        try:
            # each text goes to the end of what is there, so that the file can be cut to nothing before
            fcntl.fcntl(self._trace_fd, fcntl.F_SETFL, os.O_APPEND)
            fds = (theirs.fileno(), parcel_fd, self._trace_fd, done_fd)
            self._process = _start(fds, worker, num_workers)
        except BaseException:
            ours.close()
            os.close(self._trace_fd)
            raise
        finally:
            theirs.close()
        self._channel = Channel(ours)
        self.pid = self._process.pid

    def __str__(self) -> str:
        return f"worker process {self._worker} (pid {self.pid})"

    def send(self, *message: Any) -> bool:
        """Sends a message; whether there was somebody to send it to. If not, `reply` tells what has become of it."""
        try:
            self._channel.send(message)
        except EOFError:
            return False
        return True

    def reply(self, seconds: float) -> tuple[Any, ...]:
        """The next reply, or `(None, error)` where it could not begin.

        Args:
            seconds: How long to wait.

        Raises:
            TimeoutError: None came in time.
            EOFError: The process is dead, or about to end.
            OSError: There is no memory for the reply, or no descriptor.
            Exception: The reply can't be unpickled here.
        """
        while True:
            try:
                reply: tuple[Any, ...] = self._channel.receive(seconds)
            except TimeoutError:
                # a child that user code has forked may hold its end of the channel
                if self._process.poll() is not None:
                    raise EOFError(f"{self} is dead") from None
                raise
            if reply != (None, None):
                return reply
            self.is_ready = True

    def patience(self, timeout: float) -> float:
        """How many seconds to wait for a reply, given how many to wait once it has started."""
        return timeout if self.is_ready else max(timeout, _START_SECONDS)

    def death(self, doing: str, *, began: bool) -> LoaderError:
        """What to say when it is dead.

        Args:
            doing: What it was to do.
            began: Whether it can have begun with that.
        """
        try:
            code = self._process.wait(_DEATH_SECONDS)
        except subprocess.TimeoutExpired:
            return LoaderError(f"{self} has closed its channel while it worked on {doing}, and lives")
        when = f"while it worked on {doing}" if began and self.is_ready else f"before it could begin with {doing}"
        if code >= 0:
            hint = "user code has called os._exit" if self.is_ready else "what it wrote to standard error tells why"
            return LoaderError(f"{self} has ended with exit code {code} {when}\n  {hint}")
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = "unknown"
        lines = [f"{self} was ended by signal {-code} ({name}) {when}"]
        if -code in _REASONS:
            lines.append(f"  {_REASONS[signal.Signals(-code)]}")
        if trace := self._trace():
            lines += ["  its stacks, the innermost call first:", *(f"    {line}" for line in trace.splitlines())]
        return LoaderError("\n".join(lines))

    def ask_for_stacks(self) -> None:
        """Lets it tell what it does, whatever that is."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._trace_fd, 0)
            if self._process.poll() is None:
                os.kill(self.pid, signal.SIGUSR1)

    def stacks(self, deadline: float) -> str:
        """What each of its threads did when it was asked, the innermost call first.

        Args:
            deadline: When to stop waiting for it.
        """
        size = 0
        # it is written in pieces, and nothing tells that it is complete but that it grows no more
        while time.monotonic() < deadline:
            former, size = size, os.fstat(self._trace_fd).st_size
            if 0 < size == former:
                break
            time.sleep(_GROWTH_SECONDS)
        return self._trace() or "it doesn't tell"

    def _trace(self) -> str:
        try:
            trace = os.pread(self._trace_fd, 1 << 20, 0).decode(errors="replace")
        except OSError:
            return ""
        return trace.partition("\nExtension modules: ")[0].strip()

    def end(self) -> None:
        """Lets it end, which it does at once unless it is busy."""
        self._channel.close()

    def wait(self, seconds: float) -> None:
        """Waits for its end, and kills it if that takes longer than this."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            try:
                self._process.wait(_KILL_SECONDS)
            except subprocess.TimeoutExpired:  # the system holds it, for a disk that doesn't answer say
                _log.warning("%s was killed, but has not ended yet", self)
        self._close_trace()

    def disown(self) -> None:
        """In a process that was forked from the one it belongs to: closes what that has left open here."""
        self._channel.close()  # which ends nothing there
        self._close_trace()
        self._process.returncode = 0  # it is no child of this process, that would have to wait for it

    def _close_trace(self) -> None:
        fd, self._trace_fd = self._trace_fd, -1
        with contextlib.suppress(OSError):
            os.close(fd)


def _start(fds: tuple[int, ...], worker: int, num_workers: int) -> "subprocess.Popen[bytes]":
    code = _CODE.format(
        path=[entry for entry in sys.path if isinstance(entry, str)],  # a `Path` may be among them; imports ignore it
        fds=", ".join(map(str, fds)),
        worker=worker,
        num_workers=num_workers,
        parent=os.getpid(),
        restoring=restoring_code(),
    )
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined] # noqa: SLF001 (multiprocessing's)
    return subprocess.Popen(  # noqa: S603 (this interpreter)
        [os.fsdecode(spawn.get_executable()), *flags, "-c", code],
        stdin=subprocess.DEVNULL,
        pass_fds=fds,
        env=tuned_environment(),
        process_group=0,  # so that the terminal's signals, and those for a whole job, leave it alone
    )
