import io
import json
import re
import socket
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import rich.console
import torch

from headrace.bench import (
    Measurement,
    PlainGather,
    Setting,
    Sweep,
    grid,
    machine_facts,
    plot,
    report,
    sweep,
    table,
    write_json_lines,
)
from headrace.bench.sweep import Row
from headrace.errors import ArgumentError, DependencyError


def measurement(rate, *, stall=0.0, cpu=1.0, name="mine", step=None):
    return Measurement(
        name=name,
        step=step,
        batches=10,
        samples=int(rate),
        bytes=int(rate) * 1000,
        seconds=1.0,
        first_batch_seconds=0.1,
        wait_seconds=stall,
        wait_p50_seconds=0.01,
        wait_p99_seconds=0.02,
        cpu_seconds=cpu,
        memory_bytes=3_000_000,
        idle_memory_bytes=1_000_000,
    )


def row(name, setting, training, *, loading=4_000_000, stall=0.05, cpu=1.0):
    trained = None if training is None else measurement(training, stall=stall, cpu=cpu, name=name, step="Model 8-4-2")
    return Row(name, setting, measurement(loading, name=name), trained)


def example(**best):
    return Sweep(
        rows=[
            row("mine", Setting(64, 0), 100_000),
            row("mine", Setting(256, 0), 400_000, **best),
            row("mine", Setting(256, 2), 300_000),
            row("theirs", Setting(256, 2), 100_000, stall=0.8, loading=90_000),
        ],
        gathers={256: [measurement(rate) for rate in (4_000_000, 5_000_000, 6_000_000)]},
        steps={256: [measurement(450_000)]},
    )


def words(text):
    return re.sub(r"\s+", " ", text)


def test_a_grid_holds_every_combination():
    assert grid([1, 2], [0]) == [Setting(1, 0, None), Setting(2, 0, None)]
    assert len(grid([1, 2, 3], [0, 1], [False, True])) == 12


def test_a_sweep_measures_every_loader_under_every_setting_beside_its_limits():
    made = []

    def make(setting):
        made.append(setting)
        return [{"x": torch.zeros(setting.batch_size, 2)}] * 3

    done = sweep(
        {"a": make, "b": make},
        grid([4, 2]),
        step=lambda batch: batch["x"].sum(),
        gather=lambda batch_size: PlainGather({"x": np.zeros((8, 2))}, batch_size),
        seconds=0.001,
        warmup_seconds=0,
    )
    assert [(r.name, r.setting.batch_size) for r in done.rows] == [("a", 2), ("b", 2), ("a", 4), ("b", 4)]
    assert all(r.training is not None and r.loading.step is None for r in done.rows)
    assert {size: len(limits) for size, limits in done.gathers.items()} == {2: 2, 4: 2}
    assert {size: len(limits) for size, limits in done.steps.items()} == {2: 2, 4: 2}
    assert [line["measured"] for line in done.as_dicts()] == ["loading", "training"] * 4 + ["limit"] * 8


def test_progress_wraps_the_list_of_what_is_to_be_measured():
    seen = []

    def progress(jobs):
        seen.extend(jobs)
        return jobs

    sweep({"a": lambda s: [torch.zeros(2)]}, grid([2, 3]), seconds=0.001, warmup_seconds=0, progress=progress)
    assert seen == [("a", Setting(2)), ("a", Setting(3))]


def test_the_best_row_is_the_fastest():
    assert example().best().setting == Setting(256, 0)
    assert example().best(batch_size=64).setting == Setting(64, 0)
    assert example().best(name="theirs").name == "theirs"


def test_among_level_rows_the_best_one_needs_the_least_cpu():
    done = Sweep([row("a", Setting(1, 2), 100_000, cpu=2.0), row("a", Setting(1, 0), 98_000, cpu=1.0)])
    assert done.best().setting.num_workers == 0
    done = Sweep([row("a", Setting(1, 2), 100_000, cpu=2.0), row("a", Setting(1, 0), 90_000, cpu=1.0)])
    assert done.best().setting.num_workers == 2


def test_an_empty_sweep_has_no_best_row():
    with pytest.raises(ArgumentError, match="expected a measured row of any loader, got none"):
        report(Sweep())


def test_limits_are_medians():
    assert example().gather_rate(256) == 5_000_000
    assert example().gather_rate(64) is None


@pytest.mark.parametrize(
    ("stall", "text"),
    [
        (0.05, "The training step, not the data: the loop waited for data 5% of the time"),
        (0.3, "The training step more than the data: the loop waited for data 30% of the time"),
        (0.8, "The data: the loop waited for data 80% of the time"),
    ],
)
def test_the_report_begins_with_what_limits(stall, text):
    assert words(report(example(stall=stall))).startswith(f"What limits {text} with mine at its best.")


def test_the_report_names_the_best_setting_and_compares():
    text = words(report(example(), code=lambda name, setting: f"make({name}, {setting.batch_size})"))
    assert "Best setting mine with batch_size=256, num_workers=0: 400 k samples/s." in text
    assert "If you train with another batch size: batch_size=64, num_workers=0 (100 k)." in text
    assert "4.0 times as fast as theirs at its own best (batch_size=256, num_workers=2: 100 k, waiting 80%)" in text
    assert "brings up to 4.00 M samples/s (4,000 MB/s; batch_size=64, num_workers=0)" in text
    assert "Model 8-4-2 alone, on a batch that is in memory already, trains 450 k samples/s" in text
    assert text.endswith("To paste make(mine, 256)")


