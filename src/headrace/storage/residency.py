"""Files whose data is not in memory: asking for rows ahead of reading them, and reading files through.

A gather from a cold map waits for one row after another, and each wait makes the kernel read megabytes around the row.
So, while data is cold:

- scattered rows are asked for all at once before they are touched, and read-ahead is off (random rows of 3 KB came
  10 times as fast, reading a 50th of the bytes);
- consecutive rows are left to the kernel's read-ahead, which is right for them;
- files that fit into free memory are read through in the background at the disk's sequential speed.

While data is hot all that would cost a system call a row, so it is left out. Which of the two it is gets measured.

Guarantees:
    - `expect` may be called from any number of threads; its counters may lose an update, which moves a measurement.
    - The reading thread is a daemon, holds no reference to the Residency, and ends when that is collected, when it is
      done, or when memory runs short. There is at most one in a process, and none is started before cold data is met.
"""

import itertools
import resource
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from headrace.storage.local import LocalFile
from headrace.storage.memory import available_bytes

Ids: TypeAlias = npt.NDArray[np.int64]
Ranges: TypeAlias = Iterable[tuple[LocalFile, Ids, int]]

# Counting faults takes 0.7 us, looking at 8 rows 20 us: together 0.1 % of batches of 256 rows of 1 KB.
_HOT_CALLS = 32
_PROBE_CALLS = 512
_HOT_PROBES = 8
# Cold data turns hot within seconds. Of a file that is there to 90 %, 8 rows are all there too often to call it hot.
_COLD_CALLS = 8
_COLD_PROBES = 32
# Where nobody can tell what is resident, a batch is read without asking ahead, to see whether it faults: rarely.
_TRIAL_CALLS = 64
_REMEMBERED = 64
# A look at a few samples of a huge file should not make it be read through.
_SHARE_BEFORE_READING_THROUGH = 1 / 1024
_READER_NAME = "headrace-read-through"
_PIECE_BYTES = 1 << 20
_PIECES_BETWEEN_LOOKS = 64
_SPARE_BYTES = 256 << 20


class Residency:
    """Decides for one set of files whether rows must be asked for before they are read.

    Args:
        file_bytes: The size of each file.
        samples: How many samples the files hold.
        major_faults: Counts the times that this process waited for a page to be read.
        available: Counts the bytes of memory that are free.
    """

    def __init__(
        self,
        file_bytes: Mapping[Path, int],
        samples: int,
        *,
        major_faults: Callable[[], int] | None = None,
        available: Callable[[], int] = available_bytes,
    ) -> None:
        self.cold = False
        self._samples = samples
        self._file_bytes = file_bytes
        self._total_bytes = sum(file_bytes.values())
        self._major_faults = major_faults or count_major_faults
        self._available = available
        self._faults_before = self._major_faults()
        self._calls = 0
        self._next_check = 1
        self._next_probe = 1
        self._hot_calls = 1
        self._asked: dict[tuple[int, int, int], None] = {}
        self._asked_samples = 0
        self._may_read_through = True

    def expect(self, sample_ids: Ids, locate: Callable[[Ids], Ranges]) -> None:
        """To be called before samples are read, and as early as they are known; the second call for the same is free.

        Args:
            sample_ids: int64 (samples,), in the order of reading.
            locate: Returns where those samples lie; not called while data is hot.
        """
        self._calls += 1
        if (self.cold or self._calls >= self._next_check) and len(sample_ids):
            self._expect(sample_ids, locate)

    def _expect(self, sample_ids: Ids, locate: Callable[[Ids], Ranges]) -> None:
        batch = (len(sample_ids), int(sample_ids[0]), int(sample_ids[-1]))
        if batch in self._asked:
            return
        if self._calls >= self._next_check:
            self._measure(sample_ids, locate)
        if not self.cold:
            return
        scattered = not is_consecutive(sample_ids)
        for file, offsets, length_bytes in locate(sample_ids):
            file.read_ahead(wanted=not scattered)
            if scattered:
                file.will_need(offsets, length_bytes)
        self._asked_samples += len(sample_ids)
        self._asked[batch] = None
        for oldest in list(self._asked)[:-_REMEMBERED]:
            self._asked.pop(oldest, None)
        if self._may_read_through and self._asked_samples >= self._samples * _SHARE_BEFORE_READING_THROUGH:
            self._read_through()

    def _measure(self, sample_ids: Ids, locate: Callable[[Ids], Ranges]) -> None:
        """Sets `cold`, and when to measure next."""
        faults = self._major_faults()
        stalled = not self.cold and faults - self._faults_before > self._hot_calls
        probes = _COLD_PROBES if self.cold else _HOT_PROBES
        resident: bool | None = True
        if self.cold or stalled or self._calls >= self._next_probe:
            resident = is_resident(locate(sample_ids[:: -(-len(sample_ids) // probes)]))
            self._next_probe = self._calls + _PROBE_CALLS
        if self.cold:
            # Where nobody can tell, assume that the data is hot: the next call sees by its faults whether it is.
            self.cold = resident is False
            self._hot_calls = 1
        else:
            self.cold = stalled or resident is False
            self._hot_calls = min(_HOT_CALLS, 2 * self._hot_calls)
            self._may_read_through |= self._hot_calls == _HOT_CALLS
        if self.cold:
            self._next_check = self._calls + (_TRIAL_CALLS if resident is None else _COLD_CALLS)
        else:
            self._next_check = self._calls + self._hot_calls
        self._faults_before = faults

    def _read_through(self) -> None:
        """Starts reading the files through where they fit into free memory; once, until they have been hot since."""
        fits = self._total_bytes + _SPARE_BYTES < self._available()
        if not fits or start_reading_through(self, self._file_bytes, self._available):
            self._may_read_through = False


def is_consecutive(sample_ids: Ids) -> bool:
    """Whether there are samples, and each follows the one before it."""
    return (
        len(sample_ids) > 0
        and int(sample_ids[-1] - sample_ids[0]) == len(sample_ids) - 1
        and bool((np.diff(sample_ids) == 1).all())
    )


def is_resident(ranges: Ranges) -> bool | None:
    """Whether the first bytes of all ranges are in memory; None where there is none or the system can't tell."""
    answers = [file.is_resident(offset) for file, offsets, _ in ranges for offset in offsets.tolist()]
    return False if False in answers else None if None in answers or not answers else True


def count_major_faults() -> int:
    """How often this process has waited for a page to be read."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def start_reading_through(owner: object, file_bytes: Mapping[Path, int], available: Callable[[], int]) -> bool:
    """Starts the thread that reads files through while `owner` lives; False where another one is at it."""
    # One per process, not one per source: two would halve each other's speed.
    if any(thread.name == _READER_NAME for thread in threading.enumerate()):
        return False
    stop = threading.Event()
    weakref.finalize(owner, stop.set).atexit = False
    arguments = (list(file_bytes), stop, available)
    threading.Thread(target=read_through, args=arguments, name=_READER_NAME, daemon=True).start()
    return True


def read_through(paths: Iterable[Path], stop: threading.Event, available: Callable[[], int]) -> None:
    """Reads files from front to back, so that the kernel keeps them, until told to stop or memory is short."""
    buffer = bytearray(_PIECE_BYTES)
    for path in paths:
        try:
            with open(path, "rb", buffering=0) as file:
                for piece in itertools.count():
                    if stop.is_set() or (piece % _PIECES_BETWEEN_LOOKS == 0 and available() < _SPARE_BYTES):
                        return
                    if not file.readinto(buffer):
                        break
        except OSError:
            return  # whoever reads those rows gets the error, with their place
