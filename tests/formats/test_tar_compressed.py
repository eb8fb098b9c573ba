"""Compressed shards: their streams, and blocks of what comes out."""

import gzip
import itertools
import os
import pickle
import threading
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ArgumentError, ShardError, StorageError
from headrace.formats import tar_compressed, tar_decompression
from headrace.formats.tar_compressed import CompressedShards, codec_of, decompressed, keep_block
from headrace.formats.tar_shards import open_tar_index
from headrace.storage import ReadCancelled, Store, cancellable
from tests.formats.stand_in_store import stored
from tests.formats.tar_files import pin, tar_bytes

SUFFIX = {"gz": ".tar.gz", "zst": ".tar.zst"}
SKIPPABLE = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"  # a frame of four bytes that are none of the data
# As the program zstd writes it, with a checksum, which Arrow's codec doesn't write
CHECKED_ZST = b"(\xb5/\xfd\x04XU\x08\0\x04\x10" + bytes(range(256)) + b"\x01\0\0\xfd\x0e\xfck\nM_\xbf\xb7"
both = pytest.mark.parametrize("codec", ["gz", "zst"])


def compress(codec, data):
    return gzip.compress(data, 1, mtime=0) if codec == "gz" else pa.Codec("zstd").compress(data, asbytes=True)


def random_bytes(count, seed=0):
    return np.random.default_rng(seed).integers(0, 16, count, np.uint8).tobytes()


def written(folder, codec, payload, name="x"):
    path = folder / f"{name}{SUFFIX[codec]}"
    path.write_bytes(payload)
    return pin(path)


def all_of(place, codec, store=None, most_bytes=None):
    return b"".join(piece.tobytes() for piece in decompressed(place, codec, store or Store(), most_bytes=most_bytes))


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("x.tar", None),
        ("x.tar.gz", "gz"),
        ("/data/x.y/X.TGZ", "gz"),
        ("x.tar.zst", "zst"),
        ("s3://bucket/x.tzst", "zst"),
        ("https://host/x.tar.gz?token=a.b", "gz"),
        ("https://host/x.tar?as=x.gz", None),
        ("s3://bucket/a?b.tar.gz", "gz"),
        ("folder.gz/x.tar", None),
        ("no-suffix", None),
    ],
)
def test_the_codec_is_told_by_the_name(name, codec):
    assert codec_of(name) == codec


@pytest.mark.parametrize(
    ("suffix", "said"),
    [(".tar.bz2", "bzip2"), (".tar.xz", "xz"), (".tar.lz4", "LZ4"), (".zip", "a zip archive"), (".7z", "a 7z archive")],
)
def test_other_compressions_are_refused_by_name(suffix, said):
    with pytest.raises(ArgumentError, match=rf"s3://bucket/x{suffix}: expected a tar, .tar.gz, .*, got {said} \("):
        codec_of(f"s3://key:secret@bucket/x{suffix}")


@both
def test_a_stream_comes_out_in_pieces_of_at_most_1_mib(tmp_path, codec):
    data = random_bytes(5_000_001)
    place = written(tmp_path, codec, compress(codec, data))
    pieces = list(decompressed(place, codec, Store(), most_bytes=None))
    assert b"".join(piece.tobytes() for piece in pieces) == data
    assert max(len(piece) for piece in pieces) <= 1 << 20
    assert min(len(piece) for piece in pieces) > 0


@both
def test_several_members_or_frames_are_one_stream(tmp_path, codec):
    parts = [random_bytes(count, count) for count in (10, 700_000, 1, 300_000)]
    joined = b"".join(compress(codec, part) for part in parts)
    assert all_of(written(tmp_path, codec, joined), codec) == b"".join(parts)


@both
def test_a_stream_that_is_made_of_nothing_has_no_bytes(tmp_path, codec):
    assert all_of(written(tmp_path, codec, compress(codec, b"")), codec) == b""


