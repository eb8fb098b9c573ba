"""The tar shards that are read: made once, from a seed, as webdataset's own writer writes them."""

import io
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.data import Files, made_whole

BLOCK = 512  # payloads in a tar begin at multiples of it
ALL, PLACES = "all.bin", "places.npy"
BATCH_SIZE = 256  # of small samples
SHARDS = 20
SHARD_SAMPLES = 10_000
MEMBERS_OF_A_SAMPLE = 2  # of a small one: `npy` and `cls`
VALUES = 1024  # float32 of a small sample: 4 KB
CLASSES = 1000
IMAGE_SHARDS = 8
SHARD_IMAGES = 1000
IMAGE_SIZE = (375, 500)  # height and width, most of ImageNet's; every image differs a little
QUALITY = 90
NOISE = 6.0  # of 255, the standard deviation; JPEGs are then of 52 to 64 KB
ROWS_SHARD_SAMPLES = 5000
# webdataset notes the time of writing, of which a plain header can't hold the fraction: so each member has a pax header
FIRST_MTIME = 1_764_000_000.1234567
WRITING_SECONDS = 0.000_061  # between two samples


def make_small(
    folder: Path, shards: int = SHARDS, samples: int = SHARD_SAMPLES, *, values: int = VALUES, seed: int = 0
) -> list[Path]:
    """Shards of small samples: `npy`, float32 (values,), standard normal, and `cls`, a class.

    Args:
        folder: Where they are made, or found again.
        shards: How many.
        samples: In each.
        values: Of a sample.
        seed: The same for the same arguments.

    Returns:
        The paths. Beside them lie what `places_beside` gives.

    Raises:
        StorageError: The disk is too full.
    """
    at = folder / f"tar-{shards}x{samples}-npy{values}-seed{seed}"
    paths = [at / _shard_name(number) for number in range(shards)]
    if not at.exists():
        with made_whole(at, 2 * shards * samples * (values * 4 + 4096)) as part:
            _write_shards(part, (_small(seed, number, samples, values) for number in range(shards)), "npy")
    return paths


def make_images(folder: Path, shards: int = IMAGE_SHARDS, images: int = SHARD_IMAGES, *, seed: int = 0) -> list[Path]:
    """Shards of `jpg`, about 500x375 and of 52 to 64 KB, and `cls`; what lies beside them is as for `make_small`.

    The pictures are gradients between random colours, and noise: they cost a decoder as much as photographs of as many
    bytes.

    Raises:
        StorageError: The disk is too full.
    """
    at = folder / f"tar-{shards}x{images}-jpg-seed{seed}"
    paths = [at / _shard_name(number) for number in range(shards)]
    if not at.exists():
        with made_whole(at, 2 * shards * images * 60_000) as part:
            _write_shards(part, (_images(seed, number, images) for number in range(shards)), "jpg")
    return paths


def make_rows_tar(files: Files) -> Files:
    """The same rows as tar shards beside the `.npy` files: each row a `npy` and a `cls`, 5 000 in a shard.

    Raises:
        StorageError: The disk is too full.
    """
    folder = files.x.parent
    at = folder.with_name(f"{folder.name}-tar")
    starts = range(0, files.samples, ROWS_SHARD_SAMPLES)
    paths = tuple(str(at / _shard_name(number)) for number in range(len(starts)))
    if not at.exists():
        arrays = files.arrays()
        with made_whole(at, files.samples * (files.features * 4 + 4096)) as part:
            for start, path in zip(starts, paths, strict=True):
                rows = slice(start, start + ROWS_SHARD_SAMPLES)
                samples = _samples(start, map(npy, arrays["x"][rows]), arrays["y"][rows], "npy")
                write_as_webdataset(part / Path(path).name, samples, start)
    return Files(files.x, files.y, files.samples, files.features, files.classes, shards=paths)


def places_beside(paths: Sequence[Path]) -> tuple[Path, npt.NDArray[np.int64]]:
    """What a reader needs that looks for nothing, of shards that `make_small` or `make_images` made.

    Returns:
        A file that holds all shards end to end, and int64 (samples, 2): where in it each sample's larger payload
        begins, and its bytes.
    """
    at = paths[0].parent
    places: npt.NDArray[np.int64] = np.load(at / PLACES)
    return at / ALL, places


