"""The check that every test goes through can itself fail."""

import threading

from tests.conftest import threads_left_after


def test_a_thread_of_ours_that_goes_on_is_found_by_name_and_one_that_ends_is_not():
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="headrace-test")
    thread.start()
    try:
        assert threads_left_after(ending_seconds=0.0) == ["headrace-test"]
    finally:
        release.set()
    assert threads_left_after() == []


def test_threads_of_others_are_left_alone():
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="somebody-else")
    thread.start()
    try:
        assert threads_left_after(ending_seconds=0.0) == []
    finally:
        release.set()
        thread.join()
