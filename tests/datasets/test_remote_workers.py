"""NumPy files in a store under torch's DataLoader: every way to start workers, after their parent has read."""

import numpy as np
import pytest
import torch

import headrace as hr

ROWS = 600


@pytest.fixture(scope="module")
def remote(s3, tmp_path_factory):
    """A dataset of two files and its values."""
    folder = tmp_path_factory.mktemp("files")
    x = np.random.default_rng(0).standard_normal((ROWS, 8)).astype(np.float32)
    urls = []
    for i, part in enumerate(np.split(x, 2)):
        np.save(folder / f"x{i}.npy", part)
        urls.append(s3.put("data", f"workers/x{i}.npy", (folder / f"x{i}.npy").read_bytes()))
    return hr.NumpyDataset({"x": urls}, storage_options=s3.storage_options), torch.from_numpy(x)


@pytest.mark.parametrize("start", ["fork", "forkserver", "spawn"])
def test_workers_read_the_store_with_clients_of_their_own_however_they_start(remote, start):
    dataset, x = remote
    torch.testing.assert_close(dataset[[3, 599, 0]]["x"], x[[3, 599, 0]])  # so the parent has a client
    loader = torch.utils.data.DataLoader(dataset, batch_size=64, num_workers=2, multiprocessing_context=start)
    torch.testing.assert_close(torch.cat([batch["x"] for batch in loader]), x)
    torch.testing.assert_close(dataset[599]["x"], x[599])  # and still serve the parent


def test_an_iterable_view_in_workers_gives_every_sample_once(remote):
    dataset, x = remote
    stream = dataset.to_iterable_dataset(batch_size=32, shuffle=True, seed=1)
    loader = torch.utils.data.DataLoader(stream, batch_size=None, num_workers=2)
    got = torch.cat([batch["x"] for batch in loader])
    assert len(got) == ROWS
    torch.testing.assert_close(got.sum(0), x.sum(0), rtol=1e-3, atol=1e-3)
    assert len(torch.unique(got, dim=0)) == ROWS