@pytest.mark.parametrize("name", ["zlib", "zlib_ng.zlib_ng"])
def test_gzip_is_read_by_whichever_zlib_is_installed(tmp_path, monkeypatch, name):
    found = pytest.importorskip(name)
    monkeypatch.setattr(tar_decompression, "zlib", found)
    monkeypatch.setattr(tar_decompression, "_INFLATE_ERROR", found.error)
    parts = [random_bytes(count, count) for count in (3_000_000, 1, 700_000)] + [bytes(5_000_000)]
    joined = bytes(9).join(compress("gz", part) for part in parts)
    assert all_of(written(tmp_path, "gz", joined), "gz") == b"".join(parts)
    for payload in (joined[:-3], b"x" + joined, joined + b"x", joined[:1_000_000] + b"x" + joined[1_000_001:]):
        with pytest.raises(ShardError, match="cannot be decompressed"):
            all_of(written(tmp_path, "gz", payload), "gz")


def test_zeros_between_and_after_gzip_members_are_padding(tmp_path):
    joined = compress("gz", b"one") + bytes(300_000) + compress("gz", b"two") + bytes(700)
    assert all_of(written(tmp_path, "gz", joined), "gz") == b"onetwo"


def test_skippable_zstd_frames_are_skipped(tmp_path):
    joined = SKIPPABLE + compress("zst", b"one") + SKIPPABLE + compress("zst", b"two")
    assert all_of(written(tmp_path, "zst", joined), "zst") == b"onetwo"


@both
@given(data=st.data())
def test_a_cut_stream_is_an_error_wherever_it_is_cut(tmp_path_factory, codec, data):
    payload = compress(codec, random_bytes(2000)) + compress(codec, random_bytes(1000))
    cut = data.draw(st.integers(0, len(payload) - 1))
    place = written(tmp_path_factory.mktemp("cut"), codec, payload[:cut])
    if cut == len(compress(codec, random_bytes(2000))):
        assert len(all_of(place, codec)) == 2000  # only the tar in it can tell
        return
    with pytest.raises(ShardError, match=r"cannot be decompressed: expected a (whole )?(gzip|zstd) stream, got"):
        all_of(place, codec)


@both
@given(data=st.data())
def test_a_flipped_bit_is_an_error_or_harmless(tmp_path_factory, codec, data):
    original = random_bytes(2000)
    payload = bytearray(compress(codec, original))
    if codec == "zst":
        payload, original = bytearray(CHECKED_ZST), bytes(range(256)) * 8
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = all_of(written(tmp_path_factory.mktemp("flipped"), codec, payload), codec)
    except ShardError:
        return
    assert found == original  # the time, say, in a gzip header


@both
def test_junk_after_the_stream_is_an_error(tmp_path, codec):
    place = written(tmp_path, codec, compress(codec, b"one") + b"junk and more of it")
    with pytest.raises(ShardError, match=r"x.tar.(gz|zst) cannot be decompressed: .*: write or copy the shard again"):
        all_of(place, codec)


@both
@pytest.mark.parametrize("payload", [b"", b"\x1f", b"\0" * 1024, tar_bytes([("a.txt", b"x")])])
def test_what_is_no_such_stream_is_an_error(tmp_path, codec, payload):
    with pytest.raises(ShardError, match=r"cannot be decompressed: expected a (whole )?(gzip|zstd) stream"):
        all_of(written(tmp_path, codec, payload), codec)


@both
def test_a_bomb_is_given_up_at_the_bound(tmp_path, codec):
    place = written(tmp_path, codec, compress(codec, bytes(64 << 20)))
    pieces, total = decompressed(place, codec, Store(), most_bytes=3 << 20), 0
    while total < 3 << 20:
        total += len(next(pieces))
    assert total == 3 << 20
    with pytest.raises(StorageError, match=r"at most 3145728 bytes come out of it, .*compressed=\"stream\""):
        next(pieces)
    assert len(all_of(place, codec, most_bytes=64 << 20)) == 64 << 20


@both
def test_a_shard_that_is_written_to_meanwhile_is_an_error(tmp_path, codec):
    place = written(tmp_path, codec, compress(codec, random_bytes(8_000_000)))
    pieces = decompressed(place, codec, Store(), most_bytes=None)
    next(pieces)
    with open(place.path, "ab") as file:
        file.write(b"more")
    with pytest.raises(StorageError, match="was replaced while it was being read"):
        list(pieces)


@both
def test_a_shard_that_is_gone_is_an_error(tmp_path, codec):
    place = written(tmp_path, codec, compress(codec, b"x"))
    Path(place.path).unlink()
    with pytest.raises(StorageError, match=r"cannot read .*: No such file"):
        all_of(place, codec)


