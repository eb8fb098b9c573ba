"""A training script that is killed again and again, and what kills it.

    python -m tests.distributed.many_lives FOLDER SEED LIVES

Importing torch takes far longer than a life. So one process imports everything, makes no loader, and forks: each child
is the script, started anew from the checkpoint under other numbers of ranks, samples and workers. Its ranks are loaders
in this one process, driven in step, so that a kill takes all of them.
"""

import faulthandler
import json
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headrace import DataLoader
from tests.distributed.plain import ORDER, RULES, step_of
from tests.loader.stand_ins import numbers

SAMPLES = 499
CHECKPOINT_STEPS = 3
_SIGNS = 60  # a life gives at most so many before it is killed, about four at each step
_HANG_SECONDS = 60  # what stands so long shows its stacks and ends


def main(folder: Path, seed: int, lives: int) -> None:
    """Has `lives` children killed, lets one more finish its epoch, and writes what they were and left: lives.json."""
    draw = random.Random(seed)
    left = []
    for number in range(lives + 1):
        life, is_last = _drawn_life(draw, _checkpoint(folder)), number == lives
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _be(folder, number, life, lambda writer=writer: os.write(writer, b"."), ends=is_last)
        os.close(writer)
        signs = draw.randrange(1, _SIGNS)
        if not is_last:
            if _signs_seen(reader, signs) < signs:
                raise RuntimeError(f"life {number} of seed {seed} ended by itself: {life}")
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if status != (0 if is_last else signal.SIGKILL):
            raise RuntimeError(f"life {number} of seed {seed} ended with status {status}: {life}")
        os.close(reader)
        left.append({**life, "checkpoint": _checkpoint(folder)})
    (folder / "lives.json").write_text(json.dumps(left))


def _signs_seen(reader: int, wanted: int) -> int:
    """How many signs came of those that were waited for: all, unless the child ended."""
    return next((seen for seen in range(wanted) if not os.read(reader, 1)), wanted)


def _drawn_life(draw: random.Random, checkpoint: Any) -> dict[str, Any]:
    position = 0 if checkpoint is None else checkpoint["state"]["position"]
    while True:
        life = {
            "ranks": draw.randint(1, 4),
            "batch_size": draw.randint(1, 8),
            "num_workers": draw.randint(0, 3),
            "rule": draw.choice(["", "", "drop_last", "pad_last"]),
            "order_is_given": checkpoint is None or draw.random() < 0.5,
        }
        size = life["ranks"] * life["batch_size"]
        # fewer samples than ranks in a last step are refused, here or in the epochs after it
        if life["rule"] or all(
            last == 0 or last >= life["ranks"] for last in ((SAMPLES - position) % size, SAMPLES % size)
        ):
            return life


def _be(folder: Path, number: int, life: dict[str, Any], sign: Callable[[], Any], *, ends: bool) -> None:
    """Is the child: never returns."""
    status = 1
    try:
        faulthandler.dump_traceback_later(_HANG_SECONDS, exit=True)
        train(folder, number, life, sign, ends=ends)
        status = 0
    finally:
        if status:
            traceback.print_exc()
        os._exit(status)


def train(folder: Path, number: int, life: dict[str, Any], sign: Callable[[], Any], *, ends: bool) -> None:
    """The script: goes on from the checkpoint for ever, or to the epoch's end; gives a sign after all that it does.

    A checkpoint holds the loaders' state, and which lines of which lives' logs have led to it, as a model would hold
    what it learned from them.
    """
    order = ORDER if life["order_is_given"] else {}
    loaders = [
        DataLoader(
            numbers(SAMPLES),
            life["batch_size"],
            rank=rank,
            world_size=life["ranks"],
            num_workers=life["num_workers"],
            **RULES[life["rule"]],
            **order,
        )
        for rank in range(life["ranks"])
    ]
    checkpoint = _checkpoint(folder) or {"counted": []}
    for loader in loaders if "state" in checkpoint else ():
        loader.load_state_dict(checkpoint["state"])
    log = os.open(folder / f"{number}.log", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    steps = 0
    while True:
        passes = [iter(loader) for loader in loaders]
        epoch = loaders[0].epoch
        for batches in zip(*passes, strict=True):
            sign()
            os.write(log, f"{json.dumps([epoch, [step_of(batch) for batch in batches]])}\n".encode())
            steps += 1
            sign()
            if steps % CHECKPOINT_STEPS == 0:
                _save(folder, {"state": _state(loaders), "counted": [*checkpoint["counted"], [number, steps]]}, sign)
        if ends:
            _save(folder, {"state": _state(loaders), "counted": [*checkpoint["counted"], [number, steps]]}, sign)
            return


def _state(loaders: list[DataLoader]) -> dict[str, Any]:
    states = [loader.state_dict() for loader in loaders]
    assert states == [states[0]] * len(states)
    return states[0]


def _save(folder: Path, checkpoint: dict[str, Any], sign: Callable[[], Any]) -> None:
    new, text = folder / "checkpoint.new", json.dumps(checkpoint)
    with new.open("w", buffering=1) as file:
        file.write(text[:100])
        file.flush()
        sign()
        file.write(text[100:])
    sign()
    new.replace(folder / "checkpoint.json")
    sign()


def _checkpoint(folder: Path) -> Any:
    path = folder / "checkpoint.json"
    return json.loads(path.read_text()) if path.exists() else None


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
