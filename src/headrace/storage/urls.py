"""URLs: what is one, what it may show of itself, and which names a pattern stands for.

A URL may be a chain of links as fsspec has them, "zip://x.npy::s3://bucket/a.zip": the first within the second.
"""

import math
import os
import re
import string
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus

from headrace.errors import ArgumentError

_SCHEME = r"[A-Za-z][A-Za-z0-9+.\-]{1,30}://"  # two letters at least: "C://" is none
_URL = re.compile(rf"(?:[A-Za-z][A-Za-z0-9+.\-]+::)*({_SCHEME})")
_SERVER = re.compile(rf"{_SCHEME}[^/?#]*")
_LINKS = re.compile(r"(?<!\[)::(?![^\[\]/]*\])")  # but not those in an IPv6 address
_WEB = {"http", "https"}
_CONTAINER_IN_USERINFO = {"abfs", "abfss", "wasb", "wasbs"}  # abfss://container@account.../path

_MOST_NAMES = 10_000_000
_ALPHABET = string.ascii_uppercase + string.ascii_lowercase
_INNERMOST = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?\d+|[A-Za-z])\.\.(-?\d+|[A-Za-z])(?:\.\.-?(\d+))?")

_HIDDEN = "***"
_LEAST_SECRET = 4  # characters: shorter ones would be found in any text
# What gcsfs's `token` may be that is no secret
_NO_SECRETS = {"anon", "browser", "cache", "cloud", "google_default"}
_SECRET_NAME = re.compile(
    r"(?:^|[_.-])(?:key|auth|sas|sig|pwd|cookie|login)(?:$|[_.-])"
    r"|secret|token|passw|passphrase|credential|signature|authorization|(?:api|access|account)_?key|connection_?string"
)
_URL_IN_TEXT = re.compile(rf"{_SCHEME}[^\s'\"<>]+")
_HEADER = re.compile(
    r"\b((?:proxy-)?authorization|(?:set-)?cookie|x-api-key|x-amz-security-token)"
    r"(?:(['\"]?\s*[:=,]\s*b?)(['\"]).*?\3|(\s*[:=]\s*)[^\r\n'\"]+)",
    re.IGNORECASE,
)
_BEARER = re.compile(r"\b(bearer\s+)[\w.~+/=\-]{8,}", re.IGNORECASE)
_XML = re.compile(r"<(AWSAccessKeyId|SignatureProvided|StringToSign\w*|CanonicalRequest\w*)>.*?</\1>", re.DOTALL)
# name=value, or 'name': 'value' as dicts are printed
_NAMED = re.compile(
    r"(?<![\w\-])(?=[\w\-]*?(?:signature|credential|token|secret|passw|(?:access|account|api)_?key|sig\b|pwd\b))([\w\-]++)"
    r"(=|['\"]\s*[:=,]\s*)(b?['\"])?(?(3).*?(?=['\"])|[^\s&'\",;)}\]<>]+)",
    re.IGNORECASE,
)


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether this is a URL, or a chain of them, rather than the path of a local file.

    >>> is_url("s3://bucket/x.npy"), is_url("zip://x.npy::/data/a.zip"), is_url("/data/a::b.npy"), is_url("C://x.npy")
    (True, True, False, False)
    """
    return _URL.match(os.fspath(path)) is not None


def protocol_of(url: str | os.PathLike[str]) -> str:
    """The first protocol of a URL, in lower case; "file" for the path of a local file.

    >>> protocol_of("zip://x.npy::s3://bucket/a.zip"), protocol_of("simplecache::s3://bucket/x"), protocol_of("x.npy")
    ('zip', 'simplecache', 'file')
    """
    return re.split("::|://", os.fspath(url), maxsplit=1)[0].lower() if is_url(url) else "file"


def links_of(url: str | os.PathLike[str]) -> list[str]:
    """The links of a chain, the innermost first; a URL that is none is its only link.

    >>> links_of("zip://x.npy::s3://bucket/a.zip"), links_of("http://[::1]:80/x.npy")
    (['zip://x.npy', 's3://bucket/a.zip'], ['http://[::1]:80/x.npy'])
    """
    return _LINKS.split(os.fspath(url))


def server_of(url: str) -> str:
    """The server that a URL's first link names, or the bucket, as it stands there: it may hold credentials.

    >>> server_of("s3://bucket/a/x.npy"), server_of("http://[::1]:80/x.npy"), server_of("/data/x.npy")
    ('s3://bucket', 'http://[::1]:80', '')
    """
    found = _SERVER.match(links_of(url)[0])
    return found[0] if found else ""


def shown(url: str) -> str:
    """A URL for people: without user names, passwords, and whatever follows `?` or `#`.

    Elsewhere than in http(s), where names of objects may hold these two, that is only hidden where a `=` follows.

    >>> shown("https://me:pass@host/x.npy?X-Amz-Signature=1f"), shown("zip://x.npy::s3://key:secret@bucket/a?.zip")
    ('https://host/x.npy?...', 'zip://x.npy::s3://bucket/a?.zip')
    """
    if not is_url(url):
        return url
    links: list[str] = []
    for link in links_of(url):
        # what follows a hidden query, and is no link, may have been a part of it
        if "://" in link or not (links and links[-1].endswith("...")):
            links.append(_shown_link(link))
    return "::".join(links)


def _shown_link(link: str) -> str:
    scheme, found, rest = link.partition("://")
    if not found:
        return link
    authority = rest.partition("/")[0]
    # a secret key with an unquoted "/" ends up in the path, one with "?" or "#" in the query
    is_torn = re.search(r":(?!\d*$)", authority.rpartition("]")[2]) is not None
    user, found, place = rest.rpartition("@") if is_torn else authority.rpartition("@")
    if found and not (scheme.lower() in _CONTAINER_IN_USERINFO and ":" not in user):
        rest = place if is_torn else rest[len(user) + 1 :]
    query = re.search(r"[?#]" if scheme.lower() in _WEB else r"[?#](?=[^/]*=)", rest)
    hidden = ""
    if query is not None:
        rest, hidden = rest[: query.start()], f"{query[0]}..."
    return f"{scheme}://{rest}{hidden}"


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """A text without secrets: those given, and what looks like one in URLs, headers, options and S3's XML.

    >>> redact("GET https://host/x?Signature=ab%2F: 403 (Authorization: AWS key:ab/)", ["key:ab/"])
    'GET https://host/x?... 403 (Authorization: ***'
    """
    forms = {form for secret in secrets if secret for form in (secret, quote(secret, safe=""), quote_plus(secret))}
    for form in sorted(forms, key=lambda form: (-len(form), form)):
        text = text.replace(form, _HIDDEN)
    text = _URL_IN_TEXT.sub(lambda found: shown(found[0]), text)
    text = _HEADER.sub(_hidden_header, text)
    text = _BEARER.sub(rf"\1{_HIDDEN}", text)
    text = _XML.sub(rf"<\1>{_HIDDEN}</\1>", text)
    return _NAMED.sub(lambda found: f"{found[1]}{found[2]}{found[3] or ''}{_HIDDEN}", text)


def _hidden_header(header: re.Match[str]) -> str:
    name, quoted, mark, plain = header.groups(default="")
    return f"{name}{quoted or plain}{mark}{_HIDDEN}{mark}"


def secrets_of(storage_options: Mapping[str, Any] | None) -> frozenset[str]:
    """The strings in fsspec's options that no text may show: those under names such as key, secret, token, password.

    >>> sorted(secrets_of({"key": "AKIA1", "headers": {"Authorization": "Bearer abcd"}, "endpoint_url": "x.org"}))
    ['AKIA1', 'Bearer abcd', 'abcd']
    """
    found = (part for value in _secret_values(storage_options, is_secret=False) for part in (value, *_parts(value)))
    return frozenset(part for part in found if len(part) >= _LEAST_SECRET and part not in _NO_SECRETS)


def _secret_values(value: Any, *, is_secret: bool) -> Iterator[str]:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        if is_secret:
            yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _secret_values(inner, is_secret=is_secret or _is_secret_name(name))
    elif isinstance(value, list | tuple | set | frozenset):
        items = list(value)
        is_header = len(items) == 2 and _is_secret_name(items[0])
        for item in items[1:] if is_header else items:
            yield from _secret_values(item, is_secret=is_secret or is_header)


def _is_secret_name(name: Any) -> bool:
    if not isinstance(name, str):
        return False
    return _SECRET_NAME.search(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()) is not None


def _parts(secret: str) -> Iterator[str]:
    """What else tells a secret: a header's second word, a connection string's keys, a query's signature."""
    words = secret.split()
    if len(words) == 2:
        yield words[1]
    for part in re.split(r"[;&?\s]", secret):
        name, _, value = part.partition("=")
        if _is_secret_name(name):
            yield value


