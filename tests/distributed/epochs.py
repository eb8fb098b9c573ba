"""Two epochs of one rank, by every face of headrace, under every rule of the last step."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

from torch.utils.data import DataLoader as TorchLoader

from headrace import ArgumentError, DataLoader, OrderSampler
from tests.distributed.plain import ORDER, RULES, Step, step_of
from tests.loader.stand_ins import numbers

BATCH = 4
EPOCHS = 2


def _loader(samples: int, options: dict[str, Any]) -> Iterable[Any]:
    return DataLoader(numbers(samples), **ORDER, **options)


def _threads(samples: int, options: dict[str, Any]) -> Iterable[Any]:
    return DataLoader(numbers(samples), num_workers=2, **ORDER, **options)


def _processes(samples: int, options: dict[str, Any]) -> Iterable[Any]:
    workers: dict[str, Any] = {"num_workers": 1, "worker_type": "process", "persistent_workers": True}
    return DataLoader(numbers(samples), transform=dict, **workers, **ORDER, **options)


def _stream(samples: int, options: dict[str, Any]) -> Iterable[Any]:
    return TorchLoader(numbers(samples).to_iterable_dataset(**ORDER, **options), batch_size=None)


def _forked(samples: int, options: dict[str, Any]) -> Iterable[Any]:
    view = numbers(samples).to_iterable_dataset(**ORDER, **options)
    return TorchLoader(view, batch_size=None, num_workers=2)


def _sampler(samples: int, options: dict[str, Any]) -> Iterable[Any]:
    dataset = numbers(samples)
    return TorchLoader(dataset, batch_size=BATCH, sampler=OrderSampler(dataset, **ORDER, **options))


FACES: dict[str, Callable[[int, dict[str, Any]], Iterable[Any]]] = {
    "loader": _loader,
    "threads": _threads,
    "processes": _processes,
    "stream": _stream,
    "forked": _forked,
    "sampler": _sampler,
}


def cases() -> dict[str, tuple[str, int, dict[str, int], str]]:
    """Face, samples, step size and rule of each case, by a name that says them.

    48 samples are whole steps of 2 or 4 ranks of 4 samples each; 55 leave 7 of either.
    """
    sizes: list[dict[str, int]] = [{"batch_size": BATCH}, {"global_batch_size": 10}]
    cases = {}
    for face, samples, size, rule in itertools.product(FACES, [48, 55], sizes, RULES):
        if face == "sampler" and (size != {"batch_size": BATCH} or rule == "pad_last"):
            continue  # torch's loader makes the batches, which have one size and no column more
        if face == "processes" and (size != {"batch_size": BATCH} or samples == 48 or rule != "pad_last"):
            continue  # each starts a process that imports torch
        if face == "forked" and (size != {"batch_size": BATCH} or samples == 48):
            continue  # each starts processes
        cases[f"{face} {samples} {size} {rule}"] = face, samples, size, rule
    return cases


def run() -> dict[str, Any]:
    """What this rank got: by case the steps of each epoch; and why too few samples for all ranks were refused."""
    got = {
        name: _two_epochs(FACES[face](n, {**size, **RULES[rule]})) for name, (face, n, size, rule) in cases().items()
    }
    try:
        _loader(49, {"batch_size": BATCH})
        refused = None
    except ArgumentError as error:
        refused = str(error)
    return {"cases": got, "refused": refused}


def _two_epochs(batches: Iterable[Any]) -> list[list[Step]]:
    return [[step_of(batch) for batch in batches] for _ in range(EPOCHS)]
