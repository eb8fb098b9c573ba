"""Rows that meet a condition: a pyarrow expression, evaluated on batches, and on what footers say of row groups.

Where a condition can't be met, by what a footer says of a row group's columns, pyarrow's own simplification tells: that
of expressions under a guarantee. Its way to statistics isn't used; see `parquet_statistics`.
"""

import difflib
import functools
import operator
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs

from headrace.errors import ArgumentError
from headrace.formats.parquet_files import ParquetFiles
from headrace.formats.parquet_footers import Footer
from headrace.formats.parquet_statistics import equals, group_cases
from headrace.formats.progress import Progress


class RowFilter:
    """A condition on rows. Pickles hold the expression and the schema.

    >>> rows = RowFilter(pc.field("x") > 1, pa.schema({"x": pa.int64(), "y": pa.int64()}))
    >>> rows.referenced, rows.mask(pa.record_batch({"x": pa.array([2, None, 0])})).tolist()
    (['x'], [True, False, False])

    Attributes:
        expression: The condition.
        referenced: The top-level columns that it looks at, in the schema's order.
    """

    def __init__(self, expression: pc.Expression, schema: pa.Schema) -> None:
        """Checks the expression against the columns that there are.

        Args:
            expression: What a row must meet; where it is null, the row is left out.
            schema: All columns, partition columns among them.

        Raises:
            ArgumentError: It is no expression, names a column that doesn't exist, doesn't fit the columns' types, or is
                not a condition.
        """
        if not isinstance(expression, pc.Expression):
            raise ArgumentError(
                f"row_filter: expected a pyarrow expression, such as pyarrow.compute.field('x') > 0, got {expression!r}"
            )
        if "FieldPath(" in _text(expression):
            raise ArgumentError(f"row_filter: expected columns by name, got one by number: {_short(expression)}")
        self.expression, self._schema = expression, schema
        self._check()
        self.referenced = _referenced(expression, schema)

    def __str__(self) -> str:
        return _text(self.expression)

    def __reduce__(self) -> tuple[Any, ...]:
        return RowFilter, (self.expression, self._schema)

    def mask(self, batch: pa.RecordBatch, partitions: Mapping[str, pa.Scalar] | None = None) -> npt.NDArray[np.bool_]:
        """Which rows meet the condition: bool (rows,), False where it is null.

        Args:
            batch: The columns that are referenced, and perhaps others.
            partitions: The values of partition columns, which hold for all rows; as `ParquetFiles.partition_row` says.

        Raises:
            ArgumentError: The condition has no value for a row, as where it divides by zero.
        """
        names = {name: batch.column(name) for name in self.referenced if name in batch.schema.names}
        for name in self.referenced:
            if name not in names and partitions is not None and name in partitions:
                names[name] = pa.repeat(partitions[name], len(batch))
        if not names:  # a condition on nothing, such as pc.scalar(True)
            names = {"": pa.nulls(len(batch))}
        columns = pa.RecordBatch.from_arrays(list(names.values()), list(names))
        try:
            found = _evaluate(self.expression, columns)
        except pa.ArrowException as error:
            raise ArgumentError(f"row_filter: {_first_line(error)}: {_short(self.expression)}") from None
        return np.asarray(found.fill_null(False)).astype(bool, copy=False)

    def may_match(self, files: ParquetFiles, file: int) -> npt.NDArray[np.bool_]:
        """Which row groups may hold rows that meet the condition: bool (groups of the file,), as `groups_of` has them.

        Never False for one that does, as long as the file's statistics are right. Only the footer is read.

        Args:
            files: The files; their schema is the one that the condition was checked against.
            file: The file's number.
        """
        [footer] = files.footers([file])
        return self._may_match(files, file, footer)

    def matching(self, files: ParquetFiles) -> npt.NDArray[np.bool_]:
        """The same for all files, whose footers are read many at once: bool (groups,)."""
        found = []
        with Progress(len(files.files), "reading statistics") as progress:
            for file, footer in enumerate(files.footers(range(len(files.files)))):
                found.append(self._may_match(files, file, footer))
                progress.add(1)
        return np.concatenate(found)

    def _may_match(self, files: ParquetFiles, file: int, footer: Footer) -> npt.NDArray[np.bool_]:
        numbers = files.group_number[files.groups_of(file)].tolist()
        known = [equals(key, value) for key, value in files.partition_row(file).items()]
        cases = group_cases(footer, numbers, [self._schema.field(name) for name in self.referenced])
        format_ = ds.ParquetFileFormat()
        nowhere = pyarrow.fs.LocalFileSystem()
        fragments = []
        for place, of_group in enumerate(cases):
            for case in of_group:
                given = functools.reduce(operator.and_, (*known, *case), pc.scalar(True))
                fragments.append(format_.make_fragment(str(place), nowhere, partition_expression=given))
        # a dataset of files that don't exist, one for each case: nothing is read, only what is given is looked at
        dataset = ds.FileSystemDataset(fragments, self._schema, format_, nowhere)
        try:
            matching = [int(fragment.path) for fragment in dataset.get_fragments(self.expression)]
        except pa.ArrowException:  # that pyarrow can't tell is no reason to leave rows out
            return np.ones(len(numbers), np.bool_)
        found = np.zeros(len(numbers), np.bool_)
        found[matching] = True
        return found

    def _check(self) -> None:
        try:
            found = _evaluate(self.expression, _no_rows(self._schema))
        except pa.ArrowInvalid as error:
            unknown = re.search(r"No match for (?:FieldRef\.Nested\()?FieldRef\.Name\((.*?)\)(?: |\)| in )", str(error))
            if unknown is None:
                raise ArgumentError(f"row_filter: {_first_line(error)}: {_short(self.expression)}") from None
            self._refuse_unknown(unknown[1], error)
        except (pa.ArrowException, TypeError, NotImplementedError) as error:
            raise ArgumentError(
                f"row_filter: {_first_line(error)}: {_short(self.expression)}; convert one side, as with "
                "pyarrow.compute.field('x').cast('float64')"
            ) from None
        if not pa.types.is_boolean(found.type):
            raise ArgumentError(
                f"row_filter: expected a condition, which is true or false for each row, got one that is "
                f"{found.type}: {_short(self.expression)}"
            )

    def _refuse_unknown(self, name: str, error: Exception) -> None:
        if name in self._schema.names:  # but not such a field in it
            raise ArgumentError(
                f"row_filter: {_first_line(error).split(' in ')[0]}: {_short(self.expression)}"
            ) from None
        near = difflib.get_close_matches(name, self._schema.names, n=3) or self._schema.names[:5]
        raise ArgumentError(
            f"row_filter: no column named {name!r}; the nearest are {', '.join(map(repr, near))}"
        ) from None


