"""What splits itself over ranks is refused where Accelerate would split it a second time."""

import sys

from headrace.errors import ArgumentError


def refuse_second_split(world_size: int) -> None:
    """To be called by `set_epoch`, with the number of ranks that the samples are split over.

    `accelerator.prepare` makes a loader of its own of torch's, which splits what comes among its processes, or reads it
    in the first one alone and hands it on: of what is split already, all but one part would be lost, silently. It is
    only known by who calls `set_epoch`, at the start of each pass and in the main process.

    Raises:
        ArgumentError: The caller of `set_epoch` is such a loader, and there is more than one rank.
    """
    caller = sys._getframe(2).f_globals.get("__name__", "")  # noqa: SLF001 (the way to see who calls)
    if world_size > 1 and caller.startswith("accelerate."):
        raise ArgumentError(
            f"accelerator.prepare splits among its processes what is split over {world_size} ranks already, so that "
            "samples would be lost\n"
            "  prepare it with headrace.integrations.accelerate.prepare(accelerator, ...), which leaves it as it is; "
            "or, for a Trainer that calls accelerator.prepare by itself, give it rank=0, world_size=1"
        )
