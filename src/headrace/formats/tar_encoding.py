"""A sample as the members of a shard: what webdataset's own encoders make of its values, and of nothing else.

They take what they can't encode for something else (None for the class "None", text for the bytes of an array), and
pickle; here that is an error which names the sample. What is given as bytes is written as it is.
"""

import gzip
import io
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import torch

from headrace.errors import ArgumentError, DependencyError
from headrace.formats.nearest import listed

# Columns that webdataset and headrace add when they read: they are not written again.
ADDED = frozenset(
    f"__{name}__"
    for name in ("key", "url", "local_path", "valid", "dataset", "index", "shard", "shardindex", "worker", "rank")
)
# The rule by which readers split a member's name into key and field
_RULE = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_META = re.compile(r"__[^/]*__($|/)")
# Readers refuse extension headers of 1 MiB or more.
_MOST_NAME_BYTES = 1 << 19
_GZIP = b"\x1f\x8b\x08"

_WHOLE = {"cls", "cls2", "class", "count", "index", "inx", "id"}
_TEXT = {"txt", "text", "transcript", "html", "htm"}
_ARRAY = {"npy"}
_ARRAYS = {"npz"}
_TENSORS = {"ten", "tenbin", "tb"}
_IMAGE = {"jpg", "jpeg", "img", "image", "png", "pbm", "pgm", "ppm", "tiff", "tif"}
_CODE = {"pyd", "pkl", "pickle", "pth", "pt"}
_OBJECT = {"json", "jsn", "mp", "msgpack", "msg", "cbor"}
_NEEDS = {
    "msgpack": "pip install msgpack",
    "cbor": "pip install cbor",
    "PIL": 'pip install "headrace[image]"',
}


def members_of(sample: Any, number: int) -> tuple[str, dict[str, bytes]]:
    """Returns the key of a sample, and the bytes of each of its fields.

    Args:
        sample: A mapping with the key as `__key__`, and a value for each field.
        number: How many samples came before, for error texts.

    Raises:
        ArgumentError: The key or a field's name wouldn't be read as it is written, or a value can't be encoded.
        DependencyError: An encoder needs a package that is missing.
    """
    if not isinstance(sample, Mapping):
        raise ArgumentError(f"sample {number}: expected a mapping with a '__key__', got {type(sample).__name__}")
    if "__key__" not in sample:
        raise ArgumentError(
            f"sample {number}: expected a '__key__', the name that its members share, got "
            f"{listed([str(name) for name in sample]) or 'nothing'}"
        )
    key = sample["__key__"]
    _check_key(key, number)
    where = f"sample {number} (key {_cut(key)})"
    fields = [field for field in sample if field not in ADDED]
    if not fields:
        raise ArgumentError(f"{where}: expected at least one field besides '__key__', got none")
    by_name: dict[str, str] = {}
    for field in fields:
        _check_field(key, field, where)
        if (other := by_name.setdefault(field.lower(), field)) != field:
            raise ArgumentError(
                f"{where}: the fields {other!r} and {field!r} are one to readers, which put names in lower case: "
                "rename one"
            )
    return key, {field: _encoded(sample[field], field, f"{where}, field {field!r}") for field in fields}


def _check_key(key: Any, number: int) -> None:
    def refuse(reason: str) -> NoReturn:
        raise ArgumentError(f"sample {number}: key {_cut(key)}: {reason}")

    if not isinstance(key, str):
        raise ArgumentError(f"sample {number}: '__key__': expected text, got {type(key).__name__}: {_cut(key)}")
    name = key.rpartition("/")[2]
    if not name:
        refuse("expected a name, got none after the last '/'" if key else "expected a name, got an empty one")
    if "." in name:
        refuse(
            f"expected no dot after the last '/', got {_cut(name)}: readers end the key at the first dot and take the "
            "rest for a part of the field: replace the dots"
        )
    if "\0" in key:
        refuse("expected no NUL character")
    if key.startswith("/") or ".." in key.split("/"):
        refuse("expected a path below the place where a shard may be unpacked, without a leading '/' and without '..'")
    if _META.match(key) and "/" in key:
        refuse("readers skip what lies in a folder named __...__: rename it")
    try:
        key_bytes = len(key.encode())
    except UnicodeEncodeError:
        refuse("expected text that UTF-8 can hold")
    if key_bytes > _MOST_NAME_BYTES:
        refuse(f"expected at most {_MOST_NAME_BYTES} bytes of UTF-8, got {key_bytes}")


def _check_field(key: str, field: Any, where: str) -> None:
    def refuse(reason: str) -> NoReturn:
        raise ArgumentError(f"{where}: field {_cut(field)}: {reason}")

    if not isinstance(field, str):
        refuse(f"expected text such as 'jpg', got {type(field).__name__}")
    if not field:
        refuse("expected a name such as 'jpg', got an empty one")
    if field.startswith("."):
        refuse(f"expected a name without the leading dot, such as {field.lstrip('.') or 'jpg'!r}")
    if field.startswith("_"):
        refuse("names that begin with '_' are for what readers and writers add: rename it, or leave it out")
    if "/" in field or "\0" in field:
        refuse("expected no '/' and no NUL character")
    try:
        field_bytes = len(field.encode())
    except UnicodeEncodeError:
        refuse("expected text that UTF-8 can hold")
    if field_bytes > _MOST_NAME_BYTES // 2:
        refuse(f"expected at most {_MOST_NAME_BYTES // 2} bytes of UTF-8, got {field_bytes}")
    found = _RULE.match(f"{key}.{field}")
    if found is None or found.groups() != (key, field):
        refuse(f"readers would not split {_cut(f'{key}.{field}')} into this key and this field: remove line breaks")


