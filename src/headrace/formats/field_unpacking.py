"""msgpack, and tensors as torch saves them: what needs a package or an explicit word to be read."""

import io
import math
import zipfile
from importlib import import_module
from typing import Any

from headrace.errors import DependencyError
from headrace.formats.decoding import PayloadError
from headrace.formats.field_archives import MOST_BYTES
from headrace.formats.field_decoding import EachDecoder, FieldDecoder, of_objects


def msgpack_decoder(mean_bytes: int) -> FieldDecoder:
    """Messages in msgpack to what they hold.

    Raises:
        DependencyError: The package is missing.
    """
    try:
        import_module("msgpack")
    except ImportError as error:
        raise DependencyError(
            'decoding msgpack needs msgpack, which is not installed: pip install "headrace[msgpack]"'
        ) from error
    return EachDecoder(of_objects(object, mean_bytes), _unpacked, "msgpack")


def torch_decoder(mean_bytes: int) -> FieldDecoder:
    """What `torch.save` wrote, as long as it is tensors and plain containers of them: no code is run."""
    return EachDecoder(of_objects(object, mean_bytes), _loaded, "tensors by torch.save", stacks=True)


def _unpacked(payload: bytes) -> Any:
    return import_module("msgpack").unpackb(payload)


def _loaded(payload: bytes, most_bytes: int = MOST_BYTES) -> Any:
    import torch

    if payload.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(payload)) as archive:
            _check_bytes(payload, sum(entry.file_size for entry in archive.infolist()), most_bytes)
    try:
        loaded = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:
        if type(error).__name__ != "UnpicklingError":
            raise
        # torch's own text advises to run the code
        raise PayloadError(
            "expected tensors by torch.save, in plain containers, got what is damaged or holds more than these: "
            'ask for "bytes", or give a function as decode= that reads it, where you trust whoever wrote it'
        ) from None
    _check_bytes(payload, _tensor_bytes(loaded), most_bytes)
    return loaded


def _check_bytes(payload: bytes, claimed_bytes: int, most_bytes: int) -> None:
    if claimed_bytes > most_bytes:
        raise PayloadError(
            f"tensors by torch.save of {len(payload)} bytes claim to hold {claimed_bytes}, more than the {most_bytes} "
            "that are taken: give a function as decode= that reads them, where they are to be trusted"
        )


def _tensor_bytes(tree: Any) -> int:
    """What the tensors in it take once each has memory of its own: a view may show one number a billion times."""
    import torch

    if isinstance(tree, torch.Tensor):
        return math.prod(tree.shape) * tree.element_size()
    if isinstance(tree, dict):
        return sum(map(_tensor_bytes, tree.values()))
    return sum(map(_tensor_bytes, tree)) if isinstance(tree, list | tuple | set) else 0
