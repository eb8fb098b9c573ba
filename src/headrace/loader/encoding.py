"""Python objects as bytes, with the memory of their arrays beside the pickle: as it is written, so it is viewed.

What is decoded here is what another process of the same loader has encoded: its dataset, its functions and its batches.
Bytes of files are never unpickled.

An encoded object is a list of parts, the pickle first, then the memory of each array, every part at a multiple of 64
bytes. Arrays and tensors come back as views of these bytes, writable unless they were read-only, and keep their order
of axes in memory if it has no gaps. Two views of one memory become independent. A `np.memmap` becomes a plain array.
Tensors that need gradients, that are of a subclass, sparse, quantized or not on the CPU, and arrays of Python objects
go into the pickle as they usually do.

Functions and classes that can't be imported by name, those of a script or a notebook above all, are pickled by value
(cloudpickle). Classes that a process has from another one by value go back there by name: the instances are of the very
class that they had there.
"""

import io
import pickle
import struct
import types
import uuid
import weakref
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Self

import cloudpickle
import numpy as np
import torch

from headrace.formats import Array

_ALIGNMENT = 64  # a cache line; more than any element of an array or vector instruction asks for
_NUMPY_KINDS: Final = frozenset("biufcSUVmM")  # arrays of these are their bytes; "O" and "T" hold pointers
_NUMPY_KNOWS: Final = frozenset({
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.float32, torch.float64, torch.complex64, torch.complex128,
})  # fmt: skip
# a memoryview's assignment holds the interpreter's lock; NumPy's gives it up, and costs 1 µs more
_SMALL_BYTES = 8192
MOST_PIECES: Final = 33  # of a message, besides the first
_APART_BYTES = 1 << 20  # parts of this size are pieces by themselves, so that who keeps another doesn't keep them
_SHARED_BYTES = 2 << 20  # what others share


class Encoded(NamedTuple):
    """An object's parts, to be written into memory.

    Attributes:
        parts: The bytes of each; those of arrays are the arrays' own memory.
        offsets: Where each begins.
        nbytes: What all of them take.
    """

    parts: list[memoryview]
    offsets: list[int]
    nbytes: int

    @classmethod
    def of(cls, parts: list[memoryview]) -> Self:
        offsets, end = _offsets([part.nbytes for part in parts])
        return cls(parts, offsets, end)

    @property
    def head(self) -> bytes:
        """What precedes the parts: how many there are and their sizes."""
        return struct.pack(f"<{len(self.parts) + 1}Q", len(self.parts), *(part.nbytes for part in self.parts))

    def write_into(self, memory: memoryview) -> None:
        """Writes everything into `memory`, bytes (at least nbytes,)."""
        head = self.head
        memory[: len(head)] = head
        for part, offset in zip(self.parts, self.offsets, strict=True):
            place = memory[offset : offset + part.nbytes]
            if part.nbytes <= _SMALL_BYTES:
                place[:] = part
            else:
                np.copyto(np.frombuffer(place, np.uint8), np.frombuffer(part, np.uint8))

    def in_bytes(self) -> bytearray:
        """Everything in memory of its own."""
        memory = bytearray(self.nbytes)
        self.write_into(memoryview(memory))
        return memory


