"""What `num_workers`, `worker_type` and the arguments around them mean together."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from headrace.errors import ArgumentError


@dataclass(frozen=True, slots=True)
class Workers:
    """Who reads ahead, and runs the user's functions.

    Attributes:
        count: Threads or processes; 0 where all happens in the caller's thread.
        are_processes: Whether they are processes.
        persistent: Whether processes outlive a pass.
        init_fn: Called with its number in each process as it starts.
        seeds: Whether the random generators of whole processes are seeded before each sample.
        timeout_seconds: How long the consumer waits for a batch; None for ever.
    """

    count: int
    are_processes: bool
    persistent: bool
    init_fn: Callable[[int], object] | None
    seeds: bool
    timeout_seconds: float | None

    @property
    def type(self) -> str:
        """What they are, in a word."""
        return "none" if self.count == 0 else "process" if self.are_processes else "thread"


def resolve_workers(
    *,
    num_workers: int,
    worker_type: str | None,
    persistent_workers: bool,
    worker_init_fn: Callable[[int], object] | None,
    multiprocessing_context: Any,
    seed_samples: bool | None,
    timeout: float | None,
    is_foreign: bool,
) -> Workers:
    """Checks the arguments of `headrace.DataLoader` of these names.

    Args:
        num_workers: As there, and so on.
        worker_type: By default processes for foreign datasets, else threads.
        persistent_workers: As torch's.
        worker_init_fn: As torch's.
        multiprocessing_context: torch's; anything that doesn't fork.
        seed_samples: By default in processes.
        timeout: Seconds; 0 and None are no limit.
        is_foreign: Whether the dataset's own code reads its samples.

    Raises:
        ArgumentError: They can't work, alone or together.
    """
    if isinstance(num_workers, bool) or not isinstance(num_workers, int | np.integer) or num_workers < 0:
        raise ArgumentError(f"num_workers: expected a number of threads or processes, 0 or more, got {num_workers!r}")
    if worker_type not in (None, "thread", "process"):
        raise ArgumentError(f'worker_type: expected None, "thread" or "process", got {worker_type!r}')
    if worker_type == "process" and num_workers == 0:
        raise ArgumentError('worker_type: "process" needs num_workers of 1 or more, got 0')
    are_processes = num_workers > 0 and (worker_type == "process" or (worker_type is None and is_foreign))
    for name, value in (("persistent_workers", persistent_workers), ("seed_samples", seed_samples)):
        if not isinstance(value, bool) and (value is not None or name == "persistent_workers"):
            raise ArgumentError(f"{name}: expected True or False, got {value!r}")
    _check_context(multiprocessing_context)
    if worker_init_fn is not None and not callable(worker_init_fn):
        raise ArgumentError(f"worker_init_fn: expected a function of a worker's number, got {worker_init_fn!r}")
    if worker_init_fn is not None and not are_processes:
        raise ArgumentError(
            "worker_init_fn: workers are threads of this process here, with nothing to initialise; leave it out, or "
            'give num_workers and worker_type="process"'
        )
    if seed_samples and num_workers > 0 and not are_processes:
        raise ArgumentError(
            "seed_samples: expected worker processes, or num_workers=0, with it: threads share the process's random "
            'generators with each other and with the training; give worker_type="process", or a transform of '
            "(sample, rng)"
        )
    return Workers(
        int(num_workers),
        are_processes,
        persistent_workers,
        worker_init_fn,
        are_processes if seed_samples is None else seed_samples,
        _timeout_seconds(timeout, num_workers),
    )


def _timeout_seconds(timeout: float | None, num_workers: int) -> float | None:
    is_number = isinstance(timeout, int | float | np.number) and not isinstance(timeout, bool)
    if timeout is not None and not (is_number and timeout >= 0 and math.isfinite(timeout)):
        raise ArgumentError(f"timeout: expected seconds, 0 or more (0 for no limit), got {timeout!r}")
    if not timeout:
        return None
    if num_workers == 0:
        raise ArgumentError(
            f"timeout: expected num_workers of 1 or more with it, got timeout={timeout!r} and num_workers=0: "
            "the caller's own thread can't watch itself"
        )
    return float(timeout)


def _check_context(context: Any) -> None:
    """Refuses a way of starting processes that forks this one, whose threads and locks would not survive it."""
    method = context if isinstance(context, str) or context is None else context.get_start_method()
    if method not in (None, "spawn", "forkserver"):
        raise ArgumentError(
            f'multiprocessing_context: expected None, "spawn" or "forkserver", got {method!r}: worker processes are '
            "always fresh ones, since threads and locks don't survive a fork"
        )
