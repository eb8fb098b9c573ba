"""What headrace promises of tar shards, measured small: the data, the limits, the rivals, and the main job on them."""

import io
import json
import os
import re
import stat
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch

import headrace as hr
from benchmarks import __main__ as benchmarks
from benchmarks import tar
from benchmarks.arguments import parse
from benchmarks.data import make_digits, make_rows
from benchmarks.digits import train_and_score
from benchmarks.loaders import code, loaders
from benchmarks.peers import rival
from benchmarks.peers.rival import TAR_RIVALS
from benchmarks.peers.stretch import TAR, _count
from benchmarks.peers.webdataset import _whole
from benchmarks.promise import Result, Target
from benchmarks.tar_data import make_images, make_rows_tar, make_small, places_beside
from benchmarks.tar_limits import BarePool, KnownOffsets
from benchmarks.tar_memory import read_watched
from benchmarks.tar_upload import uploaded
from benchmarks.tar_webdataset import WebdatasetBatches
from headrace.bench import Setting
from headrace.errors import StorageError

CPU = torch.device("cpu")
SMALL = ["--batch-sizes", "16", "--num-workers", "0", "--seconds", "0.01", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _threads_of_torch_are_left_as_they_were():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def found_here(root, monkeypatch):
    """Processes of their own find the checkout."""
    monkeypatch.setenv("PYTHONPATH", f"{root / 'src'}:{root}")


def records(path):
    return {line["name"]: line for line in map(json.loads, path.read_text().splitlines())}


def members(path):
    with tarfile.open(path) as shard:
        return [(member.name, shard.extractfile(member).read()) for member in shard]


class TestData:
    def test_small_samples_are_what_the_promises_speak_of(self, tmp_path):
        paths = make_small(tmp_path, 2, 30)
        assert [path.name for path in paths] == ["train-000000.tar", "train-000001.tar"]
        found = members(paths[0]) + members(paths[1])
        assert [name for name, _ in found[:3]] == ["000000000.cls", "000000000.npy", "000000001.cls"]
        assert found[-1][0] == "000000059.npy"
        arrays = [np.load(io.BytesIO(payload)) for name, payload in found if name.endswith(".npy")]
        assert {(array.shape, array.dtype) for array in arrays} == {((1024,), np.dtype(np.float32))}
        assert abs(np.mean(arrays)) < 0.02
        assert all(0 <= int(payload) < 1000 for name, payload in found if name.endswith(".cls"))

    def test_every_member_has_a_pax_header_as_webdataset_writes_one(self, tmp_path):
        (path,) = make_small(tmp_path, 1, 3)
        with tarfile.open(path) as shard:
            assert all(list(member.pax_headers) == ["mtime"] for member in shard)
        kinds = [path.read_bytes()[start + 156 : start + 157] for start in range(0, 3 * 8192, 8192)]
        assert kinds == [b"x"] * 3

    def test_shards_have_one_length_so_that_the_plain_client_can_read_them(self, tmp_path):
        assert len({path.stat().st_size for path in make_small(tmp_path, 3, 40)}) == 1

    def test_images_differ_in_size_and_are_of_about_58_kb(self, tmp_path):
        import simplejpeg

        (path,) = make_images(tmp_path, 1, 12)
        payloads = [payload for name, payload in members(path) if name.endswith(".jpg")]
        assert all(50_000 < len(payload) < 65_000 for payload in payloads)
        shapes = {simplejpeg.decode_jpeg(payload, "RGB").shape for payload in payloads}
        assert len(shapes) > 6
        assert all(355 <= height <= 395 and 480 <= width <= 520 for height, width, _ in shapes)

    @pytest.mark.parametrize("make", [make_small, make_images])
    def test_it_is_made_once_and_the_same_for_the_same_arguments(self, tmp_path, make):
        first, again = make(tmp_path / "a", 2, 5), make(tmp_path / "b", 2, 5)
        made = first[0].stat().st_mtime_ns
        assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
        assert make(tmp_path / "a", 2, 5) == first
        assert first[0].stat().st_mtime_ns == made
        assert make(tmp_path / "a", 2, 5, seed=1)[0].read_bytes() != first[0].read_bytes()
        assert not list(tmp_path.glob("*/*.part"))

    @pytest.mark.parametrize(("make", "field"), [(make_small, ".npy"), (make_images, ".jpg")])
    def test_what_lies_beside_tells_where_each_payload_is(self, tmp_path, make, field):
        paths = make(tmp_path, 2, 4)
        everything, places = places_beside(paths)
        data = everything.read_bytes()
        assert data == b"".join(path.read_bytes() for path in paths)
        payloads = [payload for path in paths for name, payload in members(path) if name.endswith(field)]
        assert [data[start : start + size] for start, size in places.tolist()] == payloads

    def test_rows_as_tar_are_those_of_the_npy_files(self, tmp_path, monkeypatch):
        monkeypatch.setattr("benchmarks.tar_data.ROWS_SHARD_SAMPLES", 40)
        files = make_rows_tar(make_rows(tmp_path, 90, 4, 3))
        assert len(files.shards) == 3
        found = [member for path in files.shards for member in members(path)]
        arrays = files.arrays()
        assert [int(payload) for name, payload in found if name.endswith(".cls")] == arrays["y"].tolist()
        rows = [np.load(io.BytesIO(payload)) for name, payload in found if name.endswith(".npy")]
        assert np.array_equal(rows, arrays["x"])
        assert make_rows_tar(files) == files


class TestLimits:
    def test_the_gather_brings_the_arrays_that_it_is_asked_for(self, tmp_path):
        paths = make_small(tmp_path, 2, 10, values=8)
        arrays = [np.load(io.BytesIO(payload)) for path in paths for _, payload in members(path)[1::2]]
        order = np.array([19, 0, 10, 9, 3, 3, 11])
        batches = list(KnownOffsets(*places_beside(paths), order, 3))
        assert [len(batch) for batch in batches] == [3, 3]
        assert np.array_equal(np.concatenate(batches), np.array(arrays)[order[:6]])
        assert all(batch.flags.owndata for batch in batches)

    @pytest.mark.parametrize("threads", [1, 2])
    def test_the_bare_pool_brings_what_headrace_brings(self, tmp_path, threads):
        paths = make_images(tmp_path, 1, 9)
        order = np.array([8, 0, 3, 3, 7])
        batches = list(BarePool(*places_beside(paths), order, 2, threads))
        assert [batch.shape for batch in batches] == [(2, 3, 224, 224), (2, 3, 224, 224), (1, 3, 224, 224)]
        tars = hr.TarDataset([str(path) for path in paths], columns=["jpg"], decode={"jpg": hr.image(224)})
        ours = tars.samples.source.read(order)["jpg"]
        assert np.array_equal(np.concatenate(batches), ours)


class TestPromises:
    def test_they_are_measured_and_recorded(self, tmp_path, capsys, found_here, s3, monkeypatch):
        monkeypatch.setattr("benchmarks.tar_remote.S3Server", lambda: _Borrowed(s3))
        size = ["--shard-samples", "300", "--shard-images", "8", "--repetitions", "1", "--seconds", "0.01"]
        tar.main([*size, "--data-dir", str(tmp_path / "data"), "--out", str(tmp_path / "out")])
        printed = capsys.readouterr().out
        assert re.search(r"small-w0 .* >= 40% +\d+% +\d+%\.\.\d+% +(yes|no)", printed)
        assert re.search(r"s3-unindexed .* none +\d+% +\d+%\.\.\d+% +n/a", printed)
        assert re.search(r"\d+ of 12 promises kept; medians of up to 1 alternating repetitions", printed)
        lines = records(tmp_path / "out" / "tar.jsonl")
        assert list(lines) == [target.name for target in tar.targets() if target.name != "peer-spdl"]
        assert lines["load"]["claim"] == "loading an index of 12,000 members"
        assert all(
            value > 0 for name, line in lines.items() if not name.startswith("memory") for value in line["values"]
        )

    def test_quick_is_less_of_everything(self):
        given = tar._parse(["--quick"])
        assert (given.shard_samples, given.shard_images, given.repetitions, given.seconds) == (1000, 50, 2, 0.5)

    @pytest.mark.parametrize(
        ("arguments", "members"),
        [([], "400,000"), (["--quick"], "40,000"), (["--shard-samples", "25"], "1,000")],
    )
    def test_loading_an_index_is_told_with_the_members_that_it_has(self, arguments, members):
        claims = {target.name: target.claim for target in tar.targets(tar._parse(arguments).shard_samples)}
        assert claims["load"] == f"loading an index of {members} members"

    def test_a_promise_that_does_not_exist_is_refused(self, capsys):
        with pytest.raises(SystemExit):
            tar.main(["--only", "speed"])
        assert "--only speed: no such promise; the names are small-w0, " in capsys.readouterr().err

    def test_a_server_that_is_not_installed_is_told_with_the_command_that_installs_it(self, tmp_path, monkeypatch):
        monkeypatch.setattr("benchmarks.promise.is_installed", lambda package: package != "s3fs")
        tar.main(["--only", "s3", "--data-dir", str(tmp_path), "--out", str(tmp_path)])
        assert {line["reason"] for line in records(tmp_path / "tar.jsonl").values()} == {"pip install s3fs"}

    def test_epochs_that_are_watched_tell_what_they_held_in_each_third(self, tmp_path, found_here):
        held = read_watched(make_small(tmp_path, 2, 500), num_workers=2)
        assert held.most == max(held) > 0

    def test_what_is_measured_and_not_promised_is_neither_kept_nor_broken(self):
        target = Target("torch", "a claim", None, "%", lambda where: [0.5])
        assert Result(target, [0.5]).verdict == "n/a"
        assert Result(target, [0.5]).median == 0.5
        assert Result(target, [], "its process died", broken=True).verdict == "no"


class TestRivals:
    def where(self, tmp_path):
        size = ["--shard-samples", "300", "--repetitions", "1", "--seconds", "0.01"]
        return [*size, "--data-dir", str(tmp_path / "data"), "--out", str(tmp_path / "out")]

    def test_one_that_is_not_installed_is_told_with_the_command_that_installs_it(self, tmp_path, monkeypatch):
        monkeypatch.setattr(rival, "PYTHON", tmp_path / "nowhere")
        tar.main(["--only", "peer-spdl", *self.where(tmp_path)])
        line = records(tmp_path / "out" / "tar.jsonl")["peer-spdl"]
        assert (line["kept"], line["reason"]) == ("n/a", "not installed: make peers")

    def test_webdataset_needs_no_environment_of_its_own_and_is_measured(self, tmp_path):
        tar.main(["--only", "peer-webdataset", *self.where(tmp_path)])
        line = records(tmp_path / "out" / "tar.jsonl")["peer-webdataset"]
        assert line["values"][0] > 0

    def test_ours_is_measured_against_its_fastest(self, tmp_path, monkeypatch):
        python = tmp_path / "python"
        python.write_text(
            f"#!{sys.executable}\n"
            "import json, sys\n"
            "workers = int(sys.argv[sys.argv.index('--num-workers') + 1])\n"
            "print(json.dumps({'rows': 10 if workers else 5, 'seconds': 2.0}))\n"
        )
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(rival, "PYTHON", python)
        tar.main(["--only", "peer-spdl", *self.where(tmp_path)])
        line = records(tmp_path / "out" / "tar.jsonl")["peer-spdl"]
        assert line["kept"] == "yes"
        assert line["median"] > 100

    def test_one_that_fails_breaks_its_promise(self, tmp_path, monkeypatch):
        monkeypatch.setattr(rival, "PYTHON", tmp_path / "python")
        os.symlink("/bin/false", tmp_path / "python")
        tar.main(["--only", "peer-spdl", *self.where(tmp_path)])
        line = records(tmp_path / "out" / "tar.jsonl")["peer-spdl"]
        assert (line["kept"], line["reason"]) == ("no", "its process ended with status 1")

    @pytest.mark.skipif(not TAR_RIVALS[1].is_installed, reason="not installed: make peers")
    def test_spdl_brings_what_every_rival_brings(self, tmp_path):
        try:
            subprocess.run([TAR_RIVALS[1].python, "-c", "import spdl.io"], check=True)
        except subprocess.CalledProcessError:
            pytest.skip("make peers was run before spdl was one of them")
        paths = make_small(tmp_path, 2, 600)
        rate = TAR_RIVALS[1].rate(paths, tmp_path, batch_size=256, num_workers=2, window=0, seconds=0.05)
        assert rate > 0

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_webdataset_brings_every_sample_once_an_epoch_as_tensors(self, tmp_path, num_workers):
        paths = [str(path) for path in make_small(tmp_path, 3, 50)]
        for _ in range(2):
            batches = list(WebdatasetBatches(paths, 16, num_workers=num_workers))
            assert {type(batch["npy"]) for batch in batches} == {torch.Tensor}
            rows = torch.cat([batch["npy"] for batch in batches])
            assert rows.shape == (150, 1024)
            assert len(torch.unique(rows[:, 0])) == 150
        loader = _whole(WebdatasetBatches(paths, 16), 16)
        assert _count(loader, 16, 0.01, TAR)[0] > 0

    def test_a_rival_that_brings_something_else_is_found_out(self):
        with pytest.raises(RuntimeError, match=r"expected batches of .*float32.*got .*float64"):
            _count([{"npy": torch.zeros(4, 1024).double(), "cls": torch.zeros(4).long()}] * 2, 4, 0.01, TAR)


class TestMainJob:
    def test_the_same_rows_are_read_from_tar_shards_and_everything_says_so(self, tmp_path, capsys):
        data, out = tmp_path / "data", tmp_path / "out"
        where = ["--data-dir", str(data), "--out", str(out)]
        benchmarks.main(["--rows", "300", "--features", "8", "--format", "tar", *where, *SMALL])
        printed = re.sub(r"\s+", " ", capsys.readouterr().out)
        assert "of a plain gather of the same rows by one thread" in printed
        assert "Shards of 5,000 rows lie in memory" in printed
        assert re.search(r"torch, TarDataset .* webdataset ", printed)
        lines = [json.loads(line) for line in (out / "rows-tar.jsonl").read_text().splitlines()]
        assert {line["name"] for line in lines if line["measured"] == "training"} == {
            "headrace",
            "torch, TarDataset",
            "webdataset",
        }
        assert (out / "rows-tar.png").read_bytes().startswith(b"\x89PNG")
        assert not list(data.glob("*.part"))

    def test_they_are_read_from_a_store_as_well(self, tmp_path, capsys, s3, monkeypatch):
        monkeypatch.setattr("benchmarks.tar_upload.S3Server", lambda: _Borrowed(s3))
        where = ["--data-dir", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
        benchmarks.main(["--rows", "300", "--features", "8", "--format", "tar", "--url", "s3", *where, *SMALL])
        printed = re.sub(r"\s+", " ", capsys.readouterr().out)
        assert "rows lie in an S3 server on this machine" in printed
        assert (tmp_path / "out" / "rows-tar-url.jsonl").exists()
        assert list((tmp_path / "data" / "indexes").iterdir())

    def test_all_loaders_bring_the_same_rows_and_labels(self, tmp_path):
        files = make_rows_tar(make_rows(tmp_path, 100, 4, 3))
        check_all_loaders(files)

    def test_all_loaders_bring_the_same_rows_from_a_store(self, tmp_path, s3, monkeypatch):
        monkeypatch.setattr("benchmarks.tar_upload.S3Server", lambda: _Borrowed(s3))
        with uploaded(make_rows_tar(make_rows(tmp_path, 100, 4, 3, seed=1)), "s3") as files:
            assert files.shards[0].startswith("s3://data/rows-100x4-classes3-seed1-tar/")
            check_all_loaders(files)
            assert check_all_loaders(files, num_workers=2)

    def test_shards_are_uploaded_once(self, tmp_path):
        files = make_rows_tar(make_rows(tmp_path, 50, 4, 3))
        url = f"file://{tmp_path}/store"
        with uploaded(files, url) as first:
            (path,) = (tmp_path / "store").rglob("*.tar")
        made = path.stat().st_mtime_ns
        with uploaded(files, url) as again:
            assert again == first
        assert path.stat().st_mtime_ns == made
        path.write_bytes(b"cut")
        with uploaded(files, url):
            assert path.read_bytes() == (tmp_path / files.shards[0]).read_bytes()

    def test_a_url_that_cannot_be_written_to_is_an_error_that_says_so(self, tmp_path):
        files = make_rows_tar(make_rows(tmp_path, 50, 4, 3))
        (tmp_path / "taken").write_bytes(b"")
        with (
            pytest.raises(StorageError, match=r"--url: cannot write the shards to file:///.*/taken"),
            uploaded(files, f"file://{tmp_path}/taken"),
        ):
            pass

    def test_the_reference_model_learns_digits_from_tar_shards(self, tmp_path):
        scores = train_and_score(make_rows_tar(make_digits(tmp_path)), device=CPU)
        assert scores.accuracy >= 0.96
        assert (scores.train_samples, scores.test_samples) == (1438, 359)

    def test_the_lines_to_paste_make_the_loaders(self, tmp_path):
        files = make_rows_tar(make_rows(tmp_path, 100, 4, 3))
        for name in list(loaders(files, CPU, 0))[:2]:
            told = {"hr": hr, "torch": torch}
            exec(code(files, CPU, name, Setting(32, 0)), told)
            assert sum(len(batch["cls"]) for batch in told["loader"]) == 100
        assert code(files, CPU, "webdataset", Setting(32, 2)).startswith("loader = WebdatasetBatches(")

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (["--url", "s3"], "--url: only tar shards are read from URLs; give --format tar with it, not npy"),
            (
                ["--format", "tar", "--url", "/tmp"],
                "--url: expected s3, or a URL such as s3://bucket/folder, got '/tmp'",
            ),
        ],
    )
    def test_a_url_that_makes_no_sense_is_refused(self, arguments, text, capsys):
        with pytest.raises(SystemExit):
            parse(arguments)
        assert text in capsys.readouterr().err

    def test_fewer_rows_are_written_as_tar(self):
        assert parse(["--format", "tar"]).rows == 100_000
        assert parse(["--format", "tar", "--rows", "7", "--batch-sizes", "2"]).rows == 7


class _Borrowed:
    """The session's S3 server, which goes on when a context ends."""

    def __init__(self, server):
        self._server = server

    def __enter__(self):
        return self._server

    def __exit__(self, *_):
        pass


def check_all_loaders(files, num_workers=0):
    arrays = files.arrays()
    for name, make in loaders(files, CPU, seed=3).items():
        batches = list(make(Setting(32, num_workers)))
        x = torch.cat([batch["npy"] for batch in batches]).numpy()
        y = torch.cat([batch["cls"] for batch in batches]).numpy()
        ours, real = np.lexsort(x.T), np.lexsort(arrays["x"].T)
        assert not np.array_equal(x, arrays["x"]), f"{name} has not shuffled"
        assert np.array_equal(x[ours], arrays["x"][real])
        assert np.array_equal(y[ours], arrays["y"][real])
    return True
