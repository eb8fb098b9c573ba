"""SharedPasses: which epoch a pass is, agreed upon by processes that never speak to each other."""

import copy
import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from headrace import ArgumentError, StalePassError
from headrace.datasets.passes import MAX_WORKERS, SharedPasses
from headrace.order import Layout
from tests.datasets.parts import as_worker

LAYOUTS = [Layout(False, 1, None), Layout("global", 4, None), Layout("window", 64, 1000)]


class TestWhatTheMainProcessSays:
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("seed", [0, 7, -1, 2**63, 2**64 - 1, -(2**63)])
    def test_everything_that_makes_an_order_arrives(self, layout, seed):
        passes = SharedPasses()
        passes.restart(3, 10**12, seed, layout)
        start = passes.start()
        assert (start.epoch, start.position, start.layout) == (3, 10**12, layout)
        assert (start.seed - seed) % 2**64 == 0

    def test_each_word_is_of_a_new_generation(self):
        passes = SharedPasses()
        generations = []
        for _ in range(3):
            passes.restart(0, 0, 0, LAYOUTS[0])
            generations.append(passes.start().generation)
        assert len(set(generations)) == 3

    def test_what_a_reader_takes_is_whole_while_the_writer_writes(self):
        passes = SharedPasses()
        passes.restart(0, 0, 0, LAYOUTS[0])
        ended = threading.Event()

        def write() -> None:
            for i in range(50):
                passes.restart(i, 2 * i, 3 * i, Layout("window", 1, 1 + i))
            ended.set()

        writer = threading.Thread(target=write)
        writer.start()
        while not ended.is_set():
            start = passes.start()
            assert (start.position, start.seed) == (2 * start.epoch, 3 * start.epoch)
        writer.join()

    def test_more_workers_than_there_are_places_for_are_refused(self):
        passes = SharedPasses()
        passes.restart(0, 0, 0, LAYOUTS[0])
        with as_worker(MAX_WORKERS, MAX_WORKERS + 1, 0), pytest.raises(ArgumentError, match="at most 1024"):
            passes.begin()
        with as_worker(MAX_WORKERS - 1, MAX_WORKERS, 0):
            assert passes.begin()[1:] == (0, 0)


class Passes(RuleBasedStateMachine):
    """Passes of fresh workers that are started, broken off, overtaken and followed, in any interleaving.

    What must hold: all workers of a pass that were not told that it is stale start it at one place; a pass that begins
    when no other is newer is the next epoch; the first after a word of the main process begins where that said.
    """

    @initialize()
    def make(self) -> None:
        self.passes = SharedPasses()
        self.passes.restart(0, 0, 0, LAYOUTS[0])
        self.open: list[tuple[int, list[int]]] = []  # base seed, and the workers that have not begun
        self.begun: dict[int, tuple[int, int, int]] = {}  # base seed -> generation, epoch, position
        self.next = (0, 0)
        self.seeds = 0

    @rule(num_workers=st.integers(1, 3))
    def start_a_pass(self, num_workers: int) -> None:
        # at most the newest two passes have workers that are still to come: an older iterator is gone by then
        self.open = [*self.open[-1:], (self.seeds, list(range(num_workers)))]
        self.seeds += 100

    @rule(data=st.data())
    def a_worker_begins(self, data: st.DataObject) -> None:
        waiting = [(seed, worker) for seed, workers in self.open for worker in workers]
        if not waiting:
            return
        seed, worker = data.draw(st.sampled_from(waiting))
        next(workers for its_seed, workers in self.open if its_seed == seed).remove(worker)
        forked = copy.copy(self.passes)
        generation = self.passes.start().generation
        with as_worker(worker, 3, seed):
            if seed in self.begun and self.begun[seed][0] != generation:
                with pytest.raises(StalePassError):
                    forked.begin()
                return
            start, epoch, position = forked.begin()
        got = (start.generation, epoch, position)
        if seed not in self.begun:
            assert got == (generation, *self.next)
            self.begun[seed], self.next = got, (epoch + 1, 0)
        assert got == self.begun[seed]

    @rule(epoch=st.integers(0, 9), position=st.integers(0, 50))
    def the_main_process_speaks(self, epoch: int, position: int) -> None:
        self.passes.restart(epoch, position, 0, LAYOUTS[0])
        assert self.passes.latest() is None
        self.next = (epoch, position)

    @rule()
    def the_main_process_asks_for_the_newest_pass(self) -> None:
        generation = self.passes.start().generation
        current = [(epoch, position) for its, epoch, position in self.begun.values() if its == generation]
        assert self.passes.latest() == max(current, default=None)


TestAnyInterleaving = Passes.TestCase
TestAnyInterleaving.settings = settings(max_examples=150, stateful_step_count=30)
