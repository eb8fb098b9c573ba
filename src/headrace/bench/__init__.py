"""Measuring: how fast a loader is, what it costs, and what limits it.

    measure      one loader, one setting: samples/s, waiting, time to the first batch, CPU, memory
      usage      the CPU seconds and the memory of this process and its workers
      steps      SimulatedStep: a training step that takes an exact time and computes nothing
    limit        PlainGather: the same rows gathered by NumPy and nothing else, the limit of this machine
    sweep        many loaders over many settings, loading alone and while training, beside their limits
      report     the answer in words: what limits, which setting is best, the line of code to paste
      table      the figures, one row a setting
      plot       the picture
      record     everything as JSON lines, with the facts of the machine

Measure a loader of your own:

    import headrace.bench as bench

    print(bench.measure(my_loader, step=train_step, seconds=5).describe())

`table` needs rich, `plot` needs matplotlib and workers' memory needs psutil: `pip install "headrace[bench]"`.
"""

from headrace.bench.limit import PlainGather
from headrace.bench.measure import measure
from headrace.bench.measurement import Measurement
from headrace.bench.plot import plot
from headrace.bench.record import machine_facts, write_json_lines
from headrace.bench.report import report
from headrace.bench.steps import SimulatedStep
from headrace.bench.sweep import Setting, Sweep, grid, sweep
from headrace.bench.table import table

__all__ = [
    "Measurement",
    "PlainGather",
    "Setting",
    "SimulatedStep",
    "Sweep",
    "grid",
    "machine_facts",
    "measure",
    "plot",
    "report",
    "sweep",
    "table",
    "write_json_lines",
]
