"""URLs: what is one, what is shown of it, which secrets no text may hold, and which names a pattern stands for."""

import itertools
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ArgumentError
from headrace.storage import urls
from headrace.storage.urls import (
    expand_braces,
    has_glob,
    is_url,
    links_of,
    protocol_of,
    redact,
    secrets_of,
    server_of,
    shown,
)


@pytest.mark.parametrize(
    ("url", "protocol"),
    [
        ("s3://bucket/x.npy", "s3"),
        ("HTTPS://host/x.npy", "https"),
        ("abfss://container@account.dfs.core.windows.net/x", "abfss"),
        ("file:///data/x.npy", "file"),
        ("memory://x", "memory"),
        ("zip://a.npy::s3://bucket/a.zip", "zip"),
        ("simplecache::https://host/x.npy", "simplecache"),
        ("filecache::zip://a.npy::https://host/a.zip", "filecache"),
    ],
)
def test_a_url_begins_with_a_protocol(url, protocol):
    assert is_url(url)
    assert protocol_of(url) == protocol


@pytest.mark.parametrize(
    "path", ["x.npy", "/data/x.npy", "C:", "C:/x", "C:\\x", "C://x", "a::b.npy", "/a/s3://b", "s3:/x", "", "://x"]
)
def test_anything_else_is_a_local_path(path):
    assert not is_url(path)
    assert protocol_of(path) == "file"
    assert shown(path) == path


def test_paths_may_be_path_objects():
    assert not is_url(Path("/data/x.npy"))
    assert protocol_of(Path("x")) == "file"
    assert has_glob(Path("x*.npy"))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket/x.npy", "s3://bucket/x.npy"),
        ("https://host:8000/x.npy?X-Amz-Signature=1f#part", "https://host:8000/x.npy?..."),
        ("https://host/x.npy#access_token=1f", "https://host/x.npy#..."),
        ("https://me:secret@host/x.npy", "https://host/x.npy"),
        ("https://token@host", "https://host"),
        ("https://me:p@ss@host/x", "https://host/x"),
        ("http://me:pass@[::1]:80/x?y", "http://[::1]:80/x?..."),
        ("http://[::1]:80/x", "http://[::1]:80/x"),
        ("s3://AKIA:ab/cd@bucket/x.npy", "s3://bucket/x.npy"),
        ("s3://bucket/a@b/x:y@z.npy", "s3://bucket/a@b/x:y@z.npy"),
        ("s3://bucket/part-??.npy", "s3://bucket/part-??.npy"),
        ("s3://bucket/#1/x.npy?versionId=77", "s3://bucket/#1/x.npy?..."),
        ("https://host/a/{000..127}.npy", "https://host/a/{000..127}.npy"),
        ("abfss://container@account.net/x?sv=1&sig=2", "abfss://container@account.net/x?..."),
        ("abfss://me:key@account.net/x", "abfss://account.net/x"),
        ("zip://x.npy::https://k:s@host/a.zip?sig=1", "zip://x.npy::https://host/a.zip?..."),
        ("zip://x.npy::/data/a.zip", "zip://x.npy::/data/a.zip"),
        ("https://host/x?token=ab::cd", "https://host/x?..."),
        ("http://user:pa?ss@host/x", "http://host/x"),
        ("http://user:pa#ss@host/x?y", "http://host/x?..."),
        ("http://user:123?ss@host/x", "http://host/x"),
        ("s3://AKIA:ab?c=d@bucket/x.npy", "s3://bucket/x.npy"),
        ("https://me:pass@host/x?y=1", "https://host/x?..."),
        ("https://host:80/x?y=a@b:c", "https://host:80/x?..."),
    ],
)
def test_people_see_a_url_without_credentials_and_query(url, expected):
    assert shown(url) == expected
    assert shown(expected) == expected


@pytest.mark.parametrize(
    ("url", "links", "server"),
    [
        ("s3://bucket/a/x.npy", ["s3://bucket/a/x.npy"], "s3://bucket"),
        ("http://[::1]:80/x", ["http://[::1]:80/x"], "http://[::1]:80"),
        ("http://[::1/x", ["http://[::1/x"], "http://[::1"),
        ("https://host?x/y", ["https://host?x/y"], "https://host"),
        ("zip://x::http://[fe80::1]/a", ["zip://x", "http://[fe80::1]/a"], "zip://x"),
        ("/data/x", ["/data/x"], ""),
    ],
)
def test_links_and_servers_are_told_of_any_url_valid_or_not(url, links, server):
    assert links_of(url) == links
    assert server_of(url) == server


