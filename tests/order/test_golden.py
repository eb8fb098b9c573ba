"""The numbers themselves: the same seed gives the same order in every release, on every platform.

A difference here is a change of the public contract: it needs a new version of the state and a line under "Changed
order" in CHANGELOG.md. Only then are the files written anew, by `PYTHONPATH=src python -m tests.order.test_golden`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.order import BlockTotals, Layout, Order, State, Steps, hash_words, permute, resolve_layout

FOLDER = Path(__file__).parent / "golden"
SIZES = (1, 2, 3, 10, 255, 256, 257, 1000, 65_536, 2**20 + 1, 10**9, 10**13, 2**53)
KEYS = (0, 2**64 - 1, 0x9E3779B97F4A7C15)
LAYOUTS = {
    "file order": Layout(False, 1, None),
    "file order, 4 lanes": Layout(False, 4, None),
    "global": Layout("global", 1, None),
    "global, 8 lanes": Layout("global", 8, None),
    "window": Layout("window", 1, 30),
    "window, 4 lanes": Layout("window", 4, 30),
    "window, 16 lanes, all samples": Layout("window", 16, 97),
}
LENGTHS = np.array([5, 0, 13, 1, 40, 2, 0, 16, 20])
SAMPLES = 97


def permutations() -> dict[str, Any]:
    """Where positions at the beginning, in the middle and at the end of ranges go, for each key."""
    table = {}
    for n in SIZES:
        positions = sorted({*range(min(n, 8)), n // 2, n - 1})
        images = [permute(positions, n, key).tolist() for key in KEYS]
        table[str(n)] = {"positions": positions, "images": images}
    return {"keys": [f"{key:016x}" for key in KEYS], "sizes": table}


def orders() -> dict[str, Any]:
    """Whole epochs of every shuffle mode, and some places of a large one."""
    small = {}
    for name, layout in LAYOUTS.items():
        order = Order(SAMPLES, layout, seed=-7, block_lengths=LENGTHS)
        small[name] = [order.sample_ids(epoch, np.arange(SAMPLES)).tolist() for epoch in (0, 3)]
    large = Order(10**9, Layout("window", 64, 10**6), seed=2**63, block_lengths=np.full(10**5, 10**4))
    places = [0, 1, 63, 64, 12_345_678, 10**9 // 2, 10**9 - 1]
    steps = Steps(SAMPLES, 16, 20, rank=1, world_size=3)
    return {
        "epochs 0 and 3": small,
        "places of 10^9 samples": large.sample_ids(1, places).tolist(),
        "sequence numbers of rank 1 of 3": steps.share(7, 4).sequence.tolist(),
    }


def layouts() -> dict[str, Any]:
    """The default lanes and window of a window shuffle over some data."""
    table = {}
    for samples, blocks, size in (
        (1, 1, 0),
        (1000, 4, 10**6),
        (1_281_167, 36_000, 140 << 30),
        (10**12, 10**6, 1 << 50),
    ):
        totals = BlockTotals(count=blocks, total_bytes=size)
        layout = resolve_layout(samples, totals, random_access=False, shuffle="window")
        table[f"{samples} samples in {blocks} blocks of {size} bytes together"] = [layout.lanes, layout.window]
    return table


def state() -> dict[str, Any]:
    """A state of version 1, which every later release must read."""
    layout = Layout("window", 64, 5_000_000)
    return State(3, 17_305_611, 2**64 - 1, layout, 10**9, "9f3c1a2077ab04d1").as_dict()


def next_samples(saved: dict[str, Any]) -> list[list[int]]:
    """The next three steps of 8 samples after a state, over the data above."""
    state = State.from_dict(saved)
    order = Order(state.samples, state.layout, seed=state.seed, block_lengths=LENGTHS)
    steps = Steps(state.samples, state.layout.lanes, 8)
    places = [steps.share(state.position + 8 * step, 1).sequence for step in range(3)]
    return [order.sample_ids(state.epoch, place).tolist() for place in places]


def resumed() -> dict[str, Any]:
    """States of version 1 in the middle of an epoch, and what comes next: every later release must go on so."""
    states = {
        name: State(2, 53, 2**63 + 5, layout, SAMPLES, "9f3c1a2077ab04d1").as_dict() for name, layout in LAYOUTS.items()
    }
    return {name: {"state": state, "next": next_samples(state)} for name, state in states.items()}


FILES = {"permutation": permutations, "order": orders, "layout": layouts, "state_v1": state, "resumed_v1": resumed}


@pytest.mark.parametrize("name", FILES)
def test_numbers_are_those_of_the_first_release(name: str) -> None:
    assert FILES[name]() == json.loads((FOLDER / f"{name}.json").read_text())


def test_the_golden_state_is_read_as_it_was_written() -> None:
    saved = json.loads((FOLDER / "state_v1.json").read_text())
    assert State.from_dict(saved).as_dict() == saved


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_golden_state_goes_on_with_the_samples_that_were_recorded(name: str) -> None:
    recorded = json.loads((FOLDER / "resumed_v1.json").read_text())[name]
    assert next_samples(recorded["state"]) == recorded["next"]


def test_the_golden_permutation_of_two_is_one_of_both() -> None:
    assert {tuple(permute([0, 1], 2, hash_words(key)).tolist()) for key in range(16)} == {(0, 1), (1, 0)}


def _write() -> None:
    for name, computed in FILES.items():
        lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in computed().items()]
        (FOLDER / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    _write()
    sys.stdout.write(f"wrote {len(FILES)} files into {FOLDER}\n")
