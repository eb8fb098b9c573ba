"""Credentials and what was made of them are in no error, nothing that led to it, and no log."""

import logging
import traceback

import pytest

from headrace.errors import StorageError
from tests.storage.ways import inject, patience, read


def everything_said(error: BaseException) -> str:
    """All that an exception, its notes and those that led to it can show."""
    said, seen = [], set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        said += [str(one), repr(one), repr(one.args), *getattr(one, "__notes__", ()), repr(vars(one))]
        waiting += [one.__cause__, one.__context__]
    return "\n".join([*said, *traceback.format_exception(error)])


@pytest.mark.parametrize(
    "fault",
    [
        "signature-mismatch",
        "expired-token",
        "status-500",
        "xml-error-200",
        "not-found",
        "half-header",
        "gone",
        "absent",
        "listing",
    ],
)
def test_no_error_and_no_log_shows_credentials_or_signatures(way, s3, caplog, fault):
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.DEBUG, logger="headrace")
    if way.name.startswith("http"):
        way.url = way.url.replace("://", "://me:pass-5150@") + "?token=tok-31337&X-Amz-Signature=sig-5169"
        way.options = {"headers": {"X-Api-Key": "key-8086"}}
    secrets = {s3.access_key, s3.secret_key, "pass-5150", "tok-31337", "sig-5169", "key-8086"}
    store, source = way.open(patience=patience())
    asked = []
    way.proxy.before_forwarding(bool, times=None, match=lambda request: asked.append(request) or False)
    if fault == "gone":
        read(store, source)  # must succeed, and s3fs takes its time for the first one
        way.proxy.refuse_connections()
    elif fault not in ("absent", "listing"):
        inject(way, fault, times=None)
    store._reader._patience = patience(deadline_seconds=0.3)  # for what can't be read
    if fault == "absent":
        way.delete()
        with pytest.raises(StorageError) as caught:
            store.open([way.url])
    elif fault == "listing":
        way.proxy.inject("signature-mismatch", times=None, match=lambda _: True)
        with pytest.raises(StorageError) as caught:
            store.expand(way.url.replace(".bin", "*.bin"))
    else:
        with pytest.raises(StorageError) as caught:
            read(store, source)
    for request in asked:  # what was made of the secrets
        query = dict(part.partition("=")[::2] for part in request.query.split("&"))
        secrets |= {value for name in ("X-Amz-Signature", "X-Amz-Credential") if (value := query.get(name))}
        secrets |= {part for part in request.headers.value("Authorization").split("Signature=")[1:] if part}
    said = everything_said(caught.value) + caplog.text + repr(store) + str(source)
    assert [secret for secret in secrets if secret in said] == []
    assert "cannot " in said
