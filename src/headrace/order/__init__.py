"""Order: which sample comes when. Numbers only, no bytes.

    layout       which shuffle, how many lanes, how large a window: from the data and the user alone
    epoch        Order: (epoch, sequence number) -> sample id
      permutation  the keyed bijection of range(n) that shuffles
      hashing      the keyed hash that every random number comes from
    steps        Steps: a position -> the sequence numbers that one rank reads in the coming steps
    progress     Progress: epoch and position, and how passes move them
    state        State: all of it as a small dict

For a given dataset, seed and epoch the order is a pure function, so nothing is stored, replayed or handed over: any
rank of any world size computes what it needs from two integers. The number of samples costs no memory; only a "window"
shuffle keeps three integers a block.
"""

from headrace.order.epoch import DECODE, SAMPLE, SEEDING, SPLIT, Order
from headrace.order.hashing import hash_words
from headrace.order.layout import BlockTotals, Layout, Shuffle, resolve_layout
from headrace.order.permutation import permute
from headrace.order.progress import Progress, checked_epoch, whole_number
from headrace.order.state import State, check_dataset, check_given
from headrace.order.steps import Share, Steps

__all__ = [
    "DECODE",
    "SAMPLE",
    "SEEDING",
    "SPLIT",
    "BlockTotals",
    "Layout",
    "Order",
    "Progress",
    "Share",
    "Shuffle",
    "State",
    "Steps",
    "check_dataset",
    "check_given",
    "checked_epoch",
    "hash_words",
    "permute",
    "resolve_layout",
    "whole_number",
]
