"""What `report` says of made-up stats, one case of each kind."""

from dataclasses import replace
from typing import Any

import pytest

from headrace.loader.advice import report
from headrace.loader.stats import BUSY, Stats


def stats(share: float, *, first: float = 0.0, cpu: dict[str, float] | None = None, **known: Any) -> Stats:
    """100 s, of which the consumer waited a share; stages by name in seconds, of CPU as many if not given."""
    busy = {name: known.pop(name, 0.0) for name in BUSY}
    options: dict[str, Any] = {
        "passes": 1,
        "samples": 100_000,
        "batches": 1000,
        "elapsed_seconds": 100.0,
        "wait_seconds": 100 * share,
        "first_wait_seconds": first,
        "busy_seconds": busy,
        "cpu_seconds": busy | (cpu or {}),
        "num_workers": 2,
        "cores": 8,
    }
    options |= {"num_threads": known.get("num_workers", 2)} | known
    return Stats(**options)


def test_nothing_is_to_be_changed_where_the_consumer_hardly_waits():
    assert report(stats(0.004, decode=50)) == (
        "Nothing to change: the consumer waits 0.4% of the time (1,000 samples/s): the loader keeps up, and the "
        "training step is the limit."
    )


def test_decoding_that_limits_is_given_as_many_threads_as_bring_it_in():
    assert report(stats(0.38, decode=180, read=15)) == (
        "The consumer waits 38% of the time (38.0 of 100.0 s; 1,000 samples/s); decoding is the limit: "
        "num_workers 2 -> 4."
    )


@pytest.mark.parametrize(
    ("share", "workers", "cores", "text"),
    [
        (0.1, 2, 8, "num_workers 2 -> 3."),
        (0.5, 2, 8, "num_workers 2 -> 4."),
        (0.5, 4, 64, "num_workers 4 -> 8."),
        (0.99, 2, 64, "num_workers 2 -> 8."),  # a loop that does nothing but read: step by step
        (0.99, 2, 4, "num_workers 2 -> 4, all the cores that there are; decode less: fewer columns"),
        (0.5, 3, 4, "num_workers 3 -> 4, all the cores that there are; decode less"),
        (0.5, 4, 4, "as many workers as cores (4) are at it already; decode less"),
        (0.5, 6, 4, "as many workers as cores (4) are at it already; decode less"),
        (0.5, 1, 1, "as many workers as cores (1) are at it already; decode less"),
    ],
)
def test_no_more_workers_are_suggested_than_there_are_cores(share, workers, cores, text):
    seconds = 95.0 * workers
    said = report(stats(share, decode=seconds, num_workers=workers, cores=cores, process_cpu_seconds=95.0 * cores))
    assert f"decoding is the limit: {text}" in said


def test_code_that_holds_the_gil_in_threads_belongs_into_processes():
    held = stats(0.7, user=195, read=3, cpu={"user": 98}, process_cpu_seconds=115)
    assert report(held) == (
        "The consumer waits 70% of the time (70.0 of 100.0 s; 1,000 samples/s); your code is the limit, and holds "
        'Python\'s lock (GIL): its threads together compute on 1.0 cores: worker_type="process".'
    )
    assert "GIL" in report(replace(held, cores=2))


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"cpu": {"user": 190}, "process_cpu_seconds": 210}, id="both threads compute at once"),
        pytest.param({"cpu": {"user": 98}, "process_cpu_seconds": 196, "cores": 2}, id="no core is left"),
        pytest.param({"cpu": {"user": 30}, "process_cpu_seconds": 60}, id="it waits, perhaps for a service"),
        pytest.param({"num_workers": 1, "cpu": {"user": 98}}, id="one thread has nobody to keep from running"),
    ],
)
def test_code_that_does_not_hold_the_gil_is_not_accused_of_it(other):
    workers = other.get("num_workers", 2)
    said = report(stats(0.7, **{"user": 97 * workers, **other}))
    assert "holds" not in said
    assert "your code (transform, collate_fn, a dataset's __getitem__) is the limit" in said


def test_user_code_in_processes_gets_more_of_them():
    said = report(stats(0.4, user=190, read=20, remote_seconds=190, worker_type="process", num_threads=1))
    assert "your code in the worker processes is the limit: num_workers 2 -> 4." in said
    said = report(stats(0.4, user=190, remote_seconds=190, worker_type="process", num_threads=1, cores=2))
    assert "as many workers as cores (2) are at it already; make it cheaper" in said


