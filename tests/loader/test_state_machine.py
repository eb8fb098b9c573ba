"""Any life of a run: read, save, restore under other numbers, break off, jump; compared with plain lists."""

import json
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.errors import ArgumentError, StalePassError
from tests.loader.stand_ins import ids_of, numbers, over_ranks, plain_steps
from tests.order.strategies import examples

LAST_STEPS = st.sampled_from([{}, {"drop_last": True}, {"pad_last": True}])
SIZES = st.one_of(
    st.builds(lambda size: {"batch_size": size}, st.integers(1, 12)),
    st.builds(lambda size: {"global_batch_size": size}, st.integers(4, 40)),
)


class ARun(RuleBasedStateMachine):
    """A run over all ranks at once, and a plain account of where it must stand and what it must deliver next."""

    @initialize(
        samples=st.integers(1, 90),
        shuffle=st.sampled_from([False, "global", "window"]),
        lanes=st.sampled_from([None, 1, 4]),
        window=st.integers(1, 60),
        seed=st.integers(0, 2**64 - 1),
    )
    def begin(self, samples: int, shuffle: bool | str, lanes: int | None, window: int, seed: int) -> None:
        self.dataset, self.samples = numbers(samples), samples
        self.order = {"shuffle": shuffle, "lanes": lanes, "seed": seed}
        if shuffle == "window":
            self.order["shuffle_window"] = window
        self.rules: dict[str, Any] = {}  # of the last step
        self.loaders = over_ranks(self.dataset, 1, **self.order)
        self.global_size = 1
        self.epoch = self.position = 0
        self.continues = False  # whether the next pass goes on from a loaded state
        self.next_epoch: int | None = None
        self.passes: list[Any] | None = None
        # the real samples of one epoch up to a place, and that place: what "exactly once" is judged by
        self.consumed: list[int] = []
        self.consumed_until = (0, 0)

    @rule()
    def new_pass(self) -> None:
        self.passes = [iter(loader) for loader in self.loaders]
        if self.next_epoch is not None:
            self.epoch, self.position, self.continues = self.next_epoch, 0, False
        elif not self.continues and self.position:
            self.epoch, self.position = self.epoch + 1, 0
        self.next_epoch = None
        self.place = self.epoch, self.position  # of the pass, whatever set_epoch says meanwhile
        state = {**self.loaders[0].state_dict(), "epoch": self.epoch, "position": self.position}
        self.expected = [
            plain_steps(state, self.global_size, rank=rank, world_size=len(self.loaders), **self.rules)
            for rank in range(len(self.loaders))
        ]
        assert self.expected[0], "no pass is ever empty"
        if self.position == 0:
            self.consumed, self.consumed_until = [], self.place

    @precondition(lambda self: self.passes is not None)
    @rule(count=st.integers(1, 8))
    def read_some_batches(self, count: int) -> None:
        for _ in range(count):
            self.read_one()

    @precondition(lambda self: self.passes is not None)
    @rule()
    def read_to_the_end(self) -> None:
        while self.expected[0]:
            self.read_one()
        self.read_one()

    def read_one(self) -> None:
        assert self.passes is not None
        if not self.expected[0]:
            assert [next(passing, "the end") for passing in self.passes] == ["the end"] * len(self.passes)
            return
        batches = [next(passing) for passing in self.passes]
        assert [ids_of(batch) for batch in batches] == [steps.pop(0) for steps in self.expected]
        epoch, position = self.place
        follows = self.consumed_until == self.place
        self.place = epoch, min(position + self.global_size, self.samples)
        if follows:
            self.consumed += [sample for batch in batches for sample in real_ids_of(batch)]
            self.consumed_until = self.place
        self.continues = False
        self.epoch, self.position = self.place
        if not self.expected[0]:
            self.epoch, self.position = epoch + 1, 0
            if follows:
                self.check_the_epoch()

    def check_the_epoch(self) -> None:
        """Every sample exactly once, but for a tail that was to be dropped."""
        assert len(self.consumed) == len(set(self.consumed)) == self.consumed_until[1]
        assert len(self.consumed) == self.samples or self.rules.get("drop_last")

    @rule()
    def break_off(self) -> None:
        self.passes = None

    @rule(
        size=SIZES,
        world_size=st.integers(1, 4),
        num_workers=st.sampled_from([0, 0, 1, 3]),
        last=LAST_STEPS,
        order_is_given=st.booleans(),
    )
    def save_and_restore(
        self, size: dict[str, int], world_size: int, num_workers: int, last: dict[str, bool], order_is_given: bool
    ) -> None:
        state = json.loads(json.dumps(self.loaders[0].state_dict()))
        order = self.order if order_is_given else {}
        try:
            loaders = over_ranks(self.dataset, world_size, num_workers=num_workers, **size, **last, **order)
            for loader in loaders:
                loader.load_state_dict(state)
        except ArgumentError:
            return  # too few samples for so many ranks
        self.passes, self.loaders, self.rules = None, loaders, last
        self.global_size = size.get("global_batch_size") or size["batch_size"] * world_size
        if last.get("drop_last") and self.samples - self.position < self.global_size:
            self.epoch, self.position = self.epoch + 1, 0
        self.continues, self.next_epoch = True, None

    @rule()
    def load_its_own_state(self) -> None:
        for loader in self.loaders:
            loader.load_state_dict(loader.state_dict())
        self.the_pass_is_over()

    @rule(epoch=st.integers(0, 5), part=st.floats(0, 1))
    def seek(self, epoch: int, part: float) -> None:
        steps = len(self.loaders[0])
        step = round(part * steps)
        for loader in self.loaders:
            loader.seek(epoch=epoch, step=step)
        self.epoch, self.position = (epoch + 1, 0) if step == steps else (epoch, step * self.global_size)
        self.the_pass_is_over()

    def the_pass_is_over(self) -> None:
        for passing in self.passes or ():
            with pytest.raises(StalePassError):
                next(passing)
        self.passes, self.continues, self.next_epoch = None, True, None

    @rule(epoch=st.integers(0, 5))
    def set_epoch(self, epoch: int) -> None:
        for loader in self.loaders:
            loader.set_epoch(epoch)
        if not (self.continues and self.epoch == epoch):
            self.epoch, self.position, self.continues, self.next_epoch = epoch, 0, False, epoch

    @invariant()
    def all_ranks_stand_where_the_account_does(self) -> None:
        for loader in getattr(self, "loaders", ()):
            assert (loader.epoch, loader.position) == (self.epoch, self.position)
            assert loader.state_dict() == self.loaders[0].state_dict()

    def teardown(self) -> None:
        self.passes = None


def real_ids_of(batch: Any) -> list[int]:
    """A batch's samples without the repeats that only fill up a last step."""
    ids = ids_of(batch)
    valid = batch["__valid__"].tolist() if "__valid__" in batch else [True] * len(ids)
    return [sample for sample, is_valid in zip(ids, valid, strict=True) if is_valid]


class TestARun(ARun.TestCase):
    settings = examples(100)
