"""What one process has of a set of tar shards: maps of local ones, and blocks of those that can't be mapped.

Guarantees:
    - Everything may be called from any number of threads.
    - A local shard is the one that was indexed: it is looked at when it is opened, when a pass ends, and many times a
      second while it is read. One that another file was renamed over stays as it was for as long as it is open.
    - What `hold` returned stays in place as long as anybody holds it.
"""

import time
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from headrace.errors import ShardError, StorageError
from headrace.formats.block_buffers import recycled
from headrace.formats.fetch_ahead import FetchAhead, GroupBytes
from headrace.formats.local_pin import LocalPin
from headrace.formats.payloads import Bytes, Held, Memories, address_of
from headrace.formats.piece_memory import PieceMemory
from headrace.formats.piece_reading import Content, Need, Pieces, Reading
from headrace.formats.source import Array, Ids
from headrace.formats.tar_compressed import CompressedShards
from headrace.formats.tar_index import TarIndex
from headrace.storage import BLOCK_BYTES, MappedFile, OpenFiles, Store, StoredObject, available_bytes
from headrace.storage.checksum import crc32

# Of the memory, the share for stored bytes that were fetched and not asked for yet
_FETCHED_SHARE = 4
# No descriptors stay open for them. The system grants a process 65 530 maps as a rule.
_MOST_MAPS = 4096
# Local shards are looked at as often, but for no more than a twentieth of the time.
_LOOK_SECONDS = 0.01
_LOOK_SHARE = 20
# Looking at how much memory is free takes as long as reading a megabyte.
_LARGE_BLOCK_BYTES = 256 << 20
_BLOCK = "block"

Given = ParamSpec("Given")
Result = TypeVar("Result")


