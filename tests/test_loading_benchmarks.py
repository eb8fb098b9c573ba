"""What headrace promises of its loader, measured small: the datasets, the stretches that count, and the table."""

import json
import re

import numpy as np
import pytest
import torch

import headrace as hr
from benchmarks import loading, loading_promises
from benchmarks.loading_datasets import BATCH_SHAPE, Burning, ReadyBatches, ReadyRows, ready_batch, turns_in
from benchmarks.loading_promises import Loading, Trained, whole_pass
from benchmarks.promise import Target
from headrace.datasets import MapDataset

SIZE = ["--rows", "3000", "--shard-images", "8", "--parquet-rows", "4000", "--repetitions", "1", "--seconds", "0.01"]


def records(path):
    return {line["name"]: line for line in map(json.loads, path.read_text().splitlines())}


class TestDatasets:
    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_ready_rows_come_as_batches_of_memory_that_is_there(self, num_workers):
        source = ReadyRows(2560)
        batches = list(hr.DataLoader(MapDataset(source), batch_size=256, shuffle=True, num_workers=num_workers))
        assert {tuple(batch["x"].shape) for batch in batches} == {(256, 256)}
        assert all(np.shares_memory(batch["x"].numpy(), source._rows) for batch in batches)

    def test_ready_rows_in_blocks_are_shuffled_in_windows(self):
        source = ReadyRows(10_000, block_samples=1000)
        assert source.blocks.lengths.tolist() == [1000] * 10
        assert not source.random_access
        assert ReadyRows(10_000).random_access

    def test_a_ready_batch_is_a_new_tensor_over_the_same_memory(self):
        first, second = ready_batch([0]), ready_batch([1])
        assert first is not second
        assert first.data_ptr() == second.data_ptr()
        assert first.shape == BATCH_SHAPE
        assert first.nbytes == 4 << 20

    def test_samples_that_burn_time_are_pairs(self):
        values, label = Burning(10, 3)[7]
        assert (values.tolist(), label, values.dtype) == ([7.0] * 16, 7, torch.float32)
        assert len(Burning(10, 3)) == 10

    def test_the_turns_of_a_longer_burn_are_more(self):
        assert 0 < turns_in(1e-6) < turns_in(1e-3)


class TestPromises:
    def test_they_are_measured_and_recorded(self, tmp_path, capsys, root, monkeypatch):
        monkeypatch.setenv("PYTHONPATH", f"{root / 'src'}:{root}")
        monkeypatch.setattr(loading_promises, "SAMPLES", 10**7)
        monkeypatch.setattr(loading_promises, "STEP_SECONDS", 0.0005)
        loading.main([*SIZE, "--data-dir", str(tmp_path / "data"), "--out", str(tmp_path / "out")])
        printed = capsys.readouterr().out
        assert re.search(r"overhead-w0 .* <= 50 us +[\d.e+]+ us +[\d.e+]+ us\.\.[\d.e+]+ us +(yes|no)", printed)
        assert re.search(r"hand-over-torch .* >= 3.00x +[\d.]+x +[\d.]+x\.\.[\d.]+x +(yes|no)", printed)
        assert re.search(r"\d+ of \d+ promises kept; medians of up to 1 alternating repetitions", printed)
        lines = records(tmp_path / "out" / "loading.jsonl")
        assert list(lines) == [target.name for target in loading.targets()]
        assert all(line["values"] for name, line in lines.items() if not name.startswith("stall"))
        assert all(
            "read alone" in line["reason"] or line["reason"].startswith("never read 1.2 times")
            for name, line in lines.items()
            if name.startswith("stall")
        )

    def test_one_that_is_missed_is_said_to_be(self, tmp_path, capsys, monkeypatch):
        def targets():
            yield Target("slow", "a claim", 2.0, "% time", lambda where: [3.0, 2.5, 2.25])
            yield Target("fast", "a claim", 2.0, "% time", lambda where: [1.0])

        monkeypatch.setattr(loading, "targets", targets)
        loading.main(["--data-dir", str(tmp_path), "--out", str(tmp_path)])
        printed = capsys.readouterr().out
        assert re.search(r"slow +a claim +<= 2 % time +2.5 % time +2.25 % time\.\.3 % time +no", printed)
        assert "1 of 2 promises kept" in printed
        assert records(tmp_path / "loading.jsonl")["slow"]["kept"] == "no"

    def test_one_that_does_not_exist_is_refused(self, capsys):
        with pytest.raises(SystemExit):
            loading.main(["--only", "speed"])
        assert "--only speed: no such promise; the names are overhead-w0, " in capsys.readouterr().err


class TestStall:
    def test_a_stretch_counts_where_the_capacity_is_1_2_times_what_the_step_wants(self):
        assert Trained(0.0, 60, 1.2 * 60 / 0.005).is_feasible
        assert not Trained(0.0, 60, 1.1 * 60 / 0.005).is_feasible

    def test_what_was_read_and_wanted_is_said_of_the_median(self, tmp_path):
        where = Loading(tmp_path)
        where.trained["rows"] = [Trained(0.03, 10, 3e3), Trained(0.01, 20, 6e3), Trained(0.02, 40, 1e4, 0.015)]
        remark = loading_promises.stall_remark(where, kind="rows")
        assert remark == "batch 40: 10,000/s read alone, 8,000/s wanted, 1.25x; steps late by 1.5 % of the time"
        where.trained["rows"].clear()
        assert loading_promises.stall_remark(where, kind="rows") == "never read 1.2 times of what the step wants"

    def test_one_that_is_never_feasible_is_neither_kept_nor_broken(self, tmp_path, monkeypatch):
        monkeypatch.setattr(loading_promises, "LEAST_CAPACITY", float("inf"))
        monkeypatch.setattr(loading_promises, "STEP_SECONDS", 0.0005)
        where = ["--data-dir", str(tmp_path), "--out", str(tmp_path)]
        loading.main(["--only", "stall-rows", *SIZE, *where])
        line = records(tmp_path / "loading.jsonl")["stall-rows"]
        assert (line["kept"], line["median"]) == ("n/a", None)
        assert line["reason"].startswith("never read inf times")

    @pytest.mark.parametrize("kind", ["rows", "jpeg", "parquet"])
    def test_the_workloads_are_those_that_are_spoken_of(self, tmp_path, kind):
        where = Loading(tmp_path, rows=300, shard_images=2, parquet_rows=300)
        dataset, column, options = where.workload(kind)
        batch = next(iter(hr.DataLoader(dataset, batch_size=4, **options)))
        assert batch[column].shape[0] == 4
        name, shape = {"rows": ("x", (256,)), "jpeg": ("jpg", (3, 224, 224)), "parquet": ("features", (128,))}[kind]
        assert tuple(batch[name].shape) == (4, *shape)


def test_a_pass_that_ends_early_is_no_measurement():
    class Short(list):
        def __len__(self):
            return 3

    with pytest.raises(RuntimeError, match="expected 3 batches, got 2"):
        whole_pass(Short([np.zeros(1)] * 2))


def test_foreign_samples_are_numbers_until_they_are_a_batch():
    dataset = ReadyBatches(2)
    assert (len(dataset), dataset[5], dataset.__getitems__([3, 1])) == (128, 5, [3, 1])
