"""One pass over an epoch, as the training loop sees it.

Guarantees:
- A pass belongs to one consumer; `end` may be called from any thread, and no batch is delivered after it.
- However a pass comes to its end (the last batch, an error, `end`, being dropped), what it started is ended, once.
- Progress moves with each batch that is delivered, and never otherwise.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from headrace.errors import StalePassError
from headrace.loader.forks import Birth
from headrace.loader.pipeline import Brought, Pipeline
from headrace.loader.progress_bar import ProgressBar
from headrace.loader.trees import bytes_of


class Pass(Iterator[Any]):
    """Delivers the batches of a pass, and moves the run's progress with each.

    Attributes:
        epoch: The epoch that it goes over.
        position: Samples of it that all ranks together have consumed.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        birth: Birth,
        bar: Callable[[int, int], ProgressBar | None],
        turn: contextlib.AbstractContextManager[object],
    ) -> None:
        """Begins a pass where the run stands.

        Args:
            pipeline: What brings the batches.
            birth: Where the loader was made.
            bar: Makes the bar that shows an epoch from a position on, where one is wanted.
            turn: A lock; who holds it begins or ends passes, or moves progress.
        """
        self._schedule, self._pipeline, self._birth, self._turn = pipeline.schedule, pipeline, birth, turn
        self._recorder, self._delivery = pipeline.recorder, pipeline.delivery
        self._steps = steps = self._schedule.steps
        self.epoch, self.position = self._schedule.begin()
        self._last = steps.advanced(self.position, steps.remaining(self.position))
        self._why_ended: str | None = None
        brought = pipeline.bring(self.epoch, self.position)
        self._batches = brought.batches
        # runs when the loop drops the pass, on `end`, and when the interpreter ends
        self._close = weakref.finalize(self, _end, brought, pipeline.recorder.ended, birth)
        self._recorder.began(self.epoch, bar=bar(self.epoch, self.position), counts=pipeline.source.counts())

    def __next__(self) -> Any:
        if self._why_ended is not None:
            raise StalePassError(self._why_ended)
        if not self._birth.is_here:
            self._birth.check()
        recorder, schedule, steps = self._recorder, self._schedule, self._steps
        recorder.asked()
        try:
            batch, position = next(self._batches)
            if not self._delivery.is_plain:
                batch = self._delivery.receive(batch)
            samples = steps.share_rows(position - self.position)
            is_time = recorder.delivered(samples, 0 if recorder.sample_bytes else bytes_of(batch))
            if position == self._last:  # some trainers never ask for more
                self._close()
                is_time = True
            if is_time:
                recorder.tell(self._pipeline.stats())
        except BaseException as error:
            recorder.waited()
            self._close()
            if self._why_ended is not None:  # another thread has ended it meanwhile
                raise StalePassError(self._why_ended) from None
            if not isinstance(error, StopIteration):
                self._why_ended = (
                    f"this pass was ended by {type(error).__name__}; to go on after the last batch that it delivered, "
                    "call loader.load_state_dict(loader.state_dict()), then iter(loader)"
                )
            raise
        with self._turn:
            if self._why_ended is not None:  # by another thread, while the batch came, or by `on_stats`
                raise StalePassError(self._why_ended)
            self.position = position
            schedule.progress.deliver(self.epoch, position, steps)
        return batch

    def end(self, why: str) -> None:
        """Ends the pass in favour of another.

        Args:
            why: What a further `next` is told.
        """
        self._why_ended = why
        self._close()


def _end(brought: Brought, ended: Callable[[], None], birth: Birth) -> None:
    if birth.is_here:
        try:
            brought.close()
        finally:
            ended()