class TarMemory:
    """Finds the bytes of samples.

    Attributes:
        maps_all: Whether all shards are mapped.
        blocks: The blocks of the others that are in memory.

    Args:
        index: The shards.
        pieces: Their blocks as pieces.
        store: What reads those that are not local.
        memory_bytes: The most that blocks take.
        compressed: "cache" or "stream": what reads compressed shards.
        verify: Whether blocks of mapped shards are compared with the index when they are first read.
        look_seconds: How often a local shard is looked at.
        clock: Seconds.
    """

    def __init__(
        self,
        index: TarIndex,
        pieces: Pieces,
        store: Store,
        memory_bytes: int,
        *,
        compressed: str,
        verify: bool,
        look_seconds: float = _LOOK_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._index, self._pieces, self._verify = index, pieces, verify
        self._look_seconds, self._clock = look_seconds, clock
        places, codecs = index.shards, index.codecs
        self._is_compressed = np.array([codec is not None for codec in codecs], np.bool_)
        is_remote = np.array([isinstance(place, StoredObject) for place in places], np.bool_)
        self._is_stored = is_remote & ~self._is_compressed
        self._is_mapped = ~is_remote & ~self._is_compressed  # until it turns out that one can't be
        self.maps_all = bool(self._is_mapped.all())
        self._files = OpenFiles(_weakly(self._open), _MOST_MAPS)
        self._all_maps: Memories | None = None  # once all shards are open, and may stay so
        self._next_look = float("-inf")
        self._is_verified = np.zeros(len(pieces), np.bool_)
        self._is_advised = np.zeros(len(pieces), np.bool_)
        self._advised_blocks = 0
        need = Need(pieces)
        fetched_bytes = memory_bytes // _FETCHED_SHARE if self._is_stored.any() else 0
        self._ahead = FetchAhead(store, _weakly(self._locate), need.has_due, fetched_bytes, memory=recycled)
        self._compressed = None
        if self._is_compressed.any():
            self._compressed = CompressedShards(store, places, codecs, mode=compressed)
        self.blocks = PieceMemory(
            pieces, {}, [_BLOCK], memory_bytes - fetched_bytes, _weakly(self._decode), need=need, name=str(places[0])
        )

    def hold(self, sample_ids: Ids, shards: Ids) -> Held:
        """Brings into memory what some samples need, and says in which piece of memory each lies.

        Args:
            sample_ids: int64 (n,).
            shards: int64 (n,), the shard of each.

        Raises:
            ShardError: A block is not what was indexed.
            StorageError: The bytes cannot be had, or a local shard was altered.
        """
        held = None
        while held is None:
            if self.maps_all:
                held = self._hold_maps(sample_ids, shards)
                continue
            is_mapped = self._is_mapped.take(shards)
            if not is_mapped.any():
                held = self._hold_blocks(sample_ids)
            else:
                held = self._hold_maps(sample_ids[is_mapped], shards[is_mapped])
                if held is not None and not is_mapped.all():
                    held = _merged(is_mapped, held, self._hold_blocks(sample_ids[~is_mapped]))
        return held

    @property
    def holds_many(self) -> bool:
        """Whether holding what many batches need costs no more memory than there is."""
        return self.maps_all or self.blocks.keeps_all

    @property
    def held_ahead_bytes(self) -> int:
        """The bytes of blocks that were fetched and that nobody asked for yet."""
        return self._ahead.held_bytes

    def announce(self, sample_ids: Ids) -> None:
        """Says that these samples will be read, after those announced before: what they need is fetched ahead."""
        if self.maps_all and self._advised_blocks == len(self._is_advised):
            return
        blocks = self._pieces.of(sample_ids)
        if self.maps_all:
            self._advise(blocks)
            return
        is_mapped = self._is_mapped.take(self._index.block_shards.take(blocks))
        self._advise(blocks[is_mapped])
        news = self.blocks.announce(sample_ids[~is_mapped]) if not is_mapped.all() else []
        is_stored = self._is_stored[self._index.block_shards[news]].tolist()
        self._ahead.announce([block for block, is_one in zip(news, is_stored, strict=True) if is_one])

    def forget_announced(self) -> None:
        """Nothing of what was announced will be read."""
        self._next_look = float("-inf")
        self._is_advised[:] = False
        self._advised_blocks = 0
        self.blocks.forget_announced()
        self._ahead.forget()

    def _open(self, shard: int) -> MappedFile:
        pin = self._index.shards[shard]
        assert isinstance(pin, LocalPin)
        file = MappedFile(Path(pin.path))
        pin.check(file.opened)
        return file

    def look(self) -> None:
        """Makes sure that the local shards are still what was indexed, where it is some time since that was done.

        A shard that is cut in place while it is mapped would else end the process as soon as it is read beyond its end.

        Raises:
            StorageError: One was altered.
        """
        now = self._clock()
        if now < self._next_look:
            return
        for shard, file in self._files.opened():
            pin = self._index.shards[shard]
            assert isinstance(pin, LocalPin)
            pin.check(file.status())
        done = self._clock()
        self._next_look = done + max(self._look_seconds, _LOOK_SHARE * (done - now))

    def _hold_maps(self, sample_ids: Ids, shards: Ids) -> Held | None:
        """The maps of these shards; None where one of them can't be mapped, which is then remembered."""
        self.look()
        memories = self._all_maps
        if memories is None:
            is_used = np.zeros(len(self._is_mapped), np.bool_)
            is_used[shards] = True
            maps: list[Bytes | None] = [None] * len(is_used)
            for shard in is_used.nonzero()[0].tolist():
                maps[shard] = self._files[shard].mapped
                if maps[shard] is None:
                    self._is_mapped[shard] = self.maps_all = False
                    return None
            memories = Memories(maps, np.zeros(len(maps), np.int64))
            if len(maps) <= self._files.limit and all(one is not None for one in maps):
                self._all_maps = memories
        if self._verify:
            self._verify_blocks(self._pieces.of(sample_ids), memories.memories, shards)
        return Held(memories, shards)

    def _verify_blocks(self, blocks: Ids, maps: Sequence[Bytes | None], shards: Ids) -> None:
        """Compares blocks of maps with the index, each once."""
        index = self._index
        new, first = np.unique(blocks, return_index=True)
        for block, shard in zip(new.tolist(), shards[first].tolist(), strict=True):
            if not self._is_verified[block]:
                mapped = maps[shard]
                assert mapped is not None
                self._check_crc32(block, mapped[index.block_starts[block] : index.block_stops[block]])
                self._is_verified[block] = True

    def _hold_blocks(self, sample_ids: Ids) -> Held:
        pieces_of_them = self._pieces.of(sample_ids)
        reading = _BlockReading(self._pieces, sample_ids, pieces_of_them)
        self.blocks.serve(reading)
        blocks = list(reading.blocks.values())
        starts = self._index.block_starts.take(reading.pieces)
        memories = Memories([block.data for block in blocks], starts, [block.address for block in blocks])
        return Held(memories, reading.pieces.searchsorted(pieces_of_them))

    def _decode(self, group: int, first: int, last: int) -> Generator[tuple[int, Content], None, None]:
        """The one block of a group."""
        assert first == last == group
        shard = int(self._index.block_shards[group])
        start, stop = int(self._index.block_starts[group]), int(self._index.block_stops[group])
        _check_room(stop - start, str(self._index.shards[shard]))
        if self._is_compressed[shard]:
            assert self._compressed is not None
            data = self._compressed.read_block(shard, start, stop, int(self._index.block_crc32[group]))
        elif self._is_stored[shard]:
            data = self._fetched(group, start, stop)
        else:
            data = recycled(stop - start)
            self._files[shard].read_into(data, start)
            if self._verify:
                self._check_crc32(group, data)
        yield group, _Block(data)

    def _fetched(self, block: int, start: int, stop: int) -> Bytes:
        file = self._ahead.open(block)
        try:
            file.seek(start)
            data = np.frombuffer(file.read(stop - start), np.uint8)
        finally:
            file.close()
        if stop - start > BLOCK_BYTES or file.is_streamed:
            self._check_crc32(block, data)
        return data

    def _locate(self, block: int) -> GroupBytes:
        index = self._index
        source = index.shards[index.block_shards[block]]
        assert isinstance(source, StoredObject)
        starts, stops = index.block_starts[block : block + 1], index.block_stops[block : block + 1]
        # a range with a checksum is one request, which larger ones should not be
        is_small = stops[0] - starts[0] <= BLOCK_BYTES and index.has_crc32[index.block_shards[block]]
        return GroupBytes(source, starts, stops, int(index.block_crc32[block]) if is_small else None)

    def _check_crc32(self, block: int, data: Bytes) -> None:
        index = self._index
        shard = int(index.block_shards[block])
        found, known = crc32(data), int(index.block_crc32[block])
        if index.has_crc32[shard] and found != known:
            start, stop = int(index.block_starts[block]), int(index.block_stops[block])
            kind = StorageError if self._is_stored[shard] else ShardError
            raise kind(
                f"{index.shards[shard]}: bytes [{start}, {stop}) are not those that were indexed: expected CRC32 "
                f"{known:08x}, got {found:08x}: restore the shard, or delete its index if it was meant to change"
            )

    def _advise(self, blocks: Ids) -> None:
        """Asks the kernel to read those of these blocks that it doesn't hold yet, each once."""
        new = blocks[~self._is_advised.take(blocks)]
        if len(new) == 0:
            return
        index = self._index
        for block in dict.fromkeys(new.tolist()):
            self._is_advised[block] = True
            self._advised_blocks += 1
            file = self._files[int(index.block_shards[block])]
            start, stop = int(index.block_starts[block]), int(index.block_stops[block])
            if not (file.is_resident(start) and file.is_resident(stop - 1)):
                file.will_need(np.array([start]), stop - start)


class _Block(Content):
    """A block as it is in its shard.

    Attributes:
        data: uint8 (bytes,).
        nbytes: How many.
        address: Where they begin.
    """

    def __init__(self, data: Bytes) -> None:
        self.data, self.nbytes, self.address = data, data.nbytes, address_of(data)

    def views(self) -> Mapping[str, Array]:
        return {}

    def write(self, out: Mapping[str, Array]) -> None:
        """There are no columns yet."""

    def others(self) -> Mapping[str, Any]:
        return {_BLOCK: self}


_NONE = _Block(np.empty(0, np.uint8))


class _BlockReading(Reading):
    """Takes blocks as they are.

    Attributes:
        blocks: By place in `pieces`, in that order once all are there.
    """

    def __init__(self, pieces: Pieces, sample_ids: Ids, pieces_of_them: Ids) -> None:
        super().__init__(pieces, sample_ids, {}, {}, (), pieces_of_them=pieces_of_them)
        self.blocks: dict[int, _Block] = dict.fromkeys(range(len(self.pieces)), _NONE)

    def gather(
        self,
        first_rows: Ids,  # noqa: ARG002 (of the columns, which are not made here)
        views: Sequence[Mapping[str, Array]],  # noqa: ARG002
        others: Sequence[Mapping[str, Any]],
    ) -> None:
        for place in np.flatnonzero(self.here).tolist():
            self.blocks[place] = others[place][_BLOCK]


def _weakly(method: Callable[Given, Result]) -> Callable[Given, Result]:
    """A method for a part of its object: one that held the object would leave all blocks for the collector to find."""
    reference = weakref.WeakMethod(method)

    def call(*given: Given.args, **named: Given.kwargs) -> Result:
        bound = reference()
        assert bound is not None
        return bound(*given, **named)

    return call


def _check_room(block_bytes: int, shard: str) -> None:
    """Refuses what would take nearly all the memory that there is: a small compressed shard may claim any size."""
    if block_bytes > _LARGE_BLOCK_BYTES and 2 * block_bytes > (free_bytes := available_bytes()):
        raise ShardError(
            f"{shard}: a single sample takes {block_bytes} bytes, and {free_bytes} bytes of memory are free: "
            "read it on a machine with more memory, or leave the shard out"
        )


def _merged(is_first: npt.NDArray[np.bool_], first: Held, second: Held) -> Held:
    """What samples lie in that are held in two ways; `is_first`, bool (n,), says which are the first's."""
    memory_of = np.empty(len(is_first), np.int64)
    memory_of[is_first] = first.memory_of
    memory_of[~is_first] = second.memory_of + len(first.memories.memories)
    memories = [*first.memories.memories, *second.memories.memories]
    return Held(Memories(memories, np.concatenate([first.memories.starts, second.memories.starts])), memory_of)
