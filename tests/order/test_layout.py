"""resolve_layout: shuffle mode, lanes and window, from the data and the user alone."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ArgumentError
from headrace.order import BlockTotals, Layout, resolve_layout
from tests.order.strategies import examples

GIB = 1 << 30
MIB = 1 << 20


@st.composite
def data_sets(draw: st.DrawFn) -> tuple[int, BlockTotals]:
    blocks = draw(st.integers(1, 50) | st.integers(1, 10**7))
    samples = blocks * draw(st.integers(1, 10**5)) + draw(st.integers(0, 1000))
    return samples, BlockTotals(blocks, draw(st.integers(0, 2 * GIB) | st.integers(0, 1 << 50)))


def expected_lanes(samples: int, blocks: BlockTotals, window: int | None) -> int:
    """The design's sentence, in exact fractions."""
    mean_bytes, mean_samples = Fraction(blocks.total_bytes, blocks.count), Fraction(samples, blocks.count)

    def fits(lanes: int) -> bool:
        in_window = window is None or 4 * lanes * mean_samples <= window
        return 4 * lanes * mean_bytes <= GIB and lanes <= Fraction(blocks.count, 4) and in_window

    return max([lanes for lanes in (2**bits for bits in range(9)) if fits(lanes)], default=1)


def expected_window(samples: int, blocks: BlockTotals, lanes: int) -> int:
    of_the_budget = GIB // Fraction(blocks.total_bytes, samples) if blocks.total_bytes else samples
    four_blocks_a_lane = -(4 * lanes * Fraction(-samples, blocks.count) // 1)
    return int(min(max(of_the_budget, four_blocks_a_lane), samples))


@given(data_sets())
@examples(300)
def test_lanes_are_the_most_whose_four_blocks_fit_the_budget_and_the_data(data: tuple[int, BlockTotals]) -> None:
    layout = resolve_layout(*data, random_access=False, shuffle="window")
    assert layout.lanes == expected_lanes(*data, None)


@given(data_sets(), st.none() | st.integers(0, 10).map(lambda bits: 1 << bits))
@examples(300)
def test_the_window_is_the_budgets_samples_but_at_least_four_blocks_a_lane(
    data: tuple[int, BlockTotals], lanes: int | None
) -> None:
    layout = resolve_layout(*data, random_access=False, shuffle="window", lanes=lanes)
    assert layout.window == expected_window(*data, lanes or expected_lanes(*data, None))


@given(data_sets(), st.integers(1, 10**9))
@examples(300)
def test_a_window_that_the_user_gives_keeps_four_mean_blocks_a_lane(data: tuple[int, BlockTotals], window: int) -> None:
    samples, blocks = data
    layout = resolve_layout(*data, random_access=False, shuffle="window", window=window)
    assert layout.lanes == expected_lanes(*data, window)
    assert layout.window == min(window, samples)
    assert layout.lanes == 1 or 4 * layout.lanes * Fraction(samples, blocks.count) <= window


def test_a_terabyte_in_8_mib_blocks_gets_32_lanes_and_a_window_of_a_gib() -> None:
    blocks = BlockTotals(count=131_072, total_bytes=1 << 40)
    # four blocks for each of 32 lanes hold 976 562.5 samples
    assert resolve_layout(10**9, blocks, random_access=False, shuffle=True) == Layout("window", 32, 976_563)


def test_a_single_block_gets_one_lane_and_a_window_over_all() -> None:
    assert resolve_layout(5000, BlockTotals(1, 10 * GIB), random_access=False, shuffle=True) == Layout(
        "window", 1, 5000
    )


@pytest.mark.parametrize(("random_access", "mode"), [(True, "global"), (False, "window")])
def test_true_means_global_for_random_access_and_window_otherwise(random_access: bool, mode: str) -> None:
    blocks = BlockTotals(100, 100 * MIB)
    assert resolve_layout(1000, blocks, random_access=random_access, shuffle=True).shuffle == mode


@pytest.mark.parametrize("shuffle", [False, "global"])
def test_file_order_and_global_have_one_lane_unless_given_and_no_window(shuffle: bool | str) -> None:
    blocks = BlockTotals(10**6, 1 << 40)
    assert resolve_layout(10**9, blocks, random_access=True, shuffle=shuffle) == Layout(shuffle, 1, None)
    assert resolve_layout(10**9, blocks, random_access=True, shuffle=shuffle, lanes=16) == Layout(shuffle, 16, None)


@given(data_sets(), st.integers(1, 8))
@examples(100)
def test_the_layout_does_not_depend_on_the_world_size(data: tuple[int, BlockTotals], world_size: int) -> None:
    alone = resolve_layout(*data, random_access=False, shuffle=True)
    assert resolve_layout(*data, random_access=False, shuffle=True, world_size=world_size) == alone


SIXTEEN_LANES = BlockTotals(count=64 * 1024, total_bytes=1 << 40)  # blocks of 16 MiB


def test_more_than_8_ranks_to_a_default_lane_of_large_data_are_refused_with_the_lanes_to_give() -> None:
    expected = (
        "lanes: the default for this data is 16, but 129 ranks would share them, "
        "so each block would be read by 8 ranks\n"
        "  give lanes=256, so that every rank has its own; the order then differs from the default's"
    )
    with pytest.raises(ArgumentError) as refusal:
        resolve_layout(10**8, SIXTEEN_LANES, random_access=False, shuffle=True, world_size=129)
    assert str(refusal.value) == expected


def test_8_ranks_to_a_lane_explicit_lanes_and_data_within_the_budget_are_not_refused() -> None:
    at_most = resolve_layout(10**8, SIXTEEN_LANES, random_access=False, shuffle=True, world_size=128)
    assert at_most.lanes == 16
    given = resolve_layout(10**8, SIXTEEN_LANES, random_access=False, shuffle=True, world_size=4096, lanes=16)
    assert given == at_most
    small = resolve_layout(10**6, BlockTotals(8, GIB), random_access=False, shuffle=True, world_size=4096)
    assert small.lanes == 2


def test_file_order_of_large_data_without_random_access_is_refused_for_more_than_8_ranks() -> None:
    with pytest.raises(ArgumentError, match=r"^lanes: the default for this data is 1, but 9 .*\n  give lanes=16,"):
        resolve_layout(10**8, SIXTEEN_LANES, random_access=False, shuffle=False, world_size=9)
    assert resolve_layout(10**8, SIXTEEN_LANES, random_access=True, shuffle=False, world_size=9).lanes == 1


@pytest.mark.parametrize("lanes", [0, -4, 3, 48, 1 << 17])
def test_lanes_that_are_no_power_of_two_are_refused(lanes: int) -> None:
    with pytest.raises(ArgumentError) as refusal:
        resolve_layout(1000, BlockTotals(10, 1000), random_access=True, lanes=lanes)
    assert str(refusal.value) == f"lanes: expected a power of two in 1..65536, got {lanes}"


@pytest.mark.parametrize(("shuffle", "mode"), [(False, "False"), ("global", "'global'"), (True, "'global'")])
def test_a_window_without_a_window_shuffle_is_refused(shuffle: bool | str, mode: str) -> None:
    with pytest.raises(ArgumentError) as refusal:
        resolve_layout(1000, BlockTotals(10, 1000), random_access=True, shuffle=shuffle, window=50)
    assert str(refusal.value) == (
        f"shuffle_window: expected no window with shuffle={mode}, got 50; "
        'leave it out, or shuffle with shuffle="window"'
    )


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_below_one_sample_is_refused(window: int) -> None:
    with pytest.raises(
        ArgumentError, match=rf"^shuffle_window: expected a number of samples, 1 or more, got {window}$"
    ):
        resolve_layout(1000, BlockTotals(10, 1000), random_access=False, shuffle="window", window=window)


@pytest.mark.parametrize("shuffle", ["windows", "GLOBAL", 1, 0, None, ""])
def test_an_unknown_shuffle_is_refused(shuffle: object) -> None:
    with pytest.raises(ArgumentError) as refusal:
        resolve_layout(1000, BlockTotals(10, 1000), random_access=True, shuffle=shuffle)
    assert str(refusal.value) == f'shuffle: expected False, True, "global" or "window", got {shuffle!r}'


def test_a_dataset_without_samples_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"^expected a dataset of 1 sample or more, got 0$"):
        resolve_layout(0, BlockTotals(0, 0), random_access=False, shuffle=True)
