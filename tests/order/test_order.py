"""Order: an epoch is a permutation of its samples, a pure function of (dataset, seed, epoch)."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ArgumentError
from headrace.order import Layout, Order
from tests.order.reference import epoch_order, lane_and_place, lane_lengths, windows_of_lane
from tests.order.strategies import WindowCase, examples, lane_counts, seeds, window_cases


def whole_epoch(order: Order, epoch: int) -> list[int]:
    return order.sample_ids(epoch, np.arange(order.samples)).tolist()


@given(window_cases())
@examples(200)
def test_a_window_shuffle_is_exactly_what_the_design_says(case: WindowCase) -> None:
    expected = epoch_order(
        case.samples,
        "window",
        lanes=case.lanes,
        window=case.window,
        seed=case.seed,
        epoch=case.epoch,
        block_lengths=case.lengths,
    )
    assert whole_epoch(case.order(), case.epoch) == expected


@given(st.integers(1, 600), st.sampled_from([False, "global"]), lane_counts, seeds, st.integers(0, 2**40))
@examples(200)
def test_file_order_and_a_global_shuffle_are_exactly_what_the_design_says(
    samples: int, shuffle: bool | str, lanes: int, seed: int, epoch: int
) -> None:
    order = Order(samples, Layout(shuffle, lanes, None), seed=seed)
    assert whole_epoch(order, epoch) == epoch_order(samples, shuffle, lanes=lanes, seed=seed, epoch=epoch)


@given(window_cases(), st.sampled_from([False, "global", "window"]))
@examples(200)
def test_every_mode_gives_every_sample_exactly_once(case: WindowCase, shuffle: bool | str) -> None:
    layout = Layout(shuffle, case.lanes, case.window if shuffle == "window" else None)
    order = Order(case.samples, layout, seed=case.seed, block_lengths=case.array())
    assert sorted(whole_epoch(order, case.epoch)) == list(range(case.samples))


@pytest.mark.parametrize(
    "case",
    [
        WindowCase([1], 1, 1, 0, 0),
        WindowCase([1], 64, 1, 0, 0),
        WindowCase([3], 16, 3, 0, 0),
        WindowCase([100], 4, 100, 0, 0),
        WindowCase([0, 0, 7, 0, 5, 0], 2, 4, 0, 0),
        WindowCase([1] * 50 + [50], 8, 20, 0, 0),
        WindowCase([10] * 10, 1, 7, 0, 0),
        WindowCase([10] * 10, 32, 1, 0, 0),
    ],
    ids=[
        "one sample",
        "one sample in 64 lanes",
        "fewer samples than lanes",
        "one block, and a window over all",
        "empty blocks at both ends and between",
        "one block with half of the samples",
        "one lane, windows that cut blocks",
        "a window smaller than the lanes",
    ],
)
def test_edge_cases_give_every_sample_exactly_once_in_the_design_s_order(case: WindowCase) -> None:
    ids = whole_epoch(case.order(), 0)
    assert sorted(ids) == list(range(case.samples))
    assert ids == epoch_order(case.samples, "window", lanes=case.lanes, window=case.window, block_lengths=case.lengths)


@given(window_cases())
@examples(100)
def test_every_sample_stays_inside_its_window_of_its_lane(case: WindowCase) -> None:
    ids = np.array(whole_epoch(case.order(), case.epoch))
    # windows of one sample and one lane leave the sequence of the permuted blocks as it is
    unshuffled = case._replace(lanes=1, window=1).order()
    ordered = whole_epoch(unshuffled, case.epoch)
    visits = [lane_and_place(number, case.lanes) for number in range(case.samples)]
    start = 0
    for lane, length in enumerate(lane_lengths(case.samples, case.lanes)):
        in_lane = {place: sample for (of, place), sample in zip(visits, ids.tolist(), strict=True) if of == lane}
        for _, begin, end in windows_of_lane(lane, length, case.window, case.lanes):
            assert {in_lane[place] for place in range(begin, end)} == set(ordered[start + begin : start + end])
        start += length


def test_blocks_are_spread_over_the_whole_epoch() -> None:
    blocks, length = 512, 8
    layout = Layout("window", 16, 512)
    order = Order(blocks * length, layout, seed=1, block_lengths=np.full(blocks, length))
    numbers = np.empty(blocks * length)
    total = np.zeros(blocks)
    for epoch in range(40):
        numbers[order.sample_ids(epoch, np.arange(blocks * length))] = np.arange(blocks * length)
        total += numbers.reshape(blocks, length).mean(1)
    # a block's samples come together, anywhere: uniform on the epoch, with standard deviation n / sqrt(12)
    deviation = blocks * length / np.sqrt(12 * 40)
    z = (total / 40 - blocks * length / 2) / deviation
    assert np.abs(z).max() < 4.5
    assert 0.85 < z.std() < 1.15


def test_every_part_of_the_epoch_holds_its_share_of_every_part_of_the_file() -> None:
    order = Order(2**16, Layout("window", 64, 2**13), seed=2, block_lengths=np.full(2**11, 32))
    quarters = order.sample_ids(0, np.arange(2**16)).reshape(4, -1) // 2**14
    for quarter in quarters:
        # 512 of 2048 blocks, of 4 kinds: hypergeometric, deviation 8.5 blocks of 32 samples
        assert np.abs(np.bincount(quarter, minlength=4) - 4096).max() < 4 * 8.5 * 32


@given(window_cases(), st.sampled_from([False, "global", "window"]), st.data())
@examples(100)
def test_the_grouping_of_sequence_numbers_into_calls_changes_nothing(
    case: WindowCase, shuffle: bool | str, data: st.DataObject
) -> None:
    layout = Layout(shuffle, case.lanes, case.window if shuffle == "window" else None)
    order = Order(case.samples, layout, seed=case.seed, block_lengths=case.array())
    whole = np.array(whole_epoch(order, case.epoch))
    some = data.draw(st.lists(st.integers(0, case.samples - 1), max_size=40))
    assert order.sample_ids(case.epoch, some).tolist() == whole[some].tolist()
    for number in some[:3]:
        assert order.sample_ids(case.epoch, [number]).tolist() == [whole[number]]


@pytest.mark.parametrize("lanes", [1, 64])
@pytest.mark.parametrize("group", [1, 240, 4096])
def test_a_large_order_is_the_same_in_small_calls_and_large_ones(lanes: int, group: int) -> None:
    lengths = np.random.default_rng(0).integers(0, 4000, 1000)
    samples = int(lengths.sum())
    order = Order(samples, Layout("window", lanes, 70_000), seed=3, block_lengths=lengths)
    near = np.arange(samples // 2, samples // 2 + 65_536)
    far = np.random.default_rng(1).integers(0, samples, 65_536)
    for sequence in (near, far):
        expected = order.sample_ids(5, sequence)
        for start in (0, 12_345, 65_536 - group):
            part = slice(start, start + group)
            assert order.sample_ids(5, sequence[part]).tolist() == expected[part].tolist()


@given(window_cases(), st.sampled_from(["global", "window"]))
@examples(50)
def test_seeds_that_are_equal_modulo_2_to_the_64_give_the_same_order(case: WindowCase, shuffle: str) -> None:
    layout = Layout(shuffle, case.lanes, case.window if shuffle == "window" else None)
    first, second = (
        Order(case.samples, layout, seed=seed, block_lengths=case.array())
        for seed in (case.seed % 2**64, (case.seed + 2**63) % 2**64 - 2**63)
    )
    assert whole_epoch(first, case.epoch) == whole_epoch(second, case.epoch)


def test_seeds_and_epochs_give_different_orders() -> None:
    lengths = np.full(50, 20)
    for layout in (Layout("global", 1, None), Layout("window", 4, 200)):
        orders = [Order(1000, layout, seed=seed, block_lengths=lengths) for seed in (10, 11, -10)]
        epochs = {tuple(whole_epoch(order, epoch)) for order in orders for epoch in range(4)}
        assert len(epochs) == 12


def test_the_order_does_not_depend_on_which_epochs_were_asked_for_before() -> None:
    case = WindowCase([7] * 40, 4, 60, 9, 0)
    order = case.order()
    expected = {epoch: whole_epoch(case.order(), epoch) for epoch in range(4)}
    for epoch in (3, 0, 0, 2, 3, 1, 0):
        assert whole_epoch(order, epoch) == expected[epoch]


def test_threads_may_share_an_order_over_different_epochs() -> None:
    case = WindowCase([11] * 300, 8, 700, 9, 0)
    shared = case.order()
    expected = {epoch: whole_epoch(case.order(), epoch) for epoch in range(4)}
    asked = [epoch for _ in range(15) for epoch in expected]
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda epoch: whole_epoch(shared, epoch), asked))
    assert answers == [expected[epoch] for epoch in asked]


@pytest.mark.parametrize("shuffle", [False, "global"])
@pytest.mark.parametrize("lanes", [1, 64])
def test_a_trillion_samples_take_no_memory_that_grows(shuffle: bool | str, lanes: int) -> None:
    tracemalloc.start()
    try:
        order = Order(10**12, Layout(shuffle, lanes, None), seed=1)
        ids = order.sample_ids(3, np.arange(10**12 - 256, 10**12))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0 <= ids.min() <= ids.max() < 10**12
    assert peak < 1_000_000


def test_a_window_shuffle_keeps_three_integers_a_block_however_many_samples_there_are() -> None:
    blocks, samples = 200_000, 200_000 * 5_000_000
    lengths = np.full(blocks, 5_000_000)
    tracemalloc.start()
    try:
        order = Order(samples, Layout("window", 64, 10**9), seed=1, block_lengths=lengths)
        order.sample_ids(0, np.arange(256))
        order.sample_ids(1, np.arange(256))
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert kept < 3 * 8 * blocks + 200_000


def test_huge_orders_stay_in_range_at_their_end() -> None:
    samples = 10**13
    lengths = np.full(1000, 10**10)
    for lanes in (1, 256):
        order = Order(samples, Layout("window", lanes, samples), seed=1, block_lengths=lengths)
        ids = order.sample_ids(7, np.arange(samples - 1000, samples))
        assert 0 <= ids.min() <= ids.max() < samples
        assert len(np.unique(ids)) == 1000


@pytest.mark.parametrize("shuffle", [False, "global", "window"])
def test_the_result_is_new_memory_and_the_sequence_is_left_as_it_was(shuffle: bool | str) -> None:
    layout = Layout(shuffle, 1, 10 if shuffle == "window" else None)
    order = Order(20, layout, block_lengths=np.array([20]))
    sequence = np.arange(20)
    order.sample_ids(0, sequence)[:] = -1
    assert sequence.tolist() == list(range(20))
    assert order.sample_ids(0, sequence[:0]).dtype == np.int64
    assert order.sample_ids(0, []).tolist() == []


@pytest.mark.parametrize("shuffle", [False, "global", "window"])
@pytest.mark.parametrize("wrong", [-1, 20])
def test_sequence_numbers_outside_the_epoch_are_refused(shuffle: bool | str, wrong: int) -> None:
    order = Order(20, Layout(shuffle, 4, 10 if shuffle == "window" else None), block_lengths=np.array([20]))
    expected = rf"^expected sequence numbers in range\(20\), got {min(wrong, 3)}\.\.{max(wrong, 3)}$"
    with pytest.raises(ArgumentError, match=expected):
        order.sample_ids(0, [3, wrong])


@pytest.mark.parametrize("samples", [0, -1, 2**53 + 1])
def test_a_dataset_without_samples_or_with_too_many_is_refused(samples: int) -> None:
    with pytest.raises(ArgumentError, match=rf"^expected a dataset of 1 to 2\*\*53 samples, got {samples}$"):
        Order(samples, Layout(False, 1, None))


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_a_seed_of_more_than_64_bits_is_refused(seed: int) -> None:
    with pytest.raises(ArgumentError, match=rf"^seed: expected a 64-bit integer, got {seed}$"):
        Order(10, Layout(False, 1, None), seed=seed)


@pytest.mark.parametrize(
    ("lengths", "text"),
    [
        (None, 'expected the samples of each block for shuffle="window", got none'),
        ([4, 5], "expected a sum of 10 samples, got 9"),
        ([], "expected a sum of 10 samples, got 0"),
        ([12, -2], "expected 0 samples or more in each block, got -2"),
    ],
)
def test_block_lengths_that_do_not_make_up_the_dataset_are_refused(lengths: list[int] | None, text: str) -> None:
    layout = Layout("window", 1, 10)
    with pytest.raises(ArgumentError) as refusal:
        Order(10, layout, block_lengths=None if lengths is None else np.array(lengths, np.int64))
    assert str(refusal.value) == f"block_lengths: {text}"
    assert Order(10, replace(layout, shuffle="global", window=None)).sample_ids(0, range(10)).size == 10
