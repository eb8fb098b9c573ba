"""Seeding: what user code draws from the process's generators is a function of seed, epoch and sample."""

import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch

from headrace.formats import DatasetSource
from headrace.loader.seeding import Seeding, kept_generators, seed_generators, worker_seed
from tests.order.reference import plain_hash

IDS = np.array([5, 0, 17])
# what samples 5, 0 and 17 have in epoch 2 of seed 7
GOLDEN = [0xB2AB906057F1FCA2, 0xDE80B59B6569F87F, 0xE4DCA234A59AAC05]
GOLDEN_WORKER = 0xC479EB020569D346


@pytest.fixture(autouse=True)
def _generators_as_before():
    with kept_generators():
        yield


def drawn() -> tuple[int, float, float]:
    """A number from each generator."""
    return int(torch.randint(1 << 40, ())), random.random(), float(np.random.rand())  # noqa: NPY002


class Drawing:
    """Samples that depend on the generators, all or some of them.

    Attributes:
        reads: Which samples were read, in order.
    """

    def __init__(self, draw: Any = drawn) -> None:
        self.reads: list[int] = []
        self._draw = draw

    def __len__(self) -> int:
        return 100

    def __getitem__(self, number: int) -> Any:
        self.reads.append(number)
        return number, self._draw(number) if self._draw is not drawn else drawn()


class DrawingTogether(Drawing):
    def __getitems__(self, numbers: list[int]) -> list[Any]:
        return [self[number] for number in numbers]


def read(dataset: Any, ids: Any, *, seeding: Seeding | None = None, seed: int = 7, epoch: int = 2) -> list[Any]:
    source = (seeding or Seeding()).seeded(DatasetSource(dataset), seed, epoch)
    return source.read(np.asarray(ids))["sample"].tolist()


def test_seeds_are_the_same_on_every_platform_and_in_every_release():
    assert Seeding().seeds(7, 2, IDS) == GOLDEN == [plain_hash(7, 2, 6, 1, number) for number in IDS.tolist()]
    assert worker_seed(7, 1) == GOLDEN_WORKER == plain_hash(7, 6, 3, 1)


def test_a_sample_draws_the_same_whatever_it_is_read_with_and_in_which_order():
    together = dict(read(Drawing(), [5, 0, 17]))
    assert len(set(together.values())) == 3
    assert dict(read(Drawing(), [17, 5])) == {17: together[17], 5: together[5]}
    drawn()
    assert dict(read(Drawing(), [0])) == {0: together[0]}


def test_what_it_draws_depends_on_the_seed_and_the_epoch():
    assert len({str(read(Drawing(), [5], seed=seed, epoch=epoch)) for seed in (7, 8) for epoch in (2, 3)}) == 4


def test_no_two_generators_draw_the_same():
    seed_generators(Seeding().seeds(7, 2, IDS)[0])
    words = {int(torch.randint(1 << 32, ())), random.getrandbits(32), int(np.random.randint(1 << 32, dtype=np.uint64))}  # noqa: NPY002
    assert len(words) == 3


def test_reads_transforms_and_batch_code_don_t_draw_what_another_has_drawn():
    seeding = Seeding()
    [(_, in_read)] = read(Drawing(), [5])
    seeding.set(seeding.seeds(7, 2, IDS)[0])
    in_transform = drawn()
    seeding.seed(7, 2, IDS)
    in_batch = drawn()
    assert len({in_read, in_transform, in_batch}) == 3


def test_a_dataset_that_reads_a_batch_at_once_draws_by_its_first_sample():
    first, second = read(DrawingTogether(), [5, 0])
    assert [first] == read(Drawing(), [5])
    assert [second] != read(Drawing(), [0])
    assert read(DrawingTogether(), [5, 0, 17])[:2] == [first, second]


@pytest.mark.parametrize("draw", [random.random, lambda: float(np.random.rand()), lambda: float(torch.rand(()))])  # noqa: NPY002
def test_a_sample_that_draws_after_many_that_did_not_draws_the_same(draw):
    def sometimes(number: int) -> float:
        return draw() if number % 3 == 0 else 0.0

    seeding = Seeding()
    ones = [pair for number in range(20) for pair in read(Drawing(sometimes), [number])]
    assert read(Drawing(sometimes), range(1, 20), seeding=seeding) == ones[1:]
    assert read(Drawing(sometimes), range(20), seeding=seeding) == ones


def test_only_the_first_sample_that_draws_is_read_twice():
    dataset, seeding = Drawing(lambda number: random.random() if number >= 3 else 0.0), Seeding()
    read(dataset, range(5), seeding=seeding)
    read(dataset, range(5), seeding=seeding)
    assert dataset.reads == [0, 1, 2, 3, 3, 4, 0, 1, 2, 3, 4]


def test_a_dataset_that_draws_nothing_is_read_once():
    dataset = Drawing(lambda number: 0.0)
    read(dataset, [3, 4])
    assert dataset.reads == [3, 4]


def test_an_error_comes_as_the_seeded_read_has_it():
    def unlucky(number: int) -> float:
        if random.random() < 0.5:
            raise ValueError(f"unlucky with {random.random()}")
        return 0.0

    def outcome(seeding: Seeding, number: int) -> str:
        try:
            return str(read(Drawing(unlucky), [number], seeding=seeding))
        except ValueError as error:
            return str(error)

    knowing = Seeding()
    outcomes = [outcome(knowing, number) for number in range(20)]
    assert outcomes == [outcome(Seeding(), number) for number in range(20)]
    assert any("unlucky" in text for text in outcomes)
    assert any("unlucky" not in text for text in outcomes)


def test_an_error_of_a_dataset_that_draws_nothing_comes_once():
    def failing(number: int) -> float:
        raise KeyError(number)

    dataset = Drawing(failing)
    with pytest.raises(KeyError, match="5"):
        read(dataset, [5])
    assert dataset.reads == [5]


def test_a_pickled_seeding_seeds_likewise():
    seeding = Seeding()
    expected = read(Drawing(), IDS, seeding=seeding)
    assert read(Drawing(), IDS, seeding=pickle.loads(pickle.dumps(seeding))) == expected


def fail_after_drawing() -> None:
    with kept_generators():
        seed_generators(1)
        np.random.normal()  # noqa: NPY002 (keeps a second number for later)
        raise ValueError("inside")


def test_kept_generators_are_as_they_were_whatever_happens_inside():
    with kept_generators():
        expected = drawn()
    with pytest.raises(ValueError, match="inside"):
        fail_after_drawing()
    assert drawn() == expected