def _offsets(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where parts of these sizes begin, and where the last one ends."""
    offsets, end = [], 8 * (len(sizes) + 1)
    for size in sizes:
        offset = (end + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT
        offsets.append(offset)
        end = offset + size
    return offsets, end


def encode(obj: Any, *, pickler: "type[Pickler] | None" = None) -> Encoded:
    """An object's parts, which are valid while its arrays don't change.

    Args:
        obj: Anything that cloudpickle can pickle.
        pickler: The class that pickles.

    Raises:
        Exception: It can't be pickled; usually TypeError or pickle.PicklingError.
    """
    stream, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    (pickler or Pickler)(stream, buffers).dump(obj)
    return Encoded.of([stream.getbuffer(), *(buffer.raw() for buffer in buffers)])


def encode_with(pickler: "type[ParcelPickler]", obj: Any) -> tuple[Encoded, dict[str, type]]:
    """The parts of a pair: an object, and the classes that were pickled by value, by their names."""
    stream, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    writing = pickler(stream, buffers)
    classes = writing.classes  # is filled while the object is pickled, and pickled after it
    writing.dump((obj, classes))
    return Encoded.of([stream.getbuffer(), *(buffer.raw() for buffer in buffers)]), classes


def decode(memory: memoryview) -> Any:
    """The object whose parts `memory`, bytes (anything,), holds; its arrays are views of it.

    Raises:
        ValueError: These are no such parts.
        Exception: Whatever unpickling raises.
    """
    return _decoded(_parts(memory))


def _parts(memory: memoryview) -> list[memoryview]:
    count = struct.unpack_from("<Q", memory)[0] if memory.nbytes >= 8 else 0
    if not 1 <= count <= memory.nbytes // 8 - 1:
        raise ValueError(f"expected at least one part in {memory.nbytes} bytes, got {count}")
    sizes = struct.unpack_from(f"<{count}Q", memory, 8)
    offsets, end = _offsets(sizes)
    if end > memory.nbytes:
        raise ValueError(f"expected {count} parts in {memory.nbytes} bytes, got sizes up to byte {end}")
    return [memory[offset : offset + size] for offset, size in zip(offsets, sizes, strict=True)]


def in_pieces(encoded: Encoded, *, inline_bytes: int) -> list[Encoded]:
    """The parts in up to `MOST_PIECES` pieces, besides the first, to be written into memory each by itself.

    The first one holds what is small, if all of it together is at most `inline_bytes`, and where each part is. Large
    parts are pieces by themselves; others share some, in their order.
    """
    sizes = [part.nbytes for part in encoded.parts]
    # these thirty-seconds and sixteenths are why there are so few
    apart_bytes, shared_bytes = max(_APART_BYTES, encoded.nbytes >> 5), max(_SHARED_BYTES, encoded.nbytes >> 4)
    goes_inline = _offsets([size for size in sizes if size < apart_bytes])[1] <= inline_bytes
    pieces: list[list[memoryview]] = [[]]
    places = bytearray()
    shared, free_bytes = 0, 0
    for part, size in zip(encoded.parts, sizes, strict=True):
        if size >= apart_bytes:
            place = len(pieces)
            pieces.append([])
        elif goes_inline:
            place = 0
        else:
            if size > free_bytes:
                shared, free_bytes = len(pieces), shared_bytes
                pieces.append([])
            place, free_bytes = shared, free_bytes - size
        pieces[place].append(part)
        places.append(place)
    pieces[0].insert(0, memoryview(places))
    return [Encoded.of(parts) for parts in pieces]


def in_one_piece(encoded: Encoded) -> Encoded:
    """The same as a first piece that holds all parts."""
    return Encoded.of([memoryview(bytes(len(encoded.parts))), *encoded.parts])


def decode_pieces(memories: Sequence[memoryview]) -> Any:
    """The object whose parts the pieces hold, bytes each; its arrays are views of them.

    Raises:
        ValueError: These are no such parts.
        Exception: Whatever unpickling raises.
    """
    first, *others = map(_parts, memories)
    pieces = [iter(first[1:]), *map(iter, others)]
    try:
        parts = [next(pieces[place]) for place in first[0]]
    except (IndexError, StopIteration):
        raise ValueError(f"expected the places of parts in {len(pieces)} pieces, got {bytes(first[0])!r}") from None
    return _decoded(parts)


def _decoded(parts: Sequence[memoryview]) -> Any:
    return pickle.loads(parts[0], buffers=parts[1:])  # noqa: S301 (what another process of this loader has encoded)


class Pickler(cloudpickle.Pickler):  # type: ignore[misc] # has no annotations
    """Pickles by value what can't be imported, and arrays as buffers beside the pickle."""

    def __init__(self, stream: io.BytesIO, buffers: list[pickle.PickleBuffer]) -> None:
        """Prepares to pickle into `stream`; the arrays' memory is appended to `buffers`."""
        super().__init__(stream, protocol=5, buffer_callback=buffers.append)

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is np.ndarray or kind is np.memmap:
            if obj.dtype.kind in _NUMPY_KINDS and obj.dtype.itemsize and not obj.dtype.hasobject:
                return _reduced_array(obj)
        elif kind is torch.Tensor:
            if _is_plain(obj):
                return _reduced_tensor(obj)
        elif kind is types.CodeType:
            return _with_file_name, (*self.dispatch_table[kind](obj), obj.co_filename)
        elif isinstance(obj, type):
            return self.reduced_class(obj)
        return super().reducer_override(obj)

    def reduced_class(self, cls: type) -> Any:
        """How a class is pickled."""
        return super().reducer_override(cls)


def _with_file_name(make: Any, arguments: tuple[Any, ...], name: str) -> types.CodeType:
    """A function's code with its file, which cloudpickle leaves out: tracebacks show the user's lines by it."""
    code: types.CodeType = make(*arguments)
    return code.replace(co_filename=name)


class ReplyPickler(Pickler):
    """The same, for objects that go where the parcel of this process came from."""

    def reduced_class(self, cls: type) -> Any:
        received = _received.get(id(cls))
        return super().reduced_class(cls) if received is None else (_sent_class, (received[1],))


class ParcelPickler(Pickler):
    """The same, for objects whose classes are to come back by name.

    Attributes:
        classes: The name of each class that was pickled by value, and the class.
    """

    def __init__(self, stream: io.BytesIO, buffers: list[pickle.PickleBuffer]) -> None:
        super().__init__(stream, buffers)
        self.classes: dict[str, type] = {}

    def reduced_class(self, cls: type) -> Any:
        reduced = super().reduced_class(cls)
        if isinstance(reduced, tuple) and len(reduced) > 2:  # with a state: neither by reference nor a built-in type
            self.classes[_name_of(cls)] = cls
        return reduced


# Classes that this process has sent by value, and the names under which they come back.
_sent: "weakref.WeakValueDictionary[str, type]" = weakref.WeakValueDictionary()
# Classes that it has received, by their ids, since a metaclass may have made them unhashable.
_received: dict[int, tuple[type, str]] = {}


def _name_of(cls: type) -> str:
    for name, sent in list(_sent.items()):
        if sent is cls:
            return name
    name = uuid.uuid4().hex
    _sent[name] = cls
    return name


def _sent_class(name: str) -> type:
    try:
        return _sent[name]
    except KeyError:
        raise LookupError(
            "a worker process has sent an instance of a class that it had got from here, and which is gone here: keep "
            "a reference to the classes of the samples as long as the loader is used"
        ) from None


def remember_received(classes: dict[str, type]) -> None:
    """Lets these classes go back by name to where they came from."""
    for name, cls in classes.items():
        _received[id(cls)] = cls, name


def _axes(strides: Sequence[int]) -> tuple[int, ...]:
    """The axes from the one of the largest stride to that of the smallest."""
    return tuple(sorted(range(len(strides)), key=lambda axis: -abs(strides[axis])))


def _inverse(axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(range(len(axes)), key=axes.__getitem__))


def _reduced_array(array: Array) -> Any:
    dtype = array.dtype.str if array.dtype.isbuiltin == 1 and array.dtype.metadata is None else array.dtype
    axes = None
    if not array.flags.c_contiguous:
        axes = _axes(array.strides)
        if not array.transpose(axes).flags.c_contiguous:
            writable, axes = array.flags.writeable, None
            array = np.array(array, order="C", subok=False)
            array.flags.writeable = writable
    memory: Any = array if axes is None else array.transpose(axes)
    if memory.dtype.kind in "mM":
        memory = memory.reshape(-1).view(np.uint8)  # NumPy lends no memory of times
    return rebuilt_array, (pickle.PickleBuffer(memory), dtype, array.shape, axes)


def rebuilt_array(buffer: Any, dtype: Any, shape: tuple[int, ...], axes: tuple[int, ...] | None) -> Array:
    """An array of this shape over `buffer`, in which the axes lie in the order `axes`, or in their own for None."""
    if axes is None:
        return np.ndarray(shape, dtype, buffer)
    return np.ndarray(tuple(shape[axis] for axis in axes), dtype, buffer).transpose(_inverse(axes))


def _is_plain(tensor: torch.Tensor) -> bool:
    return (
        tensor.layout is torch.strided
        and tensor.is_cpu
        and not tensor.requires_grad
        and not tensor.is_quantized
        and not tensor.is_conj()
        and not tensor.is_neg()
        and not tensor.__dict__
    )


def _reduced_tensor(tensor: torch.Tensor) -> Any:
    axes, ordered = None, tensor
    if not tensor.is_contiguous():
        axes = _axes(tensor.stride())
        ordered = tensor.permute(axes)
        if not ordered.is_contiguous():
            axes, ordered = None, tensor.contiguous()
    numpy_knows = ordered.dtype in _NUMPY_KNOWS
    memory = ordered.numpy() if numpy_knows else ordered.reshape(-1).view(torch.uint8).numpy()
    return rebuilt_tensor, (pickle.PickleBuffer(memory.data), tensor.dtype, tuple(tensor.shape), axes)


def rebuilt_tensor(
    buffer: Any, dtype: torch.dtype, shape: tuple[int, ...], axes: tuple[int, ...] | None
) -> torch.Tensor:
    """The same as a tensor."""
    if len(buffer) == 0:  # torch refuses to view no bytes
        return torch.empty(shape, dtype=dtype)
    flat = torch.frombuffer(buffer, dtype=dtype)
    if axes is None:
        return flat.reshape(shape)
    return flat.reshape(tuple(shape[axis] for axis in axes)).permute(_inverse(axes))
