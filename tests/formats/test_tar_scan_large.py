"""A scan of a shard with very many members."""

import numpy as np

from headrace.formats.tar_scan import ShardScanner
from tests.formats.tar_files import header


def test_a_million_members_are_scanned_and_numbered_in_order():
    one = bytearray(header("0000000.x", 0))
    scanner = ShardScanner("s.tar")
    count, at_once = 1_000_000, 10_000
    chunk = np.tile(np.frombuffer(bytes(one), np.uint8), at_once).reshape(at_once, 512)
    for first in range(0, count, at_once):
        digits = np.arange(first, first + at_once)[:, None] // 10 ** np.arange(6, -1, -1) % 10
        chunk[:, :7] = digits + ord("0")
        total = chunk[:, :148].sum(axis=1, dtype=np.int64) + chunk[:, 156:].sum(axis=1, dtype=np.int64) + 256
        chunk[:, 148:154] = total[:, None] // 8 ** np.arange(5, -1, -1) % 8 + ord("0")
        scanner.feed(chunk.reshape(-1))
    scanner.feed(np.zeros(1024, np.uint8))
    scan = scanner.finish()
    assert scan.samples == count
    assert (scan.offsets == np.arange(1, count + 1) * 512).all()
    assert scan.keys[scan.key_starts[-2] :] == b"0999999\0"
