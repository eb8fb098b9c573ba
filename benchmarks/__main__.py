"""`python -m benchmarks`: the sweep."""

import contextlib
import functools
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.arguments import Options, parse
from benchmarks.data import Files, make_digits, make_rows, read_through
from benchmarks.digits import Scores, train_and_score
from benchmarks.loaders import code, limit, loaders
from benchmarks.model import SimpleModel, TrainingStep
from benchmarks.parquet_data import make_rows_parquet
from benchmarks.tar_data import ROWS_SHARD_SAMPLES, make_rows_tar
from benchmarks.tar_upload import uploaded
from headrace import bench
from headrace.bench.extras import extra
from headrace.errors import HeadraceError
from headrace.storage import shown

KINDS = {"npy": ".npy files", "parquet": "Parquet files", "tar": "tar shards"}
WIDTH = 92  # of the table in a file or a pipe, which have no width of their own


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the data, measures, prints the words and the table, and writes the rest."""
    options = parse(arguments)
    try:
        run(options)
    except HeadraceError as error:
        sys.exit(f"error: {error}")


def run(options: Options) -> None:
    """The whole run."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    made = _make_data(options)
    with uploaded(made, options.url) if options.url else contextlib.nullcontext(made) as files:
        scores = _train_digits(files, options) if options.data == "digits" else None
        measured = _measure(files, options)
    _show(files, options, measured, scores)
    _write(options, measured, scores)


def _make_data(options: Options) -> Files:
    if options.data == "digits":
        files = make_digits(options.data_dir)
    else:
        megabytes = options.rows * options.features * 4 / 1e6
        print(
            f"Data: {options.rows:,} rows of {options.features} float32 ({megabytes:,.0f} MB), made once ...",
            flush=True,
        )
        files = make_rows(options.data_dir, options.rows, options.features, options.classes, seed=options.seed)
    if options.format == "parquet":
        files = make_rows_parquet(files)
    if options.format == "tar":
        files = make_rows_tar(files)
    for path in files.paths:
        read_through(path)  # the sweep measures loaders, not the disk
    return files


def _train_digits(files: Files, options: Options) -> Scores:
    return train_and_score(
        files, hidden=options.hidden, epochs=options.epochs, seed=options.seed, device=options.device
    )


def _measure(files: Files, options: Options) -> bench.Sweep:
    model = SimpleModel(files.features, options.hidden, files.classes)
    return bench.sweep(
        loaders(files, options.device, options.seed),
        bench.grid(options.batch_sizes, options.num_workers, options.pin_memory),
        step=TrainingStep(model, options.device, files.names),
        gather=functools.partial(limit, files, seed=options.seed),
        limit_name="plain gather" if files.parquet is None else "plain reader",
        seconds=options.seconds,
        warmup_seconds=options.seconds / 4,
        progress=functools.partial(extra("tqdm").tqdm, desc="measuring", unit="setting", leave=False),
    )


def _show(files: Files, options: Options, measured: bench.Sweep, scores: Scores | None) -> None:
    notes = {} if scores is None else {"Digits": scores.describe()}
    notes["Conditions"] = _conditions(options)
    if options.format == "parquet":
        notes["Conditions"] += (
            " ParquetDataset may keep half of the rows decoded, so every epoch decodes, and shuffles within windows. "
            "Row by row, torch reads and shuffles a table in memory, decoded before."
        )
    if options.format == "tar":
        notes["Conditions"] += (
            f" Shards of {ROWS_SHARD_SAMPLES:,} rows lie {_place(options)}. headrace shuffles within windows, "
            "webdataset the shards and a buffer of 1,000 samples; the plain gather reads the rows from .npy files."
        )
    print(bench.report(measured, code=functools.partial(code, files, options.device), notes=notes))
    console = extra("rich.console").Console()
    if not console.is_terminal:
        console.width = WIDTH
    console.print(bench.table(measured))


def _place(options: Options) -> str:
    if options.url is None:
        return "in memory"
    return "in an S3 server on this machine" if options.url == "s3" else f"at {shown(options.url)}"


def _conditions(options: Options) -> str:
    facts = bench.machine_facts()
    if options.device.type == "cpu":
        return (
            f"Model and loaders share {facts['cores']} cores; torch computes with {facts['torch_threads']} of them "
            "(--threads), for all loaders alike: with a thread on every core its threads wait for each other whenever "
            "a loader works. pin_memory is n/a: there is no accelerator."
        )
    return f"The model trains on {facts['accelerator']}; the loaders have {facts['cores']} cores."


def _write(options: Options, measured: bench.Sweep, scores: Scores | None) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = measured.as_dicts()
    if scores is not None:
        lines.append({"measured": "scores", **asdict(scores)})
    name = options.data if options.format == "npy" else f"{options.data}-{options.format}"
    if options.url is not None:
        name += "-url"
    records, picture = options.out / f"{name}.jsonl", options.out / f"{name}.png"
    bench.write_json_lines(records, lines)
    facts = bench.machine_facts()
    bench.plot(
        measured,
        picture,
        title=f"{'Shuffled rows' if options.data == 'rows' else 'Handwritten digits'} "
        f"from {KINDS[options.format]}{' in a store' if options.url else ''}",
        subtitle=f"{facts['cores']} cores, {facts['accelerator'] or 'no accelerator'}, torch {facts['torch']}, "
        f"Python {facts['python']}; taller is better",
    )
    print(f"Wrote {records} and {picture}.")


if __name__ == "__main__":
    main()
