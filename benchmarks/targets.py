"""`python -m benchmarks.targets`: what headrace promises, against what this machine can do."""

import argparse
import functools
from collections.abc import Iterator, Sequence

from benchmarks import promises
from benchmarks.limited import memory_can_be_limited
from benchmarks.promise import Arguments, Target, chosen, measured, tell
from benchmarks.promises import Bench


def targets() -> Iterator[Target[Bench]]:
    """Every promise."""
    for batch_size, floors in ((256, (0.75, 0.60)), (2048, (0.80, 0.70))):
        for num_workers, floor in zip((0, 2), floors, strict=True):
            yield Target(
                f"rows-{batch_size}-w{num_workers}",
                f"shuffled rows, batch {batch_size}, num_workers={num_workers} / np.take into fresh arrays",
                floor,
                "%",
                functools.partial(promises.rows, batch_size=batch_size, num_workers=num_workers),
            )
    for num_workers in (0, 2):
        workers = f"num_workers={num_workers}"
        w = functools.partial(functools.partial, num_workers=num_workers)
        yield from (
            Target(
                f"large-w{num_workers}",
                f"batches of 40 MB, {workers} / gather into reused memory",
                0.70,
                "%",
                w(promises.large_batches),
            ),
            Target(
                f"hot-w{num_workers}",
                f"hot rows, looking out for cold ones, {workers} / not looking",
                0.97,
                "%",
                w(promises.hot_advice),
            ),
            Target(
                f"cold-larger-w{num_workers}",
                f"cold rows of 3 KB, file larger than memory, {workers} / plain memory map",
                5.0,
                "x",
                w(promises.cold_larger),
            ),
            Target(
                f"cold-fits-w{num_workers}",
                f"cold epoch, file that fits, {workers} / reading it through first",
                0.60,
                "%",
                w(promises.cold_fits),
            ),
        )
    yield Target(
        "torch", "torch's DataLoader over NumpyDataset / over a per-row Dataset", 3.0, "x", promises.torch_loader
    )
    yield Target(
        "memory",
        "growth of memory while reading a file larger than allowed",
        64.0,
        "MB",
        functools.partial(promises.memory_growth, num_workers=2),
    )
    yield Target("order-global", "global order of 10^12, a sample", 25.0, "ns", promises.global_order)
    yield Target(
        "order-window", "window order of 10^6 blocks, rank's share, a sample", 130.0, "ns", promises.window_order
    )
    yield Target("begin-global", "beginning an epoch, global, 10^12 samples", 1.0, "ms", promises.global_set_up)
    yield Target("begin-memory", "memory for that", 1.0, "MB", promises.global_set_up_memory)
    yield Target("begin-window", "beginning an epoch, window, 10^6 blocks", 100.0, "ms", promises.window_set_up)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints the table and writes the values."""
    given = _parse(arguments)
    where = Bench(given.data_dir, given.rows, given.cold_rows, given.repetitions, given.seconds)
    results = measured(chosen(targets(), given.only), where, _missing)
    tell(results, given.out / "targets.jsonl", f"medians of {given.repetitions} alternating repetitions")


def _missing(target: Target[Bench]) -> str:
    if target.name.startswith("cold-larger") and not memory_can_be_limited():
        return "no memory group can be made here"
    return ""


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    line = Arguments(
        "targets",
        "Measures each promise as a ratio to its limit, in one run.",
        [target.name for target in targets()],
    )
    line.number("--rows", Bench.rows, "rows of 1 KB for the hot reads")
    line.number("--cold-rows", Bench.cold_rows, "rows of 3 KB for the cold ones")
    line.number("--seconds", Bench.seconds, "seconds for each of a value's measurements")
    return line.parse(arguments)


if __name__ == "__main__":
    main()
