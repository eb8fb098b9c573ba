"""The order of an epoch a second time: slow, in plain Python, straight from the text of the design."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from headrace.order.epoch import SHUFFLE_ALL, SHUFFLE_BLOCKS, SHUFFLE_WINDOW

_MASK_32, _MASK_64 = 2**32 - 1, 2**64 - 1


def plain_hash(*words: int) -> int:
    """What `hash_words` gives for integers."""
    state = 0x9E3779B97F4A7C15
    for word in words:
        state ^= word & _MASK_64
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK_64
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK_64
        state ^= state >> 31
    return state


class PlainPermutation:
    """One bijection of range(n) and its inverse, in integers that cannot overflow."""

    def __init__(self, n: int, key: int) -> None:
        self.n = n
        self.column_bits = max(((n - 1).bit_length() + 1) // 2, 4)
        self.rows = max(-(-n // 2**self.column_bits), 16)
        hashes = [plain_hash(key, i) for i in range(3)]
        self.round_keys = [half for hashed in hashes for half in (hashed >> 32, hashed & _MASK_32)]

    def __call__(self, position: int) -> int:
        position = self._apply(position)
        while position >= self.n:
            position = self._apply(position)
        return position

    def inverse(self, position: int) -> int:
        position = self._undo(position)
        while position >= self.n:
            position = self._undo(position)
        return position

    def images(self) -> list[int]:
        """Of all positions: walks in a table of one step from everywhere, which takes a tenth of the time."""
        everywhere = np.arange(self.rows << self.column_bits, dtype=np.uint64)
        table = self._apply(everywhere).tolist()
        images = []
        for position in range(self.n):
            image = table[position]
            while image >= self.n:
                image = table[image]
            images.append(image)
        return images

    def _apply(self, value: Any) -> Any:
        row, column = divmod(value, 2**self.column_bits)
        for i, key in enumerate(self.round_keys):
            if i % 2:
                column ^= self._column_change(row, key)
            else:
                row = (row + self._row_shift(column, key)) % self.rows
        return row * 2**self.column_bits + column

    def _undo(self, value: int) -> int:
        row, column = divmod(value, 2**self.column_bits)
        for i, key in reversed(list(enumerate(self.round_keys))):
            if i % 2:
                column ^= self._column_change(row, key)
            else:
                row = (row - self._row_shift(column, key)) % self.rows
        return row * 2**self.column_bits + column

    def _row_shift(self, column: Any, key: int) -> Any:
        return _round(column, key) * self.rows >> 32

    def _column_change(self, row: Any, key: int) -> Any:
        return _round(row, key) >> (32 - self.column_bits)


def _round(value: Any, key: int) -> Any:  # an int, or an array of uint64: no product has more bits
    value = (value ^ key) * 0x7FEB352D & _MASK_32
    return (value ^ value >> 15) * 0x846CA68B & _MASK_32


def bits_reversed(number: int, lanes: int) -> int:
    """`number`, below `lanes`, with its bits in reverse."""
    width = lanes.bit_length() - 1
    return int(f"{number:0{width}b}"[::-1], 2) if width else 0


def lane_lengths(samples: int, lanes: int) -> list[int]:
    """The places of each lane."""
    return [samples // lanes + (bits_reversed(lane, lanes) < samples % lanes) for lane in range(lanes)]


def windows_of_lane(lane: int, length: int, window: int, lanes: int) -> list[tuple[int, int, int]]:
    """The windows of a lane that hold a place: (number, first place, end)."""
    width = -(-window // lanes)
    windows, start, end = [], 0, width - bits_reversed(lane, lanes) * width // lanes
    while start < length:
        windows.append((len(windows), start, min(end, length)))
        start, end = end, end + width
    return windows


def lane_and_place(number: int, lanes: int) -> tuple[int, int]:
    """Where a sequence number lies."""
    return bits_reversed(number % lanes, lanes), number // lanes


def shuffled(count: int, *purpose: int) -> list[int]:
    """range(count) in the order that belongs to a purpose."""
    return PlainPermutation(count, plain_hash(*purpose)).images() if count else []


def epoch_order(
    samples: int,
    shuffle: bool | str,
    *,
    lanes: int = 1,
    window: int = 1,
    seed: int = 0,
    epoch: int = 0,
    block_lengths: Sequence[int] = (),
) -> list[int]:
    """All sample ids of an epoch, in its order."""
    if shuffle is False:
        ordered = list(range(samples))
    elif shuffle == "global":
        ordered = shuffled(samples, seed, epoch, SHUFFLE_ALL)
    else:
        ordered = _in_permuted_blocks(block_lengths, seed, epoch)
    streams, start = [], 0
    for lane, length in enumerate(lane_lengths(samples, lanes)):
        stream = ordered[start : start + length]
        if shuffle == "window":
            stream = _in_permuted_windows(stream, lane, window, lanes, seed, epoch)
        streams.append(stream)
        start += length
    visits = [lane_and_place(number, lanes) for number in range(samples)]
    return [streams[lane][place] for lane, place in visits]


def _in_permuted_blocks(block_lengths: Sequence[int], seed: int, epoch: int) -> list[int]:
    blocks, start = [], 0
    for length in block_lengths:
        if length:
            blocks.append(range(start, start + length))
        start += length
    return [sample for i in shuffled(len(blocks), seed, epoch, SHUFFLE_BLOCKS) for sample in blocks[i]]


def _in_permuted_windows(stream: list[int], lane: int, window: int, lanes: int, seed: int, epoch: int) -> list[int]:
    ordered: list[int] = []
    for number, start, end in windows_of_lane(lane, len(stream), window, lanes):
        key = (seed, epoch, SHUFFLE_WINDOW, lane, number)
        ordered += [stream[start + image] for image in shuffled(end - start, *key)]
    return ordered


def step_of_rank(position: int, size: int, lanes: int, rank: int, world_size: int) -> list[int]:
    """A rank's sequence numbers of the step [position, position + size)."""
    ordered = sorted(range(position, position + size), key=lambda number: lane_and_place(number, lanes))
    return ordered[rank * size // world_size : (rank + 1) * size // world_size]
