"""Where a run stands: an epoch, a position in it, and the rules by which passes move them."""

from typing import Any

import numpy as np

from headrace.errors import ArgumentError
from headrace.order.steps import Steps

MAX_EPOCH = 2**62  # worker processes share it as an int64, and count on from it


def whole_number(value: Any) -> int | None:
    """The value as a plain int, also NumPy's own, which JSON can't hold; None where it is none, as a bool."""
    if isinstance(value, bool | np.bool_):
        return None
    try:
        return int(value.__index__())
    except (AttributeError, TypeError, ValueError):
        return None


def checked_epoch(epoch: Any) -> int:
    """The epoch that `set_epoch` was given, as a plain int.

    Raises:
        ArgumentError: It is none.
    """
    number = whole_number(epoch)
    if number is None or not 0 <= number <= MAX_EPOCH:
        raise ArgumentError(f"set_epoch: expected an epoch of 0 or more, got {epoch!r}")
    return number


class Progress:
    """The two integers that are the state of a whole run.

    A pass begins where a loaded state stands, else at the start of the next epoch not yet started; a pass that
    delivered a step has started its epoch. Delivering an epoch's last step moves on to the start of the next one, since
    some trainers stop at `len()` and never see the end. No pass is ever empty.

    Attributes:
        epoch: The epoch that the run stands in.
        position: Samples of that epoch consumed by all ranks together, up to the last delivered step.
    """

    def __init__(self) -> None:
        self.epoch, self.position = 0, 0
        self._resumes = False  # whether the next pass goes on from `position`, instead of leaving a started epoch
        self._next_epoch: int | None = None  # what `set_epoch` asked for, until a pass begins

    def begin(self, steps: Steps) -> tuple[int, int]:
        """Begins a pass and says where: (epoch, position)."""
        if self._next_epoch is not None:
            self._stand(self._next_epoch, 0)
        elif not self._resumes and self.position:
            self._stand(self.epoch + 1, 0)
        self._move(self.epoch, self.position, steps)
        return self.epoch, self.position

    def deliver(self, epoch: int, position: int, steps: Steps) -> None:
        """Notes that a step of `epoch` was delivered, up to `position`."""
        self._resumes = False
        self._move(epoch, position, steps)

    def resume(self, epoch: int, position: int, steps: Steps) -> None:
        """Makes the next pass go on from a position; from the next epoch, where too little is left for a step."""
        self._next_epoch = None
        self._move(epoch, position, steps)
        self._resumes = True

    def set_epoch(self, epoch: int) -> None:
        """Makes the next pass start this epoch, unless it goes on from a loaded state of the same epoch."""
        epoch = checked_epoch(epoch)
        if self._resumes and self.epoch == epoch:
            return
        self._stand(epoch, 0)
        self._next_epoch = epoch

    def seek(self, epoch: int, step: int, steps: Steps) -> None:
        """Makes the next pass go on from the start of a step of an epoch."""
        of_epoch, taken = whole_number(epoch), whole_number(step)
        if of_epoch is None or taken is None or not (0 <= of_epoch <= MAX_EPOCH and 0 <= taken <= len(steps)):
            raise ArgumentError(
                f"seek: expected an epoch of 0 or more and a step in 0..{len(steps)}, got {epoch!r}, {step!r}"
            )
        self.resume(of_epoch, steps.advanced(0, taken), steps)

    def _move(self, epoch: int, position: int, steps: Steps) -> None:
        if steps.remaining(position) == 0:
            epoch, position = epoch + 1, 0
        self.epoch, self.position = epoch, position

    def _stand(self, epoch: int, position: int) -> None:
        self.epoch, self.position, self._next_epoch, self._resumes = epoch, position, None, False
