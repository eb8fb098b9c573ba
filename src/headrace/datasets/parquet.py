"""Datasets over Parquet files."""

import os
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from headrace.datasets.arrays import store_of
from headrace.datasets.mapstyle import MapDataset
from headrace.formats import Pad
from headrace.formats.column_files import PathLike
from headrace.formats.decoding import Decoder
from headrace.formats.parquet_columns import ColumnOptions
from headrace.formats.parquet_source import ParquetSource
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
      int64, ms).
    - Lists of fixed size, nested or not, and fixed-shape tensors as tensors of that shape.
    - Other lists of numbers as `Ragged`; padded to one length with `pad_to=`, as lists of tensors with `lists=`.
    - Text and binary as lists of `str` and `bytes`; as class numbers with `codes=`, decoded with `decode=`.
    - A struct as its fields, `"a.x"`, `"a.y"`. Whatever else there is (lists of text, maps) as lists of Python objects.

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

    source: ParquetSource

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
                else the values are found by reading the column once, and numbered in their order.
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
            cast=dict(cast or {}),
            fill=dict(fill or {}),
            validity=frozenset([validity] if isinstance(validity, str) else validity),
            shape={name: (own,) if isinstance(own, int) else tuple(own) for name, own in (shape or {}).items()},
            pad_to={name: Pad(own) if isinstance(own, int) else own for name, own in (pad_to or {}).items()},
            lists=frozenset([lists] if isinstance(lists, str) else lists),
            codes=_codes(codes),
            decode=dict(decode or {}),
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
        super().__init__(source, as_tuple=as_tuple)


def _codes(codes: Collection[str] | Mapping[str, Sequence[Any] | None]) -> dict[str, tuple[Any, ...] | None]:
    if isinstance(codes, Mapping):
        return {name: None if values is None else tuple(values) for name, values in codes.items()}
    return dict.fromkeys([codes] if isinstance(codes, str) else codes)
