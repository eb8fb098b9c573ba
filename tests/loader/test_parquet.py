"""Training on Parquet: each row group once an epoch, bounded memory, exact resume, locally and in a store."""

import errno
import os
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

import headrace as hr
from headrace.errors import FormatError, StorageError
from headrace.formats import parquet_layout, parquet_reader
from headrace.storage.faults import Patience
from tests.conftest import threads_left_after

ROWS, FILES, GROUP = 6000, 3, 250
ROW_BYTES = 8 + 4 * 64
QUICK = Patience(deadline_seconds=60.0, first_pause_seconds=0.01, longest_pause_seconds=0.1)


def a_table(start: int, stop: int) -> pa.Table:
    x = np.random.default_rng(start).standard_normal((stop - start, 64)).astype(np.float32)
    x[:, 0] = np.arange(start, stop)
    return pa.table(
        {
            "id": np.arange(start, stop),
            "x": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 64),
            "text": [f"row {i}" for i in range(start, stop)],
            "tokens": [list(range(i % 4)) for i in range(start, stop)],
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parquet")
    for i in range(FILES):
        start, stop = i * ROWS // FILES, (i + 1) * ROWS // FILES
        pq.write_table(a_table(start, stop), folder / f"part-{i}.parquet", row_group_size=GROUP, compression="zstd")
    return folder


def local(folder, columns=("id", "x"), **options) -> hr.ParquetDataset:
    return hr.ParquetDataset(folder, columns=columns, **options)


@pytest.fixture
def proxy(folder, range_server, fault_proxy):
    return fault_proxy(range_server(folder))


def remote(proxy, columns=("id", "x"), *, patience=QUICK, **options) -> hr.ParquetDataset:
    urls = [f"{proxy.url}/part-{i}.parquet" for i in range(FILES)]
    return hr.ParquetDataset(urls, columns=columns, store=hr.Store(patience=patience), **options)


def ids_of(loader) -> list[int]:
    """The ids, after making sure that what came with them belongs to them."""
    seen = []
    for batch in loader:
        ids = batch["id"].tolist()
        assert batch["x"][:, 0].tolist() == ids
        if "text" in batch:
            assert batch["text"] == [f"row {i}" for i in ids]
            assert [row.tolist() for row in batch["tokens"]] == [list(range(i % 4)) for i in ids]
        seen += ids
    return seen


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    "order", [{"shuffle": False}, {"shuffle": True}, {"shuffle": "window", "shuffle_window": 1000}]
)
def test_an_epoch_decodes_each_row_group_once_and_gives_each_sample_once(folder, order, num_workers):
    # the default window holds all samples
    memory_bytes = 4_000_000 if order["shuffle"] is True else 1_600_000
    dataset = local(folder, ("id", "x", "text", "tokens"), memory_bytes=memory_bytes)
    loader = hr.DataLoader(dataset, batch_size=32, seed=1, num_workers=num_workers, **order)
    for epoch in range(2):
        seen = ids_of(loader)
        assert sorted(seen) == list(range(ROWS))
        assert (seen == list(range(ROWS))) == (order["shuffle"] is False)
        assert dataset.source.counts()["decoded_samples"] <= (epoch + 1) * ROWS


@pytest.mark.parametrize("num_workers", [0, 3])
def test_memory_holds_the_window_the_groups_that_it_cuts_and_no_more(folder, num_workers):
    dataset = local(folder, memory_bytes=1_400_000)
    loader = hr.DataLoader(
        dataset,
        batch_size=32,
        shuffle="window",
        shuffle_window=1000,
        num_workers=num_workers,
        prefetch_factor=1 if num_workers else None,
    )
    most = 0
    for _ in loader:
        most = max(most, dataset.source.counts()["held_bytes"])
    window_groups = 1000 // GROUP + 2
    # threads that are ahead of the consumer have the next window open
    assert most <= (window_groups * (2 if num_workers else 1)) * GROUP * ROW_BYTES
    assert dataset.source.counts()["held_bytes"] == 0


