"""Every harm that an answer can do ends in the right bytes, or in an error that says why there are none."""

import zlib

import numpy as np
import pytest

from benchmarks.servers.fault_proxy import FAULTS
from headrace.errors import StorageError
from headrace.storage import RangeRead
from tests.storage.ways import (
    BEYOND,
    BYTES,
    FINAL,
    GENERAL,
    HARMLESS,
    PASSING,
    SLOW,
    START,
    STOP,
    UNSEEN,
    UNSEEN_GENERAL,
    WAYS,
    inject,
    patience,
    read,
    stall_seconds,
)

PASSING_BY_WAY = [(way, fault) for fault in PASSING for way in WAYS if fault not in BEYOND.get(way, ())]
HARMLESS_BY_WAY = [(way, fault) for fault in HARMLESS for way in WAYS if fault not in BEYOND.get(way, ())]


# ---- every fault, once, twice and for ever ----


@pytest.mark.parametrize(("name", "fault"), PASSING_BY_WAY)
def test_a_fault_that_passes_ends_in_the_right_bytes(make_way, name, fault):
    way = make_way(name, alone=name in GENERAL and fault in SLOW)
    store, source = way.open(patience=patience(stall_seconds=stall_seconds(fault)))
    for times in (1, 2):
        way.proxy.clear()
        inject(way, fault, times=times)
        for start in (START, START + 1):  # what is left of it on a connection must not harm the next one
            np.testing.assert_array_equal(read(store, source, start), BYTES[start:STOP])
        assert way.faults(at_least=times) == [fault] * times


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_while_an_object_is_opened_does_no_harm(fast, fault):
    store, source = fast.open(patience=patience(stall_seconds=stall_seconds(fault)))
    inject(fast, fault, times=2)
    assert store.open([fast.url]) == [source]


@pytest.mark.parametrize(("name", "fault"), HARMLESS_BY_WAY)
def test_what_does_no_harm_is_taken_as_it_is(make_way, name, fault):
    way = make_way(name, alone=False)
    store, source = way.open()
    inject(way, fault, times=None if fault != "redirect" else 1)
    for start in (START, START + 1):
        np.testing.assert_array_equal(read(store, source, start), BYTES[start:STOP])
    assert set(way.faults()) == {fault}
    assert "retries" not in store.counts()


@pytest.mark.parametrize(("name", "fault"), [(way, fault) for way in BEYOND for fault in BEYOND[way]])
def test_what_a_client_cannot_do_is_known_and_ends_in_an_error_where_it_shows(make_way, name, fault):
    way = make_way(name, alone=False)
    store, source = way.open()
    inject(way, fault, times=None)
    if fault in UNSEEN_GENERAL:  # that is why there are checksums and confirmed reads
        assert (read(store, source) != BYTES[START:STOP]).any()
    else:
        with pytest.raises(StorageError, match="no permission to read it"):
            read(store, source)


@pytest.mark.parametrize("fault", [fault for fault in PASSING if fault != "trailing-bytes"])
def test_a_fault_that_stays_ends_in_an_error_with_all_that_one_needs_to_know(fast, fault):
    stall = 0.05 if fault in SLOW else stall_seconds(fault)
    store, source = fast.open(patience=patience(deadline_seconds=0.15, stall_seconds=stall))
    inject(fast, fault, times=None)
    with pytest.raises(StorageError) as caught:
        read(store, source)
    text = str(caught.value)
    assert f"cannot read bytes [{START}, {STOP}) of {source}: " in text
    assert "\n  gave up after " in text
    assert set(fast.faults(at_least=1)) == {fault}


@pytest.mark.parametrize("fault", ["status-503", "slow-down", "close-in-body", "range-ignored", "short-body"])
def test_a_fault_that_stays_ends_in_an_error_of_other_clients_too(make_way, fault):
    for name in ("s3-general", "http-general"):
        way = make_way(name)
        store, source = way.open(patience=patience(deadline_seconds=0.3))
        inject(way, fault, times=None)
        with pytest.raises(StorageError, match=rf"cannot read bytes \[{START}, {STOP}\) of "):
            read(store, source)


@pytest.mark.parametrize("fault", [fault for fault in FINAL if fault != "other-etag"])
def test_what_no_attempt_would_mend_is_told_after_the_first(shared, fault):
    store, source = shared.open()
    inject(shared, fault, times=None)
    with pytest.raises(StorageError, match=rf": {FINAL[fault]}: .*\n  gave up after 1 attempt in"):
        read(store, source)
    assert shared.faults() == [fault]


