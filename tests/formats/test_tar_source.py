"""Tar shards as a source: the contract, locally and from a store, mapped or not, under any memory."""

import gc
import gzip
import io
import os
import pickle
import shutil
import weakref
from itertools import pairwise
from pathlib import Path

import fsspec
import numpy as np
import pytest

from headrace.errors import ArgumentError, SampleError, ShardError, StorageError
from headrace.formats import tar_grouping, tar_memory, tar_source
from headrace.formats.tar_memory import TarMemory
from headrace.formats.tar_source import TarSource
from headrace.storage import Store, mapped
from tests.formats.contract import SourceContract, assert_same
from tests.formats.tar_files import tar_bytes, write_tar

N = 97
X = (np.arange(N * 6, dtype=np.float32) / 3).reshape(N, 3, 2)
Y = np.arange(N) * 7 - 40
TEXT = [f"text {i}" * (i % 4) for i in range(N)]
KEYS = [f"folder/{i:05d}" for i in range(N)]


def npy(array: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


def members(start: int = 0, stop: int = N) -> list[tuple[str, bytes]]:
    found = []
    for i in range(start, stop):
        found += [
            (f"{KEYS[i]}.cls", str(Y[i]).encode()),
            (f"{KEYS[i]}.npy", npy(X[i])),
            (f"{KEYS[i]}.txt", TEXT[i].encode()),
        ]
    return found


def write(folder: Path, *, cuts=(0, 40, 41, N), **options) -> str:
    folder.mkdir(exist_ok=True)
    for number, (start, stop) in enumerate(pairwise(cuts)):
        write_tar(folder / f"part-{number:02}.tar", members(start, stop), **options)
    return f"{folder}/*.tar"


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few samples each."""
    monkeypatch.setattr(tar_grouping, "BLOCK_BYTES", 8 << 10)


class TarContract(SourceContract):
    @pytest.fixture
    def columns(self):
        return {"cls": Y, "npy": X}

    def test_its_blocks_sum_to_its_length_and_bytes(self, source, columns):
        """The bytes are those of the shards, whatever columns are read."""
        blocks = source.blocks
        assert blocks.lengths.dtype == blocks.bytes.dtype == np.int64
        assert blocks.lengths.sum() == len(source)
        assert (blocks.lengths > 0).all()
        assert blocks.bytes.sum() >= sum(array.nbytes for array in columns.values())


class TestLocalShards(TarContract):
    @pytest.fixture
    def source(self, tmp_path):
        return TarSource(write(tmp_path / "shards"), ["cls", "npy"])


class TestManyBlocks(TarContract):
    @pytest.fixture
    def source(self, tmp_path, small_blocks):
        source = TarSource(write(tmp_path / "shards"), ["cls", "npy"], verify=True)
        assert len(source.blocks) > 10
        return source


class TestShardsThatCannotBeMapped(TarContract):
    @pytest.fixture
    def source(self, tmp_path, monkeypatch, small_blocks):
        source = TarSource(write(tmp_path / "shards"), ["cls", "npy"], memory_bytes=20_000, verify=True)
        monkeypatch.setattr(mapped, "map_untracked", lambda *_: None)
        return source


class TestStoredShards(TarContract):
    @pytest.fixture
    def folder(self, tmp_path):
        folder = f"/{tmp_path.name}-tar-source"
        memory = fsspec.filesystem("memory")
        for number, (start, stop) in enumerate(pairwise((0, 40, 41, N))):
            memory.pipe(f"{folder}/part-{number:02}.tar", tar_bytes(members(start, stop)))
        yield f"memory:/{folder}"
        memory.rm(folder, recursive=True)

    @pytest.fixture
    def source(self, tmp_path, folder, small_blocks):
        return TarSource(f"{folder}/*.tar", ["cls", "npy"], index_dir=tmp_path, memory_bytes=40_000)


class TestStoredShardsInHardlyAnyMemory(TestStoredShards):
    @pytest.fixture
    def source(self, tmp_path, folder, small_blocks):
        return TarSource(f"{folder}/*.tar", ["cls", "npy"], index_dir=tmp_path, memory_bytes=1)


class TestPlainAndCompressedShardsTogether(TarContract):
    @pytest.fixture(params=["cache", "stream"])
    def source(self, request, tmp_path, small_blocks):
        write(tmp_path / "shards")
        plain = tmp_path / "shards" / "part-01.tar"
        plain.with_suffix(".tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
        store = Store(cache_dir=tmp_path / "cache", cache_bytes=1 << 30) if request.param == "cache" else None
        return TarSource(f"{tmp_path}/shards/*.tar*", ["cls", "npy"], store, compressed=request.param)


class TestColumns:
    @pytest.fixture
    def source(self, tmp_path):
        return TarSource(write(tmp_path / "shards"), ["txt", "__key__", "__url__", "npy"])

    def test_text_keys_and_shards_come_as_objects(self, source, tmp_path):
        read = source.read([96, 0, 40])
        assert read["txt"].tolist() == [TEXT[96], TEXT[0], TEXT[40]]
        assert read["__key__"].tolist() == [KEYS[96], KEYS[0], KEYS[40]]
        shards = [str(tmp_path / "shards" / f"part-{number:02}.tar") for number in (2, 0, 1)]
        assert read["__url__"].tolist() == shards
        assert not source.schema["__key__"].is_fixed

    def test_keys_and_shards_alone_read_no_data(self, tmp_path):
        source = TarSource(write(tmp_path / "shards"), ["__key__"])
        source.read([0])
        for path in (tmp_path / "shards").glob("part-*.tar"):
            path.unlink()
        assert source.read([3])["__key__"].tolist() == [KEYS[3]]

    def test_an_alternative_is_taken_where_the_first_is_missing(self, tmp_path):
        write_tar(tmp_path / "a.tar", [("0.txt", b"zero"), ("1.text", b"one"), ("2.txt", b"two"), ("2.text", b"no")])
        read = TarSource(tmp_path / "a.tar", ["txt;text"]).read([0, 1, 2])
        assert read["txt"].tolist() == ["zero", "one", "two"]

    def test_narrowed_reads_only_what_is_named(self, source):
        assert list(source.narrowed(["npy"]).read([0])) == ["npy"]
        assert source.narrowed(list(source.schema)) is source

    def test_a_key_finds_its_sample(self, source):
        assert source.find("folder/00041") == 41
        with pytest.raises(KeyError):
            source.find("folder/41")

    def test_no_samples_are_read_as_empty_columns(self, source):
        read = source.read([])
        assert {name: len(values) for name, values in read.items()} == dict.fromkeys(source.schema, 0)


class TestMissingFields:
    @pytest.fixture
    def path(self, tmp_path):
        return write_tar(tmp_path / "a.tar", [("0.cls", b"0"), ("1.txt", b"one"), ("2.cls", b"2"), ("2.txt", b"two")])

    def test_a_sample_without_a_column_is_refused_at_opening(self, path):
        with pytest.raises(ShardError, match=r"but 1 of 3 have none\n  the first is sample 1: '1' in .*a.tar"):
            TarSource(path, ["cls"])

    def test_where_that_is_allowed_it_is_an_error_when_it_is_read(self, path):
        source = TarSource(path, ["cls"], allow=["missing_fields"])
        assert source.read([0, 2])["cls"].tolist() == [0, 2]
        with pytest.raises(SampleError, match=r"cls: the sample has no such field\n  sample 1: '1' in .*a.tar"):
            source.read([0, 1])

    def test_columns_that_all_samples_have_are_read_all_the_same(self, tmp_path):
        path = write_tar(tmp_path / "a.tar", [("0.cls", b"0"), ("1.cls", b"1"), ("1.txt", b"one")])
        assert TarSource(path, ["cls"]).read([1, 0])["cls"].tolist() == [1, 0]


class TestErrors:
    def test_a_payload_that_cannot_be_decoded_says_where_it_lies(self, tmp_path):
        path = write_tar(tmp_path / "a.tar", [("x/0.cls", b"0"), ("x/1.cls", b"dog")])
        with pytest.raises(SampleError, match=r"cls: .*\n  sample 1: member 'x/1.cls' of .*a.tar at byte 1536"):
            TarSource(path).read([0, 1])

    @pytest.mark.parametrize("wrong", [["no_ends"], "no_end", ["no_end", "x"]])
    def test_what_may_be_allowed_is_known(self, tmp_path, wrong):
        with pytest.raises(ArgumentError, match="allow: expected a list of some of 'no_end', 'data_after_end'"):
            TarSource(write(tmp_path / "shards"), allow=wrong)

    def test_other_options_that_make_no_sense_are_refused(self, tmp_path):
        paths = write(tmp_path / "shards")
        for options, text in (
            ({"verify": 1}, "verify: expected True or False, got 1"),
            ({"compressed": "no"}, 'compressed: expected "cache" or "stream"'),
            ({"index_dir": 3}, "index_dir: expected a folder's path"),
            ({"memory_bytes": 0}, "memory_bytes: expected a number of bytes"),
        ):
            with pytest.raises(ArgumentError, match=text):
                TarSource(paths, **options)


class TestShardsThatChange:
    @pytest.fixture
    def path(self, tmp_path):
        return write_tar(tmp_path / "a.tar", members(0, 20))

    @pytest.fixture
    def source(self, path, monkeypatch):
        monkeypatch.setattr("headrace.formats.tar_memory._LOOK_SECONDS", 0.0)
        source = TarSource(path, ["cls"])
        memory = TarMemory(
            source.index, source._pieces, Store(), 1 << 20, compressed="cache", verify=False, look_seconds=0.0
        )
        source._memories[os.getpid()] = memory
        return source

    def test_one_that_was_written_to_in_place_is_an_error(self, source, path):
        source.read([0])
        data = bytearray(path.read_bytes())
        data[512] ^= 1
        with path.open("r+b") as file:
            file.write(data)
        os.utime(path, ns=(1, 1))
        with pytest.raises(StorageError, match="was replaced while it was being read"):
            source.read([0])

    def test_one_that_was_cut_is_an_error(self, source, path):
        source.read([0])
        os.truncate(path, 4096)
        with pytest.raises(StorageError, match=r"shrank after it was opened|was replaced"):
            source.read([19])

    def test_one_that_another_was_renamed_over_stays_as_it_was_while_it_is_open(self, source, path, tmp_path):
        assert source.read([0])["cls"].tolist() == [Y[0]]
        write_tar(tmp_path / "b.tar", members(20, 40)).rename(path)
        assert source.read([5])["cls"].tolist() == [Y[5]]
        with pytest.raises(StorageError, match="was replaced while it was being read"):
            pickle.loads(pickle.dumps(source)).read([5])

    def test_one_that_was_replaced_since_it_was_indexed_is_indexed_again(self, path, tmp_path):
        assert len(TarSource(path)) == 20
        write_tar(tmp_path / "b.tar", members(20, 50)).rename(path)
        source = TarSource(path)
        assert source.read(np.arange(30))["cls"].tolist() == Y[20:50].tolist()

    def test_a_flipped_byte_is_noticed_where_blocks_are_verified(self, path):
        source = TarSource(path, ["cls"], verify=True)
        status = path.stat()
        with path.open("r+b") as file:
            file.seek(512)
            file.write(b"8")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        with pytest.raises(ShardError, match=r"bytes \[0, .*are not those that were indexed: expected CRC32"):
            source.read([0])


class TestElsewhere:
    def test_a_pickled_source_reads_the_same(self, tmp_path):
        source = TarSource(write(tmp_path / "shards"), ["cls", "npy"])
        source.read([0])
        again = pickle.loads(pickle.dumps(source))
        assert_same(again.read(np.arange(N)), source.read(np.arange(N)))
        assert again.fingerprint == source.fingerprint

    def test_pickles_of_local_shards_carry_no_credentials(self, tmp_path):
        store = Store(storage_options={"key": "AKIASECRETSECRET"})
        source = TarSource(write(tmp_path / "shards"), ["cls"], store)
        assert b"AKIASECRET" not in pickle.dumps(source)

    def test_copies_have_the_same_fingerprint_wherever_they_lie(self, tmp_path):
        source = TarSource(write(tmp_path / "shards"))
        shutil.copytree(tmp_path / "shards", tmp_path / "elsewhere")
        assert TarSource(f"{tmp_path}/elsewhere/*.tar", ["cls"]).fingerprint == source.fingerprint

    def test_more_shards_than_files_may_be_open_are_read(self, tmp_path, monkeypatch):
        monkeypatch.setattr(tar_memory, "_MOST_MAPS", 2)
        source = TarSource(write(tmp_path / "shards", cuts=range(N + 1)), ["cls", "npy"])
        ids = np.random.default_rng(0).permutation(N)
        for some in np.array_split(ids, 5):
            assert_same(source.read(some), {"cls": Y[some], "npy": X[some]})
        assert len(source._memory()._files) <= 2

    def test_shards_that_come_to_be_unmappable_are_read_in_blocks(self, tmp_path, monkeypatch):
        source = TarSource(write(tmp_path / "shards"), ["cls", "npy"])

        monkeypatch.setattr(mapped, "map_untracked", lambda *_: None)
        assert_same(source.read(np.arange(N)), {"cls": Y, "npy": X})

    def test_a_repr_says_what_it_is(self, tmp_path):
        text = repr(TarSource(write(tmp_path / "shards"), ["cls", "npy"]))
        assert text.startswith(f"TarSource({N} samples of 'cls', 'npy' in ")
        assert text.endswith("part-00.tar and 2 more)")


class TestReadingAhead:
    def test_announced_blocks_of_a_store_are_fetched_once_each(self, tmp_path, small_blocks):
        memory = fsspec.filesystem("memory")
        folder = f"/{tmp_path.name}-tar-ahead"
        memory.pipe(f"{folder}/a.tar", tar_bytes(members()))
        source = TarSource(f"memory:/{folder}/a.tar", ["cls", "npy"], index_dir=tmp_path)
        ids = np.random.default_rng(0).permutation(N)
        source.prefetch(ids)
        for some in np.array_split(ids, 9):
            assert_same(source.read(some), {"cls": Y[some], "npy": X[some]})
        counts = source.counts()
        assert counts["decoded_pieces"] == len(source.blocks)
        source.end_prefetch()

    def test_a_source_over_a_store_goes_with_all_that_it_fetched_when_it_is_dropped(self, tmp_path, small_blocks):
        memory = fsspec.filesystem("memory")
        folder = f"/{tmp_path.name}-tar-dropped"
        memory.pipe(f"{folder}/a.tar", tar_bytes(members()))
        gc.disable()
        try:
            # no index lies beside the shard: the error that says so must not keep the source
            source = TarSource(f"memory:/{folder}/a.tar", ["cls", "npy"], index_dir=tmp_path)
            source.prefetch(np.arange(N))
            source.read(np.arange(5))
            source.end_prefetch()
            gone = [weakref.ref(thing) for thing in (source, source._memory())]
            del source
            assert [reference() for reference in gone] == [None, None]
        finally:
            gc.enable()

    def test_local_blocks_are_advised_once_a_pass(self, tmp_path, monkeypatch, small_blocks):
        asked = []
        monkeypatch.setattr(mapped.MappedFile, "is_resident", lambda *_: False)
        monkeypatch.setattr(mapped.MappedFile, "will_need", lambda self, offsets, length: asked.append(int(offsets[0])))
        source = TarSource(write(tmp_path / "shards", cuts=(0, N)), ["cls"])
        source.prefetch(np.arange(N))
        source.prefetch(np.arange(N))
        assert len(asked) == len(source.blocks)
        source.end_prefetch()
        source.prefetch([0])
        assert len(asked) == len(source.blocks) + 1

    def test_it_wants_to_know_of_as_many_samples_as_half_its_memory_holds_stored(self, tmp_path):
        memory = fsspec.filesystem("memory")
        folder = f"/{tmp_path.name}-tar-half"
        memory.pipe(f"{folder}/a.tar", tar_bytes(members()))
        source = TarSource(f"memory:/{folder}/a.tar", ["cls"], index_dir=tmp_path, memory_bytes=1 << 20)
        stored_bytes = int(source.blocks.bytes.sum()) / N
        assert source.read_ahead_bytes == pytest.approx((1 << 19) / stored_bytes * 8, rel=0.01)
        assert tar_source._AHEAD_SHARE == 2


class TestLimits:
    def test_a_sample_larger_than_memory_is_refused_before_it_is_read(self, tmp_path, monkeypatch):
        path = tmp_path / "a.tar.gz"
        path.write_bytes(gzip.compress(tar_bytes([("0.bin", bytes(1 << 20))])))
        monkeypatch.setattr(tar_memory, "_LARGE_BLOCK_BYTES", 1000)
        monkeypatch.setattr(tar_memory, "available_bytes", lambda: 1 << 20)
        with pytest.raises(
            ShardError, match=r"a.tar.gz: a single sample takes 1049\d+ bytes, and 1048576 bytes of mem"
        ):
            TarSource(path, compressed="stream").read([0])

    def test_pickles_of_local_compressed_shards_carry_the_cache_but_no_credentials(self, tmp_path):
        path = tmp_path / "a.tar.gz"
        path.write_bytes(gzip.compress(tar_bytes(members(0, 3))))
        store = Store(storage_options={"key": "AKIASECRETSECRET"}, cache_dir=tmp_path / "cache", cache_bytes=1 << 30)
        pickled = pickle.dumps(TarSource(path, ["cls"], store))
        assert b"AKIASECRET" not in pickled
        assert pickle.loads(pickled).read([2])["cls"].tolist() == [Y[2]]

    def test_a_shard_that_is_cut_between_two_batches_is_an_error(self, tmp_path):
        path = write_tar(tmp_path / "a.tar", [(f"{i}.bin", bytes(1 << 20)) for i in range(16)])
        source = TarSource(path)
        part = source.prepare(np.arange(16))
        part(0, 2, {})
        os.truncate(path, 0)
        source._memory()._next_look = 0.0  # as some milliseconds later
        with pytest.raises(StorageError, match="was replaced while it was being read"):
            part(2, 4, {})

    def test_a_new_pass_looks_at_the_shards_again(self, tmp_path):
        path = write_tar(tmp_path / "a.tar", members(0, 3))
        source = TarSource(path, ["cls"])
        source.read([0])
        os.utime(path, ns=(1, 1))
        source._memory()._next_look = float("inf")
        source.end_prefetch()
        with pytest.raises(StorageError, match="was replaced while it was being read"):
            source.read([0])