SECRET = "wJalrXUt/nFEMI+K7MDENG"


@pytest.mark.parametrize(
    "text",
    [
        f"cannot read https://me:{SECRET}@host/x.npy: 403",
        f"'https://host/x.npy?X-Amz-Credential=a&X-Amz-Signature={SECRET}'",
        f"GET /x.npy?AWSAccessKeyId={SECRET}&Expires=17",
        f"GET /x.npy?Expires=17&Signature={SECRET}",
        f"?sv=2020&sig={SECRET}",
        f"X-Amz-Security-Token={SECRET}",
        f"token={SECRET}",
        f"Authorization: AWS4-HMAC-SHA256 Credential=AKIA/20260101/us, SignedHeaders=host, Signature={SECRET}",
        f"authorization: Basic {SECRET}\r\nHost: x",
        f"{{'Authorization': 'Bearer {SECRET}', 'Range': 'bytes=0-1'}}",
        f"[('Authorization', b'Bearer {SECRET}')]",
        f"Cookie: session={SECRET}",
        f"sent Bearer {SECRET} and",
        f"S3FileSystem(secret='{SECRET}')",
        f"{{'aws_secret_access_key': '{SECRET}'}}",
        f"AccountKey={SECRET};EndpointSuffix=core.windows.net",
        f"<Error><AWSAccessKeyId>{SECRET}</AWSAccessKeyId></Error>",
        f"<StringToSign>AWS4\n{SECRET}\n</StringToSign>",
    ],
)
def test_what_looks_like_a_secret_is_taken_out_of_any_text(text):
    hidden = redact(text)
    assert SECRET not in hidden
    assert "***" in hidden or "https://host/x.npy" in hidden
    assert redact(hidden) == hidden


def test_secrets_that_are_known_are_taken_out_wherever_they_stand_and_however_they_are_quoted():
    quoted = "wJalrXUt%2FnFEMI%2BK7MDENG"
    assert redact(f"a {SECRET} b {quoted}c", [SECRET, "wJal", ""]) == "a *** b ***c"


def test_a_text_without_secrets_stays_as_it_is():
    text = (
        'StorageError: expected 200 bytes at byte 17 of s3://bucket/key=3/x.npy (ETag "abc"), got the key\'s end; '
        "the token has expired: sign in again. The authorization header is malformed <Code>AccessDenied</Code>"
    )
    assert redact(text, ["secret"]) == text


def test_the_rest_of_a_text_stays_readable():
    assert redact("GET /x?Signature=ab&part=1: 'a token=b'") == "GET /x?Signature=***&part=1: 'a token=***'"
    assert redact("{'Authorization': 'Bearer abc', 'Range': 'bytes=0-1'}") == (
        "{'Authorization': '***', 'Range': 'bytes=0-1'}"
    )


def test_redacting_a_long_text_takes_no_time_of_note():
    redact("a" * 300_000)
    redact("token" * 50_000)


def test_secrets_are_found_in_fsspec_s_options_by_their_names():
    options = {
        "key": "access1",
        "secret": "secret1",
        "token": {"private_key": "private1", "kind": ["service1"]},
        "client_kwargs": {
            "endpoint_url": "http://127.0.0.1:8333",
            "aws_session_token": "session1",
            "headers": {"Authorization": "Bearer bearer1", "Range": "bytes=0-1"},
        },
        "headers": [("X-Api-Key", "apikey1"), ("Accept", "text/plain")],
        "account_key": b"account1",
        "accountKey": "account2",
        "sas_token": "?sv=2020&sig=shared1",
        "connection_string": "AccountName=me;AccountKey=inner1==;EndpointSuffix=core",
        "credential": "credential1",
        "auth": ("user1", "password1"),
        "s3": {"password": "password2"},
        "anon": False,
        "bucket": "bucket1",
        "keyboard": "letters",
    }
    assert secrets_of(options) == {
        *("access1", "secret1", "private1", "service1", "session1", "Bearer bearer1", "bearer1", "apikey1"),
        *("account1", "account2", "?sv=2020&sig=shared1", "shared1", "inner1==", options["connection_string"]),
        *("credential1", "user1", "password1", "password2"),
    }


