"""What every source is: samples at rest, gathered by number."""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from headrace.errors import ArgumentError

if TYPE_CHECKING:
    import torch

    from headrace.formats.values import Values

Array: TypeAlias = npt.NDArray[Any]
Ids: TypeAlias = npt.NDArray[np.int64]
# (start, stop, out): see Source.prepare
ReadPart: TypeAlias = Callable[[int, int, Mapping[str, Array]], "Mapping[str, Values]"]
# Sample ids to as many keys: see Source.keyed
KeysOf: TypeAlias = Callable[[Ids], npt.NDArray[np.uint64]]

_BLOCK_BYTES = 8 << 20
_LARGEST_BLOCK_BYTES = 64 << 20
_MOST_BLOCKS = 1 << 20


@dataclass(frozen=True, slots=True)
class Column:
    """What one column holds: `shape` is one sample's, without the batch axis.

    Attributes:
        dtype: In native byte order; structured dtypes are allowed, and `dtype("O")` is a sample that no tensor holds.
        shape: One sample's shape; `()` where a sample is one number. Where it is ragged, that of each of its values.
        ragged: Whether the samples differ in length.
        torch_dtype: Set where NumPy has no such dtype (bfloat16, float8): the array then holds its bits as integers.
        python_type: str, bytes or object where samples are no rows of an array: they stay in Arrow's memory until a
            batch holds a list of them, or are Python's own objects. `np.ndarray` where they are arrays of any shape,
            but of one within a batch.
        as_list: Whether a batch holds a ragged column as a list of tensors.
        mean_bytes: The bytes of one sample on average, where they differ.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...] = ()
    ragged: bool = False
    torch_dtype: "torch.dtype | None" = None
    python_type: type | None = None
    as_list: bool = False
    mean_bytes: int | None = None

    @property
    def is_fixed(self) -> bool:
        """Whether all samples have one shape, so that many are an array (samples, *shape)."""
        return not self.ragged and self.python_type is None

    @property
    def sample_bytes(self) -> int:
        """The bytes of one sample, on average where they differ."""
        return self.dtype.itemsize * math.prod(self.shape) if self.mean_bytes is None else self.mean_bytes


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """The runs of consecutive samples that are cheap to read together, in file order.

    Attributes:
        lengths: int64 (blocks,), the samples of each block; they sum to the length of the source.
        bytes: int64 (blocks,), the uncompressed bytes of each block.
    """

    lengths: Ids
    bytes: Ids

    def __len__(self) -> int:
        return len(self.lengths)


class Source(ABC):
    """Samples at rest: how many, of what kind, and the one verb `read`.

    A source never shuffles and keeps no position, so any number of threads may read from it at once.

    Attributes:
        schema: The columns by name.
        random_access: Whether any sample costs the same to read; decides what `shuffle=True` means.
        read_ahead_bytes: How many bytes of coming samples `prefetch` wants to know of, in the order in which they will
            be read; 0 where a little before they are read is early enough.
        splits_by_block: Whether random parts are to be drawn from each block by itself, so that a part, too, is read
            block by block.
        is_sequential: Whether it can be read in file order alone, so that nothing is to be shuffled.
    """

    schema: Mapping[str, Column]
    random_access: bool
    read_ahead_bytes: int = 0
    splits_by_block: bool = False
    is_sequential: bool = False

    @abstractmethod
    def __len__(self) -> int:
        """The number of samples."""

    @property
    @abstractmethod
    def blocks(self) -> Blocks:
        """What an order needs to know about the files."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """16 or more hex digits that tell this data from other data, computed without reading it."""

    @abstractmethod
    def read(self, sample_ids: npt.ArrayLike, out: Mapping[str, Array] | None = None) -> "Mapping[str, Values]":
        """Gathers samples: a fixed column into an array (len(sample_ids), *shape), another one as `Values` says.

        Args:
            sample_ids: int64 (samples,), in any order, repeats allowed, each in 0..len - 1.
            out: Arrays to fill, by fixed column: C-contiguous, of the column's dtype and of the result's shape. Columns
                that it leaves out come in fresh memory.

        Raises:
            ArgumentError: An array of `out` is not as said.
            IndexError: An id is negative or beyond the last sample.
            SampleError: A sample cannot be read; the text says which and where.
            StorageError: The bytes cannot be had.
        """

    def prepare(self, sample_ids: npt.ArrayLike) -> "ReadPart":
        """Returns a function that reads runs of these samples; what can be done once for all of them is done now.

        For callers that read many small batches: `part(start, stop, out)` gathers the samples `sample_ids[start:stop]`
        as `read` would, but doesn't check `out` again.

        Raises:
            IndexError: An id is negative or beyond the last sample.
        """
        ids = check_ids(sample_ids, len(self))
        return lambda start, stop, out: self.read(ids[start:stop], out)

    def narrowed(self, columns: Collection[str]) -> "Source":  # noqa: ARG002 (those that can read less use it)
        """The same samples under the same ids and in the same blocks, where it saves work with these columns alone.

        A source that gains nothing by it returns itself, with all its columns. What is in memory is shared.

        Args:
            columns: Some of the schema's, at least one.
        """
        return self

    def keyed(self, keys_of: KeysOf) -> "Source":  # noqa: ARG002 (those that draw when they decode use it)
        """The same samples under the same ids, of which random decoding (a random crop, say) draws by these keys.

        A sample that is read twice under one key is the same both times. Without random decoding a source returns
        itself. What is in memory, and what was announced, is shared; for a pass, not to be kept or pickled.

        Args:
            keys_of: Sample ids, int64 (m,), to keys, uint64 (m,); called from any number of threads at once.
        """
        return self

    def prefetch(self, sample_ids: npt.ArrayLike) -> None:
        """Hints that these samples will be read soon. Costs next to nothing where that is of no use."""

    def end_prefetch(self) -> None:
        """Says that what was announced will not be read after all: gives up what was begun and nobody waits for.

        That goes for everything announced of this source, and of all parts of one source: what other passes announced
        before is fetched when they read it, and what they announce from now on is fetched ahead again.
        """

    def counts(self) -> dict[str, int]:
        """What this process has read and holds, by name; nothing where nothing is counted.

        `read_samples` and `decoded_samples`; of a store, for whatever it was used, `requests`, `retries`,
        `received_bytes`, `cache_hits` and `cache_misses`; and the memory that is taken now, `held_bytes`, besides
        `held_ahead_bytes` of what was fetched and not decoded yet.
        """
        return {}

    @abstractmethod
    def where(self, sample_id: int) -> str:
        """Names a sample's place for error texts: "row 17 of x.npy"."""


