"""`python -m benchmarks.servers.guard`: runs a program that ends when the process that started it does.

The starter holds the other end of this process's standard input. Whatever ends the starter, `kill -9` included, the
system closes that end; then the program is killed and what it wrote is removed.
"""

import argparse
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

# Where `python -m benchmarks...` finds this package
ROOT = Path(__file__).resolve().parent.parent.parent


def start(module: str, arguments: Sequence[str], *, stdout: int | None = None) -> subprocess.Popen[str]:
    """Starts `python -m module arguments`, which is to call `when_starter_ends`.

    It runs in a session of its own: Ctrl-C in the terminal is for the starter alone.
    """
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stdout, text=True, cwd=ROOT, start_new_session=True)


def stop(process: subprocess.Popen[str]) -> None:
    """Ends a process that `start` returned, and closes its pipes."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    try:
        process.wait(timeout=5.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def when_starter_ends(act: Callable[[], object]) -> None:
    """Calls `act` in a thread as soon as the starter has ended or has called `stop`."""

    def wait() -> None:
        # the descriptor, not sys.stdin: a thread inside a buffered reader blocks the interpreter's end
        while os.read(0, 1 << 10):
            pass
        act()

    threading.Thread(target=wait, name="guard", daemon=True).start()


def main() -> None:
    """Runs the program, and removes what it wrote when the starter has ended."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.servers.guard", description=__doc__)
    parser.add_argument("--remove", action="append", type=Path, default=[], help="a file or folder, when all is over")
    parser.add_argument("--log", type=Path, required=True, help="gets what the program prints")
    parser.add_argument("command", nargs="+", help="after --: the program and its arguments")
    given = parser.parse_args()
    ended = threading.Event()
    with given.log.open("wb") as log:
        program = subprocess.Popen(given.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def end() -> None:
        ended.set()
        program.kill()  # nothing that it holds is wanted any more

    when_starter_ends(end)
    status = program.wait()
    if ended.is_set():
        for path in given.remove:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    sys.exit(0 if ended.is_set() else status or 1)


if __name__ == "__main__":
    main()
