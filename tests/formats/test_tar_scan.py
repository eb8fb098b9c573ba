"""Scans of sound shards: they find what tarfile and webdataset find, however the bytes come."""

import io
import tarfile
from dataclasses import fields

import numpy as np
import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.formats import tar_grouping, tar_scan
from headrace.formats.tar_names import split_name
from headrace.formats.tar_scan import ShardScanner, scan_file
from headrace.formats.tar_table import BLOCK_BYTES, HEAD_BYTES
from tests.formats.tar_files import (
    END,
    header,
    long_name,
    member,
    padded,
    pax_header,
    pax_record,
    pin,
    samples_in,
    tar_bytes,
    write_tar,
    write_webdataset,
)

BLOCK = 16 << 10  # in place of BLOCK_BYTES, for small shards


@pytest.fixture(autouse=True, params=["in columns", "one at a time"])
def _few(request, monkeypatch):
    """Every test scans headers in both ways."""
    monkeypatch.setattr(tar_scan, "_FEW", 1 if request.param == "in columns" else 1 << 60)


def fed(raw, *sizes, allow=()):
    """The scan of a shard fed in pieces of these sizes (the last one repeats), and the blocks it told meanwhile."""
    scanner = ShardScanner("s.tar", allow)
    blocks, at, turn = [], 0, 0
    while at < len(raw):
        size = sizes[min(turn, len(sizes) - 1)] if sizes else len(raw)
        scanner.feed(np.frombuffer(raw[at : at + size], np.uint8))
        blocks += scanner.closed_blocks()
        at, turn = at + size, turn + 1
    scan = scanner.finish()
    blocks += scanner.closed_blocks()
    assert blocks == list(zip(scan.block_starts.tolist(), scan.block_stops.tolist(), strict=True))
    return scan


def assert_equal(one, other):
    for field in fields(one):
        expected, got = getattr(one, field.name), getattr(other, field.name)
        if isinstance(expected, np.ndarray):
            assert (expected.dtype, expected.tolist()) == (got.dtype, got.tolist()), field.name
        else:
            assert expected == got, field.name


def scanned(raw, tmp_path, *, allow=()):
    """The scan of a shard, from a file and from bytes as they stream by."""
    path = tmp_path / "s.tar"
    path.write_bytes(raw)
    scan = scan_file(pin(path), allow)
    assert_equal(scan, fed(raw, allow=allow))
    assert_equal(scan, fed(raw, 777, allow=allow))
    check_sense(scan, raw)
    return scan


def check_sense(scan, raw):
    """What holds for every scan."""
    members = len(scan.offsets)
    assert scan.file_bytes == len(raw)
    assert scan.offsets.dtype == scan.sizes.dtype == scan.first_members.dtype == np.int64
    assert scan.field_ids.dtype == np.uint32
    assert (scan.first_members[0], scan.first_members[-1]) == (0, members)
    assert (np.diff(scan.first_members) > 0).all()
    assert len(scan.key_starts) == scan.samples + 1
    assert scan.key_starts[-1] == len(scan.keys)
    assert all(scan.keys[stop - 1] == 0 for stop in scan.key_starts[1:])
    assert scan.fields == tuple(dict.fromkeys(scan.fields[number] for number in scan.field_ids))
    assert scan.block_samples[0] == 0
    assert scan.block_samples[-1] == scan.samples
    for field, head in scan.heads.items():
        first = scan.field_ids.tolist().index(scan.fields.index(field))
        assert head == raw[scan.offsets[first] : scan.offsets[first] + min(scan.sizes[first], HEAD_BYTES)]
    assert tuple(scan.heads) == scan.fields


def by_tarfile(raw):
    """The samples of a shard by tarfile and the rule, and what is ignored."""
    samples, ignored, last = [], {}, None
    with tarfile.open(fileobj=io.BytesIO(raw), mode="r|") as tar:
        for info in tar:
            split = split_name(info.name.encode("utf-8", "surrogateescape"))
            why = None
            if not info.isreg():
                why = "directory" if info.isdir() else "link" if info.issym() or info.islnk() else "special"
            elif isinstance(split, str):
                why = split
            if why is not None:
                ignored[why] = ignored.get(why, 0) + 1
                continue
            key = split[0].decode("utf-8", "surrogateescape")
            if key != last:
                samples.append((key, {}))
                last = key
            samples[-1][1][split[1]] = tar.extractfile(info).read()
    return samples, dict(sorted(ignored.items()))