def check_ids(sample_ids: npt.ArrayLike, samples: int) -> Ids:
    """Returns the ids as int64 (ids,) after making sure that each lies in 0..samples - 1."""
    ids = np.asarray(sample_ids)
    if ids.dtype != np.int64:
        if ids.size and ids.dtype.kind not in "iu":
            raise ArgumentError(f"sample_ids: expected integers, got {ids.dtype}")
        if ids.dtype == np.uint64:
            ids = np.minimum(ids, np.uint64(np.iinfo(np.int64).max))
        ids = ids.astype(np.int64)
    if ids.ndim != 1:
        raise ArgumentError(f"sample_ids: expected one dimension, got shape {ids.shape}")
    # Seen as unsigned, a negative id is larger than any length: one reduction checks both ends.
    if ids.size and np.maximum.reduce(ids.view(np.uint64)) >= samples:
        wrong = ids[(ids < 0) | (ids >= samples)]
        raise IndexError(f"sample id {wrong[0]} is out of range: the source has {samples} samples, 0..{samples - 1}")
    return ids


def check_out(out: Mapping[str, Array] | None, schema: Mapping[str, Column], rows: int) -> dict[str, Array]:
    """Returns an array to fill for every fixed column: those of `out` after checking them, fresh ones for the rest."""
    if not out:
        return {
            name: np.empty((rows, *column.shape), column.dtype) for name, column in schema.items() if column.is_fixed
        }
    if unknown := sorted(out.keys() - schema.keys()):
        raise ArgumentError(f"out: no column named {unknown[0]!r}; the columns are {', '.join(map(repr, schema))}")
    filled = {}
    for name, column in schema.items():
        shape = (rows, *column.shape)
        array = out.get(name)
        if not column.is_fixed:
            if array is not None:
                raise ArgumentError(
                    f"out[{name!r}]: expected no array, since the samples of this column differ in size; leave it out"
                )
            continue
        if array is None:
            array = np.empty(shape, column.dtype)
        elif not (array.shape == shape and array.dtype == column.dtype and _is_plain(array)):
            raise ArgumentError(
                f"out[{name!r}]: expected a writable C-contiguous {column.dtype} array of shape {shape}, "
                f"got {array.dtype} of shape {array.shape}{'' if _is_plain(array) else ', read-only or not contiguous'}"
            )
        filled[name] = array
    return filled


def _is_plain(array: Array) -> bool:
    """Whether the array can be filled front to back (C-contiguous, aligned, writable)."""
    return array.flags.carray


def uniform_blocks(samples: int, sample_bytes: int) -> Blocks:
    """Cuts equal-sized samples into blocks of about 8 MiB; samples above that are blocks of their own.

    Beyond 8 TiB the blocks grow instead of exceeding 2**20 in number, up to 64 MiB each.
    """
    return blocks_within(np.array([samples], np.int64), block_length(samples, sample_bytes), sample_bytes)


def block_length(samples: int, sample_bytes: int) -> int:
    """How many samples a block holds, all but the last, where they are cut as `uniform_blocks` says."""
    length = max(1, _BLOCK_BYTES // max(1, sample_bytes), -(-samples // _MOST_BLOCKS))
    return max(1, min(length, _LARGEST_BLOCK_BYTES // max(1, sample_bytes)))


def blocks_within(runs: Ids, length: int, sample_bytes: int) -> Blocks:
    """Cuts each of several runs of equal-sized samples into blocks of `length`, the last of each as long as is left.

    Args:
        runs: int64 (runs,), the samples of each.
        length: Samples of a block.
        sample_bytes: The bytes of one sample.

    >>> blocks_within(np.array([5, 2, 4]), 2, 1).lengths.tolist()
    [2, 2, 1, 2, 2, 2]
    """
    counts = -(-runs // length)
    lengths = np.full(counts.sum(), length, np.int64)
    lengths[np.cumsum(counts)[counts > 0] - 1] = (runs - length * (counts - 1))[counts > 0]
    return Blocks(lengths, lengths * sample_bytes)


def fingerprint(parts: Iterable[tuple[str | int, ...]]) -> str:
    """Hashes what a dataset is made of into 32 hex digits: the same on every platform and in every release.

    Args:
        parts: For each shard or file its name relative to their common root, its bytes and its samples.
            Names hold no NUL.

    >>> fingerprint([("a.npy", 928, 100)])
    'e5879ea6c762a410753d8e0033f77a22'
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update("".join(f"{field}\0" for field in part).encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()
