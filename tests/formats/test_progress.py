"""What those who wait are told."""

import io
import logging

import pytest

from headrace.formats.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_nothing_is_said_of_what_takes_less_than_two_seconds(clock, caplog):
    caplog.set_level(logging.INFO, "headrace")
    stream, log = Terminal(), io.StringIO()
    for where in (stream, log):
        with Progress(3, "reading footers", stream=where, clock=clock) as progress:
            progress.add(1)
            clock.now += 1.9
            progress.add(2)
    assert stream.getvalue() == log.getvalue() == caplog.text == ""


def test_a_terminal_has_one_line_that_is_written_over_and_gone_in_the_end(clock):
    stream = Terminal()
    with Progress(12, "reading footers", stream=stream, clock=clock) as progress:
        for _ in range(4):
            clock.now += 2.5
            progress.add(3)
    assert stream.getvalue().split("\r") == [
        "",
        "reading footers: 3 of 12 after 2 s",
        "reading footers: 6 of 12 after 5 s",
        "reading footers: 9 of 12 after 8 s",
        "reading footers: 12 of 12 after 10 s",
        " " * 36,
        "",
    ]


def test_a_terminal_is_not_written_to_more_than_five_times_a_second(clock):
    stream = Terminal()
    with Progress(1000, "x", stream=stream, clock=clock) as progress:
        clock.now += 2
        for _ in range(1000):
            progress.add(1)
            clock.now += 0.001
        assert stream.getvalue().count("\r") == 5


def test_elsewhere_the_log_says_it_every_ten_seconds(clock, caplog):
    caplog.set_level(logging.INFO, "headrace")
    stream = io.StringIO()
    with Progress(30, "reading footers", stream=stream, clock=clock) as progress:
        for _ in range(30):
            clock.now += 1
            progress.add(1)
    assert stream.getvalue() == ""
    assert caplog.messages == [
        "reading footers: 2 of 30 after 2 s",
        "reading footers: 12 of 30 after 12 s",
        "reading footers: 22 of 30 after 22 s",
    ]


def test_the_line_is_gone_after_an_error_too(clock):
    stream = Terminal()
    progress = Progress(2, "x", stream=stream, clock=clock)
    clock.now += 3
    progress.add(1)
    with pytest.raises(ZeroDivisionError), progress:
        1 / 0
    assert stream.getvalue().endswith("\r")
