"""What a step holds, for all ranks, as plain lists: what every test of this folder compares with."""

import functools
from typing import Any

from tests.loader.stand_ins import numbers
from tests.order.reference import epoch_order, step_of_rank

# the intricate case: windows that cross blocks, and more lanes than some numbers of ranks
ORDER: dict[str, Any] = {"shuffle": "window", "lanes": 4, "shuffle_window": 40, "seed": 5}
RULES: dict[str, dict[str, bool]] = {"": {}, "drop_last": {"drop_last": True}, "pad_last": {"pad_last": True}}

Step = tuple[list[int], list[bool] | None]  # its samples, and which of them are real where the last step is filled up


@functools.cache
def plain_order(samples: int, epoch: int, blocks: tuple[int, ...] | None = None) -> list[int]:
    """The samples of an epoch of `numbers(samples)`, or of data with other blocks, under ORDER."""
    if blocks is None:
        blocks = tuple(numbers(samples).source.blocks.lengths.tolist())
    return epoch_order(
        samples,
        ORDER["shuffle"],
        lanes=ORDER["lanes"],
        window=ORDER["shuffle_window"],
        seed=ORDER["seed"],
        epoch=epoch,
        block_lengths=blocks,
    )


def plain_step(
    samples: int,
    epoch: int,
    position: int,
    *,
    size: int,
    ranks: int,
    rule: str,
    blocks: tuple[int, ...] | None = None,
) -> list[Step]:
    """The step that begins at a position, rank by rank; `size` is that of a full step over all ranks."""
    order = plain_order(samples, epoch, blocks)
    pads = rule == "pad_last"
    shares = [
        step_of_rank(position, size if pads else min(size, samples - position), ORDER["lanes"], rank, ranks)
        for rank in range(ranks)
    ]
    return [
        ([order[place % samples] for place in share], [place < samples for place in share] if pads else None)
        for share in shares
    ]


def steps_left(samples: int, position: int, *, size: int, rule: str) -> int:
    """Steps from a position to the end of the epoch."""
    whole, rest = divmod(samples - position, size)
    return whole + (rest > 0 and rule != "drop_last")


def real(step: Any) -> list[int]:
    """A step's samples without those that only fill it up."""
    ids, marks = step
    return ids if marks is None else [sample for sample, is_real in zip(ids, marks, strict=True) if is_real]


def step_of(batch: dict[str, Any]) -> Step:
    """A step of `numbers` as one rank got it."""
    marks = batch["__valid__"].tolist() if "__valid__" in batch else None
    return batch["x"][:, 0].tolist(), marks
