"""The index of shards in memory: what their scans say, numbered through."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.formats.column_files import names_below_root
from headrace.formats.local_pin import LocalPin
from headrace.formats.npy import ArrayFile
from headrace.formats.tar_index import relative_names
from headrace.formats.tar_index_building import build_index, scan_of
from headrace.formats.tar_table import FieldInfo
from tests.formats.tar_scans import assert_same_scan, pins, scan_made_of

MIXED = [
    [("a", {"cls": 1, "jpg": 700}), ("dir/b", {"cls": 2, "jpg": 5})],
    [],
    [("c", {"jpg": 9}), ("a", {"seg.png": 0, "cls": 513}), ("d", {"cls": 1, "jpg": 2})],
]


@st.composite
def shards(draw):
    """Lists of shards, each a list of (key, {field: bytes}), like those of `MIXED`."""
    fields = st.dictionaries(st.sampled_from(["cls", "jpg", "seg.png", "txt"]), st.integers(0, 2000), min_size=1)
    names = st.text("abc/é", min_size=1, max_size=4)
    shard = st.lists(st.tuples(names, fields), max_size=6, unique_by=lambda sample: sample[0])
    return draw(st.lists(shard, min_size=1, max_size=4))


def index_of(samples, **options):
    scans = [scan_made_of(shard, **options) for shard in samples]
    return build_index(pins(scans), [None] * len(scans), scans)


def flat(samples):
    return [(number, *sample) for number, shard in enumerate(samples) for sample in shard]


@given(shards(), st.lists(st.sampled_from(["cls", "jpg", "seg.png", "gone"]), min_size=1, unique=True))
def test_a_payload_is_where_the_shard_has_it(samples, fields):
    index = index_of(samples)
    scans = [scan_made_of(shard) for shard in samples]
    assert index.samples == len(flat(samples))
    located = index.locate(np.arange(index.samples), index.column_places(fields)) if index.samples else []
    for sample, (shard, key, payloads) in enumerate(flat(samples)):
        scan, within = scans[shard], sample - index.shard_samples[shard]
        members = range(scan.first_members[within], scan.first_members[within + 1])
        by_field = {scan.fields[scan.field_ids[one]]: (scan.offsets[one], scan.sizes[one]) for one in members}
        field = next((field for field in fields if field in payloads), None)
        assert tuple(located[sample]) == ((-1, -1) if field is None else by_field[field])
        assert index.shard_of(np.array([sample])).tolist() == [shard]
        assert index.key(sample) == key


@given(shards(), st.lists(st.sampled_from(["cls", "jpg", "seg.png", "gone"]), min_size=1))
def test_samples_that_lack_fields_are_counted(samples, fields):
    lacking = [i for i, (_, _, payloads) in enumerate(flat(samples)) if not payloads.keys() & set(fields)]
    assert index_of(samples).lacking(fields) == (len(lacking), lacking[0] if lacking else -1)


@given(shards())
def test_the_first_sample_of_a_key_is_found(samples):
    index = index_of(samples)
    first = {}
    for sample, (_, key, _) in enumerate(flat(samples)):
        first.setdefault(key, sample)
    assert {key: index.find(key) for key in first} == first
    assert index.keys(np.arange(index.samples)) == [key for _, key, _ in flat(samples)]


@pytest.mark.parametrize("key", ["", "b", "dir", "dir/", "ir/b", "a\0dir/b", "\0", 3, "A"])
def test_a_key_that_no_sample_has_is_not_found(key):
    with pytest.raises(KeyError, match=r"no sample has the key .* in 3 shards: /shards/0\.tar, \.\.\."):
        index_of(MIXED).find(key)


def test_a_key_that_the_only_shard_does_not_have_is_not_found():
    with pytest.raises(KeyError) as caught:
        index_of(MIXED[:1]).find("gone")
    assert caught.value.args == ("no sample has the key 'gone' in 1 shard: /shards/0.tar",)


def test_a_key_is_found_wherever_in_a_long_list_it_is(monkeypatch):
    monkeypatch.setattr("headrace.formats.tar_index._SEARCHED_BYTES", 7)
    index = index_of([[(f"{i:03}", {"x": 1}) for i in range(50)]] * 2)
    assert [index.find(f"{i:03}") for i in range(50)] == list(range(50))


def test_keys_that_are_not_utf8_are_as_in_names_of_files():
    scan = scan_made_of([("caf\udce9", {"x": 1})])
    assert b"caf\xe9" in scan.keys
    index = build_index(pins([scan]), [None], [scan])
    assert index.key(0) == "caf\udce9"
    assert index.find("caf\udce9") == 0


def test_fields_are_those_of_all_shards_in_the_order_of_their_first_occurrence():
    index = index_of(MIXED)
    assert list(index.infos.values()) == [
        FieldInfo("cls", 4, 1, 513, 517, b"cls of a"),
        FieldInfo("jpg", 4, 2, 700, 716, b"jpg of a"),
        FieldInfo("seg.png", 1, 0, 0, 0, b"seg.png of a"),
    ]
    assert index.patterns == ((0, 1), (1,), (2, 0))
    assert index.head_shards == (0, 0, 2)


def test_members_that_belong_to_no_sample_are_counted_over_all_shards():
    scans = [scan_made_of(MIXED[0], ignored={"link": 2}), scan_made_of(MIXED[2], ignored={"meta": 1, "link": 1})]
    assert build_index(pins(scans), [None, None], scans).ignored == {"link": 3, "meta": 1}


def test_blocks_are_those_of_the_shards():
    index = index_of(MIXED, block_samples=2)
    assert index.block_samples.tolist() == [0, 2, 4, 5]
    assert index.block_shards.tolist() == [0, 2, 2]
    assert index.block_starts[1] == 0
    assert index.block_starts[2] == index.block_stops[1]
    assert index.has_crc32.tolist() == [False] * 3


def test_checksums_are_known_for_the_shards_that_have_them():
    scans = [scan_made_of(MIXED[0], crc32=True), scan_made_of(MIXED[2])]
    index = build_index(pins(scans), [None, None], scans)
    assert index.has_crc32.tolist() == [True, False]
    assert index.block_crc32.tolist() == [1, 0, 0]


def test_samples_of_one_pattern_need_no_tables():
    index = index_of([MIXED[0], MIXED[0]])
    assert len(index.arrays.patterns) == len(index.arrays.first_members) == 0


@pytest.mark.parametrize("kind", ["uniform", "mixed"])
def test_the_arrays_of_an_index_travel_in_its_pickle(kind):
    index = index_of(MIXED if kind == "mixed" else [MIXED[0]])
    other = pickle.loads(pickle.dumps(index))
    places = index.column_places(["jpg"])
    ids = np.arange(index.samples)
    assert other.locate(ids, places).tolist() == index.locate(ids, places).tolist()
    assert other.keys(ids) == index.keys(ids)
    assert other.infos == index.infos
    other.check(np.array([0]))


def test_the_fingerprint_tells_names_sizes_and_numbers_apart_but_not_folders_or_times():
    scans = [scan_made_of(shard) for shard in MIXED]

    def fingerprint(folder="/shards", name="0.tar", scans=scans, mtime=1):
        places = [LocalPin(f"{folder}/{i}.tar", scan.file_bytes, mtime, i) for i, scan in enumerate(scans)]
        places[0] = LocalPin(f"{folder}/{name}", scans[0].file_bytes, mtime, 0)
        return build_index(places, [None] * len(scans), scans).fingerprint

    assert fingerprint() == fingerprint(folder="/else/where", mtime=2)
    assert (
        len({fingerprint(), fingerprint(name="x.tar"), fingerprint(scans=scans[:2]), fingerprint(scans=scans[::-1])})
        == 4
    )


@pytest.mark.parametrize(
    "paths",
    [
        ["/a.tar"],
        ["/data/a.tar"],
        ["/a.tar", "/data/b.tar"],
        ["/data/x/a.tar", "/data/xy/b.tar"],
        ["/d/../d/a.tar", "/d/b.tar"],
    ],
)
def test_shards_are_named_as_other_files_are(paths):
    places = [LocalPin(path, 1, 2, 3) for path in paths]
    names = names_below_root(ArrayFile(Path(path), np.dtype(np.uint8), (1,)) for path in paths)
    assert relative_names(places) == [names[path] for path in paths]


@given(shards(), st.booleans())
def test_a_shard_is_given_back_as_it_was_scanned(samples, crc32):
    scans = [scan_made_of(shard, crc32=crc32, ignored={"link": i} if i else {}) for i, shard in enumerate(samples)]
    index = build_index(pins(scans), [None] * len(scans), scans)
    for shard, scan in enumerate(scans):
        assert_same_scan(scan_of(index, shard), scan, heads=False)
    again = [scan_of(index, shard) for shard in range(len(scans))]
    rebuilt = build_index(pins(again), [None] * len(again), again)
    assert rebuilt.infos == index.infos
    assert rebuilt.patterns == index.patterns
    assert rebuilt.head_shards == index.head_shards


def test_a_shard_without_samples_in_a_set_without_any_is_an_index_of_none():
    index = index_of([[], []])
    assert index.samples == 0
    assert index.infos == {}
    assert index.block_samples.tolist() == [0]
    assert index.lacking(["x"]) == (0, -1)