@both
def test_stored_shards_are_read_ahead_and_in_order(tmp_path, codec, monkeypatch):
    monkeypatch.setattr(tar_decompression, "_REQUEST_BYTES", 100_000)
    data = random_bytes(3_000_000)
    place = written(tmp_path, codec, compress(codec, data))
    store = stored(tmp_path)
    [source] = store.open([f"stand-in://bucket/{Path(place.path).name}"])
    pieces = decompressed(source, codec, store, most_bytes=None)
    first = next(pieces)
    assert len(store.asked) < 12  # not all of it
    assert b"".join(piece.tobytes() for piece in [first, *pieces]) == data
    assert [start for _, start, _, _ in store.asked] == list(range(0, source.object_bytes, 100_000))


@both
def test_a_stream_that_is_left_gives_up_what_it_asked_for(tmp_path, codec, monkeypatch):
    monkeypatch.setattr(tar_decompression, "_REQUEST_BYTES", 100_000)
    place = written(tmp_path, codec, compress(codec, random_bytes(9_000_000)))
    store = stored(tmp_path)
    [source] = store.open([f"stand-in://bucket/{Path(place.path).name}"])
    pieces = decompressed(source, codec, store, most_bytes=None)
    next(pieces)
    pieces.close()
    for transfer in store.transfers:
        transfer.wait_released()
    assert len(store.asked) * 100_000 < source.object_bytes


@both
def test_a_store_that_fails_is_a_storage_error(tmp_path, codec):
    place = written(tmp_path, codec, compress(codec, random_bytes(1000)))
    store = stored(tmp_path)
    [source] = store.open([f"stand-in://bucket/{Path(place.path).name}"])
    store.failing.add(source.url)
    with pytest.raises(StorageError, match="as the test wants it"):
        all_of(source, codec, store)


class Shards:
    """Two compressed shards, and blocks of 100 000 bytes of them."""

    def __init__(self, folder, codec, mode, store=None, total=3_000_000):
        self.data = [random_bytes(total, seed) for seed in range(2)]
        self.codec, self.store = codec, store or Store()
        self.places = [
            written(folder, codec, compress(codec, data), f"{number}") for number, data in enumerate(self.data)
        ]
        self.blocks = CompressedShards(self.store, self.places, [codec] * 2, mode=mode)

    def check(self, shard, start, stop):
        wanted = self.data[shard][start:stop]
        assert self.blocks.read_block(shard, start, stop, zlib.crc32(wanted)).tobytes() == wanted


@pytest.fixture
def begun(monkeypatch):
    """The shards whose streams were begun."""
    found = []

    def noting(place, *arguments, **options):
        found.append(Path(place.path).name[0])
        return decompressed(place, *arguments, **options)

    monkeypatch.setattr(tar_compressed, "decompressed", noting)
    return found


BLOCKS = [(shard, start, start + 100_000) for shard in range(2) for start in range(0, 3_000_000, 100_000)]


@both
def test_blocks_in_the_order_of_the_file_take_one_pass(tmp_path, codec, begun):
    shards = Shards(tmp_path, codec, "stream")
    for block in BLOCKS:
        shards.check(*block)
    assert begun == ["0", "1"]


@both
@given(order=st.permutations([(shard, start, start + 7000) for shard in range(2) for start in range(0, 70_000, 7000)]))
def test_blocks_in_any_order_are_right(tmp_path_factory, codec, order):
    shards = Shards(tmp_path_factory.mktemp("shards"), codec, "stream", total=70_000)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tar_decompression, "_PIECE_BYTES", 5000)
        patched.setattr(tar_compressed, "_BEHIND_BYTES", 20_000)
        for block in order:
            shards.check(*block)


def test_what_went_by_just_now_takes_no_new_pass(tmp_path, begun):
    shards = Shards(tmp_path, "gz", "stream")
    for start in (2_000_000, 1_900_000, 2_100_000, 0):
        shards.check(0, start, start + 100_000)
    assert begun == ["0"]


