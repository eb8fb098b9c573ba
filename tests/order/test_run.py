"""Any run whatever: every sample exactly once in each epoch, through any number of interruptions and changes of shape.

Order, Steps, Progress and State together, against a plain list of what was consumed.
"""

import json
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.errors import ArgumentError
from headrace.order import Layout, Order, Progress, State, Steps
from tests.order.reference import epoch_order
from tests.order.strategies import WindowCase, examples, window_cases

FINGERPRINT = "9f3c1a2077ab04d1"
RULES: list[dict[str, bool]] = [{}, {"drop_last": True}, {"pad_last": True}]


@dataclass
class Model:
    """What the design says of passes, over a plain list of samples."""

    epoch: int = 0
    consumed: list[int] = field(default_factory=list)  # of `epoch`, in order
    resumes: bool = False
    asked: int | None = None  # by set_epoch
    passing: tuple[int, list[int]] | None = None  # the live pass: its epoch, and what was consumed of it

    def next_pass(self) -> tuple[int, list[int]]:
        if self.asked is not None:
            return self.asked, []
        if self.resumes or not self.consumed:
            return self.epoch, list(self.consumed)
        return self.epoch + 1, []

    def stand(self, epoch: int, consumed: list[int], *, resumes: bool = False, asked: int | None = None) -> None:
        self.epoch, self.consumed, self.resumes, self.asked = epoch, list(consumed), resumes, asked


