"""How many requests a server gets at once."""

import threading

import pytest

from headrace.storage.concurrency import Concurrency


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_throttling_server_gets_half_and_then_one_more_after_each_round():
    clock = Clock()
    server = Concurrency(32, clock=clock)
    server.shrink()
    assert server.limit == 16
    for _ in range(16):
        server.grow()
    assert 16.9 <= server.limit <= 17.0
    for _ in range(10_000):
        server.grow()
    assert server.limit == 32


def test_requests_that_are_throttled_together_are_one_sign():
    clock = Clock()
    server = Concurrency(32, clock=clock)
    for _ in range(32):
        server.shrink()
    assert server.limit == 16
    clock.now = 0.6
    server.shrink()
    assert server.limit == 8


def test_one_request_is_always_allowed():
    clock = Clock()
    server = Concurrency(4, clock=clock)
    for _ in range(20):
        clock.now += 1
        server.shrink()
    assert server.limit == 1
    with server.slot(lambda: None):
        pass


def test_a_request_waits_for_its_turn_and_a_wait_can_be_given_up():
    server = Concurrency(1)

    class GivenUpError(Exception):
        pass

    def give_up():
        raise GivenUpError

    got = threading.Event()

    def second():
        with server.slot(lambda: None):
            got.set()

    with server.slot(lambda: None):
        with pytest.raises(GivenUpError), server.slot(give_up):
            pass
        thread = threading.Thread(target=second)
        thread.start()
        assert not got.is_set()
    thread.join(20)
    assert got.is_set()


def test_turns_come_in_the_order_in_which_they_were_asked_for():
    server = Concurrency(1)
    order: list[int] = []

    def take(number: int) -> None:
        with server.slot(lambda: None):
            order.append(number)

    threads = []
    with server.slot(lambda: None):
        for number in range(8):
            threads.append(threading.Thread(target=take, args=(number,)))
            threads[-1].start()
            while len(server._waiting) <= number:
                threads[-1].join(0.001)
    for thread in threads:
        thread.join(20)
    assert order == list(range(8))
