"""Which stage limits a loader, and what to change, in one paragraph."""

import math
from collections.abc import Iterator

from headrace.loader.stats import Stats

# A consumer that waits less than this share of the time gains nothing by anything here.
_LEVEL = 0.02
# Threads or processes that are busy this share of the time are what the consumer waits for.
_FULL = 0.75
# Of what a process may compute: above this, more threads find no core.
_CORES_TAKEN = 0.85
# Code that holds Python's lock computes on one core whatever the threads, and so takes each of them the longer.
_LOCKED_CORES = (0.7, 1.2)
_LOCKED_TIMES = 1.4
# Threads that compute less than this share of the time that they read or decode wait for something: a disk as a rule.
_COMPUTES = 0.5
# Threads of others that want to run, for each core: from here on it is them that ours wait for.
_CROWDED = 0.5
# Of the share of a core that such a load leaves to a thread; who computes less waits for something else.
_CROWDED_SHARE = 0.25
_MOST_TIMES = 4  # of the workers that there are, the most that is suggested at once
_AGAIN = 2.0  # samples decoded for each that is read, of which one is enough
_TROUBLED = 0.02  # requests made again
_SMALL_SECONDS = 200e-6  # a batch, whose hand-over is what counts

_NAMES = {
    "plan": "planning the order",
    "read": "reading",
    "decode": "decoding",
    "user": "your code (transform, collate_fn, a dataset's __getitem__)",
    "copy": "copying batches (to pinned memory or to the device)",
}
_AS_PROCESSES = ' (worker_type="process" if it is Python code)'
_CHEAPER = {
    "read": "read fewer columns, or narrower dtypes",
    "decode": "decode less: fewer columns, smaller images, or samples that are stored decoded",
    "user": "make it cheaper: work on whole batches (batch_transform=) or on the device",
    "copy": "copy fewer bytes: uint8 rather than float32, fewer columns, and convert on the device",
}


def report(stats: Stats) -> str:
    """One paragraph: whether the consumer waits, what for, and what to change.

    It speaks of the last 10 s or so where there are that many, else of all that was.
    """
    lately = stats.recent or stats
    if stats.batches == 0 or lately.elapsed_seconds == 0:
        waited = f"; the consumer has waited {stats.wait_seconds:.1f} s for the first" if stats.wait_seconds else ""
        return f"Nothing can be said yet: no batch was delivered{waited}."
    return " ".join([*_sentences(lately), *_remarks(stats)])


def _sentences(stats: Stats) -> Iterator[str]:
    after_first = stats.elapsed_seconds - stats.first_wait_seconds
    steady = (stats.wait_seconds - stats.first_wait_seconds) / after_first if after_first > 0 else 0.0
    rate = f"{stats.samples_per_second:,.0f} samples/s"
    if stats.wait_share < _LEVEL:
        yield (
            f"Nothing to change: the consumer waits {_percent(stats.wait_share)} of the time ({rate}): the loader "
            "keeps up, and the training step is the limit."
        )
        return
    start = f", {stats.first_wait_seconds:.1f} s of it before the first batch"
    says_start = stats.first_wait_seconds >= 0.1 * stats.wait_seconds and stats.first_wait_seconds >= 0.05
    head = (
        f"The consumer waits {_percent(stats.wait_share)} of the time ({stats.wait_seconds:.1f} of "
        f"{stats.elapsed_seconds:.1f} s{start if says_start else ''}; {rate})"
    )
    if steady < _LEVEL:
        yield (
            f"{head}, and {_percent(steady)} once a pass has begun: starting is all that it waits for. The loader "
            "keeps up after that: longer passes make the start count for less."
        )
    else:
        yield f"{head}; {_limit(stats, steady)}."
    if says_start and stats.worker_type == "process" and not stats.persistent_workers:
        yield "With persistent_workers=True, worker processes start once, not for each pass."


def _limit(stats: Stats, share: float) -> str:
    """What limits and what to change; `share` of the time is waited once passes have begun."""
    if stats.num_workers == 0:
        return _limit_here(stats, share)
    plan = stats.busy_seconds.get("plan", 0.0)
    if plan > 0.5 * stats.wait_seconds:
        return "planning the order, in the consumer's thread, is the limit: give a larger batch_size="
    if stats.worker_type == "process":
        if stats.remote_seconds >= _FULL * stats.num_workers * _active_seconds(stats):
            return _limit_of_processes(stats, share)
        copied_here = stats.busy_seconds["copy"] - max(0.0, stats.remote_seconds - stats.busy_seconds["user"])
        if copied_here > 0.5 * stats.wait_seconds:
            return f"copying between this process and the workers is the limit: {_CHEAPER['copy']}"
        threads_seconds = sum(_seconds_of_threads(stats).values())
        if stats.num_threads == 0 or threads_seconds < _FULL * stats.num_threads * _active_seconds(stats):
            return _unevenness(stats, "the worker processes")
        return _limit_of_threads(stats, share)
    if _all_seconds(stats) - plan < _FULL * stats.num_workers * _active_seconds(stats):
        return _unevenness(stats, "the threads")
    return _limit_of_threads(stats, share)


