"""The command line of `python -m benchmarks`."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from headrace.storage import is_url

FEWER_ROWS = 100_000  # webdataset's writer takes 40 s for ten times as many, and its reader as long for an epoch


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure and where to write, checked."""

    data: str
    format: str
    url: str | None
    rows: int
    features: int
    classes: int
    hidden: int
    batch_sizes: list[int]
    num_workers: list[int]
    pin_memory: list[bool | None]
    seconds: float
    epochs: int
    device: torch.device
    threads: int
    seed: int
    data_dir: Path
    out: Path


def parse(arguments: Sequence[str] | None = None) -> Options:
    """The options; an argument that can't work ends the program with what to do instead."""
    parser = _parser()
    given = parser.parse_args(arguments)
    device = _device(parser, given.device)
    small = given.quick or given.data == "digits"
    num_workers = sorted(set(given.num_workers or ([0, 2] if small else [0, 1, 2])))
    _check_url(parser, given.url, given.format)
    rows = 20_000 if given.quick else FEWER_ROWS if given.format == "tar" else 500_000
    options = Options(
        data=given.data,
        format=given.format,
        url=given.url,
        rows=given.rows or rows,
        features=given.features,
        classes=given.classes,
        hidden=given.hidden or (128 if given.data == "digits" else 64),
        batch_sizes=sorted(set(given.batch_sizes or ([32, 256] if small else [64, 256, 1024]))),
        num_workers=num_workers,
        pin_memory=[None] if device.type == "cpu" else [False, True],
        seconds=given.seconds or (0.2 if small else 1.0),
        epochs=given.epochs,
        device=device,
        threads=given.threads or max(1, torch.get_num_threads() - max(num_workers)),
        seed=given.seed,
        data_dir=given.data_dir,
        out=given.out,
    )
    rows = 1797 if options.data == "digits" else options.rows
    if options.batch_sizes[-1] > rows:
        parser.error(
            f"--batch-sizes: {options.batch_sizes[-1]} is more than the {rows} rows there are; give smaller ones"
        )
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Loads rows from disk in a shuffled order while training a small model, with headrace and with "
        "torch's DataLoader, over every combination of workers, pinned memory and batch size.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data", choices=["rows", "digits"], default="rows", help="random rows, or scikit-learn's handwritten digits")
    add("--format", choices=["npy", "parquet", "tar"], default="npy", help="the files that the rows lie in")
    add(
        "--url",
        metavar="URL",
        help="with --format tar: read the shards from there, s3://bucket/folder or another URL that fsspec can write "
        "to with the credentials that it finds; they are uploaded once. Just s3: to and from an S3 server on this "
        "machine, which ends with the run",
    )
    add("--quick", action="store_true", help="a look in seconds: 20 000 rows, two batch sizes, 0.2 s each")
    add("--rows", type=_at_least(2), metavar="N", help="rows of random data; 500 000, as tar 100 000")
    add("--features", type=_at_least(1), default=256, metavar="N", help="float32 values of a row")
    add("--classes", type=_at_least(2), default=10, metavar="N", help="classes of the labels")
    add("--hidden", type=_at_least(1), metavar="N", help="hidden units of the model; 64, for digits 128")
    add("--batch-sizes", type=_at_least(1), nargs="+", metavar="N", help="64 256 1024; for digits 32 256")
    add("--num-workers", type=_at_least(0), nargs="+", metavar="N", help="0 1 2; for digits 0 2")
    add("--seconds", type=_positive, metavar="S", help="time for each measurement; 1, quick and digits 0.2")
    add("--epochs", type=_at_least(1), default=30, metavar="N", help="epochs of training on digits")
    add("--device", default="auto", choices=["auto", "cpu", "cuda"], help="where to train; auto takes what there is")
    add(
        "--threads",
        type=_at_least(1),
        metavar="N",
        help="threads that torch computes with on the CPU; as many as the workers leave cores, at least 1",
    )
    add("--seed", type=_at_least(0), default=0, metavar="N", help="of the data, the model and the order")
    add("--data-dir", type=Path, default=Path("data"), metavar="DIR", help="where data is made once and found again")
    add("--out", type=Path, default=Path("results"), metavar="DIR", help="where results are written")
    return parser


def _check_url(parser: argparse.ArgumentParser, url: str | None, kind: str) -> None:
    if url is None:
        return
    if kind != "tar":
        parser.error(f"--url: only tar shards are read from URLs; give --format tar with it, not {kind}")
    if url != "s3" and not is_url(url):
        parser.error(f"--url: expected s3, or a URL such as s3://bucket/folder, got {url!r}")


def _device(parser: argparse.ArgumentParser, name: str) -> torch.device:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return found or torch.device("cpu")
    if name == "cuda" and (found is None or found.type != "cuda"):
        parser.error("--device cuda: torch finds no CUDA device here; give --device cpu, or auto")
    return torch.device(name)


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"expected a whole number, {least} or more, got {text!r}")
        return value

    return number


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, got {text!r}")
    return value
