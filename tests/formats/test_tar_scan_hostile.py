"""Scans of damaged and unusual shards: every one an error that says what, where and what to do, or a named policy."""

import gzip
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import ShardError, StorageError
from headrace.formats import tar_scan
from headrace.formats.tar_scan import ShardScanner, scan_file
from tests.formats.tar_files import (
    END,
    header,
    long_name,
    member,
    pax_header,
    pax_record,
    pin,
    samples_in,
    tar_bytes,
)


@pytest.fixture(autouse=True, params=["in columns", "one at a time"])
def _few(request, monkeypatch):
    """Every test scans headers in both ways."""
    monkeypatch.setattr(tar_scan, "_FEW", 1 if request.param == "in columns" else 1 << 60)


def fed(raw, *, size=1 << 30, allow=()):
    scanner = ShardScanner("s.tar", allow)
    for at in range(0, len(raw), size):
        scanner.feed(np.frombuffer(raw[at : at + size], np.uint8))
        scanner.closed_blocks()
    return scanner.finish()


def refused(raw, tmp_path, *texts, allow=()):
    """The text of the error that a shard gives from a file and however it streams by."""
    path = tmp_path / "s.tar"
    path.write_bytes(raw)
    with pytest.raises(ShardError) as local:
        scan_file(pin(path), allow)
    for size in (1 << 30, 513):
        with pytest.raises(ShardError) as streamed:
            fed(raw, size=size, allow=allow)
        assert str(streamed.value) == str(local.value).replace(str(path), "s.tar")
    for text in ("s.tar", "expected", "got", *texts):
        assert text in str(local.value)
    return str(local.value)


def scanned(raw, tmp_path, allow):
    path = tmp_path / "s.tar"
    path.write_bytes(raw)
    scan = scan_file(pin(path), allow)
    for size in (1 << 30, 513):
        assert samples_in(fed(raw, size=size, allow=allow), raw) == samples_in(scan, raw)
    return scan


TWO = member("a.x", b"1") + member("b.x", b"2")
PAX = tar_bytes([("a.x", b"1" * 600), ("b.x", b"2")], format="pax", mtime=1.5)


def test_an_empty_file_is_no_tar(tmp_path):
    path = tmp_path / "s.tar"
    path.write_bytes(b"")
    for scan in (lambda: scan_file(pin(path)), ShardScanner("s.tar").finish):
        with pytest.raises(ShardError, match=r"s\.tar: expected a tar, got an empty file \(0 bytes\)"):
            scan()


def test_garbage_is_no_tar(tmp_path):
    refused(np.random.default_rng(0).bytes(5000), tmp_path, "at byte 0", "or no tar")
    refused(b"short", tmp_path, "expected 512 bytes of a header, got 5")


def test_other_formats_are_named(tmp_path):
    refused(gzip.compress(np.random.default_rng(0).bytes(2000)), tmp_path, "expected a tar, got gzip")


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_wrong_checksum_anywhere_is_an_error(number, tmp_path):
    members = [member(f"{key}.x", b"1") for key in "abc"]
    damaged = bytearray(b"".join(members) + END)
    damaged[1024 * number + 5] ^= 1
    refused(bytes(damaged), tmp_path, f"at byte {1024 * number}", "sum up to", "damaged")
    refused(bytes(damaged), tmp_path, "sum up to", allow=("no_end", "data_after_end"))


def test_a_header_that_is_not_where_the_one_before_says_is_an_error(tmp_path):
    refused(header("a.x", 512 * 3) + bytes(512) + b"text" * 256 + TWO[512:] + END, tmp_path, "at byte 2048")


@pytest.mark.parametrize("cut", [1, 100, 511, 513, 1000, 1024, 1025, 1536, 2047, 2048, 2100, 3071, 3072, 4000, 4096])
def test_a_shard_cut_within_a_member_is_an_error(cut, tmp_path):
    # pax header 0, its records 512, header 1024, payload 1536 to 2136, padding to 2560, pax header 2560 to 3584, ...
    refused(PAX[:cut], tmp_path, "cut" if cut % 512 else "", allow=("no_end", "data_after_end"))


@pytest.mark.parametrize("tail", [b"", bytes(511)])
def test_a_shard_cut_between_members_needs_to_be_allowed(tail, tmp_path):
    refused(TWO + tail, tmp_path, "two blocks of zeros", f"at byte {len(TWO + tail)}", 'allow=["no_end"]')
    assert scanned(TWO + tail, tmp_path, ["no_end"]).samples == 2


