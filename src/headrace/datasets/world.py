"""Which rank this process is: the only place below the command line that reads the environment."""

import os

import torch.distributed

from headrace.errors import ArgumentError


def resolve_world(rank: int | None = None, world_size: int | None = None) -> tuple[int, int]:
    """This process's rank and the number of ranks.

    As given; else those of `torch.distributed`, once its process group exists; else those that `torchrun` wrote into
    the environment for it (`RANK` and `WORLD_SIZE`), so that a loader made before the process group doesn't read the
    whole data on every rank; else rank 0 of 1.

    Args:
        rank: This process's rank, in [0, world_size); give both or neither.
        world_size: The number of ranks, 1 or more.

    Raises:
        ArgumentError: Only one of the two is given, or they don't fit each other.
    """
    if (rank is None) != (world_size is None):
        raise ArgumentError(f"rank and world_size: expected both or neither, got rank={rank}, world_size={world_size}")
    if rank is None or world_size is None:
        rank, world_size = _surrounding_world()
    if world_size < 1 or not 0 <= rank < world_size:
        raise ArgumentError(f"rank: expected 0 <= rank < world_size, got rank={rank}, world_size={world_size}")
    return rank, world_size


def _surrounding_world() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    rank, world_size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None or world_size is None:
        return 0, 1
    try:
        return int(rank), int(world_size)
    except ValueError:
        raise ArgumentError(
            f"expected whole numbers in the environment, got RANK={rank!r} and WORLD_SIZE={world_size!r}; "
            "give rank= and world_size="
        ) from None
