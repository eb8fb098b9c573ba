"""torch's DataLoader arguments that ours does not have: accepted where they change nothing, refused with a reason."""

from collections.abc import Mapping
from typing import Any

from headrace.errors import ArgumentError

# name -> (values that are accepted without effect, why any other is refused and what to do)
_OTHERS: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "sampler": (
        (None,),
        "the order is computed, so that it can be resumed; give shuffle= and seed=, or a dataset.select(ids)",
    ),
    "batch_sampler": (
        (None,),
        "steps are computed, so that they can be resumed; give batch_size= or global_batch_size=",
    ),
    "generator": ((None,), "randomness comes from the seed, so that it can be resumed; give seed="),
    "pin_memory_device": (("",), "torch gave this argument up; give device="),
    "in_order": ((True,), "batches always come in order"),
}


def check_torch_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuses what can't be meant.

    Raises:
        ArgumentError: An argument of torch's that ours refuses; the text says why and what to do.
        TypeError: No DataLoader has such an argument.
    """
    for name, value in arguments.items():
        if name not in _OTHERS:
            raise TypeError(f"DataLoader() got an unexpected keyword argument {name!r}")
        accepted, reason = _OTHERS[name]
        if not any(value is one or (type(value) is type(one) and value == one) for one in accepted):
            raise ArgumentError(f"{name}: {reason}; got {name}={value!r}")