def test_what_went_by_long_ago_takes_a_new_pass(tmp_path, begun, monkeypatch):
    monkeypatch.setattr(tar_compressed, "_BEHIND_BYTES", 100_000)
    shards = Shards(tmp_path, "gz", "stream")
    shards.check(0, 2_900_000, 3_000_000)
    shards.check(0, 0, 100)
    assert begun == ["0", "0"]
    held = shards.blocks._streams()._opened[0]._held
    assert sum(map(len, held)) < 3 << 20


def test_a_bounded_number_of_streams_is_open(tmp_path, begun, monkeypatch):
    monkeypatch.setattr(tar_compressed, "_OPEN_STREAMS", 1)
    shards = Shards(tmp_path, "gz", "stream")
    for shard in (0, 1, 0):
        shards.check(shard, 1_000_000, 1_000_100)
    assert begun == ["0", "1", "0"]
    assert len(shards.blocks._streams()._opened) == 1
    shards.blocks.close()
    shards.check(1, 5, 10)


@both
def test_any_number_of_threads_read_at_once(tmp_path, codec):
    shards = Shards(tmp_path, codec, "stream")
    turns, failed = itertools.count(), []

    def work():
        try:
            while (turn := next(turns)) < len(BLOCKS):
                shards.check(*BLOCKS[turn])
        except BaseException as error:  # noqa: BLE001 - shown below
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


@both
def test_an_error_is_not_the_last_word(tmp_path, codec):
    shards = Shards(tmp_path, codec, "stream")
    path = Path(shards.places[0].path)
    path.rename(tmp_path / "away")
    with pytest.raises(StorageError, match="cannot read"):
        shards.check(0, 0, 100)
    (tmp_path / "away").rename(path)
    shards.check(0, 0, 100)


def test_bytes_that_are_not_those_that_were_indexed_are_an_error(tmp_path):
    shards = Shards(tmp_path, "gz", "stream")
    with pytest.raises(
        StorageError, match=r"0.tar.gz: expected the CRC32 00000007 of the decompressed bytes \[5, 10\)"
    ):
        shards.blocks.read_block(0, 5, 10, 7)
    with pytest.raises(StorageError, match=r"expected 3000001 decompressed bytes or more, .*, got 3000000: the index"):
        shards.blocks.read_block(0, 2_999_999, 3_000_001, 7)


@pytest.mark.parametrize("is_noticed", [False, True])
@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_stored_stream_that_came_altered_is_read_again(tmp_path, monkeypatch, times, is_noticed):
    def altered(*arguments, **options):
        begun.append(arguments[0].url)
        for piece in decompressed(*arguments, **options):
            if len(begun) > times:
                yield piece
            elif is_noticed:
                raise ShardError("x0.tar.gz cannot be decompressed")
            else:
                yield piece ^ 1

    begun = []
    monkeypatch.setattr(tar_compressed, "decompressed", altered)
    written(tmp_path, "gz", compress("gz", random_bytes(3_000_000)), "x0")
    store = stored(tmp_path)
    places = store.open(["stand-in://bucket/x0.tar.gz"])
    shards = CompressedShards(store, places, ["gz"], mode="stream")
    wanted = random_bytes(3_000_000)[100:200]
    if times < 3:
        assert shards.read_block(0, 100, 200, zlib.crc32(wanted)).tobytes() == wanted
    else:
        with pytest.raises(ShardError if is_noticed else StorageError, match=r"x0\.tar\.gz"):
            shards.read_block(0, 100, 200, zlib.crc32(wanted))
    assert begun == [places[0].url] * min(times + 1, 3)


def test_without_a_cache_both_ways_out_are_named(tmp_path):
    with pytest.raises(ArgumentError, match=r"Store\(cache_dir=...\), or compressed=\"stream\""):
        Shards(tmp_path, "gz", "cache")
    with pytest.raises(ArgumentError, match='compressed: expected "cache" or "stream", got \'memory\''):
        Shards(tmp_path, "gz", "memory")
    CompressedShards(Store(), [pin(tmp_path / "0.tar.gz")], [None])  # none is compressed


@both
def test_a_block_is_decompressed_once_and_kept(tmp_path, codec, begun):
    store = Store(cache_dir=tmp_path / "cache", cache_bytes=64 << 20)
    shards = Shards(tmp_path, codec, "cache", store)
    for _ in range(2):
        for block in reversed(BLOCKS):
            shards.check(*block)
        shards.blocks.close()
    assert begun == ["1", "0"]  # the second time all came from the cache


