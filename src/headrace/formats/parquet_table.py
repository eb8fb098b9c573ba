"""What is read of Parquet files: some columns, and which of the rows."""

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.formats.fetch_ahead import FetchAhead, GroupBytes, IsDue
from headrace.formats.parquet_columns import ParquetColumn
from headrace.formats.parquet_files import ParquetFiles
from headrace.formats.parquet_filter import RowFilter
from headrace.storage import Store, StoredObject


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of files.

    Attributes:
        files: The files.
        columns: What is read of each row.
        row_filter: Which rows, if not all.
        store: What reads files that are no local ones.
    """

    files: ParquetFiles
    columns: Sequence[ParquetColumn]
    row_filter: RowFilter | None
    store: Store

    @property
    def is_stored(self) -> bool:
        """Whether there are files that are no local ones."""
        return any(isinstance(file, StoredObject) for file in self.files.files)

    @property
    def paths(self) -> list[str]:
        """The paths of what must be read from the files, each once."""
        paths = [column.path for column in self.columns]
        paths += [] if self.row_filter is None else self.row_filter.referenced
        return [path for path in dict.fromkeys(paths) if path not in self.files.partitions]

    def fetch_ahead(self, is_due: IsDue, most_bytes: int) -> FetchAhead | None:
        """What fetches its bytes; None where all files are local."""
        if not self.is_stored:
            return None
        files, chunks = self.files, self.files.chunks(self.paths)

        def locate(group: int) -> GroupBytes:
            source = files.files[files.group_file[group]]
            assert isinstance(source, StoredObject)
            starts = chunks.offsets[group]
            return GroupBytes(source, starts, starts + chunks.compressed[group])

        return FetchAhead(self.store, locate, is_due, most_bytes)

    def where(self, group: int) -> str:
        """Names a row group for error texts."""
        return f"{self.files.files[self.files.group_file[group]]}: row group {self.files.group_number[group]}"
