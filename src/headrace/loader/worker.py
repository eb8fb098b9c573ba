"""A worker process: does jobs, one after the other, until the loader's process closes the channel or is gone.

Messages are plain tuples. To a worker: `(number, seed, epoch, steps, job)`, or `(number,)`: jobs before this one are
not wanted any more. From it: `(None, None)` when it is ready to work or `(None, error)` when it can't begin; then, in
the order of the jobs, `(number, batches, notes, spent, error, is_done)`: what was skipped for each batch and for the
one that failed, what took how many seconds, what ended the job early, a `PackedError` or None, and whether this is the
last reply to the job. The number is `ANY` where the job could not be unpickled.

Guarantees:
- One thread receives, always, so that who sends never waits for long; the main thread does everything else: it alone
  runs user code, and sends.
- The process ends when the loader's process closes the channel, or is gone, however that came: at once if it is idle,
  else after its job or half a second, whichever comes first. Nothing else ends it but the user's code and signals.
- An interrupt from the terminal, and a request to terminate, are left to the loader's process.
"""

import contextlib
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from queue import SimpleQueue
from typing import Any, Final, NamedTuple, NoReturn

import numpy as np
import torch

from headrace.errors import ArgumentError
from headrace.formats import Array
from headrace.loader.channel import Channel
from headrace.loader.encoding import ReplyPickler, encode
from headrace.loader.parcel import unpack
from headrace.loader.remote_errors import PackedError, packed
from headrace.loader.seeding import seed_generators, worker_seed
from headrace.loader.slots import map_memory
from headrace.loader.tunables import keep_freed_memory
from headrace.loader.worker_info import introduce
from headrace.metrics import Meter, Spent, metering, thread

ANY: Final = -1  # the number of a reply to a job that did not arrive whole
_PARENT_SECONDS = 1.0  # how often a worker looks whether its parent lives: the end of the socket may be held elsewhere
_REPLY_SECONDS = 0.05  # when what there is of a job is sent, though further steps are to come
_ENDING_SECONDS = 0.5  # what user code has to come to the end of a job that nobody waits for


class _Refused(NamedTuple):
    """A job that could not be unpickled here."""

    error: PackedError


class _Inbox:
    """What was received: jobs that wait, and which of them are still wanted."""

    def __init__(self, channel: Channel, parent: int) -> None:
        self.jobs: SimpleQueue[tuple[int, int, int, int, Any] | _Refused | None] = SimpleQueue()
        self.is_closed = False
        self.first_wanted = 0
        self._channel, self._parent = channel, parent
        threading.Thread(target=self._receive, name="headrace-inbox", daemon=True).start()

    def _receive(self) -> None:
        # whatever happens here, the process must not outlive it
        with contextlib.suppress(EOFError, OSError):
            while os.getppid() == self._parent:
                try:
                    message = self._channel.receive(_PARENT_SECONDS)
                except TimeoutError:
                    continue
                except (EOFError, OSError):
                    raise
                except Exception as error:  # noqa: BLE001 (unpickling may raise anything)
                    self.jobs.put(_Refused(packed(error)))
                    continue
                if len(message) == 1:
                    self.first_wanted = message[0]
                else:
                    self.jobs.put(message)
                del message  # the next one may be long in coming
        self.is_closed = True
        self.jobs.put(None)
        time.sleep(_ENDING_SECONDS)
        os._exit(0)


def serve(
    channel_fd: int,
    parcel_fd: int,
    trace_fd: int,
    done_fd: int,
    *,
    worker: int,
    num_workers: int,
    parent: int,
) -> NoReturn:
    """A worker's life.

    Args:
        channel_fd: The socket of its channel.
        parcel_fd: The parcel with everything that it works with.
        trace_fd: A file to which stacks are written, in a crash or when they are asked for by SIGUSR1.
        done_fd: Memory in which each worker counts the jobs that it is done with, and the steps of the next one, uint64
            (num_workers, 2).
        worker: Its number.
        num_workers: How many there are.
        parent: The process that started it.
    """
    _settle(trace_fd)
    channel = Channel(socket.socket(fileno=channel_fd))
    inbox = _Inbox(channel, parent)
    work: Any = None
    try:
        work = _begin(parcel_fd, worker, num_workers)
        channel.send((None, None))
        _work(channel, inbox, work, map_memory(done_fd, 16 * num_workers, shared=True).view(np.uint64)[2 * worker :])
    except EOFError:
        pass
    except BaseException as error:  # noqa: BLE001 (whatever it is, the loader's process shall see it)
        with contextlib.suppress(EOFError):
            channel.send((None, packed(error)))
        while not inbox.is_closed:  # an end would look like a death
            inbox.jobs.get()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(0)  # takes no time, where the interpreter's own end takes some 50 ms, and waits for threads


