"""Seconds by stage, by a clock that the tests move."""

import threading

import pytest

from headrace import metrics
from headrace.metrics import STAGES, Meter, metering, stage, timed
from tests.clock import HandClock


@pytest.fixture
def clock(monkeypatch):
    clock = HandClock()
    monkeypatch.setattr(metrics, "perf_counter", clock)
    return clock


@pytest.fixture
def cpu(monkeypatch):
    cpu = HandClock()
    monkeypatch.setattr(metrics, "thread_time", cpu)
    return cpu


def seconds(meter: Meter) -> dict[str, float]:
    return {name: value for name, value in meter.totals().seconds.items() if value}


def test_a_stage_is_charged_with_the_time_within_it_but_for_that_of_stages_inside(clock):
    meter = Meter()
    with metering(meter):
        clock.pass_(1)  # in no stage
        with stage("read"):
            clock.pass_(2)
            with stage("decode"):
                clock.pass_(4)
                with stage("storage"):
                    clock.pass_(8)
            clock.pass_(16)
    assert seconds(meter) == {"read": 18, "decode": 4, "storage": 8}


def test_a_stage_within_itself_is_that_stage(clock):
    meter = Meter()
    with metering(meter), stage("user"), stage("user"):
        clock.pass_(3)
    assert seconds(meter) == {"user": 3}


def fail_within(clock: HandClock) -> None:
    with stage("read"), stage("user"):
        clock.pass_(2)
        raise ZeroDivisionError


def test_a_stage_that_is_left_by_an_error_is_charged_too(clock):
    meter = Meter()
    with metering(meter):
        with pytest.raises(ZeroDivisionError):
            fail_within(clock)
        with stage("copy"):
            clock.pass_(1)
    assert seconds(meter) == {"user": 2, "copy": 1}


def test_without_a_meter_stages_do_nothing(clock):
    meter = Meter()
    with metering(meter), metering(None), stage("read"):
        clock.pass_(1)
    with stage("decode"):
        clock.pass_(1)
    assert seconds(meter) == {}


def test_a_meter_within_another_gets_what_is_spent_there_and_the_outer_one_goes_on(clock):
    outer, inner = Meter(), Meter()
    with metering(outer), stage("read"):
        with metering(inner), stage("decode"):
            clock.pass_(2)
        clock.pass_(1)
    assert seconds(inner) == {"decode": 2}
    assert seconds(outer) == {"read": 3}  # it didn't come out of the stage in between


def test_an_unknown_stage_is_an_error():
    with pytest.raises(KeyError):
        stage("reading")


def test_cpu_seconds_of_every_stage_are_counted(clock, cpu):
    meter = Meter()
    with metering(meter), stage("read"):
        clock.pass_(5)
        cpu.pass_(1)
        with stage("user"):
            clock.pass_(5)
            cpu.pass_(3)
        cpu.pass_(1)
    totals = meter.totals()
    assert totals.cpu_seconds["read"] == 2
    assert totals.cpu_seconds["user"] == 3


def test_a_clock_that_need_not_times_the_cpu_of_user_code_alone(clock, cpu):
    meter = Meter()
    own = meter.clock(times_cpu=False)
    for name in ("decode", "user", "decode"):
        own.enter(name)
        cpu.pass_(2)
    for _ in range(3):
        own.leave()
        cpu.pass_(4)
    assert {name: value for name, value in meter.totals().cpu_seconds.items() if value} == {"user": 2 + 4}


def test_a_stage_that_goes_on_counts_as_far_as_it_has_come(clock):
    meter = Meter()
    with metering(meter), stage("storage"):
        clock.pass_(7)
        assert seconds(meter) == {"storage": 7}
        clock.pass_(1)
    assert seconds(meter) == {"storage": 8}


def test_threads_add_up_also_those_that_have_ended_and_leave_nothing_behind(clock):
    meter = Meter()
    spent = threading.Barrier(2)

    def work() -> None:
        with metering(meter), stage("read"):
            spent.wait()  # both are in the stage while the clock goes
            spent.wait()

    for _ in range(3):
        thread = threading.Thread(target=work)
        thread.start()
        spent.wait()
        clock.pass_(1)
        spent.wait()
        thread.join()
    assert seconds(meter) == {"read": 3}
    assert meter._clocks == []


def test_what_was_spent_elsewhere_can_be_added(clock):
    meter = Meter()
    meter.add({"user": 2.0}, {"user": 1.0})
    meter.add({"user": 0.5, "copy": 1.0})
    assert seconds(meter) == {"user": 2.5, "copy": 1.0}
    assert meter.totals().cpu_seconds["user"] == 1.0


def test_draining_gives_each_second_once(clock):
    meter = Meter()
    with metering(meter):
        for passing in (1, 2):
            with stage("user"):
                clock.pass_(passing)
            assert meter.drain().seconds == {**dict.fromkeys(STAGES, 0), "user": passing}
    assert sum(meter.drain().seconds.values()) == 0
    assert seconds(meter) == {"user": 3}


def test_making_the_items_of_an_iterator_is_a_stage_and_using_them_is_not(clock):
    def items():
        for i in range(3):
            clock.pass_(1)
            yield i

    meter = Meter()
    with metering(meter):
        used = []
        for item in timed("plan", items()):
            clock.pass_(10)
            used.append(item)
    assert used == [0, 1, 2]
    assert seconds(meter) == {"plan": 3}


def test_leaving_a_stage_that_began_before_the_clock_did_is_no_error(clock):
    clock_of_thread = Meter().clock()
    clock_of_thread.leave()
    clock_of_thread.enter("user")
    clock_of_thread.clear()
    clock_of_thread.leave()
