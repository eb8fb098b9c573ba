"""Four ranks as a mesh of 2 x 2: data parallel, times ranks that work on the same samples together."""

from typing import Any

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.utils.data import DataLoader as TorchLoader

from headrace import ArgumentError, DataLoader, OrderSampler
from tests.loader.stand_ins import delivered, numbers

SAMPLES = 55


def run() -> dict[str, Any]:
    """This rank's place in the mesh, its steps by the way in which the group was given, and a refusal's text."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    group, dataset = mesh.get_group("dp"), numbers(SAMPLES)
    options: dict[str, Any] = {"batch_size": 4, "shuffle": True, "seed": 2}
    sampler = OrderSampler(dataset, process_group=group, **options)
    ways = {
        "group": DataLoader(dataset, process_group=group, **options),
        "mesh": DataLoader(dataset, process_group=mesh["dp"], num_workers=2, **options),
        "ranks": DataLoader(dataset, rank=mesh.get_local_rank("dp"), world_size=mesh["dp"].size(), **options),
        "stream": dataset.to_iterable_dataset(process_group=group, **options),
        "sampler": TorchLoader(dataset, batch_size=4, sampler=sampler),
    }
    steps = {name: [delivered(batches) for _ in range(2)] for name, batches in ways.items()}
    return {"coordinate": mesh.get_coordinate(), "steps": steps, "three": _of_three()}


def _of_three() -> Any:
    """What a rank gets of a group of three, or why it gets nothing."""
    three = dist.new_group([0, 1, 3])
    try:
        return delivered(DataLoader(numbers(SAMPLES), batch_size=4, process_group=three))
    except ArgumentError as error:
        return str(error)