def vocabulary(batches: Iterable[pa.Array]) -> tuple[Any, ...]:
    """The distinct values of a column, sorted, without null: what `codes` are the numbers of.

    >>> vocabulary([pa.array(["b", None, "a"]), pa.array(["b"])])
    ('a', 'b')
    """
    found: set[Any] = set()
    for batch in batches:
        values = batch.unique()
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        found.update(values.to_pylist())
    found.discard(None)
    return tuple(sorted(found))


def _referenced(expression: pc.Expression, schema: pa.Schema) -> list[str]:
    """The top-level columns without which the expression can't be bound."""
    text = _text(expression)
    chosen = [name for name in schema.names if name in text]
    if not _binds(expression, schema, chosen):  # names that pyarrow prints in another way, or not at all
        chosen = list(schema.names)
    for name in list(chosen):
        fewer = [other for other in chosen if other != name]
        if _binds(expression, schema, fewer):
            chosen = fewer
    return chosen


def _binds(expression: pc.Expression, schema: pa.Schema, names: Iterable[str]) -> bool:
    try:
        _evaluate(expression, _no_rows(pa.schema([schema.field(name) for name in names])))
    except pa.ArrowInvalid:
        return False
    return True


def _no_rows(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)


def _evaluate(expression: pc.Expression, batch: pa.RecordBatch) -> pa.Array:
    scanner = ds.Scanner.from_batches(
        [batch], schema=batch.schema, columns={"mask": expression}, use_threads=False, batch_size=max(1, len(batch))
    )
    return scanner.to_table().column(0).combine_chunks()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _text(expression: pc.Expression) -> str:
    try:
        return str(expression)
    except UnicodeDecodeError:  # pyarrow cuts long values short within a character
        return "<a condition that pyarrow cannot print>"


def _short(expression: pc.Expression) -> str:
    text = _text(expression)
    return text if len(text) <= 200 else f"{text[:200]}..."