def _encoded(value: Any, field: str, where: str) -> bytes:
    """The bytes of a member."""
    name = field.lower()
    is_packed = name.endswith(".gz")
    data = _payload(value, name.removesuffix(".gz").rpartition(".")[2], where)
    if is_packed and not data.startswith(_GZIP):
        with io.BytesIO() as packed:
            # the time, and a name, would differ each time
            with gzip.GzipFile("", "wb", fileobj=packed, mtime=0) as file:
                file.write(data)
            return packed.getvalue()
    return data


def _payload(value: Any, extension: str, where: str) -> bytes:
    def refuse(expected: str) -> NoReturn:
        raise ArgumentError(f"{where}: expected {expected}, or bytes, got {described(value)}")

    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if extension in _CODE:
        refuse(
            "bytes, since what is pickled runs code when it is read: give 'npy', 'json' or 'tenbin' instead, or the "
            "encoded bytes; not a value to encode"
        )
    if extension in _WHOLE:
        return str(_whole(value, refuse)).encode("ascii")
    if isinstance(value, torch.Tensor):
        value = _array_of(value, refuse)
    if extension in _ARRAY:
        if not isinstance(value, np.ndarray | np.generic) or value.dtype.hasobject:
            refuse("an array of numbers or a tensor")
        return _by_webdataset(extension, np.asarray(value), where)
    if extension in _ARRAYS:
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            refuse("a dict of arrays by name")
        arrays = {name: _array_of(one, refuse) for name, one in value.items()}
        return _by_webdataset(extension, arrays, where)
    if extension in _TENSORS:
        # the encoder takes memory as it lies, whatever the order of its bytes and axes
        found = [_array_of(one, refuse) for one in (value if isinstance(value, list | tuple) else [value])]
        return _by_webdataset(
            extension, [np.asarray(one, one.dtype.newbyteorder("<"), order="C") for one in found], where
        )
    if isinstance(value, str):
        if extension in _OBJECT | _IMAGE:
            refuse(f"a value that {extension!r} can hold; text could be that value or its encoding")
        return _utf8(value, refuse)
    if extension in _TEXT:
        refuse("text")
    if value is None and extension not in _OBJECT:
        refuse("a value")
    if extension not in _OBJECT | _IMAGE:
        known = sorted(_WHOLE | _TEXT | _ARRAY | _ARRAYS | _TENSORS | _IMAGE | _OBJECT)
        refuse(f"text, since values are encoded for {', '.join(known)} only")
    return _by_webdataset(extension, value, where)


def _by_webdataset(extension: str, value: Any, where: str) -> bytes:
    from webdataset.writer import default_handlers

    try:
        return bytes(default_handlers[extension](value))
    except ImportError as error:
        line = _NEEDS.get((error.name or "").partition(".")[0])
        raise DependencyError(f"{where}: encoding it needs a package that is not installed: {line or error}") from None
    except Exception as error:  # whatever encoders raise
        raise ArgumentError(f"{where}: {described(value)} can't be encoded: {type(error).__name__}: {error}") from error


def _whole(value: Any, refuse: Callable[[str], NoReturn]) -> int:
    expected = "a whole number from -2**63 to 2**63 - 1"
    try:
        number = int(value) if isinstance(value, str | bool | np.bool_) else operator.index(value)
    except (TypeError, ValueError):
        refuse(expected)
    if not -(1 << 63) <= number < 1 << 63:
        refuse(expected)
    return number


def _array_of(value: Any, refuse: Callable[[str], NoReturn]) -> np.ndarray[Any, Any]:
    if isinstance(value, torch.Tensor):
        try:
            value = value.detach().cpu().numpy()
        except (TypeError, RuntimeError):
            refuse("a dense tensor of a dtype that NumPy has")
    if not isinstance(value, np.ndarray | np.generic) or value.dtype.hasobject:
        refuse("arrays of numbers, or tensors")
    return np.asarray(value)


def _utf8(value: str, refuse: Callable[[str], NoReturn]) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError:
        refuse("text that UTF-8 can hold")


def described(value: Any) -> str:
    """What was given instead of something else, for error texts."""
    if isinstance(value, np.ndarray | torch.Tensor):
        return f"{type(value).__name__} of {value.dtype} and shape {tuple(value.shape)}"
    if isinstance(value, Sequence | Mapping) and not isinstance(value, str):
        return f"{type(value).__name__} of {len(value)}"
    return f"{type(value).__name__}: {_cut(value)}"


def _cut(value: Any) -> str:
    """What something is, in at most 80 characters."""
    text = repr(value[:80] if isinstance(value, str) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."
