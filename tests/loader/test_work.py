"""What worker processes do, seen without a process."""

import numpy as np
import pytest

from headrace.formats import DatasetSource
from headrace.loader.plan import Group
from headrace.loader.seeding import Seeding
from headrace.loader.user_code import UserCode
from headrace.loader.work import ReadAndFinish

JOB = Group(np.arange(4), [0, 2, 4], None, [2, 4])


class OutOfMemory(Seeding):
    """Seeding that can't begin."""

    def seeded(self, source, seed, epoch):
        raise MemoryError("nothing is left")


def work(seeding: Seeding) -> ReadAndFinish:
    return ReadAndFinish(DatasetSource(["a", "b", "c", "d"]), UserCode(None), skips=False, seeding=seeding)


def test_a_job_gives_the_batch_of_each_of_its_steps():
    assert list(work(Seeding())(0, 0, JOB)) == [["a", "b"], ["c", "d"]]


def test_nothing_is_done_before_the_first_batch_is_asked_for():
    batches = work(OutOfMemory())(0, 0, JOB)  # a failure here would be told as one of the worker's start
    with pytest.raises(MemoryError, match="nothing is left"):
        next(batches)