def test_a_block_that_was_kept_while_scanning_is_not_decompressed_again(tmp_path, begun):
    store = Store(cache_dir=tmp_path / "cache", cache_bytes=64 << 20)
    shards = Shards(tmp_path, "gz", "cache", store)
    block = np.frombuffer(shards.data[0][1000:5000], np.uint8)
    keep_block(store, shards.places[0], "gz", start=1000, data=block, crc32=zlib.crc32(block))
    shards.check(0, 1000, 5000)
    assert not begun


def test_another_version_of_a_shard_has_other_blocks(tmp_path):
    store = Store(cache_dir=tmp_path / "cache", cache_bytes=64 << 20)
    shards = Shards(tmp_path, "gz", "cache", store)
    shards.check(0, 0, 100)
    Path(shards.places[0].path).write_bytes(compress("gz", b"other"))
    again = CompressedShards(store, [pin(shards.places[0].path)], ["gz"])
    assert again.read_block(0, 0, 5, zlib.crc32(b"other")).tobytes() == b"other"


def test_a_block_that_has_left_the_cache_is_decompressed_again(tmp_path, begun):
    cache = tmp_path / "cache"
    shards = Shards(tmp_path, "gz", "cache", Store(cache_dir=cache, cache_bytes=64 << 20))
    shards.check(0, 100, 200)
    for path in (cache / "blocks").rglob("*"):
        if path.is_file():
            path.unlink()
    shards.blocks.close()
    shards.check(0, 100, 200)
    assert begun == ["0", "0"]


def test_a_reader_that_is_no_longer_wanted_ends(tmp_path):
    shards = Shards(tmp_path, "gz", "stream")
    with cancellable(lambda: True), pytest.raises(ReadCancelled):
        shards.check(0, 2_000_000, 2_100_000)
    shards.check(0, 2_000_000, 2_100_000)


def test_a_forked_child_has_streams_of_its_own(tmp_path):
    shards = Shards(tmp_path, "gz", "stream")
    shards.check(0, 0, 100)
    with shards.blocks._streams()._opened[0]._lock:  # as another thread would hold it in the moment of the fork
        pid = os.fork()
        if pid == 0:
            try:
                shards.check(0, 100, 200)
                os._exit(0)
            finally:
                os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    shards.check(0, 100, 200)


def test_pickles_carry_no_streams(tmp_path):
    shards = Shards(tmp_path, "gz", "stream")
    shards.check(0, 0, 100)
    shards.blocks = pickle.loads(pickle.dumps(shards.blocks))
    shards.check(0, 100, 200)


@both
@pytest.mark.parametrize("mode", ["cache", "stream"])
def test_the_blocks_of_an_index_are_those_of_the_tar(tmp_path, codec, mode, begun):
    plain = tar_bytes([(f"{number:04d}.bin", random_bytes(50_000, number)) for number in range(150)])
    place = written(tmp_path, codec, compress(codec, plain))
    options = {"cache_dir": tmp_path / "cache", "cache_bytes": 64 << 20} if mode == "cache" else {}
    store = Store(**options)
    index = open_tar_index([place.path], store, compressed=mode)
    assert index.codecs == (codec,)
    assert index.has_crc32.all()
    blocks = CompressedShards(store, index.shards, index.codecs, mode=mode)
    assert len(index.block_starts) > 1
    for start, stop, crc32 in zip(index.block_starts, index.block_stops, index.block_crc32, strict=True):
        assert blocks.read_block(0, int(start), int(stop), int(crc32)).tobytes() == plain[start:stop]
    assert begun == ([] if mode == "cache" else ["x"])  # the scan put them into the cache


@both
def test_a_set_that_does_not_fit_the_cache_is_refused_at_opening(tmp_path, codec):
    plain = tar_bytes([(f"{number:04d}.bin", bytes(1 << 20)) for number in range(20)])
    place = written(tmp_path, codec, compress(codec, plain))
    store = Store(cache_dir=tmp_path / "cache", cache_bytes=10 << 20)
    with pytest.raises(StorageError, match=r"Store\(cache_bytes=...\) more.*compressed=\"stream\""):
        open_tar_index([place.path], store, compressed="cache")
    assert open_tar_index([place.path], store, compressed="stream").samples == 20