def test_an_answer_with_another_version_is_not_taken(fast):
    store, source = fast.open()
    inject(fast, "other-etag", times=1)
    with pytest.raises(StorageError, match=r'it has changed since it was opened: expected ETag .*, got ETag "another"'):
        read(store, source)


@pytest.mark.parametrize("fault", UNSEEN_GENERAL)
def test_a_known_checksum_finds_other_bytes_under_right_headers(shared, fault):
    store, source = shared.open()
    inject(shared, fault, times=2)
    checksum = zlib.crc32(BYTES[START:STOP])
    np.testing.assert_array_equal(read(store, source, crc32=checksum), BYTES[START:STOP])
    assert shared.faults() == [fault] * 2


@pytest.mark.parametrize("fault", UNSEEN_GENERAL)
def test_a_confirmed_read_finds_other_bytes_under_right_headers(shared, fault):
    store, source = shared.open(confirm=True)
    inject(shared, fault, times=1)
    np.testing.assert_array_equal(read(store, source), BYTES[START:STOP])
    assert shared.faults() == [fault]


def test_many_reads_through_every_fault_at_random_come_right(way):
    left_out = {*UNSEEN, *FINAL, *SLOW, *BEYOND.get(way.name, ())}
    store, source = way.open(patience=patience(deadline_seconds=60.0), max_requests=8)
    for fault in FAULTS:
        if fault not in left_out:
            way.proxy.inject(fault, times=None, share=0.02)
    starts = np.random.default_rng(1).integers(0, len(BYTES) - 5_000, 60)
    out = np.zeros((60, 5_000), np.uint8)
    store.read_ranges([RangeRead(source, int(start), row) for start, row in zip(starts, out, strict=True)])
    np.testing.assert_array_equal(out, BYTES[starts[:, None] + np.arange(5_000)])
    assert len(set(way.faults())) > 5


# ---- what has arrived, and what is asked for ----


@pytest.mark.parametrize("fault", ["close-in-body", "reset-in-body", "stall-in-body"])
def test_after_a_break_only_the_rest_is_asked_for(fast, fault):
    store, source = fast.open(patience=patience(stall_seconds=stall_seconds(fault)))
    fast.proxy.inject(fault, at_byte=60_000)
    np.testing.assert_array_equal(read(store, source), BYTES[START:STOP])
    assert fast.faults(at_least=1) == [fault]
    assert store.counts()["received_bytes"] == STOP - START  # in however many attempts: a slow proxy may stall, too
    first, *others = fast.proxy.log
    assert first.range == f"bytes={START}-{STOP - 1}"
    if fault == "close-in-body":  # a reset may overtake what was sent before it
        assert [entry.range for entry in others] == [f"bytes={START + 60_000}-{STOP - 1}"]
    assert {entry.if_match for entry in fast.proxy.log} == {source.version.removeprefix("ETag ")}


def test_a_redirect_is_followed_without_what_is_meant_for_the_first_host_only(make_way):
    way = make_way("http-fast")
    way.options = {"headers": {"Authorization": "Bearer for-the-first-host"}}
    store, source = way.open()
    asked = []
    way.proxy.inject("redirect")
    way.proxy.before_forwarding(bool, times=None, match=lambda request: asked.append(request) or False)
    np.testing.assert_array_equal(read(store, source), BYTES[START:STOP])
    assert [request.headers.value("Authorization") for request in asked] == ["Bearer for-the-first-host", ""]


def test_a_throttled_store_asks_less_at_once_and_waits_as_it_is_told(fast):
    store, source = fast.open(max_requests=8)
    fast.proxy.inject("slow-down", times=6)
    fast.proxy.inject("status-429", times=6)
    out = np.zeros((40, 100), np.uint8)
    store.read_ranges([RangeRead(source, 100 * i, row) for i, row in enumerate(out)])
    np.testing.assert_array_equal(out.ravel(), BYTES[:4000])
    assert store.counts()["retries_http-503"] == store.counts()["retries_http-429"] == 6


def test_every_fault_of_the_proxy_is_tried():
    assert set(FAULTS) == {*PASSING, *HARMLESS, *FINAL, *UNSEEN}