def _limit_here(stats: Stats, share: float) -> str:
    stage = _largest(stats)
    what = "waiting for storage" if stage in ("storage", "turn") else _NAMES[stage]
    if stats.cores == 1 and stage not in ("storage", "turn"):
        return f"{what} is what takes the time, and there is no core besides the training loop's: {_CHEAPER[stage]}"
    # what takes `share` of a loop beside the rest keeps so many threads busy while the rest goes on
    needed = max(1, min(2, math.ceil(share / max(1 - share, 1e-9))))
    return (
        f"everything is done in its own thread, and {what} takes most of that: num_workers 0 -> {needed}"
        f"{_AS_PROCESSES if stage == 'user' else ''}, so that it goes on during the training step"
    )


def _limit_of_processes(stats: Stats, share: float) -> str:
    """What limits where the worker processes are busy all the time."""
    user = stats.busy_seconds["user"]
    if user < stats.remote_seconds / 2:
        return f"copying batches out of the worker processes is the limit: {_more_workers(stats, share, 'copy')}"
    who = "your code in the worker processes"
    computed = _computed_share(stats, "user")
    if computed < _COMPUTES and not _is_crowded_out(stats, computed):
        return (
            f"{who} is the limit, and computes only {_percent(computed)} of its time: it waits for files, a network or "
            f"the like: {_workers(stats, share)} lets more of it overlap"
        )
    return f"{who} is the limit: {_more_workers(stats, share, 'user')}"


def _limit_of_threads(stats: Stats, share: float) -> str:
    """What limits where the threads are busy all the time."""
    stage = _largest(stats)
    if stage in ("storage", "turn") and stats.storage_seconds >= stats.turn_seconds:
        return _storage(stats)
    if stage == "turn":
        return (
            "the threads wait for one another to bring the blocks that several of them need, so that more threads "
            "would not help: smaller row groups or shards, or a larger shuffle_window=, let them work apart"
        )
    if stage == "user" and _holds_lock(stats):
        return (
            "your code is the limit, and holds Python's lock (GIL): its threads together compute on "
            f'{stats.cpu_seconds["user"] / stats.elapsed_seconds:.1f} cores: worker_type="process"'
        )
    again = _decoded_again(stats)
    if stage == "decode" and again >= _AGAIN:
        return (
            f"decoding is the limit, and each sample is decoded {again:.1f} times: give the dataset a larger "
            "memory_bytes=, or the loader a smaller shuffle_window="
        )
    computed = _computed_share(stats, stage)
    if computed < _COMPUTES and _is_crowded_out(stats, computed):
        return (
            f"{_NAMES[stage]} is the limit, and computes only {_percent(computed)} of its time, since other processes "
            f"take the cores (this machine has a load of {stats.load:.1f} a core): more threads would not help"
        )
    if stage in ("read", "decode") and computed < _COMPUTES and _has_cores_left(stats):
        return (
            f"{_NAMES[stage]} is the limit, and computes only {_percent(computed)} of its time: it waits "
            "for the disk, or for the training loop's Python code to let go of the GIL: "
            f"{_workers(stats, share)} lets more of it overlap"
        )
    if stage == "user" and computed < _COMPUTES and _has_cores_left(stats):
        # while the lock is held, somebody computes
        may_be_locked = stats.process_cpu_seconds >= _LOCKED_CORES[0] * stats.elapsed_seconds
        lock = ', or for other Python code to let go of the GIL, and then worker_type="process" helps'
        return (
            f"{_NAMES[stage]} is the limit, and computes only {_percent(computed)} of its time: it waits for files, a "
            f"network or the like: {_workers(stats, share)} lets more of it overlap{lock if may_be_locked else ''}"
        )
    return f"{_NAMES[stage]} is the limit: {_more_workers(stats, share, stage)}"


def _more_workers(stats: Stats, share: float, stage: str) -> str:
    """More workers for a stage that computes, as far as there are cores."""
    wanted = _wanted(stats.num_workers, share)
    possible = min(wanted, stats.cores)
    process = _AS_PROCESSES if stage == "user" and stats.worker_type == "thread" and stats.cores > 1 else ""
    if possible > stats.num_workers:
        short = f", all the cores that there are; {_CHEAPER[stage]}" if possible < wanted else ""
        return f"num_workers {stats.num_workers} -> {possible}{process}{short}"
    return f"as many workers as cores ({stats.cores}) are at it already; {_CHEAPER[stage]}{process}"


def _workers(stats: Stats, share: float) -> str:
    return f"num_workers {stats.num_workers} -> {_wanted(stats.num_workers, share)}"


def _wanted(workers: int, share: float) -> int:
    """The workers that bring in the rest of the time what so many bring in all of it."""
    enough = math.ceil(workers / max(1 - share, 1e-9) - 0.05)
    return max(workers + 1, min(enough, _MOST_TIMES * workers))


