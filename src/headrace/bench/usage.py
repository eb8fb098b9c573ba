"""The CPU seconds and the memory of this process and its worker processes."""

import importlib.util
import resource
from pathlib import Path
from typing import Any, Protocol

_PROC = Path("/proc")


class Usage(Protocol):
    """What `measure` asks about the process; tests hand in their own."""

    def cpu_seconds(self) -> float | None:
        """CPU time spent so far by this process and its workers."""

    def memory_bytes(self) -> int | None:
        """Memory of this process alone: asked often, so it must cost little."""

    def total_memory_bytes(self) -> int | None:
        """Memory of this process and its workers: asked before and after a measurement."""


class ProcessUsage:
    """The usage of this process, from the system.

    Memory is what belongs to the job: pages of mapped files do not count, and pages that processes share count once
    (proportional set size). Workers that still run are seen only where psutil is installed.
    """

    def cpu_seconds(self) -> float | None:
        """CPU time of this process, of its live workers and of those that have ended."""
        own = resource.getrusage(resource.RUSAGE_SELF)
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        live = sum(_cpu_seconds(worker) for worker in _workers())
        return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime + live

    def memory_bytes(self) -> int | None:
        """Anonymous and shared memory of this process."""
        return _kilobytes(_PROC / "self" / "status", ("RssAnon:", "RssShmem:"))

    def total_memory_bytes(self) -> int | None:
        """Anonymous and shared memory of this process and its workers, shared pages counted once."""
        workers = _workers()
        if not workers:
            return self.memory_bytes()
        parts = [_proportional_bytes("self"), *(_proportional_bytes(str(worker.pid)) for worker in workers)]
        return sum(part for part in parts if part is not None) or None


def _workers() -> list[Any]:
    if importlib.util.find_spec("psutil") is None:
        return []
    import psutil

    return list(psutil.Process().children(recursive=True))


def _cpu_seconds(worker: Any) -> float:
    import psutil

    try:
        times = worker.cpu_times()
    except psutil.Error:  # it has ended in between; RUSAGE_CHILDREN tells its time once it is waited for
        return 0.0
    return float(times.user + times.system)


def _proportional_bytes(pid: str) -> int | None:
    return _kilobytes(_PROC / pid / "smaps_rollup", ("Pss_Anon:", "Pss_Shmem:"))


def _kilobytes(path: Path, names: tuple[str, ...]) -> int | None:
    """The sum of the named fields of a file of "Name:   123 kB" lines, in bytes; None where there is no such file."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(names))