def blocks_of(raw, most):
    """The blocks of a shard of one member a sample, by the rule as it is written."""
    blocks = []
    with tarfile.open(fileobj=io.BytesIO(raw), mode="r|") as tar:
        for info in tar:
            stop = info.offset_data + -(-info.size // 512) * 512
            if blocks and stop - blocks[-1][0] <= most:
                blocks[-1] = (blocks[-1][0], stop)
            else:
                blocks.append((info.offset, stop))  # of the pax header
    return blocks


KEYS = st.one_of(
    st.text("abé-/", min_size=1, max_size=8),
    st.sampled_from(["k" * 90, "dir/" * 24 + "k", "ü" * 130, "d/" * 60 + "k" * 90, "c" * 97]),
)
FIELDS = st.sampled_from(["jpg", "cls", "seg.png", "JSON", "", "a.very.long.field.of.thirty.bytes", "ß", "__x__"])
MEMBERS = st.lists(st.tuples(KEYS, FIELDS, st.binary(max_size=1500)), max_size=30).map(
    lambda members: [(f"{key}.{field}", payload) for key, field, payload in members if not key.endswith("/")]
)


@settings(max_examples=60, deadline=None)
@given(
    members=MEMBERS,
    kind=st.sampled_from(["ustar", "pax", "gnu"]),
    mtime=st.sampled_from([0.0, 12.5]),
    sizes=st.lists(st.integers(1, 4000), min_size=1, max_size=4),
)
def test_scans_find_what_tarfile_finds(members, kind, mtime, sizes, tmp_path_factory):
    if kind == "ustar":
        members = [(name, payload) for name, payload in members if len(name.encode()) <= 100]
    raw = tar_bytes(members, format=kind, mtime=mtime)
    allow = ("recurring_keys", "duplicate_fields")
    scan = fed(raw, *sizes, allow=allow)
    check_sense(scan, raw)
    path = tmp_path_factory.mktemp("shards") / "s.tar"
    path.write_bytes(raw)
    assert_equal(scan, scan_file(pin(path), allow))
    samples, ignored = by_tarfile(raw)
    seen = {why: count for why, count in scan.ignored.items() if why != "duplicate"}
    assert seen == ignored
    assert [(key, list(payloads)) for key, payloads in samples_in(scan, raw)] == [
        (key, list(payloads)) for key, payloads in samples
    ]
    if "duplicate" not in scan.ignored:
        assert samples_in(scan, raw) == samples


@settings(max_examples=30, deadline=None)
@given(
    samples=st.lists(
        st.dictionaries(st.sampled_from(["jpg", "cls", "seg.png", "txt"]), st.binary(max_size=900), min_size=1),
        min_size=1,
        max_size=30,
    ),
    mtime=st.sampled_from([None, 0.0]),
)
def test_samples_are_those_that_webdataset_reads(samples, mtime, tmp_path_factory):
    path = tmp_path_factory.mktemp("shards") / "s.tar"
    write_webdataset(
        path, ({"__key__": f"d/{i:03d}", **sample} for i, sample in enumerate(samples)), mtime=mtime, encoder=False
    )
    with path.open("rb") as file:
        members = wds.tariterators.tar_file_expander([{"url": "s.tar", "stream": file}])
        theirs = [
            (sample["__key__"], {field: payload for field, payload in sample.items() if not field.startswith("__")})
            for sample in wds.tariterators.group_by_keys(members)
        ]
    assert samples_in(scan_file(pin(path)), path.read_bytes()) == theirs


def test_shards_of_many_chunks_are_scanned_alike(tmp_path):
    payload = np.random.default_rng(0).bytes(4000)
    path = write_webdataset(
        tmp_path / "s.tar",
        ({"__key__": f"{i:06d}", "bin": payload, "txt": str(i), "seg.png": b"x" * (i % 700)} for i in range(2000)),
    )
    raw = path.read_bytes()
    scan = scan_file(pin(path))
    check_sense(scan, raw)
    assert (scan.samples, len(scan.offsets), scan.fields) == (2000, 6000, ("bin", "seg.png", "txt"))
    assert len(scan.block_starts) == -(-len(raw) // BLOCK_BYTES)
    assert_equal(scan, fed(raw, 1 << 20))
    assert_equal(scan, fed(raw, 12_345, 99_999))
    assert samples_in(scan, raw)[-1] == ("001999", {"bin": payload, "seg.png": b"x" * 599, "txt": b"1999"})


def test_large_payloads_are_hopped_over(tmp_path, monkeypatch):
    sizes = [3 << 20, 100, 0, 900_000, 5 << 20, 64 << 10, 1, 1 << 20]
    raw = tar_bytes([(f"{i}.bin", bytes([i]) * size) for i, size in enumerate(sizes)], format="pax", mtime=1.5)
    path = tmp_path / "s.tar"
    path.write_bytes(raw)
    read = []
    preadv = tar_scan.os.preadv
    monkeypatch.setattr(tar_scan, "_CHUNK_BYTES", 1 << 16)
    monkeypatch.setattr(tar_scan.os, "preadv", lambda *args: (read.append(preadv(*args)), read[-1])[1])
    scan = scan_file(pin(path))
    assert sum(read) < 1 << 20
    assert_equal(scan, fed(raw))
    check_sense(scan, raw)
    assert scan.sizes.tolist() == sizes


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([0, 1000, 6000, BLOCK - 3072, BLOCK - 2048, BLOCK, 2 * BLOCK + 1]), max_size=12),
    st.integers(4096, 3 * BLOCK),
)
def test_a_block_ends_before_a_sample_that_ends_too_far_from_its_start(sizes, chunk):
    raw = tar_bytes([(f"{i}.bin", bytes(size)) for i, size in enumerate(sizes)], format="pax", mtime=1.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tar_grouping, "BLOCK_BYTES", BLOCK)
        scan = fed(raw, chunk)
    assert list(zip(scan.block_starts.tolist(), scan.block_stops.tolist(), strict=True)) == blocks_of(raw, BLOCK)
    assert (np.diff(scan.block_samples) > 0).all()


