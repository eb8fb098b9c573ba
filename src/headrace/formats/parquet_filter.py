"""Rows that meet a condition: a pyarrow expression, evaluated on batches, and on what footers say of row groups.

Where a condition can't be met, by what a footer says of a row group's columns, pyarrow's own simplification tells: that
of expressions under a guarantee. Its way to statistics isn't used; see `parquet_statistics`.
"""

import functools
import hashlib
import operator
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs

from headrace.errors import ArgumentError
from headrace.formats.nearest import nearest
from headrace.formats.parquet_column import ColumnRefused, unwrapped
from headrace.formats.parquet_files import ParquetFiles
from headrace.formats.parquet_footers import Footer, first_line
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
        # of columns that share a name none can be referred to, and the others are as good as ever
        counts = Counter(schema.names)
        self._twice = {name: count for name, count in counts.items() if count > 1}
        self._schema = pa.schema([field for field in schema if counts[field.name] == 1])
        self.expression = expression
        self._check()
        self.referenced = _referenced(expression, self._schema)

    def __str__(self) -> str:
        return _text(self.expression)

    @property
    def identity(self) -> str:
        """What tells it from all others: pyarrow's text leaves out the middle of long lists of values."""
        [serialized] = self.expression.__reduce__()[1]
        return hashlib.blake2b(bytes(serialized), digest_size=16).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        return RowFilter, (self.expression, self._schema)

    def mask(self, batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        """Which rows meet the condition: bool (rows,), False where it is null.

        Args:
            batch: The columns that are referenced, partition columns among them, and perhaps others.

        Raises:
            ArgumentError: The condition has no value for a row, as where it divides by zero.
        """
        names = {name: batch.column(name) for name in self.referenced}
        if not names:  # a condition on nothing, such as pc.scalar(True)
            names = {"": pa.nulls(len(batch))}
        columns = pa.RecordBatch.from_arrays(list(names.values()), list(names))
        try:
            found = _evaluate(self.expression, columns)
        except pa.ArrowException as error:
            raise ArgumentError(f"row_filter: {first_line(error)}: {_short(self.expression)}") from None
        return np.asarray(found.fill_null(False)).astype(bool, copy=False)

    def matching(self, files: ParquetFiles) -> npt.NDArray[np.bool_]:
        """Which row groups may hold rows that meet the condition: bool (groups,).

        Never False for one that does, as long as the files' statistics are right. Only footers are read, many at once.

        Args:
            files: The files; their schema is the one that the condition was checked against.
        """
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
                raise ArgumentError(f"row_filter: {first_line(error)}: {_short(self.expression)}") from None
            self._refuse_unknown(unknown[1], error)
        except (pa.ArrowException, TypeError, NotImplementedError) as error:
            raise ArgumentError(
                f"row_filter: {first_line(error)}: {_short(self.expression)}; convert one side, as with "
                "pyarrow.compute.field('x').cast('float64')"
            ) from None
        if not pa.types.is_boolean(found.type):
            raise ArgumentError(
                f"row_filter: expected a condition, which is true or false for each row, got one that is "
                f"{found.type}: {_short(self.expression)}"
            )

    def _refuse_unknown(self, name: str, error: Exception) -> None:
        if name in self._twice:
            raise ArgumentError(
                f"row_filter: expected one column {name!r}, got {self._twice[name]}: {_short(self.expression)}"
            ) from None
        if name in self._schema.names:  # but not such a field in it
            raise ArgumentError(
                f"row_filter: {first_line(error).split(' in ')[0]}: {_short(self.expression)}"
            ) from None
        steps = name.split(".")
        if len(steps) > 1 and _binds(pc.field(*steps).is_valid(), self._schema, self._schema.names):
            field = f"pyarrow.compute.field({', '.join(map(repr, steps))})"
            raise ArgumentError(f"row_filter: no column {name!r}: give {field} for the field of a struct") from None
        names = self._schema.names
        raise ArgumentError(f"row_filter: no column {name!r}{nearest(name, names, names)}") from None


def vocabulary(batches: Iterable[pa.Array]) -> tuple[Any, ...]:
    """The distinct values of a column, sorted, without null: what `codes` are the numbers of.

    Raises:
        ColumnRefused: Text that isn't UTF-8.

    >>> vocabulary([pa.array(["b", None, "a"]), pa.array(["b"])])
    ('a', 'b')
    """
    found: set[Any] = set()
    for batch in batches:
        stored = batch
        while isinstance(stored.type, pa.BaseExtensionType):
            stored = stored.storage
        values = unwrapped(stored.unique())
        try:
            values.validate(full=True)
        except pa.ArrowInvalid as error:
            raise ColumnRefused(f"holds what its type {values.type} doesn't allow: {error}") from None
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
    return pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)


def _evaluate(expression: pc.Expression, batch: pa.RecordBatch) -> pa.Array:
    scanner = ds.Scanner.from_batches(
        [batch], schema=batch.schema, columns={"mask": expression}, use_threads=False, batch_size=max(1, len(batch))
    )
    return scanner.to_table().column(0).combine_chunks()


def _text(expression: pc.Expression) -> str:
    try:
        return str(expression)
    except UnicodeDecodeError:  # pyarrow cuts long values short within a character
        return "<a condition that pyarrow cannot print>"


def _short(expression: pc.Expression) -> str:
    text = _text(expression)
    return text if len(text) <= 200 else f"{text[:200]}..."
