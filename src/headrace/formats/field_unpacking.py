"""msgpack, and tensors as torch saves them: what needs a package or an explicit word to be read."""

import io
from importlib import import_module
from typing import Any

from headrace.errors import DependencyError
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


def _loaded(payload: bytes) -> Any:
    import torch

    return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
