"""Storage: bytes of local files and of objects in a store, on time, and never wrong ones.

Local files that are memory-mapped:

    local          LocalFile, OpenFiles: mapped where the address space allows, else read at positions
    mapped         MappedFile: mapped and not kept open, thousands at once
    residency      whether the data is in memory; where it isn't, the kernel is told which rows are coming
    memory         how much memory there is

Anything that fsspec opens, in ranges (`Store`):

    store          Store: names, pinned objects, ranges into memory that the caller owns
      names, urls  what patterns stand for; what a URL may show of itself
      objects      an object as it was when it was opened; a range of it
      ranges       which ranges to ask for: pure arithmetic
    reader         what one process has of a store: attempts, pauses and the deadline
      transfers    the queue of ranges and the threads that read them
      concurrency  fewer requests at once while a server throttles
      faults       what can go wrong with an attempt
      cancellation waits that end when nobody wants the bytes any more
    access         fsspec's filesystems: listings, credentials, signed URLs
      http_ranges  the fast way: HTTP, into the caller's memory, each answer checked (connections)
      general      every other filesystem, by its `cat_file`
    cache          blocks on disk that all processes of a node share (cache_budget, checksum)

Why bytes are right: an object's length and version (its ETag, or the time of its change) are pinned when it is opened,
and each request asks for just that version. An answer counts only if its status, range, length and version are those
that were asked for; what has arrived when a connection breaks is kept and the rest asked for again. Blocks in the cache
carry a CRC32. Only bytes that a server alters while every header is right can't be noticed at first sight: `RangeRead`
takes a known `crc32`, and `Store(confirm=True)` reads until two answers agree.
"""

from headrace.storage.cancellation import ReadCancelled, cancellable, check_cancelled
from headrace.storage.local import LocalFile, OpenFiles, open_limit, read_bytes
from headrace.storage.mapped import MappedFile
from headrace.storage.memory import available_bytes
from headrace.storage.objects import RangeRead, StoredObject
from headrace.storage.ranges import BLOCK_BYTES, align, coalesce, split
from headrace.storage.residency import Residency, is_consecutive
from headrace.storage.store import Store
from headrace.storage.transfers import Transfer
from headrace.storage.urls import is_url, protocol_of, shown

__all__ = [
    "BLOCK_BYTES",
    "LocalFile",
    "MappedFile",
    "OpenFiles",
    "RangeRead",
    "ReadCancelled",
    "Residency",
    "Store",
    "StoredObject",
    "Transfer",
    "align",
    "available_bytes",
    "cancellable",
    "check_cancelled",
    "coalesce",
    "is_consecutive",
    "is_url",
    "open_limit",
    "protocol_of",
    "read_bytes",
    "shown",
    "split",
]
