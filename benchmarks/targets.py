"""`python -m benchmarks.targets`: what headrace promises, against what this machine can do."""

import argparse
import functools
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from benchmarks import promises
from benchmarks.limited import memory_can_be_limited
from benchmarks.promises import Bench
from headrace import bench
from headrace.bench.extras import extra
from headrace.errors import HeadraceError

Where = TypeVar("Where")


@dataclass(frozen=True, slots=True)
class Target(Generic[Where]):
    """One promise.

    Attributes:
        name: What `--only` calls it.
        claim: What is measured against what.
        bound: The least value of a ratio, or the most of a cost.
        unit: "%" or "x" for ratios; "ns", "ms", "MB", "x CPU" for costs.
        values: Measures it, told where.
    """

    name: str
    claim: str
    bound: float
    unit: str
    values: Callable[[Where], list[float]]

    @property
    def is_cost(self) -> bool:
        """Whether less is better."""
        return self.unit not in ("%", "x")

    def kept_by(self, value: float) -> bool:
        """Whether the value keeps the promise."""
        return value <= self.bound if self.is_cost else value >= self.bound

    def show(self, value: float) -> str:
        """The value with its unit."""
        if self.unit == "%":
            return f"{value:.1%}" if self.name.startswith("hot") else f"{value:.0%}"
        return f"{value:.3g} {self.unit}" if self.is_cost else f"{value:.1f}x"


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured; without values, the reason, and whether that breaks the promise."""

    target: Target[Any]
    values: list[float]
    reason: str = ""
    broken: bool = False

    @property
    def median(self) -> float | None:
        """The median over the repetitions."""
        return statistics.median(self.values) if self.values else None

    @property
    def verdict(self) -> str:
        """yes, no or n/a."""
        if self.median is None:
            return "no" if self.broken else "n/a"
        return "yes" if self.target.kept_by(self.median) else "no"

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        target = self.target
        return {
            "measured": "target",
            "name": target.name,
            "claim": target.claim,
            "bound": target.bound,
            "unit": target.unit,
            "is_cost": target.is_cost,
            "median": self.median,
            "values": self.values,
            "kept": self.verdict,
            "reason": self.reason,
        }


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


def table(results: Sequence[Result]) -> Any:
    """A rich table: claim, limit, measured, range, kept."""
    made = extra("rich.table").Table(box=extra("rich.box").SIMPLE_HEAD, show_edge=False, pad_edge=False)
    made.add_column("name", no_wrap=True)
    made.add_column("claim")
    for heading in ("limit", "measured", "range", "kept"):
        made.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        target, median = result.target, result.median
        made.add_row(
            target.name,
            target.claim if not result.reason else f"{target.claim} ({result.reason})",
            f"{'<=' if target.is_cost else '>='} {target.show(target.bound)}",
            "n/a" if median is None else target.show(median),
            "n/a" if median is None else f"{target.show(min(result.values))}..{target.show(max(result.values))}",
            result.verdict,
            style={"yes": "green", "no": "bold red", "n/a": "dim"}[result.verdict],
        )
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints the table and writes the values."""
    given = _parse(arguments)
    where = Bench(given.data_dir, given.rows, given.cold_rows, given.repetitions, given.seconds)
    chosen = [target for target in targets() if not given.only or target.name.startswith(tuple(given.only))]
    limited = memory_can_be_limited()
    watched = extra("tqdm").tqdm(chosen, desc="measuring", unit="promise", leave=False)
    try:
        results = [_measure(target, where, limited=limited) for target in watched]
    except HeadraceError as error:
        sys.exit(f"error: {error}")
    console = extra("rich.console").Console()
    if not console.is_terminal:
        console.width = 132
    console.print(table(results))
    kept = sum(result.verdict == "yes" for result in results)
    known = sum(result.verdict != "n/a" for result in results)
    print(f"{kept} of {known} promises kept; medians of {given.repetitions} alternating repetitions.")
    given.out.mkdir(parents=True, exist_ok=True)
    bench.write_json_lines(given.out / "targets.jsonl", [result.as_dict() for result in results])
    print(f"Wrote {given.out / 'targets.jsonl'}.")


def _measure(target: Target[Bench], where: Bench, *, limited: bool) -> Result:
    if target.name.startswith("cold-larger") and not limited:
        return Result(target, [], "no memory group can be made here")
    try:
        return Result(target, target.values(where))
    except subprocess.CalledProcessError as error:  # such as a process that was killed for the memory it took
        return Result(target, [], f"its process ended with status {error.returncode}", broken=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [target.name for target in targets()]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.targets",
        description="Measures each promise as a ratio to its limit, in one run.",
        epilog=f"names: {', '.join(names)}",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only promises whose names begin so; default: all")
    parser.add_argument("--rows", type=int, default=Bench.rows, metavar="N", help="rows of 1 KB for the hot reads")
    parser.add_argument(
        "--cold-rows", type=int, default=Bench.cold_rows, metavar="N", help="rows of 3 KB for the cold ones"
    )
    parser.add_argument("--repetitions", type=int, default=5, metavar="N", help="values of each promise")
    parser.add_argument(
        "--seconds", type=float, default=0.5, metavar="S", help="time for each of a value's measurements"
    )
    parser.add_argument("--data-dir", type=Path, default=Path("data"), metavar="DIR", help="where data is made")
    parser.add_argument("--out", type=Path, default=Path("results"), metavar="DIR", help="where results are written")
    given = parser.parse_args(arguments)
    for prefix in given.only or ():
        if not any(name.startswith(prefix) for name in names):
            parser.error(f"--only {prefix}: no such promise; the names are {', '.join(names)}")
    for option in ("rows", "cold_rows", "repetitions", "seconds"):
        if getattr(given, option) <= 0:
            parser.error(f"--{option.replace('_', '-')}: expected more than 0, got {getattr(given, option)}")
    return given


if __name__ == "__main__":
    main()
