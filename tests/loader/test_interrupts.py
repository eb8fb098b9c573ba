"""Programs that end in the middle of a pass: by Ctrl-C, or because they come to their end."""

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.loader.stand_ins import WAITING_SECONDS

SCRIPT = """
import signal, sys, threading
import numpy as np
import headrace as hr

signal.signal(signal.SIGINT, signal.default_int_handler)
forever, blocked = threading.Event(), threading.Event()

class Blocking:
    def __len__(self):
        return 1000
    def __getitem__(self, i):
        if i == 12:
            print("blocked", flush=True)
            blocked.set()
            forever.wait()
        return i

rows = hr.ArrayDataset({"x": np.arange(1000)})
"""


def started(program: str, environment: dict[str, str], tmp_path: Path) -> subprocess.Popen[str]:
    code = SCRIPT + textwrap.dedent(program)
    return subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-W", "error", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tmp_path,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=WAITING_SECONDS * 2)
    assert "Fatal" not in err
    return process.returncode, out, err


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_interrupt_in_the_body_of_the_loop_ends_the_program(environment, tmp_path, num_workers):
    process = started(
        f"""
        for batch in hr.DataLoader(rows, batch_size=10, num_workers={num_workers}):
            print("in the body", flush=True)
            forever.wait()
        """,
        environment,
        tmp_path,
    )
    assert process.stdout.readline() == "in the body\n"
    process.send_signal(signal.SIGINT)
    code, _, err = ended(process)
    assert code == -signal.SIGINT
    assert "KeyboardInterrupt" in err


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_interrupt_while_the_consumer_waits_for_a_blocked_read_ends_the_program(environment, tmp_path, num_workers):
    process = started(
        f"""
        from headrace.loader import prefetch
        prefetch.CLOSE_SECONDS = 0.1
        loader = hr.DataLoader(Blocking(), batch_size=10, num_workers={num_workers}, worker_type="thread")
        try:
            for batch in loader:
                pass
        except KeyboardInterrupt:
            print("interrupted at", loader.position, flush=True)
            raise
        """,
        environment,
        tmp_path,
    )
    assert process.stdout.readline() == "blocked\n"
    process.send_signal(signal.SIGINT)
    code, out, _ = ended(process)
    assert code == -signal.SIGINT
    assert out in ("interrupted at 10\n", "interrupted at 0\n")


def test_the_interpreter_ends_in_peace_with_a_half_read_iterator(environment, tmp_path):
    process = started(
        """
        passing = iter(hr.DataLoader(rows, batch_size=10, num_workers=3))
        next(passing)
        """,
        environment,
        tmp_path,
    )
    assert ended(process) == (0, "", "")


def test_the_interpreter_ends_though_a_read_blocks_for_ever(environment, tmp_path):
    process = started(
        """
        from headrace.loader import prefetch
        prefetch.CLOSE_SECONDS = 0.1
        passing = iter(hr.DataLoader(Blocking(), batch_size=10, num_workers=2, worker_type="thread"))
        next(passing)
        blocked.wait()  # at the end nothing may be amid writing to stdout
        """,
        environment,
        tmp_path,
    )
    code, _, err = ended(process)
    assert code == 0
    assert "Traceback" not in err
