"""Every error that headrace raises on purpose, as one tree.

    HeadraceError
    ├── ArgumentError     (ValueError)    arguments that cannot work, alone or together
    ├── DependencyError   (ImportError)   an optional package is missing; the text names the pip line
    ├── FormatError       (ValueError)    a file is not what it claims to be
    │   └── ShardError                    a tar shard is damaged, or its members do not make samples
    ├── SampleError       (RuntimeError)  one sample cannot be read or transformed
    ├── StorageError      (OSError)       bytes cannot be had
    ├── ResumeError       (ValueError)    a state does not belong to this dataset and these arguments
    ├── StalePassError    (RuntimeError)  an iterator that a newer pass or a loaded state has ended
    └── LoaderError       (RuntimeError)  a loader cannot go on: a hang, a worker process that died, a fork

Each text says what was expected, what came, where, and what to do. Each class also derives from the built-in exception
that a caller would expect, so that code that knows nothing of headrace still catches it.
"""


class HeadraceError(Exception):
    """The base of every error that headrace raises on purpose."""


class ArgumentError(HeadraceError, ValueError):
    """Arguments that cannot work, alone or together."""


class DependencyError(HeadraceError, ImportError):
    """An optional package is missing; the text names the pip line that brings it."""


class FormatError(HeadraceError, ValueError):
    """A file is not what it claims to be."""


class ShardError(FormatError):
    """A tar shard is damaged, or its members do not make samples."""


class SampleError(HeadraceError, RuntimeError):
    """One sample cannot be read or transformed."""


class StorageError(HeadraceError, OSError):
    """Bytes cannot be had."""


class ResumeError(HeadraceError, ValueError):
    """A state does not belong to this dataset and these arguments."""


class StalePassError(HeadraceError, RuntimeError):
    """An iterator was used after a newer pass or a loaded state had ended it."""


class LoaderError(HeadraceError, RuntimeError):
    """A loader cannot go on: nothing came in time, a worker process died, or it was forked."""
