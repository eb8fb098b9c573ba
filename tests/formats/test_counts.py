"""What sources tell of their work: stages of the thread that reads, and counts."""

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.datasets.views import SelectedSource, select
from headrace.formats import ArraySource, DatasetSource, NumpySource, Source
from headrace.formats.parquet_source import ParquetSource
from headrace.formats.tar_source import TarSource
from headrace.metrics import Meter, metering
from tests.formats.tar_files import tar_bytes


def stages_of(source: Source) -> set[str]:
    """The stages that reading all samples takes time in."""
    meter = Meter()
    with metering(meter):
        source.read(np.arange(len(source)))
    return {name for name, seconds in meter.totals().seconds.items() if seconds}


@pytest.fixture
def parquet(tmp_path):
    pq.write_table(pa.table({"x": np.arange(100.0)}), tmp_path / "a.parquet")
    return ParquetSource(tmp_path / "a.parquet")


def test_decoding_parquet_is_a_stage_and_is_counted(parquet):
    assert set(parquet.counts().values()) == {0}
    assert stages_of(parquet) == {"decode"}
    counts = parquet.counts()
    assert (counts["read_samples"], counts["decoded_samples"]) == (100, 100)
    assert counts["held_bytes"] > 0


def test_a_part_counts_what_the_whole_does(parquet):
    part = SelectedSource(parquet, select(100, slice(10, 20)))
    part.read([0])
    assert part.counts() == parquet.counts()


def test_decoding_tar_members_is_a_stage_and_counting_reads_nothing(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_bytes([(f"{i}.cls", b"%d" % i) for i in range(5)]))
    source = TarSource(tmp_path / "a.tar", ["cls"], index_dir=tmp_path)
    assert set(source.counts().values()) == {0}
    assert stages_of(source) == {"decode"}


def test_waiting_for_stored_bytes_is_a_stage_and_blocks_in_memory_are_counted(tmp_path):
    memory = fsspec.filesystem("memory")
    with memory.open(f"/{tmp_path.name}/x.npy", "wb") as file:
        np.save(file, np.arange(1000))
    source = NumpySource({"x": f"memory://{tmp_path.name}/x.npy"})
    assert source.counts()["held_bytes"] == 0
    assert stages_of(source) <= {"storage"}  # it may be there already when it is waited for
    assert source.counts()["held_bytes"] >= 8000


def test_reading_a_foreign_dataset_is_the_users_code():
    assert stages_of(DatasetSource([1, 2, 3])) == {"user"}


def test_what_is_in_memory_counts_nothing():
    source = ArraySource({"x": np.arange(3)})
    assert stages_of(source) == set()
    assert source.counts() == {}