def test_rows_of_a_large_group_are_read_in_order_in_slices(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_layout, "_PIECE_BYTES", 20_000)
    pq.write_table(a_table(0, 4000), tmp_path / "one.parquet", row_group_size=4000)
    dataset = hr.ParquetDataset(tmp_path / "one.parquet", columns=["id", "x"], memory_bytes=200_000)
    most = 0
    for number, batch in enumerate(hr.DataLoader(dataset, batch_size=100)):
        assert batch["id"].tolist() == list(range(number * 100, number * 100 + 100))
        most = max(most, dataset.source.counts()["held_bytes"])
    assert most <= 60_000
    assert dataset.source.counts()["decoded_samples"] == 4000


@pytest.mark.parametrize("order", [{"shuffle": False}, {"shuffle": "window", "shuffle_window": 700}])
def test_a_window_smaller_than_a_group_walks_through_it_once(tmp_path, monkeypatch, order):
    monkeypatch.setattr(parquet_layout, "_PIECE_BYTES", 20_000)
    pq.write_table(a_table(0, 16_000), tmp_path / "one.parquet", row_group_size=16_000)
    dataset = hr.ParquetDataset(tmp_path / "one.parquet", columns=["id", "x"], memory_bytes=2_200_000)
    seen = ids_of(hr.DataLoader(dataset, batch_size=64, num_workers=2, **order))
    assert sorted(seen) == list(range(16_000))
    assert dataset.source.counts()["decoded_samples"] == 16_000


def test_another_world_resumes_with_just_the_samples_that_are_left(folder):
    options = {"shuffle": "window", "shuffle_window": 1000, "lanes": 4}
    first = hr.DataLoader(local(folder), batch_size=50, seed=5, num_workers=2, **options)
    batches = iter(first)
    seen = [i for _ in range(37) for i in next(batches)["id"].tolist()]
    state = first.state_dict()
    for rank in range(3):
        rest = hr.DataLoader(local(folder, ("x", "id")), batch_size=32, rank=rank, world_size=3, **options)
        rest.load_state_dict(state)
        seen += ids_of(rest)
    assert sorted(seen) == list(range(ROWS))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_torch_s_own_loader_reads_whole_batches(folder, num_workers):
    dataset = local(folder, ("id", "x", "text", "tokens"))
    loader = DataLoader(dataset, batch_size=500, shuffle=True, num_workers=num_workers, multiprocessing_context=None)
    seen = []
    for batch in loader:
        assert isinstance(batch["tokens"], hr.Ragged)
        seen += ids_of([batch])
    assert sorted(seen) == list(range(ROWS))
    if num_workers == 0:
        assert dataset.source.counts()["decoded_samples"] == ROWS


def test_scattered_batches_of_what_does_not_fit_are_right_and_advised_against_once(folder, caplog):
    dataset = local(folder, memory_bytes=2 * GROUP * ROW_BYTES)
    seen = ids_of(DataLoader(dataset, batch_size=100, shuffle=True))
    assert sorted(seen) == list(range(ROWS))
    [record] = caplog.records
    assert 'shuffle="window"' in record.getMessage()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_for_torch_splits_itself(folder, num_workers):
    stream = local(folder, ("id", "x", "text", "tokens")).to_iterable_dataset(batch_size=64, shuffle=True)
    assert sorted(ids_of(DataLoader(stream, batch_size=None, num_workers=num_workers))) == list(range(ROWS))


def test_single_samples_and_lists_of_ids_come_as_elsewhere(folder):
    dataset = local(folder, ("id", "tokens", "text"))
    assert dataset[-1]["id"] == ROWS - 1
    assert dataset[7]["tokens"].tolist() == [0, 1, 2]
    assert dataset[7]["text"] == "row 7"
    assert dataset[[3, 1]]["text"] == ["row 3", "row 1"]
    assert local(folder, ("id", "text"), as_tuple=True)[2] == (torch.tensor(2), "row 2")


def test_parts_of_a_split_are_read_group_by_group(folder):
    parts = local(folder, memory_bytes=12 * GROUP * ROW_BYTES).split({"train": 0.8, "val": 0.2}, seed=3)
    seen = {}
    for name, part in parts.items():
        before = part.source.counts()["decoded_samples"]
        seen[name] = ids_of(hr.DataLoader(part, batch_size=64, shuffle=True, num_workers=2))
        # with half of the groups in memory: a part drawn from all samples alike would decode most of them in each batch
        assert ROWS <= part.source.counts()["decoded_samples"] - before <= 2 * ROWS
    assert sorted(seen["train"] + seen["val"]) == list(range(ROWS))
    assert len(seen["train"]) == ROWS * 8 // 10


