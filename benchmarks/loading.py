"""`python -m benchmarks.loading`: what headrace promises of its loader, against what this machine can do."""

import argparse
import functools
from collections.abc import Iterator, Sequence

from benchmarks import loading_promises
from benchmarks.loading_datasets import BATCH_SAMPLES
from benchmarks.loading_promises import (
    AIMED_CAPACITY,
    BATCH_SIZE,
    FREE_BATCHES,
    LEAST_CAPACITY,
    STEP_SECONDS,
    Loading,
)
from benchmarks.promise import Arguments, Target, chosen, measured, tell

WORKLOADS = {
    "rows": "rows of 1 KB",
    "jpeg": "JPEGs of 500x375 in tar shards to 224x224",
    "parquet": "Parquet in windows",
}


def targets() -> Iterator[Target[Loading]]:
    """Every promise."""
    for num_workers, rate in FREE_BATCHES.items():
        yield Target(
            f"overhead-w{num_workers}",
            f"a batch of {BATCH_SIZE} x 1 KB that costs nothing, num_workers={num_workers} ({rate:,} a second)",
            1e6 / rate,
            "us",
            functools.partial(loading_promises.overhead, num_workers=num_workers),
        )
    yield Target(
        "hand-over",
        f"batches of 4 MB, {BATCH_SAMPLES} samples, from 2 worker processes / np.copyto of as many, one thread",
        0.60,
        "%",
        functools.partial(loading_promises.hand_over, targets=1),
    )
    yield Target(
        "hand-over-turns",
        "the same / np.copyto of as many into 4 arrays in turn, one thread",
        None,
        "%",
        functools.partial(loading_promises.hand_over, targets=4),
    )
    yield Target(
        "hand-over-torch", "the same / torch's DataLoader, 2 workers", 3.0, "x", loading_promises.hand_over_torch
    )
    yield Target(
        "foreign-2-of-1",
        "samples of 50 us of Python, 2 worker processes / 1",
        1.7,
        "x",
        loading_promises.foreign_processes,
    )
    yield Target(
        "foreign-of-torch", "the same with 2 / torch's DataLoader, 2 workers", 1.0, "x", loading_promises.foreign_torch
    )
    yield Target(
        "pictures-of-torch",
        f"batches of {BATCH_SAMPLES} new arrays of 0.6 MB, 2 worker processes / torch's DataLoader, 2 workers",
        None,
        "x",
        loading_promises.pictures_torch,
    )
    for kind, what in WORKLOADS.items():
        yield Target(
            f"stall-{kind}",
            f"waiting of a loop of steps of {STEP_SECONDS * 1e3:g} ms that want 1/{AIMED_CAPACITY} of what 2 threads "
            f"read of {what}, where that is {LEAST_CAPACITY} times as much or more",
            2.0,
            "% time",
            functools.partial(loading_promises.stall, kind=kind),
            functools.partial(loading_promises.stall_remark, kind=kind),
        )
    yield Target("state-dict", "state_dict() in an epoch of 10^9 samples", 20.0, "us", loading_promises.state_dict)
    for in_windows in (False, True):
        for num_workers in (0, 2):
            yield Target(
                f"resume-{'window' if in_windows else 'global'}-w{num_workers}",
                "time to the first batch at a random place of 10^9 samples, "
                f"{'10^6 blocks in windows' if in_windows else 'global order'}, num_workers={num_workers} / fresh",
                2.0,
                "x time",
                functools.partial(loading_promises.resume, num_workers=num_workers, in_windows=in_windows),
            )
    for num_workers, rate in FREE_BATCHES.items():
        yield Target(
            f"stats-cost-w{num_workers}",
            f"what counting takes of the time, at {rate:,} batches a second, num_workers={num_workers}",
            1.0,
            "% time",
            functools.partial(loading_promises.stats_cost, num_workers=num_workers),
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints the table and writes the values."""
    given = _parse(arguments)
    where = Loading(
        given.data_dir, given.rows, given.shard_images, given.parquet_rows, given.repetitions, given.seconds
    )
    given.data_dir.mkdir(parents=True, exist_ok=True)
    results = measured(chosen(targets(), given.only), where)
    tell(results, given.out / "loading.jsonl", f"medians of up to {given.repetitions} alternating repetitions")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    line = Arguments(
        "loading",
        "Measures what the loader itself costs and hands over; files of 4 GB are made once.",
        [target.name for target in targets()],
    )
    line.number("--rows", Loading.rows, "rows of 1 KB")
    line.number("--shard-images", Loading.shard_images, "images in each of 8 shards")
    line.number("--parquet-rows", Loading.parquet_rows, "rows in 8 Parquet files")
    line.number("--seconds", Loading.seconds, "seconds for each of a value's measurements, roughly")
    return line.parse(arguments)


if __name__ == "__main__":
    main()
