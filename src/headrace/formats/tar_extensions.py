"""What extension headers, pax's and GNU's, say of the member that follows them."""

from headrace.formats.tar_headers import LARGEST_SIZE, SPARSE, Header, parse_pax, shown


class Extensions:
    """What the extension headers since the last member say.

    Attributes:
        start: Where the first of them begins; None if there are none.
    """

    def __init__(self) -> None:
        self.start: int | None = None
        self._name: bytes | None = None
        self._size: int | None = None
        self._is_sparse = False

    @property
    def is_plain(self) -> bool:
        """Whether the next header counts as it stands."""
        return self._name is None and self._size is None and not self._is_sparse

    def take(self, kind: bytes, payload: bytes, position: int) -> None:
        """Takes one at this byte; of two that say the same, the first one counts, as in tarfile.

        Raises:
            ValueError: It makes no sense; the text says "expected ..., got ...".
        """
        if kind == b"g":
            for keyword in parse_pax(payload):
                if keyword in {b"path", b"size"} or keyword.startswith(b"GNU.sparse."):
                    raise ValueError(f"expected global pax headers that hold for all members, got {shown(keyword)}")
            return
        if self.start is None:
            self.start = position
        if kind == b"L":
            self._rename(payload.partition(b"\0")[0])
        elif kind != b"K":  # K: the name of what a link leads to
            self._take_pax(parse_pax(payload))

    def _take_pax(self, records: dict[bytes, bytes]) -> None:
        self._is_sparse |= any(keyword.startswith(b"GNU.sparse.") for keyword in records)
        size = records.get(b"size")
        if size is not None and self._size is None:
            if not size.isdigit() or len(size) > 19 or int(size) > LARGEST_SIZE:
                raise ValueError(f"expected a pax size from 0 to {LARGEST_SIZE} bytes, got {size[:40]!r}")
            self._size = int(size)
        name = records.get(b"path")
        if name is not None:
            if b"\0" in name:
                raise ValueError(f"expected a pax path without NUL, got {shown(name)}")
            self._rename(name.rstrip(b"/"))

    def _rename(self, name: bytes) -> None:
        if self._name is None:
            self._name = name

    def apply(self, header: Header, position: int) -> tuple[int, bytes, int, bool]:
        """The member's start, name and size, and whether it is sparse, given its header; nothing is left for the next.

        The start is the first byte of the first header.
        """
        told = (
            position if self.start is None else self.start,
            header.name if self._name is None else self._name,
            header.size if self._size is None else self._size,
            self._is_sparse or header.kind == SPARSE,
        )
        self.start = self._name = self._size = None
        self._is_sparse = False
        return told
