"""The main job, small: `python -m benchmarks` from the data to the picture."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from benchmarks import __main__ as benchmarks
from benchmarks import remote, remote_faults, targets
from benchmarks.arguments import parse
from benchmarks.data import CHUNK_BYTES, make_digits, make_rows
from benchmarks.digits import score, train_and_score
from benchmarks.limited import read_limited
from benchmarks.loaders import loaders
from benchmarks.model import SimpleModel, TrainingStep
from benchmarks.parquet_data import make_rows_parquet
from headrace.bench import Setting
from headrace.errors import StorageError

CPU = torch.device("cpu")
QUICK = ["--seconds", "0.01", "--device", "cpu"]
SMALL = ["--batch-sizes", "16", "32", "--num-workers", "0", "1", *QUICK]
ONE_SETTING = ["--batch-sizes", "16", "--num-workers", "0", *QUICK]


@pytest.fixture(autouse=True)
def _threads_of_torch_are_left_as_they_were():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_gives_words_a_table_a_record_and_a_picture(tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    benchmarks.main(["--rows", "600", "--features", "8", "--data-dir", str(data), "--out", str(out), *SMALL])
    printed, progress = capsys.readouterr()
    assert printed.index("What limits") < printed.index("Best setting") < printed.index("To paste")
    assert re.search(r"loader = .*Data[Ll]oader\(.*batch_size=\d+, shuffle=True", printed)
    assert re.search(r"headrace +16 +1 +n/a +[\d.]+ [kM]? *\d+% ", printed)
    assert "pin_memory is n/a: there is no accelerator" in re.sub(r"\s+", " ", printed)
    assert "/12 [" in progress
    lines = records(out / "rows.jsonl")
    assert [line["measured"] for line in lines].count("training") == 3 * 2 * 2
    assert {line["name"] for line in lines if line["measured"] == "limit"} == {"plain gather", "training step alone"}
    assert (out / "rows.png").read_bytes().startswith(b"\x89PNG")
    assert not list(data.glob("*.part"))


def test_the_same_rows_are_read_from_parquet_and_everything_says_so(tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    where = ["--data-dir", str(data), "--out", str(out)]
    benchmarks.main(["--rows", "600", "--features", "8", "--format", "parquet", *where, *SMALL])
    printed = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "of a plain reader of the same rows by one thread" in printed
    assert "ParquetDataset may keep half of the rows decoded, so every epoch decodes" in printed
    assert "torch, ParquetDataset" in printed
    ours = r"(dataset = |loader = hr\.DataLoader\()hr\.ParquetDataset\(\""  # whichever was the fastest
    assert re.search(rf"To paste ({ours}|loader = torch\.utils\.data\.DataLoader\(PerRowDataset)", printed)
    lines = records(out / "rows-parquet.jsonl")
    assert [line["measured"] for line in lines].count("training") == 3 * 2 * 2
    assert {line["name"] for line in lines if line["measured"] == "limit"} == {"plain reader", "training step alone"}
    assert (out / "rows-parquet.png").read_bytes().startswith(b"\x89PNG")
    assert not list(data.glob("*.part"))


def test_a_loader_of_parquet_decodes_in_every_epoch_and_no_row_group_for_every_batch(tmp_path, caplog):
    files = make_rows_parquet(make_rows(tmp_path, 60_000, 8))
    every = loaders(files, CPU, 0)
    for name in list(every)[:2]:
        loader = every[name](Setting(64, 0, pin_memory=None))
        decoded = []
        for _ in range(2):
            assert sum(len(batch["y"]) for batch in loader) == 60_000
            decoded.append(loader.dataset.source.counts()["decoded_samples"])
        assert 60_000 <= decoded[0] < decoded[1] - 15_000, name
        assert decoded[1] < 3 * 60_000, name
    assert not caplog.records


@pytest.mark.parametrize(("kind", "record"), [("npy", "rows.jsonl"), ("parquet", "rows-parquet.jsonl")])
def test_what_is_recorded_names_no_path(tmp_path, kind, record):
    where = ["--data-dir", str(tmp_path), "--out", str(tmp_path)]
    benchmarks.main(["--rows", "100", "--format", kind, *where, *ONE_SETTING])
    assert str(tmp_path) not in (tmp_path / record).read_text()


def test_digits_are_scored_on_held_out_samples_and_the_figure_printed_is_the_one_computed(tmp_path, capsys):
    where = ["--data-dir", str(tmp_path), "--out", str(tmp_path)]
    benchmarks.main(["--data", "digits", "--epochs", "2", *where, *ONE_SETTING])
    scores = records(tmp_path / "digits.jsonl")[-1]
    assert scores["measured"] == "scores"
    printed = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert f"accuracy {scores['accuracy']:.2%}, precision {scores['precision']:.2%}" in printed
    assert f"recall {scores['recall']:.2%}, F1 {scores['f1']:.2%}" in printed
    assert (tmp_path / "digits.png").exists()


@pytest.mark.parametrize(
    ("seed", "convert"),
    [(0, lambda files: files), (1, lambda files: files), (0, make_rows_parquet)],
    ids=["0-npy", "1-npy", "0-parquet"],
)
def test_the_reference_model_learns_digits_to_96_percent_and_more(tmp_path, seed, convert):
    scores = train_and_score(convert(make_digits(tmp_path)), seed=seed, device=CPU)
    assert scores.accuracy >= 0.96
    assert min(scores.precision, scores.recall, scores.f1) >= 0.95
    assert scores.losses[-1] < scores.losses[0]
    assert (scores.train_samples, scores.test_samples) == (1438, 359)


def test_scores_are_means_over_classes():
    scores = score(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]), [1.0], 10)
    assert scores.accuracy == 0.75
    assert scores.precision == (1 + 1 / 2) / 2
    assert scores.recall == pytest.approx((2 / 3 + 1) / 2)
    assert scores.f1 == pytest.approx((0.8 + 2 / 3) / 2)


def test_rows_are_made_once_and_the_same_for_the_same_arguments(tmp_path):
    files = make_rows(tmp_path / "a", 500, 8, 3, seed=5)
    made = files.x.stat().st_mtime_ns
    assert make_rows(tmp_path / "a", 500, 8, 3, seed=5) == files
    assert files.x.stat().st_mtime_ns == made
    again = make_rows(tmp_path / "b", 500, 8, 3, seed=5)
    assert again.x.read_bytes() == files.x.read_bytes()
    assert again.y.read_bytes() == files.y.read_bytes()
    other = make_rows(tmp_path / "a", 500, 8, 3, seed=6)
    assert other.x.read_bytes() != files.x.read_bytes()


def test_rows_are_float32_with_labels_of_every_class(tmp_path):
    arrays = make_rows(tmp_path, 2000, 8, 5).arrays()
    assert (arrays["x"].shape, arrays["x"].dtype) == ((2000, 8), np.float32)
    assert (arrays["y"].shape, arrays["y"].dtype) == ((2000,), np.int64)
    assert set(arrays["y"].tolist()) == set(range(5))


def test_rows_larger_than_a_chunk_are_whole(tmp_path):
    samples = CHUNK_BYTES // (4 * 1024) + 7
    arrays = make_rows(tmp_path, samples, 1024).arrays()
    assert len(arrays["x"]) == len(arrays["y"]) == samples
    assert arrays["x"][-1].any()


@pytest.mark.parametrize("convert", [lambda files: files, make_rows_parquet], ids=["npy", "parquet"])
def test_the_labels_of_rows_can_be_learnt(tmp_path, convert):
    files = convert(make_rows(tmp_path, 4000, 8, 3))
    torch.manual_seed(0)
    step = TrainingStep(SimpleModel(8, 32, 3), CPU)
    made = loaders(files, CPU, seed=0)["headrace"](Setting(64))
    losses = [float(torch.stack([step(batch) for batch in made]).mean()) for _ in range(6)]
    assert losses[-1] < losses[0] / 2


def test_data_that_was_left_half_made_is_made_again(tmp_path):
    left = tmp_path / "rows-100x4-classes2-seed0.part"
    left.mkdir()
    (left / "x.npy").write_bytes(b"half")
    assert make_rows(tmp_path, 100, 4, 2).arrays()["x"].shape == (100, 4)
    assert not left.exists()


def test_a_full_disk_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(StorageError, match=r"MB of free disk, got .* MB; make room, or give fewer --rows"):
        make_rows(tmp_path, 10**13)
    with pytest.raises(SystemExit, match=r"^error: .*give fewer --rows or another --data-dir"):
        benchmarks.main(["--rows", str(10**13), "--data-dir", str(tmp_path), "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("convert", [lambda files: files, make_rows_parquet], ids=["npy", "parquet"])
def test_all_loaders_bring_the_same_rows_and_labels(tmp_path, convert):
    files = convert(make_rows(tmp_path, 100, 4, 3))
    arrays = files.arrays()
    for name, make in loaders(files, CPU, seed=3).items():
        batches = list(make(Setting(32)))
        x = torch.cat([batch["x"] for batch in batches]).numpy()
        y = torch.cat([batch["y"] for batch in batches]).numpy()
        ours, real = np.lexsort(x.T), np.lexsort(arrays["x"].T)
        assert not np.array_equal(x, arrays["x"]), f"{name} has not shuffled"
        assert np.array_equal(x[ours], arrays["x"][real])
        assert np.array_equal(y[ours], arrays["y"][real])


def test_the_training_step_keeps_its_loss_on_the_device():
    step = TrainingStep(SimpleModel(8, 64, 2), CPU)
    loss = step({"x": torch.zeros(4, 8), "y": torch.zeros(4, dtype=torch.int64)})
    assert isinstance(loss, torch.Tensor)
    assert not loss.requires_grad
    assert step.__name__ == "SimpleModel 8-64-2"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--batch-sizes", "0"], "argument --batch-sizes: expected a whole number, 1 or more, got '0'"),
        (["--num-workers", "two"], "argument --num-workers: expected a whole number, 0 or more, got 'two'"),
        (["--seconds", "nan"], "argument --seconds: expected a number of seconds above 0, got 'nan'"),
        (["--rows", "50", "--batch-sizes", "64"], "--batch-sizes: 64 is more than the 50 rows there are; give smaller"),
        (["--data", "words"], "argument --data: invalid choice: 'words'"),
    ],
)
def test_a_bad_argument_ends_the_program_with_what_to_do(arguments, text, capsys):
    with pytest.raises(SystemExit):
        parse(arguments)
    assert text in capsys.readouterr().err


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_a_device_that_is_not_there_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse(["--device", "cuda"])
    assert "--device cuda: torch finds no CUDA device here; give --device cpu, or auto" in capsys.readouterr().err


def test_pinned_memory_is_not_measured_without_an_accelerator():
    assert parse(["--device", "cpu"]).pin_memory == [None]


def test_the_promises_are_measured_and_recorded(tmp_path, capsys):
    where = ["--data-dir", str(tmp_path), "--out", str(tmp_path)]
    size = ["--rows", "3000", "--repetitions", "2", "--seconds", "0.01"]
    targets.main(["--only", "rows-256", "large-w0", "hot-w0", "torch", "begin-memory", *size, *where])
    printed = capsys.readouterr().out
    assert re.search(r"rows-256-w0 .* >= 75% +\d+% +\d+%\.\.\d+% +(yes|no)", printed)
    assert re.search(r"\d of 6 promises kept; medians of 2 alternating repetitions", printed)
    lines = {line["name"]: line for line in records(tmp_path / "targets.jsonl")}
    assert len(lines) == 6
    assert len(lines["torch"]["values"]) == 2
    assert lines["begin-memory"]["median"] < lines["begin-memory"]["bound"]


def test_a_promise_whose_process_dies_is_broken_and_one_that_cannot_be_measured_is_not(tmp_path, capsys, monkeypatch):
    def die(*arguments, **options):
        raise subprocess.CalledProcessError(-9, "reader")

    monkeypatch.setattr("benchmarks.promises.read_limited", die)
    monkeypatch.setattr("benchmarks.targets.memory_can_be_limited", lambda: False)
    where = ["--data-dir", str(tmp_path), "--out", str(tmp_path), "--cold-rows", "100"]
    targets.main(["--only", "memory", "cold-larger-w0", *where])
    assert "0 of 1 promises kept" in capsys.readouterr().out
    lines = {line["name"]: line for line in records(tmp_path / "targets.jsonl")}
    assert (lines["memory"]["kept"], lines["memory"]["reason"]) == ("no", "its process ended with status -9")
    assert lines["cold-larger-w0"]["kept"] == "n/a"


def test_a_promise_that_does_not_exist_is_refused(capsys):
    with pytest.raises(SystemExit):
        targets.main(["--only", "speed"])
    assert "--only speed: no such promise; the names are rows-256-w0, " in capsys.readouterr().err


@pytest.mark.parametrize("reader", ["plain", "headrace"])
def test_a_reader_in_a_process_of_its_own_reports_what_it_read(tmp_path, reader, root, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{root / 'src'}:{root}")
    files = make_rows(tmp_path, 1000, 4)
    read = read_limited(files.x, reader, seconds=0.01, memory_bytes=None)
    assert read["rows"] > 0
    assert read["seconds"] > 0
    assert read["grown_bytes"] >= 0


def test_the_help_of_the_command_says_what_it_does(root, environment):
    command = [sys.executable, "-m", "benchmarks", "--help"]
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
    assert "--batch-sizes" in run.stdout


def test_the_promises_of_stored_data_are_measured_and_recorded(tmp_path, capsys):
    small = ["--shard-rows", "4096", "--repetitions", "1", "--data-dir", str(tmp_path), "--out", str(tmp_path / "out")]
    remote.main(["--only", "stream-http", "cpu-http", "cached", *small])
    printed = capsys.readouterr().out
    lines = records(tmp_path / "out" / "remote.jsonl")
    assert [line["name"] for line in lines] == ["stream-http", "cpu-http", "cached-epoch", "cached-ranges"]
    assert all(line["values"][0] > 0 for line in lines)
    assert all(line["name"] in printed for line in lines)
    assert re.search(r"\d of 4 promises kept; 16 requests at once on both sides", printed)


def test_an_epoch_through_a_fault_tells_how_it_ended(tmp_path):
    outcomes = {one.name: one for one in remote_faults.faults(tmp_path, 256, ["reset-in-body", "not-found"])}
    assert all(one.is_right and one.injected > 0 for one in outcomes.values())
    assert outcomes["reset-in-body"].text == "bytes identical"
    assert outcomes["reset-in-body"].retries == outcomes["reset-in-body"].injected
    assert outcomes["not-found"].text.startswith("StorageError: there is no such object: HTTP 404")
    assert "reset-in-body" in str(outcomes["reset-in-body"].as_dict())


def test_wrong_bytes_and_a_missing_error_are_not_called_right():
    assert remote_faults.outcome_of(lambda: 1, 2)[1:] == (False, "WRONG BYTES")
    assert remote_faults.outcome_of(lambda: 1, None)[1:] == (False, "NO ERROR")


def test_a_promise_of_stored_data_that_does_not_exist_is_refused(capsys):
    with pytest.raises(SystemExit):
        remote.main(["--only", "stream-ftp"])
    assert "no such promise; the names are stream-http, cpu-http" in capsys.readouterr().err
