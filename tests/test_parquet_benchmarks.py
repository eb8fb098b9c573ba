"""What headrace promises of Parquet, measured small: the data, the limits, the rivals."""

import json
import os
import re
import stat
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks import parquet
from benchmarks.data import make_rows
from benchmarks.parquet_data import make_large_group, make_parquet, make_rows_parquet
from benchmarks.parquet_memory import read_watched
from benchmarks.parquet_promises import naive_rows
from benchmarks.peers import rival
from benchmarks.peers.rival import RIVALS
from benchmarks.plain_reader import PlainReader


def records(path):
    return {line["name"]: line for line in map(json.loads, path.read_text().splitlines())}


@pytest.fixture
def found_here(root, monkeypatch):
    """Processes of their own find the checkout."""
    monkeypatch.setenv("PYTHONPATH", f"{root / 'src'}:{root}")


class TestData:
    def test_rows_are_of_the_types_that_the_promises_speak_of(self, tmp_path):
        paths = make_parquet(tmp_path, 1000, files=3)
        assert [str(field) for field in pq.read_schema(paths[0])] == [
            "pyarrow.Field<id: int64>",
            "pyarrow.Field<features: fixed_size_list<element: float>[128]>",
            "pyarrow.Field<label: int64>",
            "pyarrow.Field<text: string>",
        ]
        table = pq.read_table(paths)
        assert table["id"].to_pylist() == list(range(1000))
        assert set(table["label"].to_pylist()) == set(range(10))
        features = table["features"].combine_chunks().values.to_numpy()
        assert abs(features.mean()) < 0.02
        assert 25 < np.mean([len(text) for text in table["text"].to_pylist()]) < 55

    def test_row_groups_have_8192_rows_and_are_compressed(self, tmp_path):
        (path,) = make_parquet(tmp_path, 9000, files=1)
        metadata = pq.read_metadata(path)
        assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [8192, 808]
        assert metadata.row_group(0).column(1).compression == "ZSTD"

    def test_it_is_made_once_and_the_same_for_the_same_arguments(self, tmp_path):
        first, again = make_parquet(tmp_path / "a", 500, files=2), make_parquet(tmp_path / "b", 500, files=2)
        made = first[0].stat().st_mtime_ns
        assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
        assert make_parquet(tmp_path / "a", 500, files=2) == first
        assert first[0].stat().st_mtime_ns == made
        assert make_parquet(tmp_path / "a", 500, files=2, seed=1)[0].read_bytes() != first[0].read_bytes()
        assert not list(tmp_path.glob("*/*.part"))

    def test_the_large_row_group_is_one(self, tmp_path):
        metadata = pq.read_metadata(make_large_group(tmp_path, 20_000))
        assert (metadata.num_row_groups, metadata.num_rows) == (1, 20_000)

    def test_rows_as_parquet_are_those_of_the_npy_files(self, tmp_path):
        files = make_rows_parquet(make_rows(tmp_path, 9000, 4, 3))
        table, arrays = pq.read_table(files.parquet), files.arrays()
        assert table["x"].to_pylist() == arrays["x"].tolist()
        assert table["y"].to_pylist() == arrays["y"].tolist()
        assert make_rows_parquet(files) == files


class TestLimits:
    def test_the_plain_reader_reads_every_row_each_time(self, tmp_path):
        reader = PlainReader(make_parquet(tmp_path, 1000, files=3), ["id"])
        for _ in range(2):
            assert [i for batch in reader for i in batch["id"].to_pylist()] == list(range(1000))

    def test_the_naive_reader_reads_the_rows_that_it_is_asked_for(self, tmp_path):
        paths = make_parquet(tmp_path, 9000, files=1)
        table = pq.read_table(paths)
        order = np.array([8999, 0, 8192, 8191, 17])
        rows = list(naive_rows(paths, order))
        assert [row["label"].item() for row in rows] == table["label"].take(order).to_pylist()
        assert [row["features"].tolist()[0] for row in rows] == table["features"].take(order).to_pylist()


class TestPromises:
    def test_they_are_measured_and_recorded(self, tmp_path, capsys, found_here):
        size = ["--rows", "20000", "--group-rows", "20000", "--repetitions", "1", "--seconds", "0.01"]
        parquet.main([*size, "--data-dir", str(tmp_path / "data"), "--out", str(tmp_path / "out")])
        printed = capsys.readouterr().out
        assert re.search(r"sequential-w0 .* >= 85% +\d+% +\d+%\.\.\d+% +(yes|no)", printed)
        assert re.search(r"\d+ of 13 promises kept; medians of up to 1 alternating repetitions", printed)
        lines = records(tmp_path / "out" / "parquet.jsonl")
        assert list(lines) == [target.name for target in parquet.targets() if not target.name.startswith("peer-")]
        assert len(lines["window-w2"]["values"]) == 1
        assert all(value > 0 for name, line in lines.items() if name != "memory-growth" for value in line["values"])

    def test_a_promise_that_does_not_exist_is_refused(self, capsys):
        with pytest.raises(SystemExit):
            parquet.main(["--only", "speed"])
        assert "--only speed: no such promise; the names are sequential-w0, " in capsys.readouterr().err

    @pytest.mark.parametrize("window", [0, 1000])
    def test_an_epoch_that_is_watched_tells_what_it_held_in_each_third(self, tmp_path, found_here, window):
        paths = make_parquet(tmp_path, 20_000, files=1)
        held = read_watched(paths, memory_bytes=8 << 20, num_workers=2, window=window)
        assert held.most == max(held) > 0


class TestRivals:
    def where(self, tmp_path):
        size = ["--rows", "9000", "--repetitions", "2", "--seconds", "0.01"]
        return [*size, "--data-dir", str(tmp_path / "data"), "--out", str(tmp_path / "out")]

    def test_one_that_is_not_installed_is_told_with_the_command_that_installs_it(self, tmp_path, monkeypatch):
        monkeypatch.setattr(rival, "PYTHON", tmp_path / "nowhere")
        parquet.main(["--only", "peer", *self.where(tmp_path)])
        lines = records(tmp_path / "out" / "parquet.jsonl")
        assert list(lines) == [f"peer-{one.name}" for one in RIVALS]
        for line in lines.values():
            assert (line["kept"], line["reason"]) == ("n/a", "not installed: make peers")

    def test_ours_is_measured_against_its_fastest(self, tmp_path, monkeypatch):
        python = tmp_path / "python"
        python.write_text(
            f"#!{sys.executable}\n"
            "import json, sys\n"
            "workers = int(sys.argv[sys.argv.index('--num-workers') + 1])\n"
            "print('Progress: 100%')\n"
            "print(json.dumps({'rows': 10 if workers else 5, 'seconds': 2.0}))\n"
        )
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(rival, "PYTHON", python)
        options = {"batch_size": 2, "window": 4, "seconds": 1.0}
        assert RIVALS[0].rate([python], tmp_path, num_workers=2, **options) == 5.0
        parquet.main(["--only", "peer-litdata", *self.where(tmp_path)])
        line = records(tmp_path / "out" / "parquet.jsonl")["peer-litdata"]
        assert line["kept"] == "yes"
        assert line["median"] > 10

    def test_one_that_fails_breaks_its_promise(self, tmp_path, monkeypatch):
        monkeypatch.setattr(rival, "PYTHON", tmp_path / "python")
        os.symlink("/bin/false", tmp_path / "python")
        parquet.main(["--only", "peer-litdata", *self.where(tmp_path)])
        line = records(tmp_path / "out" / "parquet.jsonl")["peer-litdata"]
        assert (line["kept"], line["reason"]) == ("no", "its process ended with status 1")