def test_reading_that_limits_worker_processes_is_named_instead_of_them():
    slow = {"remote_seconds": 40, "worker_type": "process", "num_threads": 1}
    assert "decoding is the limit" in report(stats(0.4, user=40, decode=80, read=15, **slow))
    assert "the worker processes have time to spare" in report(stats(0.1, user=40, decode=10, **slow))


def test_without_workers_the_first_ones_are_suggested():
    said = report(stats(0.3, num_workers=0, read=5, decode=25))
    assert "everything is done in its own thread, and decoding takes most of that: num_workers 0 -> 1," in said
    assert "num_workers 0 -> 2," in report(stats(0.8, num_workers=0, decode=80))
    assert "waiting for storage takes most of that" in report(stats(0.8, num_workers=0, storage_seconds=70, decode=10))
    assert "no core besides the training loop's" in report(stats(0.8, num_workers=0, decode=80, cores=1))


REMOTE = {"storage_seconds": 150.0, "turn_seconds": 20.0, "read": 10.0, "decode": 15.0}


@pytest.mark.parametrize(
    ("known", "texts", "never"),
    [
        (
            {"counts": {"requests": 400, "received_bytes": 3_200_000_000}},
            ["87% of the threads' time, 400 requests brought 3,200 MB", "max_requests=", "with a cache_dir="],
            "cache_bytes=",
        ),
        (
            {"counts": {"requests": 90, "received_bytes": 10**9, "cache_hits": 10, "cache_misses": 90}, "epoch": 2},
            ["the disk cache had 10% of the blocks", "larger cache_bytes="],
            "cache_dir=",
        ),
        (
            {"counts": {"requests": 90, "received_bytes": 10**9, "cache_hits": 10, "cache_misses": 90}, "epoch": 0},
            ["the disk cache had 10% of the blocks", "max_requests="],
            "cache_bytes=",  # the first epoch has to fetch it
        ),
        (
            {"counts": {"requests": 100, "retries": 30, "received_bytes": 10**9}},
            ["30 requests failed and were made again, so the server or the link is the trouble"],
            "max_requests=",
        ),
    ],
)
def test_storage_that_is_waited_for_gets_requests_or_a_cache(known, texts, never):
    said = report(stats(0.6, **REMOTE, **known))
    assert "reading waits for storage (" in said
    assert all(text in said for text in texts)
    assert never not in said
    assert "num_workers" not in said


def test_threads_that_wait_for_each_other_are_enough():
    said = report(stats(0.6, turn_seconds=120, decode=70))
    assert "more threads would not help" in said
    assert "num_workers" not in said


def test_reading_that_waits_for_the_disk_may_have_more_threads_than_there_are_cores():
    said = report(stats(0.6, read=190, cpu={"read": 20}, cores=2, process_cpu_seconds=40))
    assert "reading is the limit, and computes only 11% of its time: it waits for the disk" in said
    assert "num_workers 2 -> 5 lets more of it overlap" in said


def test_samples_that_are_decoded_again_and_again_need_memory_and_not_threads():
    said = report(stats(0.6, decode=190, counts={"read_samples": 1000, "decoded_samples": 3100}))
    assert "each sample is decoded 3.1 times: give the dataset a larger memory_bytes=" in said
    assert "num_workers" not in said


def test_copying_and_planning_are_told_apart_from_reading():
    assert "copying batches (to pinned memory or to the device) is the limit" in report(stats(0.6, copy=120, read=70))
    assert "planning the order, in the consumer's thread, is the limit" in report(stats(0.6, plan=45, read=100))


def test_copies_out_of_worker_processes_are_told_apart_from_user_code():
    processes = {"worker_type": "process", "num_threads": 0, "remote_seconds": 190.0}
    said = report(stats(0.6, user=40, copy=155, **processes))
    assert "copying batches out of the worker processes is the limit: num_workers 2 -> 5." in said
    assert "your code in the worker processes is the limit" in report(stats(0.6, user=150, copy=45, **processes))
    said = report(stats(0.6, user=40, copy=100, **processes | {"remote_seconds": 80.0}))
    assert "copying between this process and the workers is the limit: copy fewer bytes" in said


