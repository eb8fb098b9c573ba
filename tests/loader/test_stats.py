"""Stats as others take them."""

from headrace.loader.stats import Stats

STATS = Stats(
    passes=1,
    samples=1000,
    batches=10,
    bytes_read=4000,
    elapsed_seconds=4.0,
    wait_seconds=1.0,
    busy_seconds={"plan": 0.0, "read": 1.5, "decode": 2.0, "user": 0.0, "copy": 0.0},
    worker_type="process",
    counts={"requests": 3, "retries": 1, "cache_hits": 5, "held_bytes": 9},
)


def test_the_numbers_have_one_flat_name_each():
    numbers = STATS.as_dict()
    assert all(type(value) in (int, float) for value in numbers.values())
    assert numbers["samples_per_second"] == 250
    assert numbers["wait_share"] == numbers["recent_wait_share"] == 0.25
    assert (numbers["busy_decode_seconds"], numbers["cpu_user_seconds"]) == (2.0, 0.0)
    assert (numbers["requests"], numbers["retries"], numbers["cache_hits"], numbers["cache_misses"]) == (3, 1, 5, 0)
    assert {"epoch", "skipped", "memory_bytes", "groups_ready", "num_workers", "storage_seconds"} <= numbers.keys()


def test_names_do_not_depend_on_what_has_happened():
    assert Stats().as_dict().keys() == STATS.as_dict().keys()


def test_nothing_done_is_no_division_by_zero():
    assert (Stats().wait_share, Stats().samples_per_second) == (0, 0)


def test_as_text_it_is_one_line():
    assert str(STATS) == "1000 samples in 4.0 s (250 a second), waited 25.0%; busy: read 1.5 s, decode 2.0 s"
