"""What one shard holds, from its bytes: `scan_file` for local ones, `ShardScanner` for bytes as they stream by.

Plain members are found in columns (`tar_rows`), all others one header at a time (`tar_headers`); either way a header
counts only where the one before it says that the next one is, so that payloads may hold tars. `tar_grouping` makes
samples and blocks of the members.

Guarantees: a scanner is used from one thread; scans of different shards share nothing. Memory: two integers and a few
bytes a member, one chunk's headers, and at most one extension header's payload.
"""

import os
from collections.abc import Collection
from dataclasses import replace
from typing import NoReturn

import numpy as np

from headrace.errors import ShardError, StorageError
from headrace.formats.local_pin import LocalPin
from headrace.formats.source import Ids
from headrace.formats.tar_extensions import Extensions
from headrace.formats.tar_fields import FieldIds, Heads
from headrace.formats.tar_grouping import Grouper, Members
from headrace.formats.tar_headers import (
    BLOCK,
    EXTENSIONS,
    LONGEST_EXTENSION,
    REGULAR,
    WITHOUT_PAYLOAD,
    Header,
    padded,
    parse_header,
)
from headrace.formats.tar_names import split_name, word_keys
from headrace.formats.tar_rows import Bytes, Rows, find_places, parse_rows
from headrace.formats.tar_table import ShardScan

# Fewer headers than this are parsed faster one at a time than in columns.
_FEW = 24
# Single members are grouped in columns, many at a time.
_GROUPED_AT_ONCE = 1024
_ZEROS = bytes(BLOCK)
_OTHER_FORMATS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK": "zip"}

# Small samples were scanned at 0.8, 1.05, 1.2 and 1.25 M headers a second with 1, 2, 4 and 8 MiB.
_CHUNK_BYTES = 4 << 20
# Where the next header is farther away than this, what lies between is not read.
_HOP_BYTES = 64 << 10
_LEAST_READ = 4 << 10