def _unevenness(stats: Stats, who: str) -> str:
    seconds = stats.elapsed_seconds / max(1, stats.batches)
    if seconds < _SMALL_SECONDS:
        return (
            f"handing over so many small batches, one every {seconds * 1e6:.0f} µs, is the limit: give a larger "
            "batch_size="
        )
    return (
        f"yet {who} have time to spare, so batches come unevenly: a larger prefetch_factor=, and prefetch_bytes= where "
        "batches are large, lets them get further ahead"
    )


def _storage(stats: Stats) -> str:
    share = (stats.storage_seconds + stats.turn_seconds) / _all_seconds(stats)
    looked_up = stats.cache_hits + stats.cache_misses
    facts = [f"{_percent(share)} of the threads' time"]
    if stats.requests:
        facts.append(f"{stats.requests} requests brought {stats.received_bytes / 1e6:,.0f} MB")
    if looked_up:
        facts.append(f"the disk cache had {_percent(stats.cache_hits / looked_up)} of the blocks")
    hints = []
    if stats.retries > _TROUBLED * max(1, stats.requests):
        hints.append(
            f"{stats.retries} requests failed and were made again, so the server or the link is the trouble, and more "
            "requests at once would add to it"
        )
    else:
        hints.append("give the dataset a Store with more max_requests=, if the server and the link have more to give")
    if not looked_up:
        hints.append("or with a cache_dir=, if the data is read more than once")
    elif stats.cache_misses > 0.1 * looked_up and stats.epoch > 0:
        hints.append("or with a larger cache_bytes=, since the data doesn't stay in the cache from epoch to epoch")
    return f"reading waits for storage ({', '.join(facts)}): {', '.join(hints)}"


def _remarks(stats: Stats) -> Iterator[str]:
    """What should be known whatever limits."""
    if stats.recent is not None and stats.recent.wait_share < _LEVEL <= stats.wait_share:
        seconds = stats.recent.elapsed_seconds
        yield f"That is of the last {seconds:.0f} s; in all it waited {_percent(stats.wait_share)}."
    if stats.skipped:
        many = "1 sample was" if stats.skipped == 1 else f"{stats.skipped} samples were"
        yield f"{many} skipped because of errors."


def _active_seconds(stats: Stats) -> float:
    """The time within passes, but for their beginnings, when workers start and nobody can be busy."""
    return max(stats.elapsed_seconds - stats.first_wait_seconds, 0.0)


def _all_seconds(stats: Stats) -> float:
    return sum(stats.busy_seconds.values()) + stats.storage_seconds + stats.turn_seconds


def _largest(stats: Stats) -> str:
    """The stage that takes most of the time; "storage" or "turn" where waiting does, but planning never."""
    seconds = _seconds_of_threads(stats)
    if seconds["storage"] > 0 and seconds["storage"] >= seconds["turn"]:
        seconds["storage"] += seconds.pop("turn")  # whoever waits for another waits for what that one waits for
    return max(seconds, key=lambda name: seconds[name])


def _seconds_of_threads(stats: Stats) -> dict[str, float]:
    """What the threads that read spend, by stage; or, without any, the consumer's."""
    elsewhere = ("plan", "user", "copy") if stats.worker_type == "process" and stats.num_workers else ("plan",)
    seconds = {name: value for name, value in stats.busy_seconds.items() if name not in elsewhere}
    return seconds | {"storage": stats.storage_seconds, "turn": stats.turn_seconds}


def _holds_lock(stats: Stats) -> bool:
    """Whether the user's code in threads keeps others from running: it gets one core, though there are more."""
    if stats.worker_type != "thread" or stats.num_workers < 2 or stats.cores < 2:
        return False
    wall, cpu = stats.busy_seconds["user"], stats.cpu_seconds["user"]
    least, most = _LOCKED_CORES
    return (
        _has_cores_left(stats)
        and wall >= 0.5 * _all_seconds(stats)
        and least <= cpu / stats.elapsed_seconds <= most
        and wall >= _LOCKED_TIMES * cpu
    )


def _has_cores_left(stats: Stats) -> bool:
    """Whether this process leaves some of its cores idle, or to others."""
    return stats.process_cpu_seconds < _CORES_TAKEN * stats.cores * stats.elapsed_seconds


def _is_crowded_out(stats: Stats, computed: float) -> bool:
    """Whether other processes want the cores so much that a stage computes only this share of its time."""
    own = (stats.num_threads + 1) / stats.cores
    return stats.load - own >= _CROWDED and computed * stats.load >= _CROWDED_SHARE


def _computed_share(stats: Stats, stage: str) -> float:
    """The share of a stage's time in which the threads computed."""
    wall = stats.busy_seconds[stage]
    return stats.cpu_seconds[stage] / wall if wall else 1.0


def _decoded_again(stats: Stats) -> float:
    return stats.counts.get("decoded_samples", 0) / max(1, stats.counts.get("read_samples", 0))


def _percent(share: float) -> str:
    return f"{share:.1%}" if share < 0.0995 else f"{share:.0%}"
