"""The tensors in whatever a batch is: mappings, lists and tuples, as deep as they go."""

import copy
from collections.abc import Callable, MutableMapping
from typing import Any

import numpy as np
import torch

from headrace.formats import Ragged

# What lists hold by the thousand, and tensors are never in
_TEXTS = {str, bytes}
_ATOMS = {*_TEXTS, int, float, bool, type(None)}
_ARRAYS = {torch.Tensor, np.ndarray}
# So many parts of a batch are looked at for its bytes, some of each list: to look at all may take longer than making it
_LOOKS = 256


def map_tensors(function: Callable[[torch.Tensor], Any], tree: Any) -> Any:
    """The same mappings, lists and tuples with the function's result for each tensor; all else passes through."""
    if isinstance(tree, torch.Tensor):
        return function(tree)
    if isinstance(tree, Ragged):
        return tree.map_tensors(function)
    if isinstance(tree, dict):
        return {name: map_tensors(function, value) for name, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_tensors(function, value) for value in tree))
    if isinstance(tree, (list, tuple)):
        if _ATOMS.issuperset(map(type, tree)):
            return tree
        return type(tree)(map_tensors(function, value) for value in tree)
    if type(tree) not in _ATOMS and isinstance(tree, MutableMapping):
        mapped = copy.copy(tree)  # made as it was, whatever its class asks for
        mapped.update({name: map_tensors(function, value) for name, value in tree.items()})
        return mapped
    return tree


def bytes_of(tree: Any, looks: int = _LOOKS) -> int:
    """The bytes of all tensors, arrays, texts and byte strings in mappings, lists and tuples.

    Where there are very many lists or dicts in one another, an estimate: as some that are spread over each list have.

    Args:
        tree: A batch, or a part of one.
        looks: How many parts may be looked at, about.
    """
    kind = type(tree)
    if kind in _ATOMS:
        return len(tree) if kind in _TEXTS else 0
    if isinstance(tree, (torch.Tensor, np.ndarray)):
        return _array_bytes(tree)
    if isinstance(tree, Ragged):
        return tree.values.nbytes + tree.offsets.nbytes
    if isinstance(tree, (dict, MutableMapping)):
        each = max(1, looks // max(1, len(tree)))
        return sum(bytes_of(value, each) for value in tree.values())
    if not isinstance(tree, (list, tuple)):
        return 0
    some = tree[:: -(-len(tree) // looks) or 1]
    kinds = set(map(type, some))
    if kinds <= _TEXTS and _TEXTS.issuperset(map(type, tree)):
        return sum(map(len, tree))
    if kinds <= _ARRAYS and _ARRAYS.issuperset(map(type, tree)):
        return sum(map(_array_bytes, tree))
    each = max(1, looks // len(some))
    return sum(bytes_of(part, each) for part in some) * len(tree) // len(some)


def _array_bytes(array: Any) -> int:
    if isinstance(array, torch.Tensor) and array.layout is torch.sparse_coo:  # of which torch doesn't tell
        return _array_bytes(array._values()) + _array_bytes(array._indices())  # noqa: SLF001 (others want it coalesced)
    return int(array.nbytes)
