"""WebDataset tar shards as a source: any sample by number, blocks of a few MiB, columns decoded a batch at a time."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar

import numpy as np
import numpy.typing as npt

from headrace.errors import ArgumentError, SampleError, ShardError
from headrace.formats.column_files import PathLike
from headrace.formats.decoding import PayloadError
from headrace.formats.field_decoding import Keys
from headrace.formats.local_pin import LocalPin
from headrace.formats.payloads import Held, Memories, PlacedPayloads
from headrace.formats.piece_counts import NOTHING_COUNTED
from headrace.formats.piece_reading import Pieces
from headrace.formats.ragged import Pad
from headrace.formats.source import Array, Blocks, Column, Ids, ReadPart, Source, check_ids, check_out
from headrace.formats.stored_memory import checked_store, default_memory_bytes
from headrace.formats.tar_columns import KEY, TarColumn, plan_tar_columns
from headrace.formats.tar_index import TarIndex
from headrace.formats.tar_memory import TarMemory
from headrace.formats.tar_shards import open_tar_index
from headrace.formats.tar_table import ALLOWED
from headrace.formats.values import Values
from headrace.metrics import stage
from headrace.storage import Store

Decoded = TypeVar("Decoded")

_MOST_MEMORY_BYTES = 8 << 30
# Of the memory, the share that is announced ahead, as for Parquet; of maps as much as the disk reads meanwhile
_AHEAD_SHARE = 2
_MAPPED_AHEAD_BYTES = 64 << 20
_KEY_BYTES = 16  # about, of a key as a string's share of a batch


@dataclass(frozen=True, slots=True, eq=False)
class _Located:
    """Where the payloads of some samples lie.

    Attributes:
        ids: int64 (n,).
        shards: int64 (n,), the shard of each.
        members: By column, int64 (n, 2): offset in the shard and size of each payload.
    """

    ids: Ids
    shards: Ids
    members: Mapping[str, Ids]

    def part(self, start: int, stop: int) -> "_Located":
        """Those of the samples [start, stop)."""
        members = {name: own[start:stop] for name, own in self.members.items()}
        return _Located(self.ids[start:stop], self.shards[start:stop], members)


class TarSource(Source):
    """Samples of WebDataset tar shards, in the order of the shards and of their members.

    An index says where each member lies; it is made once, by reading the shards' headers, and found again. Local shards
    are memory-mapped; of stored ones blocks are fetched, ahead of need, and kept in memory up to a budget. Pickles hold
    the index's path and the store's options, never data.

    Args:
        paths: A shard, a pattern, or a list of them.
        columns: Fields; alternatives as "jpg;png"; `__key__` and `__url__`. None for all fields.
        store: What reads URLs; by default a `Store` without options.
        decode: By column how payloads become values; see `plan_tar_columns`.
        pad_to: By column the length that its arrays are filled up to.
        memory_bytes: The most memory that blocks of stored shards take, in each process.
        index_dir: Where the index is kept, where that isn't beside the shards.
        allow: What is accepted instead of being an error: names of `tar_table.ALLOWED`.
        verify: Whether local shards, too, are compared with checksums in the index.
        compressed: "cache" or "stream": what happens to compressed shards.

    Raises:
        ArgumentError: No shard, no sample, no such column, or arguments that don't go together.
        ShardError: A shard is damaged, or its members don't make samples.
        StorageError: A shard cannot be opened.
    """

    random_access = False

    def __init__(
        self,
        paths: PathLike | Sequence[PathLike],
        columns: Sequence[str] | None = None,
        store: Store | None = None,
        *,
        decode: Mapping[str, Any] | None = None,
        pad_to: Mapping[str, int | Pad] | None = None,
        memory_bytes: int | None = None,
        index_dir: str | os.PathLike[str] | None = None,
        allow: Collection[str] = (),
        verify: bool = False,
        compressed: str = "cache",
    ) -> None:
        store = checked_store(store, memory_bytes)
        _check_options(allow, verify, compressed)
        allow = frozenset(allow)
        index = open_tar_index(
            store.expand(paths),
            store,
            index_dir=None if index_dir is None else _folder(index_dir),
            allow=allow,
            verify=verify,
            compressed=compressed,
        )
        planned = plan_tar_columns(index.infos, columns, decode, pad_to)
        if "missing_fields" not in allow:
            _check_complete(index, planned)
        self.index, self._columns, self._store = index, planned, store
        self._verify, self._compressed = verify, compressed
        self._memory_bytes = default_memory_bytes(_MOST_MEMORY_BYTES) if memory_bytes is None else memory_bytes
        self._keys_of: Callable[[Ids], Keys] | None = None
        self._memories: dict[int, TarMemory] = {}
        is_mapped = [
            isinstance(place, LocalPin) and codec is None
            for place, codec in zip(index.shards, index.codecs, strict=True)
        ]
        self._maps_all = all(is_mapped)
        self.is_sequential = compressed == "stream" and any(codec is not None for codec in index.codecs)
        self._plan()

    def _plan(self) -> None:
        """What depends on the columns."""
        index = self.index
        self.schema: dict[str, Column] = {column.name: self._measured(column) for column in self._columns}
        self._places = {
            column.name: index.column_places(column.fields) for column in self._columns if column.decoder is not None
        }
        self._draws = any(column.decoder is not None and column.decoder.uses_keys for column in self._columns)
        self.read_ahead_bytes = self._ahead_bytes()

    def _ahead_bytes(self) -> int:
        """How much is announced ahead, in bytes of decoded samples, as they are counted there."""
        stored_bytes = max(1, int((self.index.block_stops - self.index.block_starts).sum()))
        decoded_bytes = self.index.samples * max(1, sum(column.sample_bytes for column in self.schema.values()))
        ahead_bytes = _MAPPED_AHEAD_BYTES if self._maps_all else self._memory_bytes // _AHEAD_SHARE
        return max(1, int(ahead_bytes * decoded_bytes / stored_bytes))

    def _measured(self, column: TarColumn) -> Column:
        """The column with the bytes of a sample, on average, where they differ."""
        if column.decoder is None:
            return Column(np.dtype("O"), python_type=str, mean_bytes=_KEY_BYTES)
        decoded = column.decoder.column
        if decoded.is_fixed or decoded.mean_bytes is not None:
            return decoded
        infos = [self.index.infos[field] for field in column.fields if field in self.index.infos]
        return replace(decoded, mean_bytes=max(1, sum(info.total_bytes for info in infos) // self.index.samples))

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in self.__dict__.items() if name not in ("_pieces", "blocks")}
        # a store may hold what lets one in: it travels only where it is needed
        is_local = all(isinstance(place, LocalPin) for place in self.index.shards)
        return {**state, "_memories": {}, "_store": self._store.for_local_files() if is_local else self._store}

    def __len__(self) -> int:
        return self.index.samples

    @cached_property
    def blocks(self) -> Blocks:
        """Runs of samples of one shard, of about 4 MiB."""
        index = self.index
        return Blocks(np.diff(index.block_samples), index.block_stops - index.block_starts)

    @property
    def fingerprint(self) -> str:
        """Of the shards' names below their common folder, bytes and samples: not of data or columns.

        The same for copies of the shards, on local disk or in a store.
        """
        return self.index.fingerprint

    def read(self, sample_ids: npt.ArrayLike, out: Mapping[str, Array] | None = None) -> Mapping[str, Values]:
        ids = check_ids(sample_ids, len(self))
        return self._read(self._located(ids), check_out(out, self.schema, len(ids)))

    def prepare(self, sample_ids: npt.ArrayLike) -> ReadPart:
        located = self._located(check_ids(sample_ids, len(self)))
        if not (self._memory().holds_many and len(located.ids) and located.members):
            # blocks that don't all fit are held for a part at a time
            return lambda start, stop, out: self._read(located.part(start, stop), out)
        parts = {
            column.name: self._decoded(column, located, column.decoder.prepare, payloads)
            for column, payloads in self._placed(located)
            if column.decoder is not None
        }
        memory = self._memory()

        def part(start: int, stop: int, out: Mapping[str, Array]) -> Mapping[str, Values]:
            memory.look()
            keys = self._keys(located.ids[start:stop])
            return {
                column.name: self._named(column.name, located.part(start, stop))
                if column.decoder is None
                else self._decoded(column, located, parts[column.name], start, stop, out.get(column.name), keys)
                for column in self._columns
            }

        return part

    def prefetch(self, sample_ids: npt.ArrayLike) -> None:
        """Keeps what these samples need until they are read, and begins to fetch it."""
        ids = check_ids(sample_ids, len(self))
        if len(ids):
            self._memory().announce(ids)

    def end_prefetch(self) -> None:
        memory = self._memories.get(os.getpid())
        if memory is not None:
            memory.forget_announced()

    def keyed(self, keys_of: Callable[[Ids], Keys]) -> Self:
        return self._like(_keys_of=keys_of)

    def narrowed(self, columns: Collection[str]) -> Self:
        kept = [column for column in self._columns if column.name in columns]
        return self if len(kept) == len(self._columns) else self._like(_columns=kept)

    def _like(self, **changed: Any) -> Self:
        """A copy that shares what is in memory."""
        like = object.__new__(type(self))
        like.__dict__.update(self.__dict__, **changed)
        like._plan()
        return like

    def find(self, key: str) -> int:
        """The id of the first sample with this key.

        Raises:
            KeyError: There is none.
        """
        return self.index.find(key)

    def where(self, sample_id: int) -> str:
        return f"{self.index.key(sample_id)!r} in {self._shard(sample_id)}"

    def counts(self) -> dict[str, int]:
        """What this process has read of stored blocks, and what it holds in memory, by name."""
        memory = self._memories.get(os.getpid())
        if memory is None:
            return {**self._store.counts(), **NOTHING_COUNTED, "held_ahead_bytes": 0}
        return {**self._store.counts(), **memory.blocks.as_dict(), "held_ahead_bytes": memory.held_ahead_bytes}

    def __repr__(self) -> str:
        shards = self.index.shards
        more = f" and {len(shards) - 1} more" if len(shards) > 1 else ""
        return f"{type(self).__name__}({len(self)} samples of {', '.join(map(repr, self.schema))} in {shards[0]}{more})"

    def _shard(self, sample_id: int) -> str:
        return str(self.index.shards[int(self.index.shard_of(np.array([sample_id]))[0])])

    def _located(self, ids: Ids) -> _Located:
        index = self.index
        shards = index.shard_of(ids)
        index.check(shards)
        return _Located(ids, shards, {name: index.locate(ids, places) for name, places in self._places.items()})

    def _placed(self, located: _Located) -> Iterator[tuple[TarColumn, PlacedPayloads]]:
        """The columns that have payloads, and these."""
        ids = located.ids
        if not located.members:
            return
        held = self._memory().hold(ids, located.shards) if len(ids) else Held(Memories([], ids), ids)
        for column in self._columns:
            if column.decoder is not None:
                members = located.members[column.name]
                if len(ids) and int(np.minimum.reduce(members[:, 1])) < 0:
                    self._refuse_missing(column, int(ids[members[:, 1].argmin()]))
                yield column, PlacedPayloads(held, members[:, 0], members[:, 1])

    def _read(self, located: _Located, out: Mapping[str, Array]) -> Mapping[str, Values]:
        """Reads samples into `out`, which has an array for each fixed column."""
        keys = self._keys(located.ids)
        read: dict[str, Values] = {
            column.name: self._decoded(column, located, column.decoder.decode, payloads, out.get(column.name), keys)
            for column, payloads in self._placed(located)
            if column.decoder is not None
        }
        return {
            column.name: self._named(column.name, located) if column.decoder is None else read[column.name]
            for column in self._columns
        }

    def _keys(self, ids: Ids) -> Keys | None:
        """What random decoding draws by; None where nothing does."""
        if not self._draws:
            return None
        return np.zeros(len(ids), np.uint64) if self._keys_of is None else self._keys_of(ids)

    def _decoded(
        self, column: TarColumn, located: _Located, decode: Callable[..., Decoded], *arguments: Any
    ) -> Decoded:
        """What a column's decoder gives; its errors say which member is wrong."""
        try:
            with stage("decode"):
                return decode(*arguments)
        except PayloadError as error:
            wrong, offset = int(located.ids[error.place]), int(located.members[column.name][error.place, 0])
            field = column.fields[0] if len(column.fields) == 1 else f"({'|'.join(column.fields)})"
            raise SampleError(
                f"{column.name}: {error}\n  sample {wrong}: member {f'{self.index.key(wrong)}.{field}'!r} of "
                f"{self._shard(wrong)} at byte {offset}"
            ) from error

    def _named(self, name: str, located: _Located) -> Array:
        """The keys or the shards' names, object (n,)."""
        named = np.empty(len(located.ids), np.dtype("O"))
        shards = self.index.shards
        named[:] = (
            self.index.keys(located.ids) if name == KEY else [str(shards[shard]) for shard in located.shards.tolist()]
        )
        return named

    def _refuse_missing(self, column: TarColumn, sample_id: int) -> NoReturn:
        raise SampleError(
            f"{';'.join(column.fields)}: the sample has no such field\n  sample {sample_id}: {self.where(sample_id)}"
        )

    @cached_property
    def _pieces(self) -> Pieces:
        index = self.index
        return Pieces(index.block_samples, np.arange(len(index.block_shards)), index.block_stops - index.block_starts)

    def _memory(self) -> TarMemory:
        memory = self._memories.get(os.getpid())
        if memory is None:
            for pid in self._memories.keys() - {os.getpid()}:  # in a forked child: its parent's are of no use to it
                self._memories.pop(pid, None)
            made = TarMemory(
                self.index,
                self._pieces,
                self._store,
                self._memory_bytes,
                compressed=self._compressed,
                verify=self._verify,
            )
            memory = self._memories.setdefault(os.getpid(), made)
        return memory