def expand_braces(pattern: str) -> list[str]:
    """The names that a pattern with braces stands for, in the order of a shell; braces without a partner stay.

    Raises:
        ArgumentError: There are more than 10 million.

    >>> expand_braces("{a,b}-{008..010}.npy")
    ['a-008.npy', 'a-009.npy', 'a-010.npy', 'b-008.npy', 'b-009.npy', 'b-010.npy']
    """
    if "{" not in pattern:
        return [pattern]
    from braceexpand import braceexpand

    lonely = _lonely_braces(pattern)
    count = _count_names("".join(char for i, char in enumerate(pattern) if i not in lonely))
    if count > _MOST_NAMES:
        raise ArgumentError(f"expected a pattern of at most {_MOST_NAMES} names, got one of {count}: {shown(pattern)}")
    escaped = "".join("\\" + char if i in lonely or char == "\\" else char for i, char in enumerate(pattern))
    return list(braceexpand(escaped))


def _lonely_braces(pattern: str) -> set[int]:
    """Where braces stand that have no partner."""
    opened: list[int] = []
    lonely: set[int] = set()
    for i, char in enumerate(pattern):
        if char == "{":
            opened.append(i)
        elif char == "}":
            if opened:
                opened.pop()
            else:
                lonely.add(i)
    return lonely.union(opened)


