"""How an epoch is laid out: the shuffle mode, the lanes and the window, and their defaults.

All three depend on the data and on what the user gives, never on ranks, workers, batch size or columns: otherwise the
order would depend on them too, and a run could not continue elsewhere.
"""

from dataclasses import dataclass
from typing import Literal

from headrace.errors import ArgumentError

Shuffle = Literal[False, "global", "window"]

BUDGET_BYTES = 1 << 30  # of block bytes that the open windows of a whole epoch may hold together
MAX_DEFAULT_LANES = 256
MAX_LANES = 1 << 16
MAX_RANKS_PER_LANE = 8


@dataclass(frozen=True, slots=True)
class BlockTotals:
    """What the defaults need to know of a source's blocks: how many hold samples, and their bytes together."""

    count: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The parameters of an order that the data decides unless the user does.

    Attributes:
        shuffle: False (file order), "global" (one permutation) or "window" (blocks, then samples within windows).
        lanes: The number of streams that the epoch is cut into, a power of two.
        window: Samples permuted together, over all lanes; None unless `shuffle` is "window".
    """

    shuffle: Shuffle
    lanes: int
    window: int | None


def resolve_layout(
    samples: int,
    blocks: BlockTotals,
    *,
    random_access: bool,
    shuffle: bool | str = False,
    lanes: int | None = None,
    window: int | None = None,
    world_size: int = 1,
) -> Layout:
    """The layout of an epoch, from what the user gave and the data's own defaults.

    Args:
        samples: Samples in an epoch, at least 1.
        blocks: The source's blocks.
        random_access: Whether any sample costs the same to read: what `shuffle=True` means, "global" or "window".
        shuffle: False, True, "global" or "window".
        lanes: A power of two up to 65 536, or None for the default.
        window: Samples of all lanes' windows together, or None for the default; only with a "window" shuffle.
        world_size: Ranks that share the epoch; only to refuse what would read every block many times.

    Raises:
        ArgumentError: There is no sample, a value is not of its form, or more than 8 ranks would share each lane of
            large data.
    """
    if samples < 1:
        raise ArgumentError(f"expected a dataset of 1 sample or more, got {samples}")
    mode = _resolve_shuffle(shuffle, random_access=random_access)
    if lanes is not None and (lanes < 1 or lanes > MAX_LANES or lanes & (lanes - 1)):
        raise ArgumentError(f"lanes: expected a power of two in 1..{MAX_LANES}, got {lanes!r}")
    if window is not None and mode != "window":
        raise ArgumentError(
            f"shuffle_window: expected no window with shuffle={mode!r}, got {window!r}; "
            'leave it out, or shuffle with shuffle="window"'
        )
    if window is not None and window < 1:
        raise ArgumentError(f"shuffle_window: expected a number of samples, 1 or more, got {window!r}")
    chosen = lanes if lanes is not None else _default_lanes(samples, blocks, window) if mode == "window" else 1
    if lanes is None and (mode == "window" or (mode is False and not random_access)):
        _check_ranks_per_lane(world_size, chosen, blocks)
    if mode == "window":
        window = min(window or _default_window(samples, blocks, chosen), samples)
    return Layout(mode, chosen, window)


def _resolve_shuffle(shuffle: object, *, random_access: bool) -> Shuffle:
    match shuffle:
        case False:
            return False
        case True:
            return "global" if random_access else "window"
        case "global":
            return "global"
        case "window":
            return "window"
    raise ArgumentError(f'shuffle: expected False, True, "global" or "window", got {shuffle!r}')


def _default_lanes(samples: int, blocks: BlockTotals, window: int | None) -> int:
    """As many lanes as keep four blocks of each within the budget, and within the window where the user gave one."""
    lanes = MAX_DEFAULT_LANES
    while lanes > 1 and not (
        4 * lanes * blocks.total_bytes <= BUDGET_BYTES * blocks.count
        and 4 * lanes <= blocks.count
        and (window is None or 4 * lanes * samples <= window * blocks.count)
    ):
        lanes //= 2
    return lanes


def _default_window(samples: int, blocks: BlockTotals, lanes: int) -> int:
    in_budget = BUDGET_BYTES * samples // max(blocks.total_bytes, 1)
    four_blocks_a_lane = -(-4 * lanes * samples // blocks.count)
    return max(in_budget, four_blocks_a_lane, 1)


def _check_ranks_per_lane(world_size: int, lanes: int, blocks: BlockTotals) -> None:
    if world_size <= MAX_RANKS_PER_LANE * lanes or blocks.total_bytes <= BUDGET_BYTES:
        return
    advised = 1 << (world_size - 1).bit_length()
    raise ArgumentError(
        f"lanes: the default for this data is {lanes}, but {world_size} ranks would share them, "
        f"so each block would be read by {world_size // lanes} ranks\n"
        f"  give lanes={advised}, so that every rank has its own; the order then differs from the default's"
    )