def test_a_shard_that_lacks_the_last_padding_needs_to_be_allowed(tmp_path):
    raw = member("a.x", b"1" * 700)[:-100]
    refused(raw, tmp_path, 'allow=["no_end"]')
    assert scanned(raw, tmp_path, ["no_end"]).block_stops.tolist() == [len(raw)]
    refused(raw[:1211], tmp_path, "expected a payload of 700 bytes at byte 512, got 699", allow=["no_end"])


@pytest.mark.parametrize("after", [TWO + END, b"\0" * 700 + b"x"])
def test_data_after_the_end_needs_to_be_allowed(after, tmp_path):
    raw = TWO + END + after
    at = len(TWO + END) + len(after) - len(after.lstrip(b"\0"))
    refused(raw, tmp_path, f"end of the tar at byte {len(TWO)}", f"data at byte {at}", 'allow=["data_after_end"]')
    scan = scanned(raw, tmp_path, ["data_after_end"])
    assert (scan.samples, scan.file_bytes) == (2, len(raw))


def test_members_after_one_block_of_zeros_lie_after_the_end(tmp_path):
    refused(TWO + bytes(512) + TWO + END, tmp_path, f"data at byte {len(TWO) + 512}")


def test_a_key_that_recurs_needs_to_be_allowed(tmp_path):
    raw = tar_bytes([("a.x", b"1"), ("b.x", b"2"), ("a.y", b"3")])
    refused(raw, tmp_path, "key 'a' again", "bytes 512 and 2560", 'allow=["recurring_keys"]')
    scan = scanned(raw, tmp_path, ["recurring_keys"])
    assert samples_in(scan, raw) == [("a", {"x": b"1"}), ("b", {"x": b"2"}), ("a", {"y": b"3"})]


def test_a_recurring_long_key_is_noticed(tmp_path):
    names = ["k" * 300 + ".x", "k" * 301 + ".x", "k" * 300 + ".y"]
    refused(tar_bytes([(name, b"") for name in names], format="gnu"), tmp_path, "again", "(300 bytes)")


def test_keys_of_one_hash_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_scan.Grouper, "_close", _without_hashes(tar_scan.Grouper._close))
    assert fed(tar_bytes([(f"{i}.x", b"") for i in range(50)])).samples == 50
    with pytest.raises(ShardError, match="key '7' again"):
        fed(tar_bytes([(f"{i}.x", b"") for i in (*range(50), 7)]))


def _without_hashes(close):
    def closing(self, members, firsts):
        close(self, members, firsts)
        self._hashes[-1][:] = 0

    return closing


@pytest.mark.parametrize("names", [["a.x", "a.x"], ["a.jpg", "a.JPG"], ["a.x", "a.y", "a.x"]])
def test_a_field_twice_in_a_sample_needs_to_be_allowed(names, tmp_path):
    raw = tar_bytes([(name, b"%d" % i) for i, name in enumerate(names)] + [("b.x", b"b")])
    refused(raw, tmp_path, "of key 'a' twice", f"at bytes 512 and {1024 * len(names) - 512}", '"duplicate_fields"')
    scan = scanned(raw, tmp_path, ["duplicate_fields"])
    assert scan.ignored == {"duplicate": 1}
    assert samples_in(scan, raw)[0][1][names[0].lower()[2:]] == b"0"
    assert scan.samples == 2


def test_a_field_twice_among_very_many_fields_is_noticed(tmp_path):
    names = [f"a.f{i}" for i in range(100)]
    refused(tar_bytes([(name, b"") for name in [*names, "a.f7"]]), tmp_path, "field 'f7' of key 'a' twice")


@pytest.mark.parametrize("field", ["__key__", "__url__", "__KEY__"])
def test_fields_with_the_names_of_our_own_are_refused(field, tmp_path):
    refused(tar_bytes([("a.x", b""), (f"a.{field}", b"")]), tmp_path, field.lower(), "at byte 1024")


@pytest.mark.parametrize(
    ("size", "texts"),
    [
        (b"\xff" * 12, ["from 0 to", "got -1"]),
        (b"\x80" + b"\xff" * 11, ["from 0 to"]),
        (b"12345678x01\0", ["octal"]),
        (b"-0000000001\0", ["octal"]),
    ],
)
def test_sizes_that_make_no_sense_are_errors(size, texts, tmp_path):
    refused(TWO + header("c.x", 0, size_field=size) + END, tmp_path, "size of member 'c.x'", "at byte 2048", *texts)