def _settle(trace_fd: int) -> None:
    """What a process of ours is like, whatever it does."""
    # functions, not SIG_IGN, which processes that user code starts would inherit
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    faulthandler.enable(trace_fd)
    faulthandler.register(signal.SIGUSR1, trace_fd, all_threads=True)
    keep_freed_memory()
    # as torch's workers: they are as many as there are cores to use
    torch.set_num_threads(1)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr] # this process may end at any moment


def _begin(parcel_fd: int, worker: int, num_workers: int) -> Any:
    """Makes the process what user code expects; gives the work to do."""
    contents = unpack(parcel_fd)
    os.close(parcel_fd)
    sys.argv[:] = contents["argv"]
    torch.set_default_dtype(contents["default_dtype"])
    seed = worker_seed(contents["seed"], worker)
    seed_generators(seed)
    introduce(worker=worker, num_workers=num_workers, seed=seed, dataset=contents["dataset"])
    worker_init_fn = contents["worker_init_fn"]
    if worker_init_fn is not None:
        try:
            worker_init_fn(worker)
        except Exception as error:
            error.add_note(f"in worker_init_fn({worker})")
            raise
    return contents["work"]


def _work(channel: Channel, inbox: _Inbox, work: Any, done: Array) -> None:
    with metering(Meter()):
        while (job := inbox.jobs.get()) is not None and not inbox.is_closed:
            if isinstance(job, _Refused):
                channel.send((ANY, [], [], ({}, {}), job.error, True))
            elif job[0] >= inbox.first_wanted:
                _do(channel, inbox, work, job, done)
            done[:2] = done[0] + 1, 0
            del job  # the next one may be long in coming


def _do(channel: Channel, inbox: _Inbox, work: Any, job: tuple[int, int, int, int, Any], done: Array) -> None:
    """Does a job and sends its replies: one, or several if it takes long."""
    # in a frame of its own, which keeps no batch when it ends
    number, seed, epoch, steps, content = job
    made = work(seed, epoch, content)
    count, is_done = 0, False
    while not is_done:
        began = time.monotonic()
        batches: list[Any] = []
        notes: list[list[Any]] = []
        error: PackedError | None = None
        try:
            for batch in made:
                batches.append(batch)
                notes.append(work.take_notes())
                count += 1
                done[1] = count
                is_done = inbox.is_closed or inbox.first_wanted > number
                if is_done or (count < steps and time.monotonic() - began >= _REPLY_SECONDS):
                    break
            else:
                is_done = True
        except BaseException as raised:  # noqa: BLE001 (whatever it is, the loader's process shall see it)
            error, is_done = packed(raised), True
        notes.append(work.take_notes())
        spent = _spent()
        try:
            channel.send((number, batches, notes, spent, error, is_done))
        except EOFError:
            raise
        except Exception as raised:  # noqa: BLE001 (user code may have made anything)
            sendable, unsendable = _sendable(batches)
            error, is_done = packed(raised if unsendable is None else unsendable), True
            channel.send((number, sendable, notes[: len(sendable) + 1], spent, error, True))


def _sendable(batches: list[Any]) -> tuple[list[Any], ArgumentError | None]:
    """The batches before the first one that can't be pickled, and what to say of that one."""
    for place, batch in enumerate(batches):
        try:
            encode(batch, pickler=ReplyPickler)
        except Exception as error:  # noqa: BLE001 (user code may have made anything)
            return batches[:place], ArgumentError(
                f"batches: expected what can be pickled, since it comes from a worker process, but {_culprit(batch)} "
                f'can\'t: {error}; give batches of arrays, or use worker_type="thread"'
            )
    return [], None  # it was something else, memory say


def _culprit(batch: Any) -> str:
    """Which part of a batch can't be pickled."""
    parts: Any = ()
    if isinstance(batch, Mapping):
        parts = batch.items()
    elif isinstance(batch, list | tuple):
        parts = enumerate(batch)
    for name, part in parts:
        try:
            encode(part, pickler=ReplyPickler)
        except Exception:  # noqa: BLE001 (user code may have made anything)
            return f"batch[{name!r}], of type {type(part).__qualname__},"
    return f"a {type(batch).__qualname__}"


def _spent() -> Spent:
    """What this thread has spent since the last call, without the stages that it was not in."""
    assert thread.clock is not None
    # `Meter.drain`, which looks after several threads, takes 15 µs
    taken = Spent({}, {})
    for taken_of, spent_of in zip(taken, thread.clock.spent, strict=True):
        for name, seconds in spent_of.items():
            if seconds:
                taken_of[name], spent_of[name] = seconds, 0.0
    return taken
