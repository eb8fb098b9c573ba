"""Decoded pieces in memory: right samples under any budget, each piece decoded no more often than it must be."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import FormatError
from headrace.formats import Column
from headrace.formats.piece_memory import PieceMemory
from headrace.formats.piece_reading import Need, Pieces, Reading
from headrace.formats.room import Room
from headrace.storage import ReadCancelled, cancellable

ROW_BYTES = 16  # an int64 and two float32


class Samples:
    """Groups of pieces that are decoded from the beginning of a group, or from where decoding stopped before."""

    def __init__(self, lengths: list[list[int]], memory_rows: int, *, texts: bool = False, helps: bool = False) -> None:
        flat = np.array([length for group in lengths for length in group], np.int64)
        groups = np.repeat(np.arange(len(lengths)), [len(group) for group in lengths])
        self.pieces = Pieces(np.concatenate(([0], np.cumsum(flat))), groups, flat * ROW_BYTES)
        self.samples, self.texts = int(flat.sum()), texts
        self.decoded: Counter[int] = Counter()
        self.stopped: dict[int, int] = {}  # where a group goes on
        self.failing: set[int] = set()
        self.refused: set[int] = set()
        self.texts_of = ""
        self.failure: type[BaseException] = ValueError
        self.need = Need(self.pieces)
        self.going = threading.Event()
        self.going.set()
        self.held_groups = set(groups.tolist())
        self.begun = threading.Event()
        columns = {"id": Column(np.dtype(np.int64)), "pair": Column(np.dtype(np.float32), (2,))}
        others = ["text"] if texts else []
        self.memory = PieceMemory(
            self.pieces,
            columns,
            others,
            memory_rows * ROW_BYTES,
            self._decode,
            need=self.need,
            helps=helps,
            name="samples",
        )

    def _decode(self, group, first, last):
        self.begun.set()
        if group in self.held_groups:
            self.going.wait()
        beginning = int(np.searchsorted(self.pieces.groups, group))
        start = self.stopped.pop(group, beginning)
        for piece in range(start if start <= first else beginning, last + 1):
            if piece in self.failing:
                raise self.failure(f"piece {piece}")
            self.decoded[piece] += 1
            self.stopped[group] = piece + 1
            ids = np.arange(self.pieces.starts[piece], self.pieces.starts[piece + 1])
            refused = f"piece {piece}" if piece in self.refused else None
            yield piece, _Content(ids, self.texts_of if self.texts else None, refused)

    def check(self, ids) -> None:
        """Reads samples, and makes sure that they are the right ones."""
        ids = np.asarray(ids, np.int64)
        out = {"id": np.full(len(ids), -1), "pair": np.empty((len(ids), 2), np.float32)}
        others = self.memory.read(ids, self.pieces.locate(ids), out)
        np.testing.assert_array_equal(out["id"], ids)
        np.testing.assert_array_equal(out["pair"], np.stack([ids, -ids], axis=1).astype(np.float32))
        if others:
            assert others["text"].to_pylist() == [f"{i}{self.texts_of}" for i in ids.tolist()]

    def assert_idle(self) -> None:
        """Nothing is held for anybody, and what is free is all that no piece lies in."""
        memory = self.memory
        assert (len(memory._readings), memory._making, memory._pinned()) == (0, [], set())
        assert memory._held_bytes == sum(held.held_bytes for held in memory._held.values())
        rows = sum(held.rows for held in memory._held.values())
        free = sum(end - start for start, end in zip(memory._room._starts, memory._room._ends, strict=True))
        assert rows + free == len(memory._arrays["id"])
        assert set(memory._held) == set(np.flatnonzero(memory._is_there).tolist())


class _Content:
    def __init__(self, ids, texts, refused):
        self._ids, self._texts, self._refused = ids, texts, refused

    def views(self):
        if self._refused:
            raise FormatError(self._refused)
        view = self._ids.copy()
        view.flags.writeable = False
        return {"id": view}

    def write(self, out):
        if self._refused:
            raise FormatError(self._refused)
        if "id" in out:
            out["id"][...] = self._ids
        out["pair"][:, 0], out["pair"][:, 1] = self._ids, -self._ids

    def others(self):
        if self._texts is None:
            return {}
        return {"text": pa.array([f"{i}{self._texts}" for i in self._ids.tolist()], pa.string())}


lengths_of_groups = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=4), min_size=1, max_size=8).filter(
    lambda groups: sum(map(sum, groups)) > 0
)


@given(lengths=lengths_of_groups, memory_rows=st.integers(1, 60), texts=st.booleans(), data=st.data())
def test_any_samples_are_read_right_whatever_the_memory(lengths, memory_rows, texts, data):
    samples = Samples(lengths, memory_rows, texts=texts)
    for _ in range(4):
        if data.draw(st.booleans()):
            start = data.draw(st.integers(0, samples.samples - 1))
            ids = list(range(start, data.draw(st.integers(start + 1, samples.samples))))
        else:
            ids = data.draw(st.lists(st.integers(0, samples.samples - 1), min_size=1, max_size=30))
        if data.draw(st.booleans()):
            samples.memory.announce(np.array(ids))
        samples.check(ids)
        samples.assert_idle()
        held = samples.memory.as_dict()["held_bytes"]
        assert held <= max(memory_rows, *(max(group) for group in lengths)) * ROW_BYTES or texts


@given(lengths=lengths_of_groups, seed=st.integers(0, 1000), texts=st.booleans())
def test_what_fits_is_decoded_once(lengths, seed, texts):
    samples = Samples(lengths, 10_000, texts=texts)
    rng = np.random.default_rng(seed)
    for _ in range(5):
        samples.check(rng.integers(0, samples.samples, 20))
    assert max(samples.decoded.values()) == 1


def test_announced_windows_are_decoded_once_and_leave_room_for_the_next():
    samples = Samples([[10]] * 40, 100)
    rng = np.random.default_rng(0)
    windows = [rng.permutation(np.arange(start, start + 40)) for start in range(0, 400, 40)]
    samples.memory.announce(windows[0])
    for number, window in enumerate(windows):
        if number + 1 < len(windows):
            samples.memory.announce(windows[number + 1])
        for batch in window.reshape(5, 8):
            samples.check(batch)
            assert samples.memory.as_dict()["held_pieces"] <= 4
    assert set(samples.decoded.values()) == {1}
    assert samples.memory.as_dict() == {
        "read_samples": 400,
        "decoded_samples": 400,
        "decoded_pieces": 40,
        "decoded_bytes": 400 * ROW_BYTES,
        "held_pieces": 0,
        "held_bytes": 0,
    }


def test_pieces_that_are_not_announced_go_first():
    samples = Samples([[10]] * 6, 30)
    samples.memory.announce(np.arange(10))
    samples.check([0])
    for start in (10, 20, 30, 40, 50):
        samples.check([start])
    samples.check(range(1, 10))
    assert samples.decoded[0] == 1


def test_the_piece_that_was_used_longest_ago_makes_room():
    samples = Samples([[10]] * 4, 30)
    for start in (0, 10, 20, 0, 30):
        samples.check([start])
    samples.check([0])
    assert samples.decoded == {0: 1, 1: 1, 2: 1, 3: 1}
    samples.check([10])
    assert samples.decoded[1] == 2


def test_pieces_that_are_decoded_in_passing_are_kept_if_they_are_due():
    samples = Samples([[10, 10, 10], [10]], 30)
    samples.memory.announce(np.array([0, 25, 5]))
    samples.check([25])
    samples.check([0, 5])
    assert samples.decoded == {0: 1, 1: 1, 2: 1}


def test_forgetting_what_was_announced_gives_its_memory_back():
    samples = Samples([[10]] * 4, 30)
    assert samples.memory.announce(np.array([35, 3, 36])) == [3, 0]
    assert samples.need.has_due(3)
    assert not samples.need.has_due(1)
    samples.check([3])
    samples.memory.forget_announced()
    assert not samples.need.has_due(3)
    assert samples.memory.as_dict()["held_pieces"] == 0
    samples.check([3, 35, 36])


def test_one_piece_larger_than_the_memory_is_read_all_the_same():
    samples = Samples([[50], [1]], 3)
    samples.check([49, 0])
    samples.check([50, 3])


def test_an_error_while_decoding_is_raised_and_leaves_the_memory_sound():
    samples = Samples([[10, 10], [10]], 20)
    samples.failing = {1}
    for _ in range(3):
        with pytest.raises(ValueError, match="piece 1"):
            samples.check([0, 15, 25])
    samples.check([0, 25])
    samples.failing = set()
    samples.check([0, 15, 25])
    samples.assert_idle()


@pytest.mark.parametrize("place", ["decoding", "writing", "gathering"])
def test_an_interrupt_leaves_nothing_behind_even_while_its_traceback_is_kept(place, monkeypatch):
    samples = Samples([[10, 10], [10]], 20, texts=True)
    samples.check([25])

    def interrupt(*_):
        raise KeyboardInterrupt

    if place == "decoding":
        samples.failing, samples.failure = {1}, KeyboardInterrupt
    else:
        target, method = (_Content, "write") if place == "writing" else (Reading, "gather")
        monkeypatch.setattr(target, method, interrupt)
    with pytest.raises(KeyboardInterrupt) as kept:
        samples.check([0, 15, 25])
    samples.failing = set()
    monkeypatch.undo()
    samples.check([0, 15, 25])
    samples.assert_idle()
    assert kept.value.__traceback__ is not None


def test_a_piece_that_is_refused_in_passing_is_no_matter_of_others():
    samples = Samples([[10, 10]], 100)
    samples.memory.announce(np.arange(20))
    samples.refused = {0}
    samples.check([15])
    with pytest.raises(FormatError, match="piece 0"):
        samples.check([5])
    samples.check([16])
    samples.assert_idle()


def test_text_that_takes_more_than_was_thought_is_kept_within_the_budget():
    samples = Samples([[10]] * 20, 100, texts=True)
    samples.texts_of = "x" * 100
    for start in range(0, 200, 5):
        samples.check(range(start, start + 5))
        assert samples.memory.as_dict()["held_bytes"] <= 100 * ROW_BYTES + 10 * 130


def test_threads_decode_different_groups_and_each_once():
    samples = Samples([[10]] * 16, 1000)
    ids = np.arange(160)
    with ThreadPoolExecutor(4) as pool:
        for read in [pool.submit(samples.check, np.roll(ids, -40 * i)) for i in range(4)]:
            read.result()
    assert set(samples.decoded.values()) == {1}


@pytest.mark.parametrize("memory_rows", [10, 25, 60])
def test_threads_that_crowd_a_small_memory_all_get_their_samples(memory_rows):
    samples = Samples([[10, 7], [3], [9, 9, 9], [10]] * 3, memory_rows, texts=True)

    def hammer(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(25):
            ids = rng.integers(0, samples.samples, 12)
            if seed % 2:
                samples.memory.announce(ids)
            samples.check(ids)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(hammer, range(6)))
    samples.assert_idle()


def test_a_wait_for_another_thread_ends_when_nobody_wants_it_any_more():
    samples = Samples([[10]], 100)
    samples.going.clear()
    gone = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(samples.check, [0])
        assert samples.begun.wait(30)

        def second() -> None:
            with cancellable(gone.is_set):
                samples.check([1])

        waits = pool.submit(second)
        gone.set()
        with pytest.raises(ReadCancelled):
            waits.result(30)
        samples.going.set()
        first.result(30)
    samples.check([1])


def test_scattered_reading_that_decodes_again_and_again_is_said_once(caplog):
    samples = Samples([[10]] * 50, 100)
    rng = np.random.default_rng(0)
    for _ in range(200):
        samples.check(rng.integers(0, 500, 3))
    [record] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert record.getMessage().startswith("samples: for each sample that was read, ")
    assert 'shuffle="window"' in record.getMessage()


@pytest.mark.parametrize("memory_rows", [100, 1000])
def test_reading_that_decodes_what_it_must_is_not_commented(caplog, memory_rows):
    samples = Samples([[10]] * 50, memory_rows)
    for _ in range(5):
        for start in range(0, 500, 5):
            samples.check(range(start, start + 5))
    assert not caplog.records


@given(st.lists(st.integers(1, 8), max_size=60), st.randoms(use_true_random=False))
def test_room_is_never_given_twice_and_comes_back_whole(sizes, random):
    room, taken = Room(50), []
    owner = np.zeros(50, np.bool_)
    for size in sizes:
        if taken and random.random() < 0.4:
            start, rows = taken.pop(random.randrange(len(taken)))
            room.give_back(start, rows)
            owner[start : start + rows] = False
        start = room.take(size)
        free = "".join("." if used else "f" for used in owner)
        assert (start is None) == ("f" * size not in free)
        if start is not None:
            assert not owner[start : start + size].any()
            owner[start : start + size] = True
            taken.append((start, size))
    for start, rows in taken:
        room.give_back(start, rows)
    assert room.take(50) == 0


def test_a_thread_that_would_wait_for_another_decodes_what_comes_next():
    samples = Samples([[10]] * 4, 100, helps=True)
    samples.memory.announce(np.arange(30))
    samples.going.clear()
    samples.held_groups = {0}
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(samples.check, [0])
        assert samples.begun.wait(30)
        second = pool.submit(samples.check, [1])
        with samples.memory._changed:
            assert samples.memory._changed.wait_for(samples.memory._is_there[1:3].all, 30)
        assert not second.done()
        samples.going.set()
        first.result(30)
        second.result(30)
    samples.check(range(10, 30))
    assert samples.decoded == {0: 1, 1: 1, 2: 1}
    samples.assert_idle()


def test_what_a_helping_thread_meets_is_said_to_whoever_needs_it():
    samples = Samples([[10]] * 3, 100, helps=True)
    samples.memory.announce(np.arange(30))
    samples.going.clear()
    samples.held_groups, samples.failing = {0}, {1}
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(samples.check, [0])
        assert samples.begun.wait(30)
        second = pool.submit(samples.check, [1])
        with samples.memory._changed:
            assert samples.memory._changed.wait_for(lambda: samples.memory._is_there[2], 30)
        samples.going.set()
        first.result(30)
        second.result(30)
    with pytest.raises(ValueError, match="piece 1"):
        samples.check([15])
    samples.assert_idle()
