"""Which decoder a field gets: by its extension, or as `decode=` says."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from headrace.errors import ArgumentError
from headrace.formats.decoding import PayloadError
from headrace.formats.field_archives import GzipDecoder, archive_decoder, tenbin_decoder
from headrace.formats.field_arrays import ArraysDecoder, arrays_decoder, padded_decoder
from headrace.formats.field_decoding import (
    EachDecoder,
    FieldDecoder,
    FixedDecoder,
    bytes_decoder,
    json_decoder,
    of_objects,
    text_decoder,
)
from headrace.formats.field_images import images_decoder
from headrace.formats.field_numbers import IntegerDecoder
from headrace.formats.field_unpacking import msgpack_decoder, torch_decoder
from headrace.formats.image import ImageDecoder, image
from headrace.formats.nearest import nearest
from headrace.formats.ragged import Pad
from headrace.formats.tar_table import FieldInfo
from headrace.formats.webdataset_images import WEBDATASET_IMAGES, webdataset_decoder

_PICKLES = {"pyd", "pkl", "pickle"}
_TORCH = {"pth", "pt"}
_REFUSED = "code"

# By extension what is made of it
KINDS: Mapping[str, str] = {
    extension: kind
    for kind, extensions in {
        "integers": "cls cls2 index inx id",
        "text": "txt text transcript",
        "JSON": "json jsn",
        "arrays": "npy",
        "dicts of arrays": "npz",
        "lists of arrays": "ten tenbin tb",
        "msgpack": "mp msg msgpack",
        "images": "jpg jpeg png webp ppm pgm pbm bmp gif",
        _REFUSED: "pyd pkl pickle pth pt",
    }.items()
    for extension in extensions.split()
}

# Whatever needs no more than the mean size of payloads
_SIMPLE: Mapping[str, Callable[[int], FieldDecoder]] = {
    "integers": lambda mean_bytes: IntegerDecoder(),  # noqa: ARG005
    "text": text_decoder,
    "JSON": json_decoder,
    "dicts of arrays": archive_decoder,
    "lists of arrays": tenbin_decoder,
    "msgpack": msgpack_decoder,
    "bytes": bytes_decoder,
}


@dataclass(frozen=True, slots=True)
class Choice:
    """What is known when a column's decoder is chosen.

    Attributes:
        name: The column.
        fields: Where its payloads are from: the first of these that a sample has.
        info: Its payloads.
        given: What `decode=` says; None for the default.
        pad: How arrays of different lengths are padded; None for not at all.
    """

    name: str
    fields: tuple[str, ...]
    info: FieldInfo
    given: Any
    pad: Pad | None

    @property
    def mean_bytes(self) -> int:
        """Of one payload."""
        return max(1, self.info.total_bytes // max(1, self.info.count))


def kind_of(field: str) -> str:
    """What a field's payloads become by default, its compression aside."""
    return KINDS.get(_extension(field), "bytes")


def choose(choice: Choice) -> FieldDecoder:
    """The decoder of a column.

    Raises:
        ArgumentError: It can't be decoded as it is asked for, or only by running code.
        FormatError: Its first payload holds what no tensor can hold.
        DependencyError: A package is missing.
    """
    given = choice.given
    if given == "bytes":  # as they are, compressed too
        return _padded_or(choice, bytes_decoder(choice.mean_bytes))
    is_compressed = choice.info.extension == "gz"
    decoder = _by_name(choice, is_compressed) if given is None or isinstance(given, str) else _by_object(choice)
    return GzipDecoder(decoder) if is_compressed else decoder


