"""Map-style datasets over a source: single samples, and whole batches at once in any loader."""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from headrace.datasets import splits, views
from headrace.datasets.batches import BatchForm
from headrace.datasets.collate import Chunk, LazyRows, collate_at_once
from headrace.errors import ArgumentError
from headrace.formats import Column, DatasetSource, Ids, Source

if TYPE_CHECKING:
    from headrace.datasets.iterable import IterableView


class MapDataset(Dataset[Any]):
    """A source as torch's map-style Dataset.

    In torch's own DataLoader, with no other argument, batches are read and collated at once. A `collate_fn` of the
    user's gets a list of samples. A subclass may override `__getitem__` (to transform a sample, say): it is then served
    sample by sample through it, in every loader. A part of it (`select`, `take`, `split`) calls it with the part's own
    ids, so what it looks up beside `super().__getitem__` should be a column, not a list of its own.

    Attributes:
        source: Where the samples are.
        as_tuple: Whether a sample is a tuple of its columns; else it is a dict by column name.
    """

    def __init__(self, source: Source, *, as_tuple: bool = False) -> None:
        if not isinstance(as_tuple, bool):
            raise ArgumentError(f"as_tuple: expected True or False, got {as_tuple!r}")
        self.source, self.as_tuple = source, as_tuple

    def __len__(self) -> int:
        return len(self.source)

    @property
    def schema(self) -> Mapping[str, Column]:
        """The columns by name: dtype and one sample's shape."""
        return self.source.schema

    @property
    def fingerprint(self) -> str:
        """Hex digits that tell this data from other data, without reading it."""
        return self.source.fingerprint

    @property
    def form(self) -> BatchForm:
        """How samples and batches are put together."""
        return BatchForm(self.source.schema, self.as_tuple)

    def __getitem__(self, index: Any) -> Any:
        """One sample by its id; or the batch of a slice, or of a list or array of ids.

        Negative ids count from the end. A sample's columns are tensors of the columns' shapes; a batch's have one more
        axis in front.

        Raises:
            IndexError: An id lies outside the dataset.
            ArgumentError: The index is something else, booleans among them.
        """
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        ids = self._ids(index)
        if ids.ndim == 0:
            return self.form.row(self._batch(ids.reshape(1)), 0)
        batch = self._batch(ids)
        return tuple(batch) if isinstance(batch, list) else batch

    def __getitems__(self, ids: list[int]) -> list[Any]:
        """The samples of a batch, as torch's fetcher asks for them: a list that is read at once."""
        if self.overrides_samples:
            return [self[sample_id] for sample_id in ids]
        batch = self._batch(self._ids(ids))
        return LazyRows(Chunk(self.form, batch, len(ids))) if collate_at_once() and len(ids) else self.form.rows(batch)

    @property
    def overrides_samples(self) -> bool:
        """Whether a subclass makes its samples itself, by a `__getitem__`, `__getitems__` or `__len__` of its own."""
        kind = type(self)
        return (
            kind.__getitem__ is not MapDataset.__getitem__
            or kind.__getitems__ is not MapDataset.__getitems__
            or kind.__len__ is not MapDataset.__len__
        )

    @property
    def reading_source(self) -> Source:
        """What a loader reads from: the source, or this dataset itself where a subclass makes its samples."""
        return DatasetSource(self) if self.overrides_samples else self.source

    def select(self, ids: slice | range | npt.ArrayLike) -> Self:
        """The dataset of these samples, in this order: a slice, a range, or integers.

        Slices and ranges take no memory; a list takes 8 bytes an id.

        Raises:
            IndexError: An id is negative or too large.
            ArgumentError: Nothing is selected, or a boolean mask is given.
        """
        return self._viewed(views.select(len(self), ids))

    def take(self, samples: int) -> Self:
        """The dataset of the first samples, in file order.

        Raises:
            ArgumentError: There are not that many, or none is asked for.
        """
        is_whole = isinstance(samples, int | np.integer) and not isinstance(samples, bool)
        if not is_whole or not 1 <= samples <= len(self):
            raise ArgumentError(f"take: expected 1..{len(self)} samples, got {samples!r}")
        return self._viewed(views.select(len(self), range(samples)))

    def split(self, parts: Mapping[str, float], *, seed: int = 0) -> dict[str, Self]:
        """Disjoint random parts that together hold every sample once: `split({"train": 0.9, "val": 0.1})`.

        The parts are computed, not stored, so they take no memory, and the same seed always gives the same ones. Where
        samples are decoded a block at a time (Parquet's row groups), each part is drawn from every block in proportion
        and keeps the blocks' order, so that it, too, is read block by block.

        Args:
            parts: Each part's share: fractions that sum to 1, or whole numbers that sum to the length.
            seed: Any 64-bit integer.

        Raises:
            ArgumentError: The shares don't sum up, or a part would be empty.
        """
        lengths = self.source.blocks.lengths if self.source.splits_by_block else None
        return {name: self._viewed(part) for name, part in splits.split(len(self), parts, seed, lengths).items()}

    def to_iterable_dataset(self, batch_size: int | None = None, **options: Any) -> "IterableView":
        """The samples as an `IterableDataset` that splits itself over ranks and torch's workers; see `IterableView`."""
        from headrace.datasets.iterable import IterableView

        return IterableView(self, batch_size, **options)

    def _viewed(self, selection: views.Selection) -> Self:
        # a copy, so that what a subclass adds (attributes, a __getitem__) goes on to hold for its parts
        view = copy.copy(self)
        view.source = views.SelectedSource(self.source, selection)
        return view

    def _batch(self, ids: npt.ArrayLike) -> Any:
        return self.form.batch(self.source.read(ids))

    def _ids(self, index: Any) -> Ids:
        """Sample ids in [0, len), int64 of the index's shape, from integers that may count from the end."""
        ids = np.asarray(index)
        if ids.size == 0 and ids.dtype != np.bool_:
            return np.zeros(ids.shape, np.int64)
        if ids.dtype.kind not in "iu":
            got = "booleans; give np.flatnonzero(mask)" if ids.dtype == np.bool_ else repr(ids.dtype.name)
            raise ArgumentError(f"expected sample ids or a slice, got {got}")
        if ids.dtype == np.uint64:
            ids = np.minimum(ids, np.uint64(np.iinfo(np.int64).max))
        ids, samples = ids.astype(np.int64, copy=False), len(self)
        lowest = ids.min()
        if lowest < -samples or ids.max() >= samples:
            wrong = ids[(ids < -samples) | (ids >= samples)].flat[0]
            raise IndexError(f"sample id {wrong} is out of range: the dataset has {samples} samples")
        return np.where(ids < 0, ids + samples, ids) if lowest < 0 else ids