def test_a_normalizer_is_fitted_to_one_column(folder):
    normalizer = hr.fit_normalizer(local(folder, ("id", "x", "text")), columns=["x"])
    batch = next(iter(hr.DataLoader(local(folder, ("x",)), batch_size=ROWS, batch_transform=normalizer)))
    torch.testing.assert_close(batch["x"].mean(0), torch.zeros(64), atol=1e-4, rtol=0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_order_in_a_store_is_that_of_local_files(folder, proxy, num_workers):
    options = {"batch_size": 100, "shuffle": "window", "shuffle_window": 1000, "seed": 3}
    expected = ids_of(hr.DataLoader(local(folder), **options))
    dataset = remote(proxy)
    assert ids_of(hr.DataLoader(dataset, **options, num_workers=num_workers)) == expected


@pytest.mark.parametrize("fault", ["status-503", "close-in-body", "short-body", "stall-in-body"])
def test_faults_cost_time_and_no_samples(proxy, fault):
    dataset = remote(proxy, ("id", "x", "text", "tokens"), patience=replace(QUICK, stall_seconds=1.0))
    proxy.inject(fault, times=3)
    assert sorted(ids_of(hr.DataLoader(dataset, batch_size=100, shuffle=True, num_workers=2))) == list(range(ROWS))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_leaving_the_loop_leaves_no_thread(proxy, num_workers):
    for number, _ in enumerate(hr.DataLoader(remote(proxy), batch_size=50, shuffle=True, num_workers=num_workers)):
        if number == 3:
            break
    assert threads_left_after() == []


def test_a_damaged_row_group_is_skipped_sample_by_sample_where_the_user_says_so(tmp_path):
    path = tmp_path / "a.parquet"
    columns = {"id": np.arange(60), "x": np.random.default_rng(0).standard_normal(60)}
    pq.write_table(pa.table(columns), path, row_group_size=20, write_page_checksum=True)
    chunk = pq.read_metadata(path).row_group(1).column(1)
    content = bytearray(path.read_bytes())
    content[(chunk.dictionary_page_offset or chunk.data_page_offset) + chunk.total_compressed_size // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(FormatError, match="row group 1: column 'x'"):
        list(hr.DataLoader(hr.ParquetDataset(path), batch_size=10))
    loader = hr.DataLoader(hr.ParquetDataset(path), batch_size=15, num_workers=2, on_error="skip")
    assert [i for batch in loader for i in batch["id"].tolist()] == [*range(20), *range(40, 60)]
    assert loader.skipped == 20


def test_an_object_that_is_replaced_in_mid_epoch_is_an_error(tmp_path, range_server):
    for i in range(2):
        pq.write_table(a_table(i * 2000, i * 2000 + 2000), tmp_path / f"part-{i}.parquet", row_group_size=GROUP)
    server = range_server(tmp_path)
    urls = [f"{server.url}/part-{i}.parquet" for i in range(2)]
    dataset = hr.ParquetDataset(urls, columns=["id"], store=hr.Store(patience=QUICK), memory_bytes=10_000)
    batches = iter(hr.DataLoader(dataset, batch_size=100))
    next(batches)
    pq.write_table(a_table(0, 2000), tmp_path / "new", row_group_size=GROUP, compression="gzip")
    os.replace(tmp_path / "new", tmp_path / "part-1.parquet")
    with pytest.raises(StorageError, match=r"part-1\.parquet"):
        for _ in batches:
            pass


def test_a_whole_run_in_a_spawned_process_leaves_no_thread(folder):
    program = f"""
        import sys, threading
        sys.path[:0] = {sys.path!r}
        import headrace as hr
        loader = hr.DataLoader(hr.ParquetDataset({str(folder)!r}), batch_size=64, shuffle=True, num_workers=2)
        assert sum(len(batch["id"]) for batch in loader) == {ROWS}
        assert threading.active_count() == 1, threading.enumerate()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=100)


def test_a_store_s_cache_keeps_chunks_and_what_the_footers_say(proxy, tmp_path):
    urls = [f"{proxy.url}/part-{i}.parquet" for i in range(FILES)]

    def an_epoch() -> dict[str, int]:
        store = hr.Store(patience=QUICK, cache_dir=tmp_path / "cache", cache_bytes=256 << 20)
        dataset = hr.ParquetDataset(urls, columns=["id", "x"], store=store)
        assert sorted(ids_of(hr.DataLoader(dataset, batch_size=100, shuffle=True))) == list(range(ROWS))
        return store.counts()

    an_epoch()
    again = an_epoch()
    assert again["cache_hits"] == 2 * ROWS // GROUP
    assert again["requests"] == FILES + FILES  # a probe of each file, and the footers of those that are read


@pytest.mark.parametrize("as_tuple", [False, True])
def test_an_error_in_collating_rows_of_different_lengths_says_what_to_do(tmp_path, as_tuple):
    pq.write_table(pa.table({"id": [0, 1], "r": [[1], [2, 3]]}), tmp_path / "a.parquet")
    dataset = hr.ParquetDataset(tmp_path / "a.parquet", as_tuple=as_tuple)
    with pytest.raises(RuntimeError, match="equal size") as caught:
        list(hr.DataLoader(dataset, batch_size=2, transform=lambda sample: sample))
    assert "column 'r' has rows of different lengths: give pad_to= or a collate_fn" in caught.value.__notes__
    collated = hr.DataLoader(dataset, batch_size=2, transform=lambda sample: sample, collate_fn=len)
    assert list(collated) == [2]
    with pytest.raises(TypeError) as caught:
        list(hr.DataLoader(dataset, batch_size=2, transform=lambda sample: object()))
    assert caught.value.__notes__ == ["while collating samples 0, 1"]


def test_a_null_costs_its_own_sample_only_where_the_user_says_skip(tmp_path):
    x = [None if i in (7, 31) else float(i) for i in range(60)]
    pq.write_table(pa.table({"id": range(60), "x": x}), tmp_path / "a.parquet", row_group_size=20)
    dataset = hr.ParquetDataset(tmp_path / "a.parquet")
    loader = hr.DataLoader(dataset, batch_size=15, num_workers=2, on_error="skip")
    assert [i for batch in loader for i in batch["id"].tolist()] == [i for i in range(60) if i not in (7, 31)]
    assert loader.skipped == 2
    with pytest.raises(FormatError, match="row group 1: column 'x' holds 1 null"):
        dataset[[40, 25]]
    assert dataset[25]["x"] == 25.0


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_asks_for_each_chunk_once(proxy, monkeypatch, num_workers):
    monkeypatch.setattr(parquet_layout, "_PIECE_BYTES", 20_000)  # several slices a group
    dataset = remote(proxy, ("id", "x"), memory_bytes=1_400_000)
    proxy.clear()
    loader = hr.DataLoader(
        dataset, batch_size=32, shuffle="window", shuffle_window=1000, num_workers=num_workers, prefetch_factor=None
    )
    assert sorted(ids_of(loader)) == list(range(ROWS))
    asked = [(entry.path, entry.range) for entry in proxy.log]
    assert len(asked) == len(set(asked)) == ROWS // GROUP


def test_text_that_dictionaries_stand_for_stays_within_the_budget(tmp_path):
    words = [chr(97 + i) * 2000 for i in range(4)]
    table = pa.table({"id": range(20_000), "text": [words[i % 4] for i in range(20_000)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=20_000)
    dataset = hr.ParquetDataset(tmp_path / "a.parquet", memory_bytes=8_000_000)
    for number, batch in enumerate(hr.DataLoader(dataset, batch_size=100)):
        assert batch["text"][3] == words[(number * 100 + 3) % 4]
        assert dataset.source.counts()["held_bytes"] <= 8_000_000


def test_a_failure_of_the_system_is_not_remembered_as_damage(folder, monkeypatch):
    dataset = local(folder)
    opens = parquet_reader.pq.ParquetFile

    def fails(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(parquet_reader.pq, "ParquetFile", fails)
    with pytest.raises(StorageError, match=r"row group 0: cannot be read: .*Too many open files"):
        dataset[0]
    monkeypatch.setattr(parquet_reader.pq, "ParquetFile", opens)
    assert dataset[0]["id"] == 0
