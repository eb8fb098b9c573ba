"""A training script that is killed again and again, and what kills it.

    python -m tests.distributed.many_lives FOLDER SEED KILLS

Importing torch takes far longer than a life. So one process imports everything, makes no loader, and forks: each child
is the script, started anew from the checkpoint under other numbers of ranks, samples and workers. Its ranks are loaders
in this one process, driven in step, so that a kill takes all of them. Some of the lives have worker processes, which
import everything themselves; what a kill leaves of these becomes children of the process that kills.

What a life is follows from the seed, its number and the checkpoint that it starts from.
"""

import ctypes
import faulthandler
import json
import os
import random
import select
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.data import Dataset

from headrace import DataLoader
from tests.distributed.plain import ORDER, RULES, step_of
from tests.loader.stand_ins import numbers
from tests.loader.works import wait_until

SAMPLES = 499
CHECKPOINT_STEPS = 3
PROCESS_LIVES = 6  # lives with worker processes, of which each takes 2 s of a core to start
_SIGNS = 60  # a life gives at most so many before it is killed, about four at each step
_START_SECONDS = 2.0
_HANG_SECONDS = 100  # what stands so long shows its stacks and ends
_PR_SET_CHILD_SUBREAPER = 36  # of prctl(2): processes that lose their parent become this process's children


class Foreign(Dataset[Any]):
    """The numbers in Python: another dataset than headrace's, which is trained on by itself."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": torch.tensor([index])}


DATA: dict[str, Callable[[], Any]] = {"ours": lambda: numbers(SAMPLES), "foreign": Foreign}


def main(folder: Path, seed: int, kills: int) -> None:
    """Has `kills` children killed, lets one more on each dataset finish its epoch, and writes lives.json.

    It holds what each life was, the checkpoint that it left, and how the worker processes ended that it left behind:
    their exit codes, and None for one that went on.
    """
    assert ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    with_processes = random.Random(seed).sample(range(kills), PROCESS_LIVES)
    left: list[dict[str, Any]] = []
    orphans: list[list[psutil.Process]] = []
    for number in range(kills + len(DATA)):
        draw, is_last = random.Random(f"{seed} {number}"), number >= kills
        data = list(DATA)[number - kills] if is_last else draw.choice(["ours", "ours", "foreign"])
        own = folder / data
        own.mkdir(exist_ok=True)
        life = {"data": data, **_drawn_life(draw, _checkpoint(own), has_processes=number in with_processes)}
        _live(own, number, life, ends=is_last)
        known = {process for of_life in orphans for process in of_life}
        orphans.append([process for process in psutil.Process().children() if process not in known])
        left.append({**life, "checkpoint": _checkpoint(own)})
    # only now: the next lives are to go well while these processes still end
    codes = _exit_codes([process for of_life in orphans for process in of_life])
    for life, of_life in zip(left, orphans, strict=True):
        life["orphans"] = [codes[process] for process in of_life]
    (folder / "lives.json").write_text(json.dumps(left))


def _live(folder: Path, number: int, life: dict[str, Any], *, ends: bool) -> None:
    """Has a child live this life, which it ends itself or is killed in."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _be(folder, number, life, lambda: os.write(writer, b"."), ends=ends)
    os.close(writer)
    if not ends:
        if not _has_come(life, child, reader):
            raise RuntimeError(f"life {number} ended by itself: {life}")
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if status != (0 if ends else signal.SIGKILL):
        raise RuntimeError(f"life {number} ended with status {status}: {life}")
    os.close(reader)


def _exit_codes(orphans: list[psutil.Process]) -> dict[psutil.Process, int | None]:
    ended, others = psutil.wait_procs(orphans, timeout=_HANG_SECONDS)
    for process in others:
        process.kill()
    return {**{process: process.returncode for process in ended}, **dict.fromkeys(others)}


def _has_come(life: dict[str, Any], child: int, reader: int) -> bool:
    """Waits for the moment when a life is to be ended; whether it came: else the child has ended by itself."""
    if life["signs"]:
        return all(os.read(reader, 1) for _ in range(life["signs"]))
    script = psutil.Process(child)
    wait_until(lambda: bool(script.children()))
    has_signs, _, _ = select.select([reader], [], [], life["seconds"])
    return not has_signs or bool(os.read(reader, 1))


def _drawn_workers(draw: random.Random, *, are_processes: bool) -> dict[str, Any]:
    """Who works in a life, and when it is ended.

    It is ended after so many `signs`; where these are 0, so many `seconds` after a worker process was started, or with
    the first sign.
    """
    return {
        "worker_type": "process" if are_processes else "thread",
        "num_workers": draw.randint(1, 2) if are_processes else draw.randint(0, 3),
        "persistent_workers": draw.random() < 0.5,
        "transforms": draw.random() < 0.5,
        "signs": 0 if are_processes and draw.random() < 0.3 else draw.randrange(1, _SIGNS),
        "seconds": draw.uniform(0, _START_SECONDS),
    }


def _drawn_life(draw: random.Random, checkpoint: Any, *, has_processes: bool) -> dict[str, Any]:
    workers = _drawn_workers(draw, are_processes=has_processes)
    position = 0 if checkpoint is None else checkpoint["state"]["position"]
    while True:
        life = {
            **workers,
            "ranks": draw.randint(1, 3 - workers["num_workers"] if has_processes else 4),
            "batch_size": draw.randint(24, 48) if has_processes else draw.randint(1, 8),
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
            DATA[life["data"]](),
            life["batch_size"],
            rank=rank,
            world_size=life["ranks"],
            num_workers=life["num_workers"],
            worker_type=life["worker_type"] if life["num_workers"] else None,
            persistent_workers=life["persistent_workers"],
            transform=dict if life["transforms"] else None,
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