def test_sizes_beyond_the_end_of_the_file_are_errors(tmp_path):
    refused(TWO + header("c.x", 8**11 - 1) + END, tmp_path, f"expected a payload of {8**11 - 1} bytes at byte 2560")
    for size in ("1" * 18, "9" * 19, "9" * 20, "-1", "x"):
        refused(pax_header({"size": size}) + header("c.x", 0) + END, tmp_path)


@pytest.mark.parametrize(
    "payload",
    [
        b"path=a.x\n",
        b"99 path=a.x\n",
        b"3 a\n",
        b"11 path=a.x\n",
        b"0 path=a.x\n",
        b"-1 path=a.x\n",
        b"13 pathaa.xx\n",
        b"12345678901234567890 path=a\n",
        b"6 =ab\n",
        "\u00b2 path=a.x\n".encode(),
    ],
)
def test_pax_records_that_make_no_sense_are_errors(payload, tmp_path):
    refused(pax_header(payload) + member("a.x", b"") + END, tmp_path, "pax records", "at byte 0")


def test_a_nul_in_a_pax_path_is_an_error(tmp_path):
    refused(pax_header(pax_record("path", b"a.x\0.y")) + member("a.x", b"") + END, tmp_path, "without NUL")


def test_global_pax_headers_that_rename_all_members_are_errors(tmp_path):
    refused(pax_header({"path": "a.x"}, kind=b"g") + TWO + END, tmp_path, "global pax headers", "'path'")


@pytest.mark.parametrize("kind", [b"x", b"L", b"g"])
def test_extension_headers_that_claim_much_are_errors(kind, tmp_path):
    refused(TWO + header("e", (1 << 20) + 1, kind=kind) + TWO + END, tmp_path, "at most 1048576 bytes, got 1048577")


@pytest.mark.parametrize("extension", [pax_header({"mtime": "1.5"}), pax_header({"path": "c.x"}), long_name("c.x")])
def test_an_extension_header_without_its_member_is_an_error(extension, tmp_path):
    for end in (b"", END):
        refused(TWO + extension + end, tmp_path, "expected the member that", allow=["no_end"])


def test_a_shard_replaced_before_or_while_it_is_scanned_is_an_error(tmp_path, monkeypatch):
    path = tmp_path / "s.tar"
    path.write_bytes(TWO + END)
    pinned = pin(path)
    path.write_bytes(TWO + END + END)
    with pytest.raises(StorageError, match="was replaced"):
        scan_file(pinned)
    pinned = pin(path)
    preadv = tar_scan.os.preadv

    def grown(*arguments):
        with path.open("ab") as file:
            file.write(END)
        return preadv(*arguments)

    monkeypatch.setattr(tar_scan.os, "preadv", grown)
    with pytest.raises(StorageError, match="was replaced"):
        scan_file(pinned)


def test_a_shard_that_is_gone_is_an_error(tmp_path):
    path = tmp_path / "s.tar"
    path.write_bytes(TWO + END)
    pinned = pin(path)
    path.unlink()
    with pytest.raises(StorageError, match=re.escape(f"cannot read {path}: No such file")):
        scan_file(pinned)


SHARDS = [
    PAX,
    tar_bytes([("d/" * 60 + "a.x", b"1"), ("é.x", b"2" * 700), ("c.y", b"")], format="gnu"),
    pax_header({"path": "ü.x", "mtime": "1.5"}) + member("u", b"3") + TWO + END,
]


@settings(max_examples=300, deadline=None)
@given(
    raw=st.sampled_from(SHARDS),
    changes=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, 20_000),
    size=st.integers(1, 3000),
)
def test_damage_of_any_kind_is_a_shard_error_or_leaves_sense(raw, changes, cut, size):
    damaged = bytearray(raw)
    for place, byte in changes:
        damaged[place % len(raw)] = byte
    damaged = bytes(damaged[:cut])
    outcomes = []
    for one in (size, 1 << 30):
        try:
            scan = fed(damaged, size=one)
            assert ((scan.offsets >= 0) & (scan.offsets + scan.sizes <= len(damaged))).all()
            outcomes.append(samples_in(scan, damaged))
        except ShardError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]
