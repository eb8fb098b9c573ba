"""One header of a tar at a time: what its fields and the records of a pax header say, strictly.

A tar is a row of blocks of 512 bytes: a header, its payload padded with zeros, the next header. Formats: POSIX.1-2017,
pax, "ustar Interchange Format" and "pax Interchange Format"; GNU tar manual, "Basic Tar Format".
"""

from dataclasses import dataclass

BLOCK = 512
# The longest name that Linux opens has 4096 bytes. What an extension header holds is read into memory whole.
LONGEST_EXTENSION = 1 << 20
LARGEST_SIZE = 1 << 60

# Type flags
REGULAR = (b"0", b"\0", b"7")
EXTENSIONS = (b"x", b"X", b"g", b"L", b"K")
SPARSE = b"S"
# What has no payload, whatever its size field says, and why no sample has it
WITHOUT_PAYLOAD = {
    b"1": "link",
    b"2": "link",
    b"3": "special",
    b"4": "special",
    b"5": "directory",
    b"6": "special",
}

_GNU_MAGIC = b"ustar  \0"


@dataclass(frozen=True, slots=True)
class Header:
    """What one header block says.

    Attributes:
        name: As it stands there, with the prefix.
        kind: The type flag, one byte.
        size: In bytes, of the payload.
        is_extended: Of a sparse member, whether another block of its map follows.
    """

    name: bytes
    kind: bytes
    size: int
    is_extended: bool


def parse_header(block: bytes) -> Header:
    """What a header block of 512 bytes says.

    Raises:
        ValueError: It is none, or damaged; the text says "expected ..., got ...".
    """
    _check_sum(block)
    name = _text(block[:100])
    kind = block[156:157]
    # GNU keeps times where POSIX has the prefix
    prefix = b"" if block[257:265] == _GNU_MAGIC else _text(block[345:500])
    if prefix:
        name = prefix + b"/" + name
    try:
        size = parse_number(block[124:136])
    except ValueError as error:
        raise ValueError(f"expected a size of member {shown(name)} in octal digits or base 256, got {error}") from None
    if not 0 <= size <= LARGEST_SIZE:
        raise ValueError(f"expected a size of member {shown(name)} from 0 to {LARGEST_SIZE} bytes, got {size}")
    if kind == b"\0" and name.endswith(b"/"):
        kind = b"5"  # directories before POSIX
    return Header(name, kind, size, is_extended=kind == SPARSE and block[482] != 0)


def _check_sum(block: bytes) -> None:
    """Makes sure that the sum of all bytes is the stated one; some old tars sum up signed ones."""
    try:
        stated = parse_number(block[148:156])
    except ValueError as error:
        raise ValueError(f"expected a header with a checksum in octal digits, got {error}") from None
    total = sum(block[:148]) + sum(block[156:]) + 8 * 0x20
    if stated == total:
        return
    high = sum(byte >= 0x80 for byte in block[:148] + block[156:])
    if stated != total - 256 * high:
        raise ValueError(f"expected a header whose bytes sum up to the {stated} that it states, got {total}")


def parse_number(field: bytes) -> int:
    """A number in octal digits between spaces, or in GNU's base 256."""
    if field[0] in {0x80, 0xFF}:
        return int.from_bytes(field[1:], "big") - (1 << 8 * len(field) - 8 if field[0] == 0xFF else 0)
    digits = _text(field).strip(b" ")
    if digits.strip(b"01234567"):
        raise ValueError(repr(field))
    return int(digits or b"0", 8)


def parse_pax(payload: bytes) -> dict[bytes, bytes]:
    r"""The records of a pax header, `length keyword=value\n` each; of two with one keyword the last one counts.

    Raises:
        ValueError: They aren't; the text says "expected ..., got ...".
    """
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(payload) and payload[at] != 0:
        space = payload.find(b" ", at, at + 8)
        digits = payload[at:space] if space > 0 else b""
        stop = at + int(digits) if digits.isdigit() else at
        equals = payload.find(b"=", space, stop)
        if equals <= space + 1 or payload[stop - 1 : stop] != b"\n" or stop > len(payload):
            raise ValueError(f"expected pax records 'length keyword=value', got {payload[at : at + 40]!r}")
        records[payload[space + 1 : equals]] = payload[equals + 1 : stop - 1]
        at = stop
    return records


def padded(size: int) -> int:
    """The bytes of a payload with the zeros after it."""
    return -(-size // BLOCK) * BLOCK


def shown(name: bytes) -> str:
    """A name for error texts."""
    text = repr(name.decode("utf-8", "backslashreplace"))
    return text if len(text) <= 120 else f"{text[:100]}... ({len(name)} bytes)"


def _text(field: bytes) -> bytes:
    """What stands before the first NUL."""
    return field.partition(b"\0")[0]
