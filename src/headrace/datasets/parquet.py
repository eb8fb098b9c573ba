"""Datasets over Parquet files."""

import functools
import math
import os
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.datasets import views
from headrace.datasets.arrays import store_of
from headrace.datasets.mapstyle import MapDataset
from headrace.errors import ArgumentError
from headrace.formats import Pad
from headrace.formats.column_files import PathLike
from headrace.formats.decoding import Decoder
from headrace.formats.parquet_columns import ColumnOptions
from headrace.formats.parquet_source import ParquetSource
from headrace.order import DECODE, hash_words
from headrace.storage import Store

if TYPE_CHECKING:
    import pyarrow.compute as pc


class ParquetDataset(MapDataset):
    """Parquet files as a dataset: only the columns that are asked for are read, a row group at a time.

    Row groups are decoded when they are needed and kept in memory up to a budget, shared by all threads. In
    `headrace.DataLoader` and `to_iterable_dataset()`, `shuffle=True` permutes samples within windows of row groups, so
    that each is decoded once; in torch's DataLoader, whose shuffle is global, it is fast while the decoded columns fit
    into the budget, and a warning says when they don't. Reading in file order needs memory for a few slices of a row
    group, however large it is.

    How columns come in batches, by their type in the file:

    - Numbers and booleans as tensors of their dtype. `uint64` and decimals only with `cast=`, since a tensor would lose
      digits or operations; a cast that can't hold a value is an error.
    - Timestamps, times and durations as int64 in the unit of the file, `time32` and dates as int32 (days; `date64` as
      int64, ms). Timestamps of 96 bits (INT96) come in microseconds; digits below are lost.
    - Lists of fixed size, nested or not, and fixed-shape tensors as tensors of that shape.
    - Other lists of numbers as `Ragged`; padded to one length with `pad_to=`, as lists of tensors with `lists=`.
    - Text and binary as lists of `str` and `bytes`; as class numbers with `codes=`, decoded with `decode=`.
    - A struct as its fields, `"a.x"`, `"a.y"`. Whatever else there is (lists of text, maps) as lists of Python objects,
      in which nulls are None.

    Example:
        >>> import pathlib, tempfile, pyarrow as pa, pyarrow.parquet as pq
        >>> path = pathlib.Path(tempfile.mkdtemp(), "x.parquet")
        >>> pq.write_table(pa.table({"x": [[1, 2], [3]], "text": ["a", "b"], "y": [0, 1]}), path)
        >>> ParquetDataset(path, columns=["text", "y"])[1]
        {'text': 'b', 'y': tensor(1)}
        >>> ParquetDataset(path)[[1, 0]]["x"].to_padded()
        tensor([[3, 0],
                [1, 2]])
    """

    def __init__(
        self,
        paths: PathLike | Sequence[PathLike],
        columns: Sequence[str] | None = None,
        *,
        as_tuple: bool = False,
        store: Store | None = None,
        storage_options: Mapping[str, Any] | None = None,
        memory_bytes: int | None = None,
        row_filter: "pc.Expression | None" = None,
        cast: Mapping[str, str] | None = None,
        fill: Mapping[str, object] | None = None,
        validity: Collection[str] = (),
        shape: Mapping[str, int | Sequence[int]] | None = None,
        pad_to: Mapping[str, int | Pad] | None = None,
        lists: Collection[str] = (),
        codes: Collection[str] | Mapping[str, Sequence[Any] | None] = (),
        decode: Mapping[str, Decoder] | None = None,
        index_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        """Reads the footers of all files, and nothing else.

        Args:
            paths: A file, a pattern (`*`, `{000..127}`), a list of them, or a folder, whose folders named `key=value`
                give columns: local paths, or URLs such as `s3://bucket/train/*.parquet` (a folder's ends in "/").
            columns: What is read, in this order: names, dotted for the fields of structs; by default all columns.
            as_tuple: Whether samples are tuples; by default dicts.
            store: What reads URLs: a `Store`, perhaps with a disk cache.
            storage_options: Instead of a store, the options (credentials, endpoint) of one without a cache.
            memory_bytes: The most memory that row groups take, in each process that reads; by default 8 GiB, or a
                quarter of what is free.
            row_filter: A `pyarrow.compute` expression: only rows for which it is true are samples. They are counted
                when the length is first asked for, by reading the columns that it refers to; row groups that their
                statistics rule out are never read.
            cast: By column the dtype that it comes as: "int64", "float32" and so on.
            fill: By column what nulls become, also those within lists. Without it, a null is an error.
            validity: Columns that come with another, `"x.__valid__"` (bool): false for nulls, which `fill=` or else
                zeros and nothing stand for.
            shape: By column the shape that each of its lists has, for lists that the file doesn't say it of.
            pad_to: By column the length that its lists are filled up to, or a `Pad` with the value for it.
            lists: Columns of lists that batches hold as a list of tensors.
            codes: Columns whose values are replaced by class numbers, int64: of a mapping by the place in the sequence;
                else the values are found by reading the column once, and numbered in their order. `categories(name)`
                says what they stand for.
            decode: By column what makes samples of its bytes, such as `headrace.image(224)`; a struct {bytes, path}, as
                Hugging Face writes images, is its bytes then.
            index_dir: A folder in which to keep what the footers say, and how many rows a filter keeps: thousands of
                files then open at once the next time. By default a folder in the store's cache, if it has one.

        Raises:
            ArgumentError: No file, no row, no such column, or arguments that don't go together.
            DependencyError: A URL needs a package that is missing; the text names the pip line.
            FormatError: A file is damaged, or its columns differ from the first file's.
            StorageError: A file cannot be opened.
        """
        options = ColumnOptions(
            cast=_by_column("cast", cast),
            fill=_by_column("fill", fill),
            validity=_names("validity", validity),
            shape={name: _shape(name, own) for name, own in _by_column("shape", shape).items()},
            pad_to={name: _pad(name, own) for name, own in _by_column("pad_to", pad_to).items()},
            lists=_names("lists", lists),
            codes=_codes(codes),
            decode=_by_column("decode", decode),
        )
        source = ParquetSource(
            paths,
            columns,
            store_of(store, storage_options),
            memory_bytes=memory_bytes,
            row_filter=row_filter,
            options=options,
            index_dir=index_dir,
        )
        # a key for each row, so that what is drawn differs between them; passes draw by keys of their own
        super().__init__(source.keyed(functools.partial(hash_words, 0, 0, DECODE)), as_tuple=as_tuple)

    def __repr__(self) -> str:
        source, rows = self._files(), None
        if self.source is not source or source.is_counted:
            rows = len(self.source)
        return f"{type(self).__name__}({source.describe(rows)})"

    def categories(self, name: str) -> tuple[object, ...]:
        """What the codes of a column that comes with `codes=` stand for: code i for the i-th.

        Where they are to be found, this reads the column, once; parts of the dataset have the same ones.

        Raises:
            ArgumentError: The column doesn't come as codes.
        """
        return self._files().categories(name)

    def counts(self) -> dict[str, int]:
        """What this process has read and decoded of all parts of the dataset, and what it holds in memory, by name."""
        return self._files().counts()

    def _files(self) -> ParquetSource:
        """The source of the whole dataset, of which this may be a part."""
        source = self.source
        while isinstance(source, views.SelectedSource):
            source = source.base
        assert isinstance(source, ParquetSource)
        return source


def _codes(codes: Collection[str] | Mapping[str, Sequence[Any] | None]) -> dict[str, tuple[Any, ...] | None]:
    if not isinstance(codes, Mapping):
        return dict.fromkeys(_names("codes", codes))
    for name, values in codes.items():
        # a set's order differs from process to process, a dict's says nothing of its values
        if values is not None and (isinstance(values, str | bytes) or not isinstance(values, Sequence | np.ndarray)):
            raise ArgumentError(
                f"codes: expected for column {name!r} a list of values in the order of their codes, or None, "
                f"got {type(values).__name__}"
            )
    return {name: None if values is None else tuple(values) for name, values in _by_column("codes", codes).items()}


def _by_column(option: str, given: Any) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise ArgumentError(f"{option}: expected a dict by column name, got {given!r}")
    return dict(given)


def _names(option: str, given: Any) -> frozenset[str]:
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, Collection) or not all(isinstance(name, str) for name in names):
        raise ArgumentError(f"{option}: expected a list of column names, got {given!r}")
    return frozenset(names)


def _shape(name: str, given: Any) -> tuple[int, ...]:
    lengths = tuple(given) if isinstance(given, tuple | list) else (given,)
    if not lengths or any(isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1 for n in lengths):
        raise ArgumentError(f"shape: expected for column {name!r} lengths of 1 or more, got {given!r}")
    shape = tuple(map(int, lengths))
    if math.prod(shape) >= 1 << 31:
        raise ArgumentError(f"shape: expected for column {name!r} at most 2147483647 values, got {given!r}")
    return shape


def _pad(name: str, given: Any) -> Pad:
    if not isinstance(given, Pad | int | np.integer):
        raise ArgumentError(f"pad_to: expected for column {name!r} a length or headrace.Pad(length), got {given!r}")
    return given if isinstance(given, Pad) else Pad(int(given))
