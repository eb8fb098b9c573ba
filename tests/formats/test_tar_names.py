"""Keys and fields of members' names: as webdataset has them, but for names that begin with a dot."""

import re

import numpy as np
import pytest
import webdataset.tariterators as wds
from hypothesis import given
from hypothesis import strategies as st

from headrace.formats.tar_names import FIELD_WORDS, LONGEST_WORDED_KEY, split_name, split_names, word_keys
from tests.formats.tar_files import header

GOLDEN = {
    "a.jpg": ("a", "jpg"),
    "dir/a.seg.png": ("dir/a", "seg.png"),
    "a.JPG": ("a", "jpg"),
    "a.b/c.txt": ("a.b/c", "txt"),
    "x.y/z.w/c.t.u": ("x.y/z.w/c", "t.u"),
    "a.b/c": "no_field",
    "a": "no_field",
    "dir/a": "no_field",
    "./a.jpg": ("./a", "jpg"),
    "/abs/a.jpg": ("/abs/a", "jpg"),
    "../a.jpg": ("../a", "jpg"),
    "dir//a.jpg": ("dir//a", "jpg"),
    ".hidden": "no_field",
    "._a.jpg": "no_field",
    "./._a.jpg": "no_field",
    "dir/.hidden": "no_field",
    "dir/._a.jpg": "no_field",
    "dir/.DS_Store": "no_field",
    "dir.d/.x": "no_field",
    "a.": ("a", ""),
    "a..jpg": ("a", ".jpg"),
    "2024-01-01T10:00:00.123.jpg": ("2024-01-01T10:00:00", "123.jpg"),
    "a\nb.txt": ("a\nb", "txt"),
    "caf\udce9.txt": ("caf\udce9", "txt"),
    "__meta__": "meta",
    "__info__/x.json": "meta",
    "__a.b__": "meta",
    "__meta__.json": ("__meta__", "json"),
    "./__meta__/x.json": ("./__meta__/x", "json"),
    "d/__x__/a.txt": ("d/__x__/a", "txt"),
    "__a/b.txt": ("__a/b", "txt"),
    "a.b\\c.txt": ("a", "b\\c.txt"),
    "a.ÄÖ": ("a", "äö"),
    "": "no_field",
    "a/": "no_field",
    "a.b/": "no_field",
}


def raw(text):
    return text.encode("utf-8", "surrogateescape")


def text(raw):
    return raw.decode("utf-8", "surrogateescape")


def expected(name):
    """The golden rule itself, after webdataset's code."""
    if re.match(r"__[^/]*__($|/)", name):
        return "meta"
    key, field = wds.base_plus_ext(name)
    if key is None or key.endswith("/"):
        return "no_field"
    return key, field.lower()


def told(split):
    return split if isinstance(split, str) else (text(split[0]), split[1])


@pytest.mark.parametrize(("name", "split"), GOLDEN.items())
def test_each_name_of_the_golden_table_gives_its_key_and_field(name, split):
    assert told(split_name(raw(name))) == split
    assert expected(name) == split


NAMES = st.text(st.sampled_from("ab.A/_\n é\udce9-"), max_size=12).filter(
    lambda name: "\n" not in name or "/" not in name
)


@given(NAMES)
def test_a_name_is_split_as_webdataset_splits_it(name):
    assert told(split_name(raw(name))) == expected(name)


@given(st.lists(st.one_of(NAMES, st.text(st.sampled_from("ab.A/_Z"), max_size=100)), max_size=20))
def test_many_names_are_split_in_columns_as_one_at_a_time(names):
    names = [raw(name)[:100] for name in names]
    headers = np.frombuffer(b"".join(header(name, 0) for name in names), np.uint8).reshape(-1, 512)
    split = split_names(headers)
    for row, name in enumerate(names):
        one = split_name(name)
        if not split.is_plain[row]:
            unusual = isinstance(one, str) or not one[1].isascii() or len(name) >= 96 or name.startswith(b"__")
            assert unusual or len(one[1]) > 8 * FIELD_WORDS
            continue
        key = split.key_words[row].tobytes()[: split.key_bytes[row] + 1]
        assert (key, split.field_words[row].tobytes().rstrip(b"\0").decode()) == (one[0] + b"\0", one[1])


def test_what_follows_the_nul_that_ends_a_name_is_no_part_of_it():
    names = [b"a.txt\0.c", b"a.txt\0.c/d.e", b"dir/a.txt\0/b", b"a\0.txt", b"a/b\0/c.d"]
    headers = np.frombuffer(b"".join(header(name, 0) for name in names), np.uint8).reshape(-1, 512)
    split = split_names(headers)
    for row, name in enumerate(names):
        one = split_name(name.partition(b"\0")[0])
        if split.is_plain[row]:
            assert split.key_words[row].tobytes()[: split.key_bytes[row]] == one[0]
            assert split.field_words[row].tobytes().rstrip(b"\0").decode() == one[1]
    assert split.is_plain[0]


def test_long_keys_are_words_of_their_hash():
    longest, longer = b"k" * LONGEST_WORDED_KEY, b"k" * 100_000
    kept = {}
    lengths, words = word_keys([b"k", longest, longer], kept)
    assert lengths.tolist() == [1, LONGEST_WORDED_KEY, 100_000]
    assert [row.tobytes().rstrip(b"\0") for row in words[:2]] == [b"k", longest]
    assert kept == {words[2].tobytes()[:32]: longer}