def test_what_makes_no_sample_is_counted_by_why_and_does_not_split_samples(tmp_path):
    raw = b"".join(
        [
            member("a.x", b"1"),
            header("a/", 0, kind=b"5"),
            header("old/", 0, kind=b"\0"),
            header("to", 0, kind=b"2"),
            header("hard.txt", 0, kind=b"1"),
            header("pipe", 0, kind=b"6"),
            header("null", 0, kind=b"3"),
            member("volume.txt", b"V" * 600, kind=b"V"),
            member("README", b"read"),
            member("dir/._a.jpg", b"mac"),
            member("__meta__", b"m"),
            member("__info__/a.txt", b"m"),
            pax_header({"GNU.sparse.major": "1", "GNU.sparse.name": "a.sparse"}),
            member("GNUSparseFile/a.sparse", b"map"),
            member("a.y", b"2"),
            END,
        ]
    )
    scan = scanned(raw, tmp_path)
    assert samples_in(scan, raw) == [("a", {"x": b"1", "y": b"2"})]
    assert scan.ignored == {"directory": 2, "link": 2, "meta": 2, "no_field": 2, "sparse": 1, "special": 3}


def test_sparse_members_with_a_long_map_are_skipped_with_all_of_it(tmp_path):
    first = bytearray(header("s.x", 700, kind=b"S", magic=b"ustar  \0"))
    first[482] = 1
    first[148:156] = b" " * 8
    first[148:156] = b"%06o\0 " % sum(first)
    more = bytearray(512)
    more[504] = 1
    raw = bytes(first) + bytes(more) + bytes(512) + padded(b"s" * 700) + member("a.x", b"1") + END
    scan = scanned(raw, tmp_path)
    assert samples_in(scan, raw) == [("a", {"x": b"1"})]
    assert scan.ignored == {"sparse": 1}


def test_a_sample_with_a_field_bad_is_left_out_as_webdataset_leaves_it_out(tmp_path):
    raw = tar_bytes([("a.x", b"1"), ("b.x", b"2"), ("b.__bad__", b"1"), ("b.y", b"3"), ("c.x", b"4")])
    scan = scanned(raw, tmp_path)
    assert samples_in(scan, raw) == [("a", {"x": b"1"}), ("c", {"x": b"4"})]
    assert scan.ignored == {"bad_sample": 3}
    assert scan.fields == ("x",)