class ShardScanner:
    """Finds samples in the bytes of a tar, which are fed in order from the first to the last.

    Args:
        name: The shard, for error texts.
        allow: What is accepted in place of an error: see `tar_table.ALLOWED`.
    """

    def __init__(self, name: str, allow: Collection[str] = ()) -> None:
        self._name = name
        self._allow = frozenset(allow)
        self._grouper = Grouper(name, self._allow)
        self._field_ids = FieldIds(self._field_id)
        self.heads = Heads()
        # fields of which a payload was found among earlier bytes
        self._settled_fields = 0
        self._fed = 0
        # where the next header is, and the bytes from there on that have been fed, if not enough of them
        self._position = 0
        self._pending = bytearray()
        self._needed = 0
        self._is_ended = False
        # the last payload, for the text about a shard that ends within
        self._payload = (0, 0)
        self._extensions = Extensions()
        # a sparse member whose map goes on in the next block
        self._sparse: Header | None = None
        self._single: list[tuple[int, int, int, int, bytes]] = []

    @property
    def next_header(self) -> int:
        """The byte at which the next header is; after the end of the tar, the byte after its first block of zeros."""
        return self._position

    @property
    def is_done(self) -> bool:
        """Whether nothing that follows matters."""
        return self._is_ended and "data_after_end" in self._allow

    def skip_to(self, position: int) -> None:
        """In place of feeding bytes up to the next header at most, or the last ones; `heads` lacks what is skipped."""
        assert not self._pending
        assert self.is_done or self._fed <= position <= self._position
        self._fed = position

    def feed(self, data: Bytes) -> None:
        """The next bytes, uint8 (n,), C-contiguous; none of them are kept.

        Raises:
            ShardError: They are no tar, or damaged, or make no samples.
        """
        start = self._fed
        self._fed += len(data)
        self._settled_fields = len(self._grouper.fields)
        self.heads.begin()
        at = 0
        while self._pending and at < len(data):
            piece = data[at : at + self._needed - len(self._pending)]
            at += len(piece)
            self._pending += piece.tobytes()
            if len(self._pending) == self._needed:
                self._needed = self._step(memoryview(bytes(self._pending)))
                if not self._needed:
                    self._pending.clear()
        if not self._pending and not self._is_ended and self._position < self._fed:
            self._scan(data, start)
        if self._is_ended:
            self._check_rest(data[max(self._position - start, 0) :])
        if len(self._single) >= _GROUPED_AT_ONCE:
            self._group()
        self.heads.take(data, start)

    def closed_blocks(self) -> list[tuple[int, int]]:
        """(start, stop) of the blocks that have been closed since the last call, in order.

        After `finish` the last ones.
        """
        self._group()
        return self._grouper.closed_blocks()

    def finish(self) -> ShardScan:
        """What the shard holds, once all its bytes were fed; the blocks have no CRC32.

        Raises:
            ShardError: It was cut, or a key recurs.
        """
        if not self._fed:
            raise ShardError(f"{self._name}: expected a tar, got an empty file (0 bytes): write or download it again")
        if not self._is_ended:
            self._check_cut()
        self._group()
        scan = self._grouper.finish(self._fed)
        names = dict(zip(self._grouper.fields.values(), self._grouper.fields, strict=True))
        heads = {names[number]: head for number, head in self.heads.taken().items()}
        return replace(scan, heads={field: heads[field] for field in scan.fields if field in heads})

    def _scan(self, data: Bytes, start: int) -> None:
        """All headers in `data`, which begins at byte `start` of the shard and has the next header."""
        base = self._position - start
        blocks = data[base : base + (len(data) - base) // BLOCK * BLOCK].reshape(-1, BLOCK)
        rows = self._rows(blocks)
        view = data.data
        spans = []
        while not self._is_ended and (at := self._position - start) < len(data):
            is_plain = self._extensions.is_plain and self._sparse is None
            row = rows.row_at((at - base) // BLOCK) if rows is not None and is_plain else None
            if row is not None and rows is not None:
                stop = rows.plain_until(row)
                if stop > row:
                    spans.append(self._take(rows, row, stop, start + base))
                    continue
            needed = self._step(view[at:])
            if needed:
                self._pending += view[at:]
                self._needed = needed
                break
        if rows is not None and spans:
            self._group_rows(rows, [span for span in spans if span[1] > span[0]], start + base)

    def _rows(self, blocks: Bytes) -> Rows | None:
        if len(blocks) < _FEW:
            return None
        places = find_places(blocks)
        return parse_rows(blocks, places) if len(places) >= _FEW else None

    def _take(self, rows: Rows, first: int, stop: int, base: int) -> tuple[int, int, int]:
        """Moves over plain rows [first, stop); which of `rows.member_rows` are theirs, and the first one's start."""
        begin, end = np.searchsorted(rows.member_rows, (first, stop)).tolist()
        member_start = (
            base + int(rows.places[first]) * BLOCK if self._extensions.start is None else self._extensions.start
        )
        self._position = base + int(rows.nexts[stop - 1]) * BLOCK
        self._extensions.start = member_start
        if end > begin:
            last = int(rows.member_rows[end - 1])
            self._payload = (base + (int(rows.places[last]) + 1) * BLOCK, int(rows.sizes[end - 1]))
            self._extensions.start = base + int(rows.places[last + 1]) * BLOCK if last + 1 < stop else None
        return begin, end, member_start

    def _group_rows(self, rows: Rows, spans: list[tuple[int, int, int]], base: int) -> None:
        """Groups the plain members of these spans, and the single ones between."""
        if not spans:
            return
        if len(spans) == 1:
            chosen: slice | Ids = slice(*spans[0][:2])
        else:
            chosen = np.concatenate([np.arange(begin, end) for begin, end, _ in spans])
        member_rows = rows.member_rows[chosen]
        places = rows.places[member_rows]
        starts = np.empty(len(member_rows), np.int64)
        starts[1:] = base + rows.places[member_rows[:-1] + 1] * BLOCK
        firsts = np.cumsum([0, *(end - begin for begin, end, _ in spans[:-1])])
        starts[firsts] = [member_start for _, _, member_start in spans]
        names = rows.names
        offsets = base + (places + 1) * BLOCK
        field_ids = self._field_ids.of(names.field_words[chosen], offsets)
        sizes = rows.sizes[chosen]
        for number in range(self._settled_fields, len(self._grouper.fields)):
            for row in np.flatnonzero(field_ids == number)[:1]:
                self.heads.want(number, int(offsets[row]), int(sizes[row]))
        self._group(Members(starts, offsets, sizes, field_ids, names.key_bytes[chosen], names.key_words[chosen]))

    def _group(self, plain: Members | None = None) -> None:
        """Groups plain members and the single ones found meanwhile."""
        single = None
        if self._single:
            numbers = np.array([one[:4] for one in self._single], np.int64)
            key_bytes, key_words = word_keys([one[4] for one in self._single], self._grouper.long_keys)
            starts, offsets, sizes, field_ids = np.ascontiguousarray(numbers.T)
            single = Members(starts, offsets, sizes, field_ids, key_bytes, key_words)
            self._single.clear()
        parts = [part for part in (plain, single) if part is not None]
        if parts:
            members = Members.joined(parts)
            self._grouper.add(members.take(np.argsort(members.offsets, kind="stable")) if len(parts) > 1 else members)

    def _field_id(self, field: str, offset: int) -> int:
        return self._grouper.field_id(field, offset)

    def _step(self, data: memoryview) -> int:
        """Takes the header at the beginning of `data`; how many bytes from there it needs, if there are fewer."""
        if len(data) < BLOCK:
            return BLOCK
        block = bytes(data[:BLOCK])
        if self._sparse is not None:  # more of a sparse member's map, then its payload
            header, self._position = self._sparse, self._position + BLOCK
            self._sparse = header if block[504] else None
            if self._sparse is None:
                self._position += padded(header.size)
            return 0
        if block == _ZEROS:
            if self._extensions.start is not None:
                self._fail("expected the member that the extension header before it belongs to, got a block of zeros")
            self._position += BLOCK
            self._is_ended = True
            return 0
        try:
            header = parse_header(block)
        except ValueError as error:
            self._refuse(block, error)
        if header.kind not in EXTENSIONS:
            self._member(header)
            return 0
        if header.size > LONGEST_EXTENSION:
            self._fail(f"expected an extension header of at most {LONGEST_EXTENSION} bytes, got {header.size}")
        if len(data) < BLOCK + header.size:
            return BLOCK + header.size
        try:
            self._extensions.take(header.kind, bytes(data[BLOCK : BLOCK + header.size]), self._position)
        except ValueError as error:
            self._fail(str(error))
        self._position += BLOCK + padded(header.size)
        return 0

    def _member(self, header: Header) -> None:
        """Takes a header that is no extension."""
        kind = header.kind
        start, name, size, is_sparse = self._extensions.apply(header, self._position)
        self._position += BLOCK
        if kind in WITHOUT_PAYLOAD:
            self._grouper.ignore(WITHOUT_PAYLOAD[kind])
            return
        offset = self._position
        if header.is_extended:
            self._sparse = replace(header, size=size)
        else:
            self._position += padded(size)
        self._payload = (offset, size)
        if is_sparse or kind not in REGULAR:
            self._grouper.ignore("sparse" if is_sparse else "special")
            return
        split = split_name(name)
        if isinstance(split, str):
            self._grouper.ignore(split)
            return
        key, field = split
        number = self._field_id(field, offset)
        self.heads.want(number, offset, size)
        self._single.append((start, offset, size, number, key))

    def _check_rest(self, rest: Bytes) -> None:
        """Makes sure that only zeros follow the end of the tar."""
        if len(rest) and "data_after_end" not in self._allow and rest.max():
            position = self._fed - len(rest) + int(np.flatnonzero(rest)[0])
            raise ShardError(
                f"{self._name}: expected nothing but zeros after the end of the tar at byte {self._position - BLOCK}, "
                f"got data at byte {position} (another tar, say): unpack and write the shard again, or leave out what "
                'follows with allow=["data_after_end"]'
            )

    def _check_cut(self) -> None:
        """Makes sure that a shard without an end ends between two members at least."""
        if self._pending and (len(self._pending) >= BLOCK or any(self._pending)):
            self._fail(f"expected {self._needed} bytes of a header, got {len(self._pending)}: the shard was cut")
        offset, size = self._payload
        if self._position > self._fed and self._fed < offset + size:
            raise ShardError(
                f"{self._name}: expected a payload of {size} bytes at byte {offset}, got {self._fed - offset}: the "
                f"shard was cut at byte {self._fed}: write or download it again"
            )
        if self._extensions.start is not None or self._sparse is not None:
            self._fail("expected the member that the extension header before it belongs to, got the end of the file")
        if "no_end" not in self._allow:
            raise ShardError(
                f"{self._name}: expected two blocks of zeros at the end of the tar, got the end of the file at byte "
                f"{self._fed}, between two members: the shard may have been cut: write or download it again, or take "
                'it to be whole with allow=["no_end"]'
            )

    def _refuse(self, block: bytes, error: ValueError) -> NoReturn:
        if self._position == 0:
            for magic, other in _OTHER_FORMATS.items():
                if block.startswith(magic):
                    self._fail(f"expected a tar, got {other}")
        self._fail(str(error))

    def _fail(self, text: str) -> NoReturn:
        advice = "the shard is damaged, or no tar: write or download it again"
        raise ShardError(f"{self._name}: {text} at byte {self._position}: {advice}")


def scan_file(pin: LocalPin, allow: Collection[str] = ()) -> ShardScan:
    """What a local shard holds; large payloads are not read.

    Raises:
        ShardError: It is no tar, or damaged, or makes no samples.
        StorageError: It is gone, or another file than the pinned one.
    """
    try:
        file = os.open(pin.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError(f"cannot read {pin.path}: {error.strerror}") from None
    try:
        pin.check(os.fstat(file))
        scanner = ShardScanner(str(pin), allow)
        _feed_file(scanner, file, pin)
        scanner.heads.read(lambda size, offset: os.pread(file, size, offset))
        scan = scanner.finish()
        pin.check(os.fstat(file))
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"cannot read {pin.path}: {error.strerror}") from error
    finally:
        os.close(file)
    return scan


def _feed_file(scanner: ShardScanner, file: int, pin: LocalPin) -> None:
    """Feeds a whole file, but for most of what large payloads hold."""
    buffer = np.empty(_CHUNK_BYTES, np.uint8)
    at, length = 0, _CHUNK_BYTES
    while at < pin.file_bytes and not scanner.is_done:
        got = os.preadv(file, [buffer[:length].data], at)
        if not got:
            pin.check(os.fstat(file))
            raise StorageError(f"cannot read {pin.path}: expected {pin.file_bytes} bytes, got {at}")
        scanner.feed(buffer[:got])
        at += got
        ahead = min(scanner.next_header, pin.file_bytes) - at
        if ahead > 0:
            at += ahead
            scanner.skip_to(at)
        length = _LEAST_READ if ahead >= _HOP_BYTES else min(2 * length, _CHUNK_BYTES)
    if scanner.is_done:
        scanner.skip_to(pin.file_bytes)