def _check_options(allow: Collection[str], verify: bool, compressed: str) -> None:  # noqa: FBT001 (as it was given)
    if isinstance(allow, str) or not set(allow) <= ALLOWED.keys():
        raise ArgumentError(f"allow: expected a list of some of {', '.join(map(repr, ALLOWED))}, got {allow!r}")
    if not isinstance(verify, bool):
        raise ArgumentError(f"verify: expected True or False, got {verify!r}")
    if compressed not in ("cache", "stream"):
        raise ArgumentError(f'compressed: expected "cache" or "stream", got {compressed!r}')


def _folder(index_dir: str | os.PathLike[str]) -> Path:
    if not isinstance(index_dir, str | os.PathLike) or not isinstance(os.fspath(index_dir), str):
        raise ArgumentError(f"index_dir: expected a folder's path, got {index_dir!r}")
    return Path(index_dir).expanduser()


def _check_complete(index: TarIndex, columns: Sequence[TarColumn]) -> None:
    """Raises ShardError where a sample lacks a column."""
    for column in columns:
        if column.decoder is None:
            continue
        missing, first = index.lacking(column.fields)
        if missing:
            shard = index.shards[int(index.shard_of(np.array([first]))[0])]
            raise ShardError(
                f"{column.name}: expected the field {';'.join(column.fields)!r} in every sample, but {missing} of "
                f"{index.samples} have none\n  the first is sample {first}: {index.key(first)!r} in {shard}\n"
                f'  ask for other columns or alternatives ("{column.name};..."), or give allow=["missing_fields"]: '
                'such samples are then errors when they are read, which on_error="skip" leaves out and counts'
            )
