"""What a stored column asks its store for: whole blocks or single rows, ahead and in order, each once, and again after
an error."""

import threading

import numpy as np
import pytest

from headrace.errors import StorageError
from headrace.formats import NumpySource, source, stored_column, stored_memory, stored_rows
from headrace.order import Layout, Order
from headrace.storage import ReadCancelled, cancellable
from tests.formats.stand_in_store import BASE, StandInStore, stored

ROWS = 400
BLOCK = 8  # rows
ROW_BYTES = 16
HEADER_BYTES = 128
X = np.arange(ROWS * 4, dtype="<i4").reshape(ROWS, 4)


@pytest.fixture(autouse=True)
def blocks_of_eight_rows(monkeypatch):
    monkeypatch.setattr(source, "_BLOCK_BYTES", BLOCK * ROW_BYTES)
    monkeypatch.setattr(stored_rows, "GAP_BYTES", 2 * ROW_BYTES)


@pytest.fixture
def store(tmp_path):
    np.save(tmp_path / "x.npy", X)
    store = stored(tmp_path)
    yield store
    store.answer()
    store.release_memory()


def open_x(store: StandInStore, blocks_in_memory: int = 1000) -> NumpySource:
    made = NumpySource({"x": f"{BASE}/x.npy"}, store, memory_bytes=blocks_in_memory * BLOCK * ROW_BYTES)
    made._columns["x"].slots = min(blocks_in_memory, ROWS // BLOCK)  # small columns are kept as a whole otherwise
    store.forget_asked()
    return made


def rows_asked(store: StandInStore) -> list[tuple[int, int]]:
    """The rows of each range that was asked for, in the order of asking."""
    return [
        ((start - HEADER_BYTES) // ROW_BYTES, (stop - HEADER_BYTES) // ROW_BYTES) for _, start, stop, _ in store.asked
    ]


def blocks_asked(store: StandInStore) -> list[int]:
    """The blocks that were asked for; all ranges must be whole blocks that a disk cache may keep."""
    assert all(keep for *_, keep in store.asked)
    ranges = rows_asked(store)
    assert all(start % BLOCK == 0 and stop == start + BLOCK for start, stop in ranges)
    return [start // BLOCK for start, _ in ranges]


def read_right(made: NumpySource, ids) -> bool:
    return bool((made.read(ids)["x"] == X[np.asarray(ids, np.int64)]).all())


def test_announced_blocks_are_fetched_in_the_order_of_need_and_each_once(store):
    made = open_x(store)
    made.prefetch([90, 17, 91, 300, 16, 3])
    assert blocks_asked(store) == [11, 2, 37, 0]
    made.prefetch([18, 350])
    assert read_right(made, [90, 17, 91, 300, 16, 3])
    assert blocks_asked(store) == [11, 2, 37, 0, 43]


def test_announced_bytes_that_are_there_are_read_without_asking_again_and_without_waiting(store):
    made = open_x(store)
    made.prefetch(np.arange(ROWS))
    assert blocks_asked(store) == list(range(ROWS // BLOCK))  # at once, since all have room
    for transfer in store.transfers:
        transfer.wait_released()
    made.prefetch([0])
    assert blocks_asked(store) == list(range(ROWS // BLOCK))
    made.read(np.arange(ROWS))
    store.hold()
    assert read_right(made, np.arange(ROWS)[::-1])
    assert len(store.asked) == ROWS // BLOCK


@pytest.mark.parametrize("slots", [30, 50])
def test_an_epoch_asks_for_each_block_once_in_the_order_of_its_windows_where_memory_holds_one(store, slots):
    made = open_x(store, slots)
    layout = Layout("window", lanes=1, window=10 * BLOCK)
    ids = Order(ROWS, layout, seed=5, block_lengths=made.blocks.lengths).sample_ids(0, np.arange(ROWS))
    ahead = 8 * BLOCK
    made.prefetch(ids[:ahead])
    for start in range(0, ROWS, 16):
        made.prefetch(ids[start + ahead : start + ahead + 16])
        assert read_right(made, ids[start : start + 16])
    first_need = list(dict.fromkeys((ids // BLOCK).tolist()))
    assert blocks_asked(store) == first_need


def test_blocks_that_are_announced_wait_for_slots_and_never_push_out_what_is_still_needed(store):
    made = open_x(store, 4)
    ids = np.arange(10 * BLOCK)
    made.prefetch(ids)
    assert blocks_asked(store) == [0, 1]  # half of the slots at once
    for start in range(0, len(ids), 4):
        assert read_right(made, ids[start : start + 4])
    assert sorted(blocks_asked(store)) == list(range(10))


def test_where_all_of_a_column_fits_into_memory_what_is_missed_is_fetched_as_whole_blocks(store):
    made = open_x(store)
    assert read_right(made, [0, 399, 17])
    assert blocks_asked(store) == [0, 2, 49]
    assert read_right(made, [1, 398, 18])
    assert len(store.asked) == 3


def test_with_a_disk_cache_what_is_missed_is_fetched_as_whole_blocks(store):
    store.has_cache = True
    made = open_x(store, 4)
    assert read_right(made, [0, 399, 17])
    assert blocks_asked(store) == [0, 2, 49]


def test_scattered_rows_are_fetched_alone_and_neighbours_together(store):
    made = open_x(store, 4)
    assert read_right(made, [300, 0, 2, 200, 0, 202, 150])
    assert rows_asked(store) == [(0, 3), (150, 151), (200, 203), (300, 301)]
    assert not any(keep for *_, keep in store.asked)


def test_rows_of_a_block_that_would_cost_as_much_as_the_block_bring_it_as_a_whole(store):
    made = open_x(store, 4)
    assert read_right(made, [40, 42, 43, 45, 47, 80])
    assert rows_asked(store) == [(40, 48), (80, 81)]
    assert [keep for *_, keep in store.asked] == [True, False]


def test_a_block_whose_rows_are_missed_again_and_again_is_fetched_as_a_whole_at_last(store):
    made = open_x(store, 4)
    for row in (40, 44, 47):
        assert read_right(made, [row])
    assert rows_asked(store) == [(40, 41), (44, 45), (40, 48)]
    assert read_right(made, np.arange(40, 48))
    assert len(store.asked) == 3


def test_misses_of_long_ago_do_not_count(store):
    made = open_x(store, 1)
    for row in (40, 44):
        assert read_right(made, [row])
    for block in range(6, 12):
        assert read_right(made, [block * BLOCK])
    store.forget_asked()
    assert read_right(made, [47])
    assert rows_asked(store) == [(47, 48)]


def test_single_rows_are_fetched_in_turns_that_bound_their_memory(store, monkeypatch):
    monkeypatch.setattr(stored_column, "_RANGES_AT_ONCE_BYTES", 2 * ROW_BYTES)
    made = open_x(store, 4)
    assert read_right(made, [0, 100, 200, 300, 350])
    assert rows_asked(store) == [(0, 1), (100, 101), (200, 201), (300, 301), (350, 351)]


def test_more_blocks_than_slots_are_read_in_rounds(store):
    made = open_x(store, 3)
    ids = np.random.default_rng(0).permutation(ROWS)
    assert read_right(made, ids)
    assert sorted(blocks_asked(store)) == list(range(ROWS // BLOCK))


def test_the_block_that_was_used_least_recently_leaves_first(store):
    store.has_cache = True
    made = open_x(store, 3)
    for block in (0, 1, 2, 0, 3):
        made.read([block * BLOCK])
    store.forget_asked()
    for block in (0, 2, 3):
        made.read([block * BLOCK])
    assert store.asked == []
    made.read([1 * BLOCK])
    assert blocks_asked(store) == [1]


def test_what_is_announced_stays_though_it_was_used_least_recently(store):
    store.has_cache = True
    made = open_x(store, 4)
    made.prefetch([0, 8, 8])
    assert read_right(made, [0])
    for block in range(10, 20):
        assert read_right(made, [block * BLOCK] * 2 if block == 10 else [block * BLOCK])
        made.prefetch([8])
    store.forget_asked()
    made.read([8])
    assert store.asked == []


def test_rows_larger_than_a_block_are_blocks_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "_BLOCK_BYTES", 8)
    np.save(tmp_path / "x.npy", X[:10])
    store = stored(tmp_path)
    made = NumpySource({"x": f"{BASE}/x.npy"}, store)
    store.forget_asked()
    assert read_right(made, [3, 9, 3])
    assert rows_asked(store) == [(3, 4), (9, 10)]


def test_an_error_is_raised_to_those_who_wait_and_the_next_read_tries_again(store):
    made = open_x(store)
    assert read_right(made, [0])
    store.failing.add(f"{BASE}/x.npy")
    with pytest.raises(StorageError, match=r"cannot read bytes .* of stand-in://bucket/x\.npy: as the test wants it"):
        made.read([0, 100])
    assert read_right(made, [1])
    store.failing.clear()
    assert read_right(made, [0, 100])
    assert not made._columns["x"]._memory().arena._pins.any()


def test_an_error_while_reading_ahead_is_raised_by_the_read_that_needs_the_block_and_no_later_one(store):
    made = open_x(store)
    store.failing.add(f"{BASE}/x.npy")
    made.prefetch([0, 100])
    for transfer in store.transfers:
        transfer.wait_released()
    store.failing.clear()
    with pytest.raises(StorageError, match="as the test wants it"):
        made.read([0, 100])
    assert read_right(made, [0, 100])


def test_an_error_of_a_single_row_is_raised_and_the_next_read_tries_again(store):
    made = open_x(store, 4)
    store.failing.add(f"{BASE}/x.npy")
    with pytest.raises(StorageError, match="as the test wants it"):
        made.read([0, 100])
    store.failing.clear()
    assert read_right(made, [0, 100])


def test_a_store_that_can_not_even_start_leaves_the_column_as_it_was(store, monkeypatch):
    made = open_x(store, 2)

    def refuse(*_, **__):
        raise StorageError("no threads")

    with monkeypatch.context() as patched:
        patched.setattr(store, "start", refuse)
        made.prefetch([0, 100])
        for _ in range(5):
            with pytest.raises(StorageError, match="no threads"):
                made.read(np.arange(16))
    assert read_right(made, np.arange(ROWS))


def test_threads_that_miss_the_same_block_fetch_it_once(store):
    made = open_x(store)
    store.hold()
    threads = [threading.Thread(target=read_right, args=(made, [5, 6])) for _ in range(4)]
    for thread in threads:
        thread.start()
    store.answer()
    for thread in threads:
        thread.join()
    assert blocks_asked(store) == [0]


def test_all_columns_are_asked_for_before_any_is_waited_for(tmp_path, store):
    np.save(tmp_path / "z.npy", -X)
    store.objects[f"{BASE}/z.npy"] = (tmp_path / "z.npy").read_bytes()
    made = NumpySource({"x": f"{BASE}/x.npy", "z": f"{BASE}/z.npy"}, store)
    store.forget_asked()
    store.hold()
    with pytest.raises(ReadCancelled), cancellable(lambda: True):
        made.read([0])
    assert [url for url, *_ in store.asked] == [f"{BASE}/x.npy", f"{BASE}/z.npy"]


def test_a_wait_that_is_given_up_leaves_the_transfer_to_others(store):
    made = open_x(store)
    store.hold()
    with pytest.raises(ReadCancelled), cancellable(lambda: True):
        made.read([0])
    store.answer()
    assert read_right(made, [1])
    assert blocks_asked(store) == [0]
    assert not made._columns["x"]._memory().arena._pins.any()


def test_a_wait_for_a_slot_can_be_given_up(store):
    made = open_x(store, 1)
    store.hold()
    first = threading.Thread(target=read_right, args=(made, np.arange(BLOCK)))
    first.start()
    while not made._columns["x"]._memory().arena._pins.any():
        threading.Event().wait(0.001)
    with pytest.raises(ReadCancelled), cancellable(lambda: True):
        made.read(np.arange(BLOCK, 2 * BLOCK))
    store.answer()
    first.join()
    assert read_right(made, np.arange(2 * BLOCK))


def test_ending_the_announcements_gives_up_what_nobody_waits_for(store):
    made = open_x(store)
    store.hold()
    made.prefetch(np.arange(ROWS))
    waiting = threading.Thread(target=read_right, args=(made, [0]))
    waiting.start()
    while not made._columns["x"]._memory().arena._pins.any():
        threading.Event().wait(0.001)
    made.end_prefetch()
    for transfer in store.transfers[1:]:
        transfer.wait_released()
        assert transfer.failed
    store.answer()
    waiting.join()
    assert not store.transfers[0].failed
    assert read_right(made, np.arange(ROWS))


def test_memory_that_is_still_used_is_not_given_to_another_block(store):
    store.has_cache = True
    made = open_x(store, 2)
    store.keep_memory()
    assert read_right(made, [0])
    assert read_right(made, [8])
    with pytest.raises(ReadCancelled), cancellable(lambda: True):
        made.read([16])
    assert blocks_asked(store) == [0, 1]
    store.release_memory()
    assert read_right(made, [16])


def test_a_row_that_is_read_while_its_block_is_being_replaced_is_never_mixed_up(store):
    store.has_cache = True
    made = open_x(store, 2)
    wrong = []

    def hammer(seed):
        rng = np.random.default_rng(seed)
        wrong.extend(1 for _ in range(60) if not read_right(made, rng.integers(0, 5 * BLOCK, 30)))

    threads = [threading.Thread(target=hammer, args=[seed]) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("slots", [1, 2])
def test_many_threads_get_through_a_memory_of_few_tiny_blocks_and_each_round_brings_somebody_on(
    store, monkeypatch, slots
):
    store.has_cache = True
    monkeypatch.setattr(source, "_BLOCK_BYTES", ROW_BYTES)
    made = open_x(store, slots)
    assert len(made._columns["x"].rows) == ROWS
    wanted = [np.random.default_rng(seed).permutation(ROWS)[:50] for seed in range(12)]
    threads = [threading.Thread(target=read_right, args=(made, ids)) for ids in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.asked) <= sum(map(len, wanted))  # no block is pushed out before who asked for it has read it


def test_where_memory_is_short_few_slots_come_into_use(store):
    store.has_cache = True
    made = open_x(store, 40)
    arena = made._columns["x"]._memory().arena
    arena._available = lambda: 0
    assert read_right(made, np.arange(ROWS))
    assert arena._in_use == 1


def test_small_columns_are_kept_and_the_others_share_what_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "_BLOCK_BYTES", 1000)
    monkeypatch.setattr(stored_memory, "_LARGE_BLOCK_BYTES", 200)
    monkeypatch.setattr(stored_memory, "_SMALL_BLOCK_BYTES", 64)
    monkeypatch.setattr(stored_memory, "_KEPT_COLUMN_BYTES", 400)
    np.save(tmp_path / "image.npy", np.zeros((400, 100), "u1"))
    np.save(tmp_path / "vector.npy", np.zeros((400, 4), "u1"))
    np.save(tmp_path / "label.npy", np.zeros(400, "u1"))
    spec = {name: f"{BASE}/{name}.npy" for name in ("image", "vector", "label")}
    made = NumpySource(spec, stored(tmp_path), memory_bytes=4000)
    kept = {name: (column.rows.block_rows, column.slots) for name, column in made._stored.items()}
    assert made.blocks.lengths[0] == 9
    assert kept == {"image": (9, 3), "vector": (9, 3), "label": (144, 3)}


def bytes_asked(store: StandInStore) -> int:
    return sum(stop - start for _, start, stop, _ in store.asked)


def read_epoch(made: NumpySource, ids, *, ahead: int, batch: int = 10) -> None:
    """Reads ids as a loader does: some of them announced ahead."""
    made.prefetch(ids[:ahead])
    for start in range(0, len(ids), batch):
        if len(coming := ids[start + ahead : start + ahead + batch]):
            made.prefetch(coming)
        assert read_right(made, ids[start : start + batch])


@pytest.mark.parametrize("slots", [2, 4, 10])
@pytest.mark.parametrize("ahead", [10, 100, 400])
def test_a_shuffle_wider_than_the_memory_costs_no_more_than_its_rows_and_each_block_once(store, slots, ahead):
    made = open_x(store, slots)
    read_epoch(made, np.random.default_rng(1).permutation(ROWS), ahead=ahead)
    rows_cost = ROWS * (ROW_BYTES + stored_rows.GAP_BYTES)
    assert bytes_asked(store) <= rows_cost + X.nbytes
    blocks = [ranges for ranges in rows_asked(store) if ranges[1] - ranges[0] == BLOCK]
    assert len(blocks) <= 2 * ROWS // BLOCK


def test_announced_rows_that_lie_in_more_blocks_than_there_is_memory_for_are_fetched_alone(store):
    made = open_x(store, 4)
    ids = np.arange(0, ROWS, BLOCK)
    read_epoch(made, ids, ahead=20, batch=5)
    assert rows_asked(store) == [(row, row + 1) for row in ids.tolist()]


def test_with_a_disk_cache_whatever_is_announced_is_fetched_as_whole_blocks(store):
    store.has_cache = True
    made = open_x(store, 4)
    read_epoch(made, np.arange(0, ROWS, BLOCK), ahead=20, batch=5)
    assert set(blocks_asked(store)) == set(range(ROWS // BLOCK))


def test_a_block_that_waits_for_a_slot_is_fetched_at_once_when_it_is_needed_and_a_slot_is_free(store):
    made = open_x(store, 8)
    store.hold()
    made.prefetch(np.arange(6 * BLOCK))
    assert blocks_asked(store) == [0, 1, 2, 3]  # half of the slots at once
    with pytest.raises(ReadCancelled), cancellable(lambda: True):
        made.read([5 * BLOCK])
    assert blocks_asked(store) == [0, 1, 2, 3, 5]


def test_what_was_announced_counts_until_it_is_read_or_the_pass_ends(store):
    made = open_x(store, 4)
    ids = np.arange(0, 6 * BLOCK, BLOCK)
    arena = made._columns["x"]._memory().arena
    made.prefetch(ids)
    assert arena.open_blocks == 6
    assert read_right(made, ids)
    assert arena.open_blocks == 0
    made.prefetch(ids)
    made.end_prefetch()
    assert arena.open_blocks == 0


def test_a_pass_whose_blocks_exceed_the_memory_is_warned_of_once(store, caplog):
    made = open_x(store, 4)
    ids = np.random.default_rng(1).permutation(ROWS)
    read_epoch(made, ids, ahead=100)
    read_epoch(made, ids, ahead=100)
    (record,) = caplog.records
    assert record.name == "headrace"
    for text in (f"{BASE}/x.npy: ", "blocks of 128 bytes", "memory for 4 of them", "shuffle_window=", "memory_bytes="):
        assert text in record.message


def test_a_pass_whose_windows_fit_is_not_warned_of(store, caplog):
    made = open_x(store, 20)
    layout = Layout("window", lanes=1, window=10 * BLOCK)
    ids = Order(ROWS, layout, seed=5, block_lengths=made.blocks.lengths).sample_ids(0, np.arange(ROWS))
    read_epoch(made, ids, ahead=5 * BLOCK)
    assert caplog.records == []
    assert sorted(blocks_asked(store)) == list(range(ROWS // BLOCK))


def test_where_a_column_fits_into_memory_but_for_its_small_files_its_blocks_shrink_until_it_does(tmp_path, monkeypatch):
    monkeypatch.setattr(stored_memory, "_KEPT_COLUMN_BYTES", 0)
    monkeypatch.setattr(stored_memory, "_SMALL_BLOCK_BYTES", ROW_BYTES)
    for number, part in enumerate(np.split(X, np.arange(1, 101))):  # 100 files of one row, and one of 300
        np.save(tmp_path / f"{number:03}.npy", part)
    memory_bytes = X.nbytes * 5 // 4
    made = NumpySource({"x": f"{BASE}/*.npy"}, store := stored(tmp_path), memory_bytes=memory_bytes)
    column = made._stored["x"]
    assert column.slots == len(column.rows)
    assert column.slots * column.rows.block_bytes <= memory_bytes
    store.forget_asked()
    for seed in range(2):
        read_epoch(made, np.random.default_rng(seed).permutation(ROWS), ahead=100)
    assert bytes_asked(store) == X.nbytes


def test_a_column_that_is_kept_takes_little_more_memory_than_it_has_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(stored_memory, "_SMALL_BLOCK_BYTES", ROW_BYTES)
    for number, part in enumerate(np.split(X, np.arange(1, 101))):
        np.save(tmp_path / f"{number:03}.npy", part)
    column = NumpySource({"x": f"{BASE}/*.npy"}, stored(tmp_path), memory_bytes=1 << 20)._stored["x"]
    assert column.slots == len(column.rows)
    assert column.slots * column.rows.block_bytes <= 2 * X.nbytes


def test_a_column_of_hardly_any_bytes_is_kept_however_its_files_differ_in_length(tmp_path):
    for number, part in enumerate(np.split(X, np.arange(1, 101))):
        np.save(tmp_path / f"{number:03}.npy", part)
    column = NumpySource({"x": f"{BASE}/*.npy"}, stored(tmp_path), memory_bytes=1 << 20)._stored["x"]
    assert column.slots == len(column.rows)
