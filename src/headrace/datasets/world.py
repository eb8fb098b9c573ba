"""Which rank this process is: the only place below the command line that reads the environment."""

import os
from typing import Any

import torch.distributed

from headrace.errors import ArgumentError


def resolve_world(rank: int | None = None, world_size: int | None = None, process_group: Any = None) -> tuple[int, int]:
    """This process's rank and the number of ranks.

    As given; else those of `torch.distributed`, once its process group exists; else those that `torchrun` wrote into
    the environment for it (`RANK` and `WORLD_SIZE`), so that a loader made before the process group doesn't read the
    whole data on every rank; else rank 0 of 1.

    Args:
        rank: This process's rank, in [0, world_size); give both or neither.
        world_size: The number of ranks, 1 or more.
        process_group: Instead of both, the `torch.distributed` group whose ranks share the data, or a `DeviceMesh` of
            one dimension, `mesh["dp"]`. It is asked now, and not kept.

    Raises:
        ArgumentError: Only one of rank and world_size is given, or they don't fit each other; or the process group
            comes with them, is none, does not exist yet or any more, or this process is not in it.
    """
    if process_group is not None:
        if rank is not None or world_size is not None:
            raise ArgumentError(
                "process_group: expected it, or rank and world_size, got it with "
                f"rank={rank}, world_size={world_size}; give one of them"
            )
        return _world_of(process_group)
    if (rank is None) != (world_size is None):
        raise ArgumentError(f"rank and world_size: expected both or neither, got rank={rank}, world_size={world_size}")
    if rank is None or world_size is None:
        rank, world_size = _surrounding_world()
    if world_size < 1 or not 0 <= rank < world_size:
        raise ArgumentError(f"rank: expected 0 <= rank < world_size, got rank={rank}, world_size={world_size}")
    return rank, world_size


def check_taken_world(rank: int, world_size: int) -> None:
    """Refuses to go on with what `resolve_world` took by default, where `torch.distributed` says otherwise by now.

    A loader made before the process group may have read as the only rank there is, on each of them.

    Raises:
        ArgumentError: The process group says otherwise.
    """
    if not _is_initialized():
        return
    now = torch.distributed.get_rank(), torch.distributed.get_world_size()
    if now != (rank, world_size):
        raise ArgumentError(
            f"rank and world_size: expected what torch.distributed says, rank {now[0]} of {now[1]}, got rank {rank} of "
            f"{world_size}, which was taken by default before the process group was made\n"
            "  make this after init_process_group(), or give rank= and world_size="
        )


def _surrounding_world() -> tuple[int, int]:
    if _is_initialized():
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


def _world_of(process_group: Any) -> tuple[int, int]:
    """This process's rank in a group, and how many ranks that has."""
    if not _is_initialized():
        raise ArgumentError(
            "process_group: expected a group of this process's torch.distributed, which is not initialized\n"
            "  call torch.distributed.init_process_group() before this, or give rank= and world_size="
        )
    from torch.distributed.device_mesh import DeviceMesh  # which builds of torch without torch.distributed lack

    group = _group_of_mesh(process_group) if isinstance(process_group, DeviceMesh) else process_group
    if group is torch.distributed.GroupMember.NON_GROUP_MEMBER:  # what new_group() gives those that it leaves out
        raise ArgumentError(
            "process_group: expected a group that this process belongs to, got one without it: "
            f"rank {torch.distributed.get_rank()} of {torch.distributed.get_world_size()} is no member\n"
            "  read its data on its members alone, or give every process a group of its own (init_device_mesh)"
        )
    if not isinstance(group, torch.distributed.ProcessGroup):
        raise ArgumentError(
            "process_group: expected a torch.distributed.ProcessGroup or a DeviceMesh of one dimension, "
            f"got {type(group).__name__}"
        )
    try:
        return torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
    except ValueError as error:
        raise ArgumentError(
            "process_group: expected a group that exists, got one that was destroyed\n"
            "  give one made since the last init_process_group(), by new_group() or init_device_mesh()"
        ) from error


def _group_of_mesh(mesh: Any) -> Any:
    if mesh.ndim == 1:
        is_member = mesh.get_coordinate() is not None
        return mesh.get_group() if is_member else torch.distributed.GroupMember.NON_GROUP_MEMBER
    raise ArgumentError(
        f"process_group: expected a DeviceMesh of one dimension, got one of {mesh.ndim}, named {mesh.mesh_dim_names}\n"
        '  give the dimension whose ranks read different data, as mesh["dp"], or its group, mesh.get_group("dp")'
    )


def _is_initialized() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