def _by_name(choice: Choice, is_compressed: bool) -> FieldDecoder:  # noqa: FBT001 (private)
    given, info = choice.given, choice.info
    own = _extension(info.name)
    if given == "torch" and own in _TORCH:
        return _padded_or(choice, torch_decoder(choice.mean_bytes))
    if given in WEBDATASET_IMAGES:
        return _padded_or(choice, webdataset_decoder(given, choice.mean_bytes))
    if given == "npy_list":
        return _padded_or(choice, ArraysDecoder(of_objects(object, choice.mean_bytes)))
    if given is not None and given not in KINDS:
        known = [*KINDS, "bytes", "npy_list", *WEBDATASET_IMAGES]
        raise ArgumentError(f"decode: column {choice.name!r}: no decoder {given!r}{nearest(given, known, known)}")
    kind = KINDS.get(own if given is None else given, "bytes")
    if kind == _REFUSED:
        raise ArgumentError(_why_refused(choice.name, own if given is None else given))
    if kind == "arrays":
        if choice.pad is not None:
            if is_compressed:
                raise ArgumentError(f"pad_to: {choice.name!r} is compressed, so its dtype isn't known: leave it out")
            return padded_decoder(info.head, choice.pad)
        if is_compressed:  # the sizes of the arrays aren't known
            return ArraysDecoder(of_objects(object, choice.mean_bytes))
        return arrays_decoder(info.head, info.least_bytes, info.most_bytes, choice.mean_bytes)
    if kind == "images":
        return _padded_or(choice, images_decoder(image(), choice.mean_bytes))
    return _padded_or(choice, _SIMPLE[kind](choice.mean_bytes))


def _by_object(choice: Choice) -> FieldDecoder:
    given = choice.given
    if given is image:
        raise ArgumentError(
            f"decode: column {choice.name!r}: expected hr.image(224), or with another size, got hr.image itself"
        )
    if isinstance(given, FieldDecoder):
        return _padded_or(choice, given)
    if isinstance(given, ImageDecoder) and given.size is None:
        return _padded_or(choice, images_decoder(given, choice.mean_bytes))
    if hasattr(given, "column") and hasattr(given, "decode"):
        if not given.column.is_fixed:
            raise ArgumentError(f"decode: column {choice.name!r}: expected a decoder to samples of one shape")
        return _padded_or(choice, FixedDecoder(given))
    if not callable(given):
        raise ArgumentError(
            f"decode: expected for column {choice.name!r} a name such as 'npy' or 'bytes', a decoder such as "
            f"hr.image(224), or a function of bytes, got {given!r}"
        )
    function = functools.partial(_handled, given, _key(choice)) if _takes_key(given) else given
    what = f"what {getattr(given, '__name__', type(given).__name__)} decodes"
    return _padded_or(choice, EachDecoder(of_objects(object, choice.mean_bytes), function, what, stacks=True))


def _padded_or(choice: Choice, decoder: FieldDecoder) -> FieldDecoder:
    if choice.pad is not None:
        raise ArgumentError(f"pad_to: column {choice.name!r} holds no .npy arrays of its own: leave it out")
    return decoder


def _takes_key(function: Callable[..., Any]) -> bool:
    """Whether a function has the signature of webdataset's handlers, (key, data)."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some built-in functions don't tell; none of them is a handler
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(own.kind in positional and own.default is own.empty for own in parameters) == 2


def _key(choice: Choice) -> str:
    """The key that a handler gets with each of a column's payloads."""
    first = choice.fields[0]
    key = f".{first.removesuffix('.gz')}"
    if other := next((field for field in choice.fields if _extension(field) != _extension(first)), None):
        raise ArgumentError(
            f"decode: column {choice.name!r}: expected a function of bytes, since the payloads of {other!r} would come "
            f"to a handler of (key, data) with the key {key!r} too: give a function of bytes alone, or read {first!r} "
            f"and {other!r} as two columns"
        )
    return key


def _extension(field: str) -> str:
    """A field's last extension, its compression aside."""
    return field.removesuffix(".gz").rpartition(".")[2]


def _handled(handler: Callable[[str, bytes], Any], key: str, payload: bytes) -> Any:
    sample = handler(key, payload)
    if sample is None:
        raise PayloadError(f"the handler given as decode= doesn't take {key!r} (it returned None): give one that does")
    return sample


def _why_refused(name: str, extension: str) -> str:
    if extension in _TORCH:
        return (
            f"column {name!r}: reading .{extension} with all that it may hold runs code in it; "
            f'decode={{{name!r}: "torch"}} takes tensors alone (torch.load with weights_only=True), "bytes" gives it '
            "as it is, and any other name in columns= leaves it out"
        )
    return (
        f"column {name!r}: reading .{extension} (a pickle) runs code in it: where you trust whoever wrote it, "
        f'decode={{{name!r}: pickle.loads}}; "bytes" gives it as it is; columns= without it leaves it out'
    )