def _count_names(pattern: str) -> int:
    """How many names a pattern with balanced braces stands for."""
    counts: list[int] = []

    def count(text: str) -> int:
        return math.prod(counts[int(number)] for number in re.findall("\0(\\d+)\0", text))

    def replace(braces: re.Match[str]) -> str:
        inside = braces[1]
        if found := _RANGE.fullmatch(inside):
            counts.append(_count_range(*found.groups()))
        else:
            counts.append(sum(map(count, inside.split(","))))
        return f"\0{len(counts) - 1}\0"

    pattern, found = _INNERMOST.subn(replace, pattern.replace("\0", ""))
    while found:
        pattern, found = _INNERMOST.subn(replace, pattern)
    return count(pattern)


def _count_range(first: str, last: str, step: str | None) -> int:
    if first.isalpha() != last.isalpha():
        return 1  # no range: it stays as it is
    if first.isalpha():
        distance = _ALPHABET.index(last) - _ALPHABET.index(first)
    elif max(len(first), len(last), len(step or "")) > 40:
        return _MOST_NAMES + 1
    else:
        distance = int(last) - int(first)
    return abs(distance) // (int(step or 1) or 1) + 1


def has_glob(url: str | os.PathLike[str]) -> bool:
    """Whether this is a pattern: it holds `*`, `?` or `[`, in http(s) before the query and after the host.

    >>> has_glob("s3://bucket/part-??.npy"), has_glob("https://host/x.npy?versions=*"), has_glob("http://[::1]:80/x")
    (True, False, False)
    """
    return any(re.search(r"[*?\[]", _globbed(link)) for link in links_of(url))


def _globbed(link: str) -> str:
    """The part of a link in which `*`, `?` and `[` mean patterns."""
    scheme, found, rest = link.partition("://")
    if found and scheme.lower() in _WEB:
        return re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")[2]
    return link
