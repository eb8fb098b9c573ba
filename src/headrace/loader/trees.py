"""The tensors in whatever a batch is: dicts, lists and tuples, as deep as they go."""

from collections.abc import Callable
from typing import Any

import torch

from headrace.formats import Ragged

# What lists hold by the thousand, and tensors are never in
_TEXTS = {str, bytes}
_ATOMS = {*_TEXTS, int, float, bool, type(None)}


def map_tensors(function: Callable[[torch.Tensor], Any], tree: Any) -> Any:
    """The same dicts, lists and tuples with the function's result for each tensor; all else passes through."""
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
    return tree


def bytes_of(tree: Any) -> int:
    """The bytes of all tensors, texts and byte strings in dicts, lists and tuples."""
    if isinstance(tree, torch.Tensor):
        return tree.nbytes
    if isinstance(tree, Ragged):
        return tree.values.nbytes + tree.offsets.nbytes
    if isinstance(tree, dict):
        return sum(map(bytes_of, tree.values()))
    if isinstance(tree, (list, tuple)):
        return sum(map(len if _TEXTS.issuperset(map(type, tree)) else bytes_of, tree))
    return len(tree) if isinstance(tree, (str, bytes)) else 0
