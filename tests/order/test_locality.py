"""How often blocks have to be decoded: why there are lanes, visited in bit-reversed order, with staggered windows.

A rank holds the blocks of its open windows: a window is open from the first step in which the rank reads a sample of it
to the last. A block is decoded anew whenever it is needed and not held.
"""

from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from headrace.order import Layout, Order, Steps
from headrace.order.epoch import bit_reversed

BLOCK = 32  # samples
PLACES = 128  # of a window in one lane: four blocks
WINDOWS = 12  # of each lane

SHAPES = [(64, 8, 256), (64, 8, 240), (64, 8, 48), (256, 60, 240)]  # lanes, ranks, global batch size


class Reads(NamedTuple):
    """What one rank reads in consecutive steps: one row for each sample."""

    step: NDArray[np.int64]
    window: NDArray[np.int64]  # numbered over all lanes
    block: NDArray[np.int64]


def samples_of(lanes: int) -> int:
    # not a whole number of windows or of lanes
    return lanes * PLACES * WINDOWS - lanes // 2 - 5 * BLOCK


def order_of(lanes: int) -> Order:
    samples = samples_of(lanes)
    lengths = np.full(-(-samples // BLOCK), BLOCK)
    lengths[-1] -= lengths.sum() - samples
    return Order(samples, Layout("window", lanes, lanes * PLACES), seed=1, block_lengths=lengths)


def reads_of_rank(lanes: int, ranks: int, size: int, rank: int, start: int = 0) -> Reads:
    """A rank's reads from a position to the end of the epoch."""
    order = order_of(lanes)
    steps = Steps(order.samples, lanes, size, rank, ranks, pad_last=True)
    share = steps.share(start, steps.remaining(start))
    step = np.repeat(np.arange(len(share.bounds) - 1), np.diff(share.bounds))[share.valid]
    sequence = share.sequence[share.valid]
    lane, place = bit_reversed(lanes)[sequence % lanes], sequence // lanes
    return Reads(step, window_of(lane, place, lanes), order.sample_ids(0, sequence) // BLOCK)


def reads_with_plain_lanes(lanes: int, ranks: int, size: int, rank: int) -> Reads:
    """The same, if steps visited the lanes in their own order instead of the bit-reversed one."""
    order = order_of(lanes)
    whole = order.samples // lanes * lanes // size * size
    steps = np.arange(whole).reshape(-1, size)
    lane, place = steps % lanes, steps // lanes
    rows = np.argsort(lane * order.samples + place, axis=1)[:, rank * size // ranks : (rank + 1) * size // ranks]
    lane, place = (np.take_along_axis(values, rows, 1).ravel() for values in (lane, place))
    sample_ids = order.sample_ids(0, place * lanes + bit_reversed(lanes)[lane])
    return Reads(np.repeat(np.arange(len(rows)), rows.shape[1]), window_of(lane, place, lanes), sample_ids // BLOCK)


def window_of(
    lane: NDArray[np.int64], place: NDArray[np.int64], lanes: int, *, staggered: bool = True
) -> NDArray[np.int64]:
    leads = bit_reversed(lanes)[lane] * PLACES // lanes if staggered else 0
    return lane * (WINDOWS + 2) + (place + leads) // PLACES


def first_and_last(keys: NDArray[np.int64], steps: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """The distinct keys, and the first and last step of each."""
    order = np.lexsort((steps, keys))
    keys, steps = keys[order], steps[order]
    begins = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    ends = np.concatenate([begins[1:], [len(keys)]]) - 1
    return keys[begins], steps[begins], steps[ends]


def decodes(reads: Reads, patience: int) -> int:
    """How often a rank decodes a block; one that is needed again within `patience` steps is kept."""
    windows, opens, closes = first_and_last(reads.window, reads.step)
    of_window = np.searchsorted(windows, reads.window)
    pairs = np.unique(reads.block * len(windows) + of_window)
    block, window = pairs // len(windows), pairs % len(windows)
    order = np.lexsort((opens[window], block))
    block, opened, closed = block[order], opens[window][order], closes[window][order]
    count, held, until = 0, -1, -1
    for of, begin, end in zip(block.tolist(), opened.tolist(), closed.tolist(), strict=True):
        if of != held or begin > until + patience:
            count += 1
            until = -1
        held, until = of, max(until, end)
    return count


def decodes_per_block(all_reads: list[Reads], patience: int = 1) -> float:
    """Decodes over all ranks, for each block that is read at all."""
    blocks = len(np.unique(np.concatenate([reads.block for reads in all_reads])))
    return sum(decodes(reads, patience) for reads in all_reads) / blocks


# Measured: 1.02 where the ranks divide the lanes (neighbouring lanes share the block at their border, the rest is
# 1.00), and 1.27 where lane borders and rank borders disagree, so that two ranks read in one lane
BOUNDS = {(64, 8, 256): 1.03, (64, 8, 240): 1.03, (64, 8, 48): 1.03, (256, 60, 240): 1.3}


@pytest.mark.parametrize(("lanes", "ranks", "size"), SHAPES)
@pytest.mark.parametrize("start", [0, 12_347, 45_001])
def test_each_block_is_decoded_about_once_also_after_resuming_anywhere(
    lanes: int, ranks: int, size: int, start: int
) -> None:
    all_reads = [reads_of_rank(lanes, ranks, size, rank, start) for rank in range(ranks)]
    # a lane is read in every step or, where the batch is smaller than the lanes, in every second one
    assert decodes_per_block(all_reads, patience=-(-lanes // size)) < BOUNDS[lanes, ranks, size]


@pytest.mark.parametrize(("lanes", "ranks", "size"), [(64, 8, 240), (64, 8, 48), (256, 60, 240)])
def test_lanes_visited_in_their_own_order_would_decode_blocks_half_again_as_often(
    lanes: int, ranks: int, size: int
) -> None:
    # measured: 1.55, 1.71 and 2.09
    all_reads = [reads_with_plain_lanes(lanes, ranks, size, rank) for rank in range(ranks)]
    assert decodes_per_block(all_reads, patience=-(-lanes // size)) > 1.5


@pytest.mark.parametrize("size", [256, 240, 48])
@pytest.mark.parametrize("start", [0, 12_347])
def test_each_window_is_read_by_one_rank_alone_where_the_ranks_divide_the_lanes(size: int, start: int) -> None:
    windows = [set(reads_of_rank(64, 8, size, rank, start).window.tolist()) for rank in range(8)]
    assert sum(map(len, windows)) == len(set.union(*windows))


def test_ranks_share_the_decoding_evenly() -> None:
    for lanes, ranks, size in SHAPES:
        counts = [decodes(reads_of_rank(lanes, ranks, size, rank), 2) for rank in range(ranks)]
        # one rank of 60 reads in 5 or 6 of 256 lanes
        assert max(counts) < 1.35 * np.mean(counts)


def peak_of_open_samples(lanes: int, size: int, ahead: int, *, staggered: bool) -> float:
    """The most samples of all lanes' open windows, when they open some steps early, in whole windows."""
    sequence = np.arange(samples_of(lanes))
    lane, place = bit_reversed(lanes)[sequence % lanes], sequence // lanes
    window = window_of(lane, place, lanes, staggered=staggered)
    _, opens, closes = first_and_last(window, sequence // size)
    samples = np.unique(window, return_counts=True)[1]
    change = np.zeros(closes.max() + 2)
    np.add.at(change, np.maximum(opens - ahead, 0), samples)
    np.add.at(change, closes + 1, -samples)
    return float(np.cumsum(change).max()) / (lanes * PLACES)


@pytest.mark.parametrize("size", [256, 240, 48])
def test_staggered_windows_hold_little_more_than_one_window_open_where_others_hold_two(size: int) -> None:
    # six steps ahead of 256 samples are three sixteenths of the window
    assert peak_of_open_samples(64, size, 6, staggered=True) < 1.21
    assert peak_of_open_samples(64, size, 6, staggered=False) > 1.9


def test_the_staggering_of_the_order_is_the_one_counted_here() -> None:
    order = order_of(64)
    sequence = np.arange(order.samples)
    lane, place = bit_reversed(64)[sequence % 64], sequence // 64
    windows = window_of(lane, place, 64)
    # the blocks of a window are at most four whole ones, and a part of one more at either end
    blocks = order.sample_ids(0, sequence) // BLOCK
    blocks_of_window = np.unique(windows * (order.samples + 1) + blocks) // (order.samples + 1)
    assert np.unique(blocks_of_window, return_counts=True)[1].max() <= PLACES // BLOCK + 1
