"""What every command that measures promises shares: a promise, its result, the table and the command line."""

import argparse
import importlib.metadata
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from headrace import bench
from headrace.bench.extras import extra
from headrace.errors import HeadraceError

Where = TypeVar("Where")
WIDTH = 132  # of the tables in a file or a pipe, which have no width of their own


@dataclass(frozen=True, slots=True)
class Target(Generic[Where]):
    """One promise.

    Attributes:
        name: What `--only` calls it.
        claim: What is measured against what.
        bound: The least value of a ratio, or the most of a cost; None for what is measured and not promised.
        unit: "%" or "x" for ratios; "ns", "us", "ms", "MB", "x CPU", "x time", "% time" for costs.
        values: Measures it, told where.
        remark: What to say of it once it was measured, told where.
    """

    name: str
    claim: str
    bound: float | None
    unit: str
    values: Callable[[Where], list[float]]
    remark: Callable[[Where], str] = lambda where: ""  # noqa: ARG005 (most have none)

    @property
    def is_cost(self) -> bool:
        """Whether less is better."""
        return self.unit not in ("%", "x")

    def kept_by(self, value: float) -> bool:
        """Whether the value keeps the promise."""
        if self.bound is None:
            return True
        return value <= self.bound if self.is_cost else value >= self.bound

    def show(self, value: float) -> str:
        """The value with its unit."""
        if self.unit == "%":
            return f"{value:.1%}" if self.name.startswith("hot") else f"{value:.0%}"
        if self.is_cost:
            return f"{value:.3g} {self.unit}"
        return f"{value:.2f}x" if value < 10 else f"{value:.1f}x"


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured, and a remark; without values the reason, and whether that breaks the promise."""

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
        """yes, no or n/a; where nothing is promised n/a too, but for what is broken."""
        if self.median is None:
            return "no" if self.broken else "n/a"
        if self.target.bound is None:
            return "n/a"
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


def measured(
    targets: Sequence[Target[Where]],
    where: Where,
    missing: Callable[[Target[Where]], str] = lambda target: "",  # noqa: ARG005 (nothing)
) -> list[Result]:
    """The promises' results, one after the other; an error of headrace's ends the program.

    Args:
        targets: The promises.
        where: What each is told.
        missing: Says why a promise can't be measured here, "" where it can.
    """
    try:
        return [
            _measured(target, where, missing(target)) for target in extra("tqdm").tqdm(targets, "promises", leave=False)
        ]
    except HeadraceError as error:
        sys.exit(f"error: {error}")


def _measured(target: Target[Where], where: Where, missing: str) -> Result:
    if missing:
        return Result(target, [], missing)
    try:
        return Result(target, target.values(where), target.remark(where))
    except subprocess.CalledProcessError as error:  # such as a process that was killed for the memory it took
        return Result(target, [], f"its process ended with status {error.returncode}", broken=True)


def to_install(*packages: str) -> str:
    """The command that installs those of the packages that aren't there, "" where all are."""
    missing = [package for package in packages if not is_installed(package)]
    return f"pip install {' '.join(missing)}" if missing else ""


def is_installed(package: str) -> bool:
    """Whether it is."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def tell(results: Sequence[Result], path: Path, how: str) -> None:
    """Prints the table and how many promises are kept, and writes the values.

    Args:
        results: What was measured.
        path: Where the values are written.
        how: How they came about, for the line of the promises that are kept.
    """
    show(table(results))
    kept = sum(result.verdict == "yes" for result in results)
    known = sum(result.verdict != "n/a" for result in results)
    print(f"{kept} of {known} promises kept; {how}.")
    write(path, [result.as_dict() for result in results])


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
            "none" if target.bound is None else f"{'<=' if target.is_cost else '>='} {target.show(target.bound)}",
            "n/a" if median is None else target.show(median),
            "n/a" if median is None else f"{target.show(min(result.values))}..{target.show(max(result.values))}",
            result.verdict,
            style={"yes": "green", "no": "bold red", "n/a": "dim"}[result.verdict],
        )
    return made


def show(*tables: Any) -> None:
    """Prints rich tables, wide enough in a file too."""
    console = extra("rich.console").Console()
    if not console.is_terminal:
        console.width = WIDTH
    for one in tables:
        console.print(one)


def write(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Writes the values as JSON lines, and says where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bench.write_json_lines(path, lines)
    print(f"Wrote {path}.")


def chosen(targets: Iterable[Target[Where]], only: Sequence[str] | None) -> list[Target[Where]]:
    """The promises whose names begin as `--only` says; all without it."""
    return [target for target in targets if not only or target.name.startswith(tuple(only))]


class Arguments:
    """The command line of a command that measures promises: its own options, and those that all have."""

    def __init__(self, program: str, description: str, names: Sequence[str]) -> None:
        self._names = names
        self._parser = argparse.ArgumentParser(
            prog=f"python -m benchmarks.{program}",
            description=description,
            epilog=f"names: {', '.join(names)}",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        self._positive = ["repetitions"]
        self.flag = self._parser.add_argument  # for what is no number
        self.flag("--only", nargs="+", metavar="NAME", help="only promises whose names begin so; default: all")

    def number(self, name: str, default: float, what: str, *, may_be_0: bool = False) -> None:
        """One more option that takes a number: a whole one where the default is one."""
        self.flag(name, type=type(default), default=default, metavar="N", help=what)
        if not may_be_0:
            self._positive.append(name.removeprefix("--").replace("-", "_"))

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """What was given; what can't work ends the program with what to do instead."""
        self.flag("--repetitions", type=int, default=5, metavar="N", help="values of each promise")
        self.flag("--data-dir", type=Path, default=Path("data"), metavar="DIR", help="where data is made")
        self.flag("--out", type=Path, default=Path("results"), metavar="DIR", help="where results are written")
        given = self._parser.parse_args(arguments)
        for prefix in given.only or ():
            if not any(name.startswith(prefix) for name in self._names):
                self._parser.error(f"--only {prefix}: no such promise; the names are {', '.join(self._names)}")
        for option in self._positive:
            if getattr(given, option) <= 0:
                self._parser.error(f"--{option.replace('_', '-')}: expected more than 0, got {getattr(given, option)}")
        return given