@pytest.mark.parametrize("kind", [b"0", b"\0", b"7"])
def test_all_kinds_of_regular_files_are_members(kind, tmp_path):
    raw = member("a.x", b"1", kind=kind) + member("a.empty", b"", kind=kind) + END
    assert samples_in(scanned(raw, tmp_path), raw) == [("a", {"x": b"1", "empty": b""})]


def test_headers_without_magic_are_read(tmp_path):
    raw = member("a.x", b"1", magic=bytes(8)) + member("b.x", b"2", magic=bytes(8), kind=b"\0") + END
    assert [key for key, _ in samples_in(scanned(raw, tmp_path), raw)] == ["a", "b"]


def test_long_names_come_from_the_prefix_from_gnu_and_from_pax(tmp_path):
    name = "n" * 300
    raw = b"".join(
        [
            member("k.x", b"1", prefix=b"dir/" * 30 + b"d"),
            long_name(name + ".x") + member("cut", b"2"),
            pax_header({"path": name + "2.x", "mtime": "1.5"}) + member("cut", b"3"),
            long_name("link" * 40, kind=b"K") + header("l", 0, kind=b"2", magic=b"ustar  \0"),
            long_name("e" * 100_000 + ".x") + member("cut", b"4"),
            pax_header({"path": "d/" * 50_000 + "k.x"}) + member("cut", b"5"),
            # GNU's times are no prefix
            member("g.x", b"6", magic=b"ustar  \0", prefix=b"14712345670\0"),
            END,
        ]
    )
    scan = scanned(raw, tmp_path)
    assert samples_in(scan, raw) == [
        ("dir/" * 30 + "d/k", {"x": b"1"}),
        (name, {"x": b"2"}),
        (name + "2", {"x": b"3"}),
        ("e" * 100_000, {"x": b"4"}),
        ("d/" * 50_000 + "k", {"x": b"5"}),
        ("g", {"x": b"6"}),
    ]
    assert scan.ignored == {"link": 1}


def test_a_block_starts_at_the_first_extension_header_of_its_first_member(tmp_path):
    first = member("a.x", bytes(BLOCK_BYTES))
    longer = pax_header({"comment": "no path"}) + long_name("b" * 200 + ".x")
    raw = first + longer + member("b", b"1") + pax_header({"mtime": "1.5"}) + header("d/", 0, kind=b"5") + END
    scan = scanned(raw, tmp_path)
    assert scan.block_starts.tolist() == [0, len(first)]
    assert scan.block_stops.tolist() == [len(first), len(first) + len(longer) + 1024]


def test_sizes_beyond_eight_gigabytes_are_read_in_base_256_and_from_pax():
    large = 9 << 30
    base256 = b"\x80" + large.to_bytes(11, "big")
    for start in (header("a.x", 0, size_field=base256), pax_header({"size": str(large)}) + header("a.x", 0)):
        scanner = ShardScanner("s.tar")
        scanner.feed(np.frombuffer(start, np.uint8))
        assert scanner.next_header == len(start) + large
        scanner.skip_to(scanner.next_header)
        scanner.feed(np.frombuffer(member("b.x", b"1") + END, np.uint8))
        scan = scanner.finish()
        assert scan.sizes.tolist() == [large, 1]
        assert scan.offsets.tolist() == [len(start), len(start) + large + 512]


def test_the_last_of_equal_pax_records_and_the_first_of_two_pax_headers_count_as_in_tarfile(tmp_path):
    raw = (
        pax_header(pax_record("path", "one.x") + pax_record("path", "two.x"))
        + pax_header({"path": "three.x"})
        + member("four.x", b"1")
        + END
    )
    scan = scanned(raw, tmp_path)
    assert samples_in(scan, raw) == by_tarfile(raw)[0] == [("two", {"x": b"1"})]


def test_global_pax_headers_without_names_change_nothing(tmp_path):
    raw = pax_header({"comment": "abc"}, kind=b"g") + member("a.x", b"1") + member("a.y", b"2") + END
    scan = scanned(raw, tmp_path)
    assert samples_in(scan, raw) == [("a", {"x": b"1", "y": b"2"})]