class Run(RuleBasedStateMachine):
    """A training run that is interrupted, restored and reshaped at will."""

    @initialize(case=window_cases(), shuffle=st.sampled_from([False, "global", "window"]))
    def start(self, case: WindowCase, shuffle: Any) -> None:
        window = case.window if shuffle == "window" else None
        self.case, self.shuffle = case._replace(epoch=0), shuffle
        self.order = self._new_order(case, Layout(shuffle, case.lanes, window))
        self.steps = [Steps(case.samples, case.lanes, case.samples // 10 + 1)]
        self.progress, self.model = Progress(), Model()
        self.saved: list[tuple[str, int, list[int]]] = []
        self.epochs: dict[int, list[int]] = {}

    def _new_order(self, case: WindowCase, layout: Layout) -> Order:
        return Order(case.samples, layout, seed=case.seed, block_lengths=case.array())

    def whole(self, epoch: int) -> list[int]:
        """The plain list of an epoch."""
        if epoch not in self.epochs:
            case = self.case
            shape = {"lanes": case.lanes, "window": case.window, "seed": case.seed, "epoch": epoch}
            self.epochs[epoch] = epoch_order(case.samples, self.shuffle, **shape, block_lengths=case.lengths)
        return self.epochs[epoch]

    @rule(count=st.integers(1, 6))
    def deliver_steps(self, count: int) -> None:
        for _ in range(count):
            if self.model.passing is None:
                self._begin()
            self._deliver_one()

    @rule()
    def deliver_to_the_end_of_the_epoch(self) -> None:
        if self.model.passing is None:
            self._begin()
        while self.model.passing is not None:
            self._deliver_one()

    @rule()
    def begin_a_pass(self) -> None:
        self._begin()

    def _begin(self) -> None:
        epoch, consumed = self.model.next_pass()
        assert self.progress.begin(self.steps[0]) == (epoch, len(consumed))
        self.model.stand(epoch, consumed, resumes=self.model.resumes and self.model.asked is None)
        self.model.passing = epoch, consumed

    def _deliver_one(self) -> None:
        assert self.model.passing is not None
        epoch, consumed = self.model.passing
        position, expected = len(consumed), self.whole(epoch)
        shares = [steps.share(position, 1) for steps in self.steps]
        sizes = [len(share.sequence) for share in shares]
        assert min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 1
        parts = [share.sequence if share.valid is None else share.sequence[share.valid] for share in shares]
        step = self.order.sample_ids(epoch, np.concatenate(parts)).tolist()
        size = self.steps[0].global_batch_size
        assert sorted(step) == sorted(expected[position : position + size])
        following = self.steps[0].advanced(position)
        self.progress.deliver(epoch, following, self.steps[0])
        consumed = consumed + step
        assert len(consumed) == following
        left = len(expected) - following
        if left == 0 or (self.steps[0].drop_last and left < size):
            self._check_finished(epoch, consumed, left)
            self.model.stand(epoch + 1, [], asked=self.model.asked)
            self.model.passing = None
        else:
            self.model.stand(epoch, consumed, asked=self.model.asked)
            self.model.passing = epoch, consumed

    def _check_finished(self, epoch: int, consumed: list[int], dropped: int) -> None:
        # the interruptions may have fallen anywhere: together they delivered each sample once, but for a dropped tail
        assert len(set(consumed)) == len(consumed)
        assert sorted(consumed + self.whole(epoch)[len(consumed) :]) == list(range(self.case.samples))
        assert len(consumed) + dropped == self.case.samples

    @precondition(lambda self: self.model.passing is not None)
    @rule()
    def break_off(self) -> None:
        self.model.passing = None

    @rule()
    def save(self) -> None:
        layout = self.order.layout
        state = State(
            self.progress.epoch, self.progress.position, self.order.seed, layout, self.case.samples, FINGERPRINT
        )
        self.saved.append((json.dumps(state.as_dict()), self.model.epoch, list(self.model.consumed)))

    @precondition(lambda self: self.saved)
    @rule(
        pick=st.integers(0, 100),
        size=st.integers(1, 60) | st.integers(1, 400),
        world_size=st.integers(1, 9),
        last=st.sampled_from(RULES),
    )
    def restore_in_another_shape(self, pick: int, size: int, world_size: int, last: dict[str, bool]) -> None:
        text, epoch, consumed = self.saved[pick % len(self.saved)]
        size = max(size, self.case.samples // 15)  # a machine of few hundred steps
        state = State.from_dict(json.loads(text))
        left = self.case.samples - len(consumed)
        try:
            steps = Steps(state.samples, state.layout.lanes, size, 0, world_size, **last)
            if steps.remaining(state.position):
                steps.check_last(state.position)
        except ArgumentError:
            tails = {self.case.samples % size, left % size} - {0}
            assert size < world_size or (last.get("drop_last") and size > state.samples) or min(tails) < world_size
            return
        self.steps = [replace(steps, rank=rank) for rank in range(world_size)]
        self.order = self._new_order(self.case, state.layout)
        self.progress = Progress()
        self.progress.resume(state.epoch, state.position, steps)
        if last.get("drop_last") and left < size:
            epoch, consumed = epoch + 1, []
        self.model = Model()
        self.model.stand(epoch, consumed, resumes=True)

    @rule(offset=st.integers(-2, 2))
    def set_epoch(self, offset: int) -> None:
        epoch = max(self.model.epoch + offset, 0)
        self.progress.set_epoch(epoch)
        if not (self.model.resumes and self.model.epoch == epoch):
            self.model.stand(epoch, [], asked=epoch)

    @rule(epoch=st.integers(0, 5), fraction=st.floats(0, 1))
    def seek(self, epoch: int, fraction: float) -> None:
        steps = self.steps[0]
        step = round(fraction * len(steps))
        self.progress.seek(epoch, step, steps)
        consumed = self.whole(epoch)[: step * steps.global_batch_size]
        if step == len(steps):
            epoch, consumed = epoch + 1, []
        self.model = Model()
        self.model.stand(epoch, consumed, resumes=True)

    @invariant()
    def the_run_stands_where_the_plain_list_does(self) -> None:
        if hasattr(self, "model"):
            assert (self.progress.epoch, self.progress.position) == (self.model.epoch, len(self.model.consumed))


TestRun = Run.TestCase
TestRun.settings = settings(examples(200), stateful_step_count=40)