def test_the_report_gives_the_share_of_the_limit():
    done = example()
    done.rows.append(row("mine", Setting(256, 1), 300_000, loading=4_500_000))
    assert "90% of a plain gather of the same rows by one thread (5.00 M)" in words(report(done))


def test_another_limit_than_a_gather_is_called_by_its_name():
    done = sweep(
        {"a": lambda setting: [torch.zeros(setting.batch_size)] * 3},
        grid([2]),
        gather=lambda batch_size: [np.zeros(batch_size)] * 3,
        limit_name="plain reader",
        seconds=0.001,
        warmup_seconds=0,
    )
    assert {limit.name for limits in done.gathers.values() for limit in limits} == {"plain reader"}
    assert "of a plain reader of the same rows by one thread" in words(report(done))
    assert "loading against a plain reader of the same rows" in table(done).caption


def test_level_loaders_are_called_level():
    done = Sweep([row("a", Setting(1), 100_000), row("b", Setting(1), 99_000, cpu=2.0)])
    assert "That is level with b at its own best" in words(report(done))


def test_a_report_of_loading_alone_says_that_nothing_trained():
    done = Sweep([row("a", Setting(1), None)])
    assert "Only loading was measured" in words(report(done))


def test_notes_are_paragraphs_of_the_report():
    assert "\nConditions     two cores" in report(example(), notes={"Conditions": "two cores"})


def test_the_table_has_at_most_eight_columns_and_a_row_for_each_setting():
    made = table(example())
    assert len(made.columns) <= 8
    assert made.row_count == 4


def test_the_table_fits_a_terminal_of_80_columns_and_says_what_does_not_apply():
    done = Sweep([row("torch + NumpyDataset", Setting(1024, 2), 123_000), row("x", Setting(8, 0, True), None)])
    written = io.StringIO()
    rich.console.Console(width=80, file=written).print(table(done))
    text = written.getvalue()
    assert "…" not in text
    assert re.search(r"torch \+ NumpyDataset +1024 +2 +n/a +123 k +5% +4\.00 M +n/a", text)
    assert re.search(r"x +8 +0 +yes +n/a +n/a +4\.00 M +n/a", text)


@pytest.mark.parametrize("done", [example(), Sweep([row("a", Setting(1), None)])], ids=["training", "loading alone"])
def test_the_plot_is_a_png(done, tmp_path):
    plot(done, tmp_path / "plot.png", title="A title", subtitle="a subtitle")
    head = (tmp_path / "plot.png").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:])
    assert width > 1000
    assert height > 500


def test_the_record_is_one_measurement_a_line_with_the_machine(tmp_path):
    write_json_lines(tmp_path / "record.jsonl", example().as_dicts())
    lines = [json.loads(line) for line in (tmp_path / "record.jsonl").read_text().splitlines()]
    assert len(lines) == 4 * 2 + 3 + 1
    assert all(line["machine"]["torch"] == torch.__version__ for line in lines)
    assert lines[1]["samples_per_second"] == 100_000


def test_the_facts_name_neither_the_host_nor_a_path():
    text = json.dumps(machine_facts())
    assert socket.gethostname() not in text
    assert str(Path.cwd()) not in text
    assert {"cores", "memory_bytes", "python", "torch", "numpy"} <= machine_facts().keys()


def test_a_missing_package_names_the_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.table", None)
    with pytest.raises(DependencyError, match=re.escape('rich is not installed; run: pip install "headrace[bench]"')):
        table(example())


def test_a_plain_gather_brings_the_rows_in_the_given_order():
    columns = {"x": np.arange(12).reshape(6, 2), "y": np.arange(6)}
    ids = np.array([5, 3, 1, 0, 2, 4])
    batches = list(PlainGather(columns, 2, sample_ids=ids))
    assert np.concatenate([batch["y"] for batch in batches]).tolist() == ids.tolist()
    assert all((batch["x"] == columns["x"][batch["y"]]).all() for batch in batches)


def test_a_plain_gather_leaves_out_what_fills_no_batch_and_draws_each_row_once():
    batches = [batch["x"] for batch in PlainGather({"x": np.arange(10)}, 3, seed=1)]
    assert [len(batch) for batch in batches] == [3, 3, 3]
    assert len(set(np.concatenate(batches).tolist())) == 9


def test_a_plain_gather_brings_fresh_memory_unless_told_to_reuse_it():
    fresh = list(PlainGather({"x": np.arange(8)}, 4))
    assert not np.shares_memory(fresh[0]["x"], fresh[1]["x"])
    reused = list(PlainGather({"x": np.arange(8)}, 4, reuse=True))
    assert np.shares_memory(reused[0]["x"], reused[1]["x"])


def test_a_plain_gather_refuses_columns_that_do_not_fit():
    with pytest.raises(ArgumentError, match=r"expected arrays of one length, got \{'x': 3, 'y': 4\}"):
        PlainGather({"x": np.arange(3), "y": np.arange(4)}, 1)
    with pytest.raises(ArgumentError, match=r"batch_size: expected 1\.\.3, the samples there are, got 4"):
        PlainGather({"x": np.arange(3)}, 4)