def test_payloads_that_hold_tars_stay_payloads(tmp_path):
    inner = tar_bytes([("i.x", b"1"), ("i.y", b"2" * 3000)], format="pax", mtime=1.5)
    raw = tar_bytes([("a.tar", inner), ("b.tar", inner[:512]), ("c.tar", inner), ("c.x", b"")], format="pax", mtime=1.5)
    scan = scanned(raw, tmp_path)
    assert [(key, list(payloads)) for key, payloads in samples_in(scan, raw)] == [
        ("a", ["tar"]),
        ("b", ["tar"]),
        ("c", ["tar", "x"]),
    ]


def test_names_are_kept_as_they_stand(tmp_path):
    names = ["../a.x", "/etc/b.x", "c:\\d.x", "e\nf.x", "./g.x", "h/../i.x", "j k.x"]
    raw = tar_bytes([(name, b"") for name in names])
    assert [key + ".x" for key, _ in samples_in(scanned(raw, tmp_path), raw)] == names


def test_names_that_are_not_utf_8_are_kept(tmp_path):
    raw = member(b"caf\xe9.x", b"1") + pax_header(pax_record("path", b"caf\xe8.\xe9")) + member("m", b"2") + END
    assert samples_in(scanned(raw, tmp_path), raw) == [("caf\udce9", {"x": b"1"}), ("caf\udce8", {"\udce9": b"2"})]


@pytest.mark.parametrize("end", [bytes(512), bytes(1024), bytes(100 * 512), bytes(700)])
def test_zeros_of_any_length_end_a_shard(end, tmp_path):
    raw = member("a.x", b"1") + end
    assert scanned(raw, tmp_path).samples == 1


@pytest.mark.parametrize("zeros", [512, 1024, 10240])
def test_a_shard_of_zeros_has_no_samples(zeros, tmp_path):
    scan = scanned(bytes(zeros), tmp_path)
    assert (scan.samples, scan.fields, scan.keys, scan.block_samples.tolist()) == (0, (), b"", [0])


def test_samples_of_many_members_and_fields_are_whole(tmp_path):
    raw = tar_bytes([(f"{key}.f{number}", b"") for key in "ab" for number in range(3000)])
    scan = scanned(raw, tmp_path)
    assert scan.first_members.tolist() == [0, 3000, 6000]
    assert scan.fields == tuple(f"f{number}" for number in range(3000))


def test_equal_names_in_other_letters_are_one_field(tmp_path):
    raw = tar_bytes([("a.JPG", b"1"), ("b.Jpg", b"2"), ("c.jpg", b"3"), ("d.Seg.PNG", b"")])
    assert scanned(raw, tmp_path).fields == ("jpg", "seg.png")


def test_old_checksums_of_signed_bytes_are_right(tmp_path):
    block = bytearray(header("é.x", 0))
    high = sum(byte >= 0x80 for byte in block)
    total = sum(block[:148]) + sum(block[156:]) + 256
    block[148:156] = b"%06o\0 " % (total - 256 * high)
    raw = bytes(block) + END
    assert samples_in(scanned(raw, tmp_path), raw) == [("é", {"x": b""})]


def test_members_written_by_write_tar_are_found(tmp_path):
    path = write_tar(tmp_path / "s.tar", [("a.x", b"1")], format="gnu")
    assert scan_file(pin(path)).samples == 1


def test_a_pax_header_that_begins_with_an_mtime_and_renames_its_member_renames_it(tmp_path):
    records = pax_record("mtime", "1234567890.5") + pax_record("path", "b.y\n")
    raw = pax_header(records) + member("a.x", b"1") + END
    assert samples_in(scanned(raw, tmp_path), raw) == [("b", {"y\n": b"1"})]


def test_heads_are_of_the_first_payloads_whichever_way_their_headers_were_parsed(tmp_path):
    raw = member("a.x", b"plain") + member("b.x", b"single", prefix=b"dir") + member("c.y", b"y", prefix=b"dir") + END
    assert scanned(raw, tmp_path).heads == {"x": b"plain", "y": b"y"}
