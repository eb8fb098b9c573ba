"""`python -m benchmarks.parquet`: what headrace promises of Parquet, against what this machine can do."""

import argparse
import functools
import itertools
from collections.abc import Iterator, Sequence

from benchmarks import parquet_promises
from benchmarks.parquet_promises import BATCH_SIZE, SCATTERED_BATCH_SIZE, WINDOW, Parquet
from benchmarks.peers.rival import RIVALS
from benchmarks.plain_reader import DEFAULT_ROWS, TUNED_ROWS
from benchmarks.promise import Arguments, Target, chosen, measured, tell

TIMES_FASTER = {"huggingface": 50.0, "litdata": 10.0}
LIMIT = "plain iter_batches, one thread"
LIMITS = (("", DEFAULT_ROWS, LIMIT), ("tuned-", TUNED_ROWS, f"{LIMIT}, {TUNED_ROWS} rows a batch"))


def targets() -> Iterator[Target[Parquet]]:
    """Every promise."""
    orders = (
        ("sequential", f"batches of {BATCH_SIZE} in file order", False, (0.85, 1.40)),
        ("window", f"the same, shuffle_window={WINDOW}", True, (0.75, 1.30)),
    )
    for (prefix, rows, limit), (name, what, shuffled, floors) in itertools.product(LIMITS, orders):
        for num_workers, floor in zip((0, 2), floors, strict=True):
            yield Target(
                f"{prefix}{name}-w{num_workers}",
                f"{what}, num_workers={num_workers} / {limit}",
                floor,
                "%",
                functools.partial(parquet_promises.rates, num_workers=num_workers, shuffled=shuffled, batch_rows=rows),
            )
    yield Target(
        "scattered",
        f"torch's DataLoader, shuffle=True, batch {SCATTERED_BATCH_SIZE}, rows kept decoded / a row group a row",
        1000.0,
        "x",
        parquet_promises.scattered,
    )
    # the budget, and beside it: batches in flight, Arrow's memory while it decodes, what threads keep
    yield Target(
        "memory-window",
        "memory that a shuffled epoch adds to a process, memory_bytes=256 MB",
        400.0,
        "MB",
        parquet_promises.memory_window,
    )
    yield Target(
        "memory-growth",
        "what its last third holds more than its first",
        32.0,
        "MB",
        parquet_promises.memory_growth,
    )
    for num_workers in (0, 2):
        yield Target(
            f"memory-group-w{num_workers}",
            f"memory that a row group of 1 GB adds, memory_bytes=256 MB, num_workers={num_workers}",
            400.0,
            "MB",
            functools.partial(parquet_promises.memory_large_group, num_workers=num_workers),
        )
    for rival in RIVALS:
        yield Target(
            f"peer-{rival.name}",
            f"shuffled, both as fast as with 0 or 2 workers / {rival.title}",
            TIMES_FASTER[rival.name],
            "x",
            functools.partial(parquet_promises.peer, rival=rival),
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints the table and writes the values."""
    given = _parse(arguments)
    where = Parquet(given.data_dir, given.rows, given.group_rows, given.memory_bytes, given.repetitions, given.seconds)
    given.data_dir.mkdir(parents=True, exist_ok=True)
    wanted = chosen(targets(), given.only)
    if not (given.peers or given.only):
        wanted = [target for target in wanted if not target.name.startswith("peer-")]
    results = measured(wanted, where, _missing)
    tell(results, given.out / "parquet.jsonl", f"medians of up to {given.repetitions} alternating repetitions")


def _missing(target: Target[Parquet]) -> str:
    is_missing = any(target.name == f"peer-{rival.name}" and not rival.is_installed for rival in RIVALS)
    return "not installed: make peers" if is_missing else ""


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    line = Arguments(
        "parquet",
        "Measures reading Parquet on this machine; files of 1 GB are made once.",
        [target.name for target in targets()],
    )
    line.flag("--peers", action="store_true", help="also side by side with the rivals that `make peers` installs")
    line.number("--rows", Parquet.rows, "rows of features and label, in 8 files")
    line.number("--group-rows", Parquet.group_rows, "rows of 1 KB in the file of one row group")
    line.number("--memory-bytes", Parquet.memory_bytes, "what the dataset may keep, up to half of the data")
    line.number("--seconds", Parquet.seconds, "seconds for what is no whole epoch")
    return line.parse(arguments)


if __name__ == "__main__":
    main()
