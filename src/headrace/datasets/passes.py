"""Which epoch a pass is, agreed upon by torch's worker processes without a word from the main process.

torch's DataLoader tells an IterableDataset neither that a pass begins nor which one it is, and trainers forget
`set_epoch`. So the processes find out through a little shared memory.

Guarantees:
- All workers of one pass agree on its epoch and start, whatever their timing, however many of them never came to start,
  and whether they are fresh in each pass or persistent.
- A worker that comes late, when a newer pass or a word of the main process has overtaken its pass, moves neither.
- No locks and no processes: each cell has one writer, and carries a hash of its content, so that a reader takes it
  whole or reads it again.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import get_worker_info

from headrace.errors import ArgumentError, StalePassError
from headrace.order import Layout, Shuffle, hash_words

ENDED = "this pass was ended by a newer one, or by a loaded state; call iter() again for the current pass"
MAX_WORKERS = 1024
_REMEMBERED = 4  # passes of each process: two older iterators with late workers may be about when a new one begins
_PLACES = range(3 * _REMEMBERED - 3, -1, -3)  # where each begins in its cell, the oldest first
_SHUFFLES: tuple[Shuffle, ...] = (False, "global", "window")


@dataclass(frozen=True, slots=True)
class Start:
    """Where the next pass begins, and in which order; written by the main process alone.

    Attributes:
        generation: How often the main process has said where to start.
        epoch: The epoch of the first pass since then.
        position: Samples of that epoch consumed before it; later passes begin at 0.
        seed: The order's seed.
        layout: The order's layout.
    """

    generation: int
    epoch: int
    position: int
    seed: int
    layout: Layout


class SharedPasses:
    """The passes over one dataset, as all the processes that work on it see them."""

    def __init__(self) -> None:
        # cell 0: the main process's Start; cell 1: the passes that it began itself, (generation, token, epoch) each,
        # the newest first; cell 2 + w: those that worker w began
        self._cells = torch.zeros((2 + MAX_WORKERS, 3 * _REMEMBERED + 1), dtype=torch.int64).share_memory_()
        self._begun_here = 0

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Shares the memory of a copy or a pickle too; that of a worker process is shared already."""
        self.__dict__.update(state)
        self._cells.share_memory_()

    def restart(self, epoch: int, position: int, seed: int, layout: Layout) -> None:
        """Says where the next pass begins; to be called by the main process."""
        seed = seed - 2**64 if seed >= 2**63 else seed
        window = -1 if layout.window is None else layout.window
        generation = int(self._cells[0, 0]) + 1
        self._write(0, [generation, epoch, position, seed, _SHUFFLES.index(layout.shuffle), layout.lanes, window])

    def start(self) -> Start:
        """What the main process said last."""
        generation, epoch, position, seed, shuffle, lanes, window = self._read(0)[:7]
        return Start(
            generation, epoch, position, seed, Layout(_SHUFFLES[shuffle], lanes, None if window < 0 else window)
        )

    def begin(self) -> tuple[Start, int, int]:
        """Begins this process's part of a pass: what the main process said, and where to start, (epoch, position).

        Raises:
            ArgumentError: There are too many workers, or torch is seeded alike before passes with new workers.
            StalePassError: Other workers began this pass before the main process said where the next one starts.
        """
        worker = get_worker_info()
        cell = 1 if worker is None else 2 + worker.id
        if cell >= len(self._cells):
            raise ArgumentError(f"num_workers: expected at most {MAX_WORKERS}, got more")
        # the workers of one pass have the same base seed, fresh ones another in each pass, persistent ones count
        base = -1 if worker is None else worker.seed - worker.id
        token = int(hash_words(base, self._begun_here).view("int64")[0])
        self._begun_here += 1
        own, start, passes = self._read(cell), self.start(), self._begun()
        if any(
            since == start.generation and its_token == token
            for since, its_token in zip(own[::3], own[1::3], strict=True)
        ):
            raise ArgumentError(
                "this pass can't be told from a former one: torch's seed was set to the same value before both, and "
                "the workers are new in each\n"
                "  call set_epoch(epoch) before each pass, or give the DataLoader persistent_workers=True"
            )
        current = {its_token: epoch for since, its_token, epoch in passes if since == start.generation}
        epoch = current.get(token)
        if epoch is None:
            if token not in own[1::3] and any(token == its_token for _, its_token, _ in passes):
                raise StalePassError(ENDED)
            epoch = max(current.values(), default=start.epoch - 1) + 1
        self._write(cell, [start.generation, token, epoch, *own[:-3]])
        return start, epoch, start.position if epoch == start.epoch else 0

    def latest(self) -> tuple[int, int] | None:
        """Where the newest pass started, (epoch, position); None where none began since the main process spoke."""
        start = self.start()
        epoch = max((epoch for since, _, epoch in self._begun() if since == start.generation), default=None)
        if epoch is None:
            return None
        return epoch, start.position if epoch == start.epoch else 0

    def _begun(self) -> list[tuple[int, int, int]]:
        """Generation, token and epoch of the last passes of each process, the older ones first."""
        used = 1 + torch.nonzero(self._cells[1:, 0]).flatten()
        read = [self._read(cell) for cell in used.tolist()]
        return [(values[at], values[at + 1], values[at + 2]) for at in _PLACES for values in read if values[at]]

    def _write(self, cell: int, values: list[int]) -> None:
        values = values + [0] * (3 * _REMEMBERED - len(values))
        self._cells[cell] = torch.tensor([*values, _checksum(values)], dtype=torch.int64)

    def _read(self, cell: int) -> list[int]:
        while True:
            *values, checksum = self._cells[cell].tolist()
            if checksum == _checksum(values) or not any(values):
                return [int(value) for value in values]


def _checksum(values: list[int]) -> int:
    return int(hash_words(*values).view("int64")[0])