def test_what_is_short_or_a_known_word_is_no_secret():
    assert secrets_of({"key": "abc", "token": "anon", "secret": None, "password": 1234}) == frozenset()
    assert secrets_of({"token": "google_default"}) == secrets_of(None) == secrets_of({}) == frozenset()


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("x.npy", ["x.npy"]),
        ("x-{000000..000002}.npy", ["x-000000.npy", "x-000001.npy", "x-000002.npy"]),
        ("{8..10}", ["8", "9", "10"]),
        ("{08..10}", ["08", "09", "10"]),
        ("{3..1}", ["3", "2", "1"]),
        ("{0..10..5}", ["0", "5", "10"]),
        ("{a..c}", ["a", "b", "c"]),
        ("s3://{a,b}/{0..1}", ["s3://a/0", "s3://a/1", "s3://b/0", "s3://b/1"]),
        ("{a,b{1..2},}x", ["ax", "b1x", "b2x", "x"]),
        ("{a}{}", ["{a}{}"]),
        ("a{b{1,2}", ["a{b1", "a{b2"]),
        ("a}b{1,2}", ["a}b1", "a}b2"]),
        ("}{", ["}{"]),
        ("a\\{1,2}", ["a\\1", "a\\2"]),
        ("{a..9}", ["{a..9}"]),
    ],
)
def test_braces_are_expanded_as_a_shell_does_and_lonely_ones_stay(pattern, names):
    assert expand_braces(pattern) == names


letters = st.text("ab{},.19", max_size=14)


@given(pattern=letters | st.lists(st.sampled_from(["{", "}", ",", "a", "1..3", "b..d..2"]), max_size=12).map("".join))
def test_names_are_counted_before_they_are_made(pattern):
    lonely = urls._lonely_braces(pattern)
    names = expand_braces(pattern)
    assert len(names) == urls._count_names("".join(char for i, char in enumerate(pattern) if i not in lonely))


@pytest.mark.parametrize(
    ("pattern", "count"),
    [("x{0..10000000}", 10_000_001), ("{0..9999}{0..999}{a,b}", 20_000_000), ("{{1..9999999},{1..9}}", 10_000_008)],
)
def test_more_than_ten_million_names_are_refused_before_they_are_made(pattern, count, monkeypatch):
    with pytest.raises(ArgumentError) as refusal:
        expand_braces(pattern)
    assert str(refusal.value) == f"expected a pattern of at most 10000000 names, got one of {count}: {pattern}"


def test_ranges_of_absurdly_long_numbers_are_refused():
    with pytest.raises(ArgumentError, match="at most 10000000 names"):
        expand_braces("{1.." + "9" * 5000 + "}")


@pytest.mark.skipif(not os.access("/bin/bash", os.X_OK), reason="compares with bash, which is not here")
def test_braces_are_expanded_as_bash_does():
    parts = ["a", "{b,c}", "{1..3}", "{01..3}", "{x,{y,z}}", "{c..a}"]
    patterns = ["".join(chosen) for chosen in itertools.product(parts, repeat=2)]
    shell = subprocess.run(
        ["/bin/bash", "-c", "\n".join(f"echo {pattern}" for pattern in patterns)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert [expand_braces(pattern) for pattern in patterns] == [line.split() for line in shell.stdout.splitlines()]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket/*.npy", True),
        ("s3://bucket/x?.npy", True),
        ("/data/[ab].npy", True),
        ("zip://*.npy::https://host/a.zip", True),
        ("https://host/*.npy?x=1", True),
        ("https://host/x.npy?x=*[", False),
        ("http://[::1]:80/x.npy", False),
        ("http://host/x.npy#[1]", False),
        ("s3://bucket/x.npy", False),
        ("https://host", False),
    ],
)
def test_a_pattern_holds_a_star_a_question_mark_or_a_bracket(url, expected):
    assert has_glob(url) is expected
