"""Tars for tests: whole ones as tarfile and webdataset write them, and single blocks, to build what they would not."""

import io
import os
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import webdataset as wds

from headrace.formats.local_pin import LocalPin
from headrace.formats.tar_table import ShardScan

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT}
BLOCK = 512
END = bytes(2 * BLOCK)

Members = Iterable[tuple[str, bytes]]


def tar_bytes(
    members: Members,
    *,
    format: str = "ustar",  # noqa: A002 (tarfile's word)
    mtime: float = 0.0,
    pax_headers: Mapping[str, str] | None = None,
) -> bytes:
    """A whole tar of regular files; `pax` with a fractional mtime has a pax header before every member.

    `pax_headers` become a global header (format `pax` only).
    """
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w|", format=FORMATS[format], pax_headers=pax_headers) as tar:
        for name, payload in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(payload), mtime, 0o444
            tar.addfile(info, io.BytesIO(payload))
    return sink.getvalue()


def write_tar(path: "Path | str", members: Members, **options: Any) -> Path:
    """Writes such a tar (`format`, `mtime`, `pax_headers` as above); returns where."""
    path = Path(path)
    path.write_bytes(tar_bytes(members, **options))
    return path


def write_webdataset(path: "Path | str", samples: Iterable[Mapping[str, Any]], **options: Any) -> Path:
    """Writes samples as webdataset does: with a pax header before every member, unless `mtime=` is whole."""
    path = Path(path)
    with path.open("wb") as file, wds.TarWriter(file, **options) as writer:
        for sample in samples:
            writer.write(sample)
    return path


def padded(payload: bytes) -> bytes:
    """With zeros up to a multiple of 512 bytes."""
    return payload + bytes(-len(payload) % BLOCK)


def header(
    name: "str | bytes",
    size: int,
    *,
    kind: bytes = b"0",
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
    size_field: bytes | None = None,
    checksum: "bytes | None" = None,
    rest: bytes = b"",
) -> bytes:
    """One header block of 512 bytes, whose checksum is right unless it is given (8 bytes).

    Args:
        name: At most 100 bytes.
        size: In octal, as tars have it; `size_field` are 12 bytes to have in its place.
        kind: The type flag.
        magic: The 8 bytes of magic and version.
        prefix: Up to 155 bytes of directory.
        rest: In place of the prefix and what follows: 167 bytes from byte 345 on.
    """
    raw = os.fsencode(name)
    assert len(raw) <= 100
    block = bytearray(BLOCK)
    block[: len(raw)] = raw
    block[100:124] = b"0000444\x000000000\x000000000\x00"
    block[124:136] = b"%011o\x00" % size if size_field is None else size_field
    block[136:148] = b"00000000000\x00"
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257:265] = magic
    block[345 : 345 + len(prefix)] = prefix
    block[345 : 345 + len(rest)] = rest
    block[148:156] = b"%06o\x00 " % sum(block) if checksum is None else checksum
    return bytes(block)


def member(name: "str | bytes", payload: bytes = b"", **options: Any) -> bytes:
    """A header, `payload` and its padding."""
    return header(name, len(payload), **options) + padded(payload)


def pax_record(keyword: "str | bytes", value: "str | bytes") -> bytes:
    """One record of a pax header, whose length counts itself."""
    body = b" " + os.fsencode(keyword) + b"=" + os.fsencode(value) + b"\n"
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def pax_header(records: "Mapping[str, str] | bytes", *, kind: bytes = b"x") -> bytes:
    """A pax header of these records (or of bytes that take their place) with its payload; `kind` g for a global one."""
    payload = records if isinstance(records, bytes) else b"".join(pax_record(*record) for record in records.items())
    return member("././@PaxHeader", payload, kind=kind)


def long_name(name: "str | bytes", *, kind: bytes = b"L") -> bytes:
    """GNU's member with the name of the next one (or `kind` K: of what it links to)."""
    return member("././@LongLink", os.fsencode(name) + b"\x00", kind=kind, magic=b"ustar  \x00")


def pin(path: "Path | str") -> LocalPin:
    """The file as it is now."""
    return LocalPin.of(str(path), os.stat(path))


def samples_in(scan: ShardScan, shard: bytes) -> list[tuple[str, dict[str, bytes]]]:
    """What a scan found, one at a time: the key and the payload of each field, from the shard's bytes."""
    samples = []
    for number in range(scan.samples):
        key = scan.keys[scan.key_starts[number] : scan.key_starts[number + 1] - 1]
        payloads = {}
        for row in range(scan.first_members[number], scan.first_members[number + 1]):
            offset = scan.offsets[row]
            payloads[scan.fields[scan.field_ids[row]]] = shard[offset : offset + scan.sizes[row]]
        samples.append((os.fsdecode(key), payloads))
    return samples
