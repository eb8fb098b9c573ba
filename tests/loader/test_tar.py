"""Training on WebDataset shards: an exact order with any threads, exact resume, skipped samples, locally and remote."""

import io

import numpy as np
import pytest
import torch

import headrace as hr
from headrace.errors import SampleError
from headrace.storage.faults import Patience
from tests.formats.tar_files import write_tar, write_webdataset

N, SHARDS = 3000, 4
QUICK = Patience(deadline_seconds=60.0, first_pause_seconds=0.01, longest_pause_seconds=0.1)
WORKERS = pytest.mark.parametrize("num_workers", [0, 2])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four shards of 3000 samples of 8 KiB: some blocks each."""
    folder = tmp_path_factory.mktemp("shards")
    x = np.zeros(2048, np.float32)
    for shard in range(SHARDS):
        samples = []
        for i in range(shard * N // SHARDS, (shard + 1) * N // SHARDS):
            x[0] = i
            samples.append({"__key__": f"{i:06}", "npy": x.copy(), "cls": i})
        write_webdataset(folder / f"{shard}.tar", samples, mtime=0)
    return folder


@pytest.fixture(scope="module")
def tars(folder):
    return hr.TarDataset(str(folder / "*.tar"), ["npy", "cls"])


def ids_of(batches) -> list[int]:
    seen = []
    for batch in batches:
        assert torch.equal(batch["npy"][:, 0], batch["cls"].float())
        seen += batch["cls"].tolist()
    return seen


@WORKERS
@pytest.mark.parametrize("shuffle", [False, True, "global"])
def test_an_epoch_gives_each_sample_once_in_the_same_order_with_any_threads(tars, num_workers, shuffle):
    loader = hr.DataLoader(tars, batch_size=64, shuffle=shuffle, seed=2, num_workers=num_workers)
    expected = hr.DataLoader(tars.samples, batch_size=64, shuffle=shuffle, seed=2)
    for _ in range(2):
        seen = ids_of(loader)
        assert sorted(seen) == list(range(N))
        assert seen == ids_of(expected)
    assert loader.dataset is tars


@WORKERS
def test_a_resume_at_half_of_the_epoch_gives_the_rest(tars, num_workers):
    loader = hr.DataLoader(tars, batch_size=64, shuffle=True, shuffle_window=500, num_workers=num_workers)
    batches = iter(loader)
    seen = ids_of(next(batches) for _ in range(20))
    resumed = hr.DataLoader(tars, batch_size=50, num_workers=num_workers)
    resumed.load_state_dict(loader.state_dict())
    assert sorted(seen + ids_of(resumed)) == list(range(N))


def test_ranks_share_a_step(tars):
    loaders = [hr.DataLoader(tars, batch_size=30, shuffle=True, rank=rank, world_size=2) for rank in range(2)]
    one = hr.DataLoader(tars, batch_size=60, shuffle=True)
    for first, second, whole in zip(*loaders, one, strict=True):
        assert ids_of([first, second]) == ids_of([whole])


@WORKERS
def test_transforms_and_parts_work_as_for_every_dataset(tars, num_workers):
    part = tars.samples.split({"train": 0.9, "val": 0.1}, seed=3)["val"]
    loader = hr.DataLoader(
        part, batch_size=32, shuffle=True, num_workers=num_workers, transform=lambda sample: {"y": sample["cls"] + 1}
    )
    seen = [int(y) - 1 for batch in loader for y in batch["y"]]
    assert sorted(seen) == sorted(part[:]["cls"].tolist())


@WORKERS
def test_bad_samples_are_skipped_with_their_members_names(num_workers, tmp_path, caplog):
    members = [(f"{i}.cls", b"x" if i in (3, 11) else b"%d" % i) for i in range(20)]
    tars = hr.TarDataset(write_tar(tmp_path / "a.tar", members))
    with pytest.raises(SampleError, match=r"member '3\.cls' of "):
        list(hr.DataLoader(tars, batch_size=5, num_workers=num_workers))
    loader = hr.DataLoader(tars, batch_size=5, num_workers=num_workers, on_error="skip")
    with caplog.at_level("WARNING", "headrace"):
        assert [len(batch["cls"]) for batch in loader] == [4, 5, 4, 5]
    assert loader.skipped == 2
    logged = sorted(record.getMessage() for record in caplog.records)
    assert ["'11.cls'" in logged[0], "'3.cls'" in logged[1], len(logged)] == [True, True, 2]


@pytest.fixture
def remote(folder, range_server, fault_proxy):
    server = fault_proxy(range_server(folder))
    return hr.TarDataset(
        [f"{server.url}/{shard}.tar" for shard in range(SHARDS)], ["npy", "cls"], store=hr.Store(patience=QUICK)
    )


@WORKERS
def test_remote_shards_give_the_order_of_the_same_shards_on_the_local_disk(tars, remote, num_workers):
    options = {"batch_size": 64, "shuffle": True, "seed": 5, "num_workers": num_workers}
    assert ids_of(hr.DataLoader(remote, **options)) == ids_of(hr.DataLoader(tars, **options))


def test_a_state_saved_on_local_shards_goes_on_in_the_store(tars, remote):
    loader = hr.DataLoader(tars, batch_size=64, shuffle=True)
    batches = iter(loader)
    seen = ids_of(next(batches) for _ in range(20))
    resumed = hr.DataLoader(remote, batch_size=64)
    resumed.load_state_dict(loader.state_dict())
    assert sorted(seen + ids_of(resumed)) == list(range(N))


def test_arrays_of_different_shapes_come_as_lists_with_any_number_of_steps_read_together(tmp_path):
    def npy(rows: int) -> bytes:
        sink = io.BytesIO()
        np.save(sink, np.full(rows, rows))
        return sink.getvalue()

    path = write_tar(tmp_path / "a.tar", [(f"{i}.npy", npy(1 + i // 4)) for i in range(12)])
    for num_workers in (0, 2):
        for batch in hr.DataLoader(hr.TarDataset(path), batch_size=3, num_workers=num_workers):
            assert isinstance(batch["npy"], list)
            assert all(row.tolist() == [len(row)] * len(row) for row in batch["npy"])