def write_as_webdataset(path: Path, samples: Iterable[Mapping[str, Any]], start: int) -> list[int]:
    """A shard by webdataset's TarWriter; the times in it are those that writing sample `start` and the next might take.

    Returns:
        The end of each sample's last payload, padded to a block.
    """
    import webdataset as wds

    ends = []
    with path.open("wb") as file, wds.TarWriter(file, encoder=False) as writer:
        for number, sample in enumerate(samples, start):
            writer.mtime = FIRST_MTIME + number * WRITING_SECONDS
            writer.write(sample)
            ends.append(writer.tarstream.offset)
    return ends


def npy(array: npt.NDArray[Any]) -> bytes:
    """An array as the bytes of a .npy file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, array, (1, 0), allow_pickle=False)
    return file.getvalue()


def _write_shards(part: Path, shards: Iterable[Sequence[Mapping[str, Any]]], field: str) -> None:
    """Each shard, all of them end to end, and where the payloads of the field (the last of each sample) are."""
    places: list[tuple[int, int]] = []
    with (part / ALL).open("wb") as everything:
        for number, samples in enumerate(shards):
            path, before = part / _shard_name(number), everything.tell()
            ends = write_as_webdataset(path, samples, number * len(samples))
            for sample, end in zip(samples, ends, strict=True):
                size = len(sample[field])
                places.append((before + end - -(-size // BLOCK) * BLOCK, size))
            with path.open("rb") as file:
                shutil.copyfileobj(file, everything, 4 << 20)
    np.save(part / PLACES, np.array(places, np.int64))


def _small(seed: int, number: int, samples: int, values: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng([seed, 6, number])
    payloads = map(npy, rng.standard_normal((samples, values), dtype=np.float32))
    return list(_samples(number * samples, payloads, rng.integers(0, CLASSES, samples), "npy"))


def _images(seed: int, number: int, images: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng([seed, 7, number])
    grain = rng.standard_normal(1 << 20, dtype=np.float32) * np.float32(NOISE)
    payloads = [_picture(rng, grain) for _ in range(images)]
    return list(_samples(number * images, payloads, rng.integers(0, CLASSES, images), "jpg"))


def _samples(
    start: int, payloads: Iterable[bytes], labels: npt.NDArray[np.int64], field: str
) -> Iterator[dict[str, Any]]:
    """As TarWriter takes them: it sorts the fields, so that `cls` comes first."""
    for number, (payload, label) in enumerate(zip(payloads, labels.tolist(), strict=True), start):
        yield {"__key__": f"{number:09d}", "cls": b"%d" % label, field: payload}


def _picture(rng: np.random.Generator, grain: npt.NDArray[np.float32]) -> bytes:
    import simplejpeg

    height, width = (length + int(rng.integers(-20, 21)) for length in IMAGE_SIZE)
    colours = rng.uniform(0, 255, (3, 5, 7)).astype(np.float32)
    channels = _blend(height, 5) @ colours @ _blend(width, 7).T
    smooth = np.ascontiguousarray(channels.transpose(1, 2, 0))
    first = int(rng.integers(0, len(grain) - height * width))
    noise = grain[first : first + height * width].reshape(height, width, 1)
    pixels = (smooth + noise).clip(0, 255).astype(np.uint8)
    payload: bytes = simplejpeg.encode_jpeg(pixels, quality=QUALITY, colorsubsampling="420")
    return payload


def _blend(length: int, colours: int) -> npt.NDArray[np.float32]:
    """Shares, float32 (length, colours), by which each place of a line mixes the two colours that it lies between."""
    places = np.linspace(0, colours - 1, length, dtype=np.float32)[:, None]
    return (1 - np.abs(places - np.arange(colours, dtype=np.float32))).clip(0, 1)


def _shard_name(number: int) -> str:
    return f"train-{number:06d}.tar"
