"""Training on NumPy files in a store: the order of local files, through faults, and an end when one is wanted."""

import subprocess
import sys
import textwrap
import threading
from collections import Counter

import numpy as np
import pytest
import torch

import headrace as hr
from headrace.errors import StorageError
from headrace.storage.faults import Patience
from tests.conftest import threads_left_after

ROWS, FILES = 4096, 4
SECONDS = 100.0  # for a process to begin and to end
QUICK = Patience(deadline_seconds=60.0, first_pause_seconds=0.01, longest_pause_seconds=0.1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Four files of rows of 4 KiB, so 4 blocks of 4 MiB; row i begins with i."""
    folder = tmp_path_factory.mktemp("rows")
    x = np.random.default_rng(0).standard_normal((ROWS, 1024)).astype(np.float32)
    x[:, 0] = np.arange(ROWS)
    for i, part in enumerate(np.split(x, FILES)):
        np.save(folder / f"x{i}.npy", part)
    return [folder / f"x{i}.npy" for i in range(FILES)]


@pytest.fixture
def proxy(files, range_server, fault_proxy):
    return fault_proxy(range_server(files[0].parent))


@pytest.fixture
def remote(files, proxy):
    return hr.NumpyDataset({"x": [f"{proxy.url}/{path.name}" for path in files]}, store=hr.Store(patience=QUICK))


def ids_of(loader) -> list[int]:
    return [int(value) for batch in loader for value in batch["x"][:, 0]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_order_is_that_of_the_same_files_on_the_local_disk(files, remote, num_workers):
    local = hr.NumpyDataset({"x": [str(path) for path in files]})
    options = {"batch_size": 100, "shuffle": "window", "seed": 3}
    expected = list(hr.DataLoader(local, **options))
    got = list(hr.DataLoader(remote, **options, num_workers=num_workers))
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one["x"], other["x"], rtol=0, atol=0)


def test_a_state_saved_on_local_files_goes_on_in_the_store(files, remote):
    local = hr.NumpyDataset({"x": [str(path) for path in files]})
    first = hr.DataLoader(local, batch_size=100, shuffle="window", seed=3)
    seen = [ids for _, batch in zip(range(17), first, strict=False) for ids in batch["x"][:, 0].tolist()]
    second = hr.DataLoader(remote, batch_size=64, shuffle="window", num_workers=2)
    second.load_state_dict(first.state_dict())
    assert sorted(seen + ids_of(second)) == list(range(ROWS))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("shuffle", [False, True])
def test_an_epoch_asks_for_each_block_once_and_ahead_of_its_need(remote, proxy, shuffle, num_workers):
    proxy.clear()
    loader = hr.DataLoader(remote, batch_size=128, shuffle=shuffle, num_workers=num_workers)
    batches = iter(loader)
    got = next(batches)["x"][:, 0].tolist()
    assert proxy.wait_for(lambda log: len(log) == FILES)  # all that is to come lies within what is read ahead
    assert sorted(got + ids_of(batches)) == list(range(ROWS))
    asked = Counter((entry.path, entry.range) for entry in proxy.log)
    assert set(asked.values()) == {1}
    assert len(asked) == FILES


@pytest.mark.parametrize(
    "fault", ["reset-in-body", "close-in-body", "slow-down", "short-body", "range-ignored", "half-header"]
)
def test_an_epoch_through_faults_is_whole_and_its_retries_are_counted(files, proxy, fault):
    store = hr.Store(patience=QUICK)
    dataset = hr.NumpyDataset({"x": [f"{proxy.url}/{path.name}" for path in files]}, store=store)
    proxy.inject(fault, times=3)
    assert ids_of(hr.DataLoader(dataset, batch_size=100, num_workers=2)) == list(range(ROWS))
    assert store.counts()["retries"] == 3


def test_a_loader_waits_for_a_server_that_is_gone_for_a_while_and_goes_on(remote, proxy):
    # a budget of one block: the server is needed again
    batches = iter(hr.DataLoader(remote, batch_size=128, num_workers=2))
    got = [int(value) for value in next(batches)["x"][:, 0]]
    proxy.refuse_connections()
    remote.source.end_prefetch()
    back = threading.Timer(0.5, proxy.accept_connections)
    back.start()
    got += ids_of(batches)
    back.join()
    assert got == list(range(ROWS))


def test_an_object_that_is_gone_in_mid_epoch_is_an_error_and_skips_no_sample(files, tmp_path, range_server):
    for path in files:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    server = range_server(tmp_path)
    dataset = hr.NumpyDataset(
        {"x": [f"{server.url}/{path.name}" for path in files]}, store=hr.Store(patience=QUICK), memory_bytes=4 << 20
    )
    (tmp_path / "x3.npy").unlink()
    for options in ({"num_workers": 0}, {"num_workers": 2}, {"num_workers": 2, "on_error": "skip"}):
        loader = hr.DataLoader(dataset, batch_size=128, **options)
        with pytest.raises(StorageError, match=r"x3\.npy: there is no such object: HTTP 404") as caught:
            ids_of(loader)
        assert caught.value.__notes__[0].startswith("while reading samples 3")
        assert loader.skipped == 0


@pytest.mark.parametrize("num_workers", [0, 2])
def test_leaving_the_loop_ends_all_threads_though_the_server_stalls(files, proxy, num_workers):
    store = hr.Store()  # which would wait for 10 s
    dataset = hr.NumpyDataset({"x": [f"{proxy.url}/{path.name}" for path in files]}, store=store)
    proxy.inject("stall-in-body", times=None, match=lambda request: "x3" in request.path)
    # so small that what is read together first doesn't need the file that never comes
    loader = hr.DataLoader(dataset, batch_size=64, num_workers=num_workers)
    for _ in loader:
        assert proxy.wait_for(lambda log: any(entry.fault for entry in log))
        break
    assert threads_left_after(5.0) == []


def test_ctrl_c_ends_a_wait_for_a_server_that_stalls(files, proxy, environment):
    proxy.inject("stall-in-body", times=None, match=lambda request: "bytes=128-" in request.headers.value("Range"))
    script = """
        import signal, sys
        import headrace as hr
        signal.signal(signal.SIGINT, signal.default_int_handler)
        dataset = hr.NumpyDataset({"x": sys.argv[1:]})
        try:
            for batch in hr.DataLoader(dataset, batch_size=128, num_workers=2):
                pass
        except KeyboardInterrupt:
            print("interrupted")
    """
    command = [sys.executable, "-c", textwrap.dedent(script), *(f"{proxy.url}/{path.name}" for path in files)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert proxy.wait_for(lambda log: any(entry.fault for entry in log), timeout_seconds=SECONDS)
        process.send_signal(2)
        said, _ = process.communicate(timeout=SECONDS)
    assert (said, process.returncode) == ("interrupted\n", 0)