@pytest.mark.parametrize(
    "where", [{}, {"worker_type": "process", "remote_seconds": 195.0, "num_threads": 0}], ids=["threads", "processes"]
)
def test_user_code_that_waits_may_have_more_workers_than_there_are_cores(where):
    said = report(stats(0.9, user=195, cpu={"user": 4}, cores=2, process_cpu_seconds=10, **where))
    assert "computes only 2.1% of its time: it waits for files, a network or the like: num_workers 2 -> 8 lets" in said
    assert "GIL" not in said
    # a crowd leaves a thread some of a core, and this one takes next to nothing
    crowded = report(stats(0.9, user=195, cpu={"user": 4}, cores=2, process_cpu_seconds=10, load=4.5, **where))
    assert crowded == said


def test_user_code_that_computes_little_beside_a_busy_training_loop_may_wait_for_the_gil():
    said = report(stats(0.9, user=195, cpu={"user": 30}, process_cpu_seconds=110))
    assert 'or for other Python code to let go of the GIL, and then worker_type="process" helps.' in said


def test_batches_that_come_unevenly_ask_for_more_read_ahead():
    said = report(stats(0.1, decode=110))
    assert "yet the threads have time to spare, so batches come unevenly: a larger prefetch_factor=" in said


def test_small_batches_are_limited_by_their_hand_over():
    said = report(stats(0.9, read=30, batches=1_250_000))
    assert "handing over so many small batches, one every 80 µs, is the limit: give a larger batch_size=" in said


def test_a_start_that_is_all_the_waiting_is_said_to_be_that():
    said = report(stats(0.21, first=20.5, decode=60))
    assert said.startswith("The consumer waits 21% of the time (21.0 of 100.0 s, 20.5 s of it before the first batch;")
    assert "0.6% once a pass has begun: starting is all that it waits for" in said


def test_worker_processes_that_start_for_each_pass_should_stay():
    once = "With persistent_workers=True, worker processes start once, not for each pass."
    processes = {"worker_type": "process", "num_threads": 0, "user": 60, "remote_seconds": 60.0}
    assert report(stats(0.21, first=20.5, **processes)).endswith(once)
    assert report(stats(0.5, first=20.5, **processes | {"user": 150, "remote_seconds": 150.0})).endswith(once)
    assert once not in report(stats(0.21, first=20.5, persistent_workers=True, **processes))
    assert once not in report(stats(0.21, first=20.5, decode=60))


def test_a_start_counts_neither_for_the_share_nor_for_how_busy_the_workers_are():
    # in 60 s after the start 2 threads did 114 s of work, and half of it was waited for
    said = report(stats(0.7, first=40, decode=114))
    assert "40.0 s of it before the first batch" in said
    assert "decoding is the limit: num_workers 2 -> 4." in said


def test_what_was_lately_is_what_counts():
    lately = replace(stats(0.0, decode=100), elapsed_seconds=10.0)
    said = report(replace(stats(0.4, decode=190), recent=lately))
    assert said.startswith("Nothing to change: the consumer waits 0.0% of the time")
    assert said.endswith("That is of the last 10 s; in all it waited 40%.")


def test_skipped_samples_are_mentioned():
    assert report(stats(0.0, skipped=1)).endswith("1 sample was skipped because of errors.")
    assert report(stats(0.0, skipped=7)).endswith("7 samples were skipped because of errors.")


def test_nothing_delivered_is_nothing_said():
    assert report(Stats()) == "Nothing can be said yet: no batch was delivered."
    waiting = Stats(wait_seconds=12.0, elapsed_seconds=12.0)
    assert report(waiting).endswith("no batch was delivered; the consumer has waited 12.0 s for the first.")


@pytest.mark.parametrize("stage", ["decode", "user"])
def test_a_crowded_machine_is_blamed_before_the_disk_and_the_gil(stage):
    crowded = stats(0.9, cores=2, load=4.5, process_cpu_seconds=60, cpu={stage: 40}, **{stage: 190})
    assert "computes only 21% of its time, since other processes take the cores" in report(crowded)
    assert "num_workers" not in report(crowded)
    assert "other processes" not in report(replace(crowded, load=1.5))
