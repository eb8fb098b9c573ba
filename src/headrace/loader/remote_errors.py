"""Errors of worker processes, raised again in the loader's process.

Guarantees:
- Whatever user code raises can be packed, and what was packed can always be raised: an error whose class or attributes
  don't travel comes as a SampleError that holds all that was known as text.
- No `__init__` of a user's class is called: many of them take other arguments than the error keeps.
"""

import contextlib
import traceback
from typing import Any, NamedTuple

from headrace.errors import SampleError
from headrace.loader.encoding import ReplyPickler, decode, encode

# Of a traceback: what a screen or two hold, and no more of a line than tells what it was
_FIRST_LINES, _LAST_LINES, _LINE_LENGTH = 60, 120, 2000
_DEEPEST = 8  # groups in groups whose errors are rebuilt; deeper ones are text


class PackedError(NamedTuple):
    """An error, as it travels.

    Attributes:
        text: Its type and message.
        traceback: Where it was raised, and what it was caused by.
        notes: Its notes.
        made_of: Its class, arguments and state, encoded; None where its class can't be.
        inner: The errors of a group.
    """

    text: str
    traceback: str
    notes: list[str]
    made_of: bytes | None
    inner: list["PackedError"] | None


def packed(error: BaseException, depth: int = 0) -> PackedError:
    """An error, ready to travel to the process that started this one.

    Args:
        error: What was raised.
        depth: In how many groups it is.
    """
    summary = traceback.TracebackException.from_exception(error, compact=True)
    notes = [note for note in _listed(getattr(error, "__notes__", None)) if isinstance(note, str)]
    if depth == 0 and len(summary.stack) > 1:
        del summary.stack[0]  # of our own code, which has caught it
    summary.__notes__ = None  # they travel by themselves
    inner = list(error.exceptions) if isinstance(error, BaseExceptionGroup) and depth < _DEEPEST else None
    return PackedError(
        "".join(summary.format_exception_only()).rstrip()[:_LINE_LENGTH],
        _shortened("".join(summary.format())),
        notes,
        _made_of(error, is_group=inner is not None),
        None if inner is None else [packed(one, depth + 1) for one in inner],
    )


def unpacked(error: PackedError, where: str) -> BaseException:
    """The error again, with a note of where it was raised.

    Args:
        error: What came.
        where: The process it came from.
    """
    rebuilt = _rebuilt(error)
    # user code asked for one more element than there was; raised here, it would end the pass as if all were well
    if isinstance(rebuilt, StopIteration | StopAsyncIteration | GeneratorExit):
        rebuilt = _as_text(error._replace(text=f"user code raised {error.text}"))
    with contextlib.suppress(TypeError):  # a class may have `__notes__` of its own
        rebuilt.add_note(f"in {where}, where it was raised:\n{error.traceback}")
    return rebuilt


def _made_of(error: BaseException, *, is_group: bool) -> bytes | None:
    base = _builtin_base(type(error))
    try:
        _, arguments, *state = base.__reduce__(error)
        attributes = dict(state[0]) if state and state[0] else {}
        slots = object.__getstate__(error)
        attributes |= slots[1] if isinstance(slots, tuple) else {}
    except Exception:  # noqa: BLE001 (user code may do anything here)
        arguments, attributes = (), {}
    arguments = tuple(arguments)[: 1 if is_group else None]  # the errors of a group travel beside it
    whole = _encoded((type(error), arguments, attributes))
    if not whole:
        texts = {name: _sendable(attribute) for name, attribute in attributes.items()}
        whole = _encoded((type(error), tuple(map(_sendable, arguments)), texts))
    return whole or None


def _encoded(obj: Any) -> bytes:
    """An object as bytes; no bytes where it can't be pickled."""
    try:
        return bytes(encode(obj, pickler=ReplyPickler).in_bytes())
    except Exception:  # noqa: BLE001 (user code may do anything here)
        return b""


def _sendable(obj: Any) -> Any:
    """What is sent of an object: its text where it can't be pickled."""
    if _encoded(obj):
        return obj
    try:
        return repr(obj)[:_LINE_LENGTH]
    except Exception:  # noqa: BLE001 (user code may do anything here)
        return f"<{type(obj).__qualname__}>"


def _rebuilt(error: PackedError) -> BaseException:
    if error.made_of is None:
        return _as_text(error)
    try:
        cls, arguments, state = decode(memoryview(error.made_of))
        base = _builtin_base(cls)
        rebuilt: BaseException
        if error.inner is not None:
            rebuilt = base.__new__(cls, *arguments, [_rebuilt(inner) for inner in error.inner])
        else:
            rebuilt = base.__new__(cls, *arguments)
            with contextlib.suppress(Exception):
                base.__init__(rebuilt, *arguments)  # built in: OSError's, say, which sets `errno`
        BaseException.__setstate__(rebuilt, state)
        str(rebuilt)  # which may need what didn't travel
    except Exception:  # noqa: BLE001 (a class may not exist here, or be another one)
        return _as_text(error)
    return rebuilt


def _as_text(error: PackedError) -> SampleError:
    told = SampleError(error.text)
    for note in error.notes:
        told.add_note(note)
    return told


def _builtin_base(cls: type) -> Any:
    """The nearest class that is Python's own."""
    return next(base for base in cls.__mro__ if base.__module__ == "builtins" and issubclass(base, BaseException))


def _listed(notes: Any) -> list[Any]:
    return list(notes) if isinstance(notes, list | tuple) else []


def _shortened(text: str) -> str:
    lines = [line if len(line) <= _LINE_LENGTH else line[:_LINE_LENGTH] + " ..." for line in text.splitlines()]
    left_out = len(lines) - _FIRST_LINES - _LAST_LINES
    if left_out > 0:
        lines[_FIRST_LINES:-_LAST_LINES] = [f"  ... {left_out} lines more ..."]
    return "\n".join(lines)
