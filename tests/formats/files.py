"""Arrays saved in every way that files can hold them, to be read where they lie or from a store."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from headrace.formats import Raw

N = 13
X = np.random.default_rng(0).standard_normal((N, 3, 2)).astype(np.float32)
Y = np.arange(N) * 7
PAIRS = np.array([(i, i / 3) for i in range(N)], dtype=[("id", "i4"), ("value", "f8")])

# Saves files into a folder; what to read, relative to it, and what the columns hold.
Saved = tuple[dict[str, "str | Raw"], dict[str, np.ndarray]]
Saver = Callable[[Path], Saved]


def one_file(folder: Path) -> Saved:
    np.save(folder / "x.npy", X)
    np.save(folder / "y.npy", Y)
    return {"x": "x.npy", "y": "y.npy"}, {"x": X, "y": Y}


def many_files(folder: Path) -> Saved:
    for number, part in enumerate(np.split(X, [1, 6, 8])):
        np.save(folder / f"part-{number}.npy", part)
    np.save(folder / "y.npy", Y)
    return {"x": "part-*.npy", "y": "y.npy"}, {"x": X, "y": Y}


def fortran_and_big_endian(folder: Path) -> Saved:
    np.save(folder / "f.npy", np.asfortranarray(X))
    np.save(folder / "b.npy", X.astype(">f4"))
    np.save(folder / "fb.npy", np.asfortranarray(X.astype(">f4")))
    return {name: f"{name}.npy" for name in ("f", "b", "fb")}, dict.fromkeys(("f", "b", "fb"), X)


def fortran_beside_c(folder: Path) -> Saved:
    wide = np.arange(N * 24).reshape(N, 2, 3, 4)
    for number, part in enumerate(np.split(wide, [3, 4, 9])):
        np.save(folder / f"{number}.npy", np.asfortranarray(part) if number % 2 else part)
    return {"x": "{0..3}.npy"}, {"x": wide}


def structured(folder: Path) -> Saved:
    mixed = PAIRS.astype([("id", ">i4"), ("value", "<f8")])
    np.save(folder / "native.npy", PAIRS)
    np.save(folder / "mixed.npy", mixed)
    return {"n": "native.npy", "m": "mixed.npy"}, {"n": PAIRS, "m": PAIRS}


def raw(folder: Path) -> Saved:
    X[:5].tofile(folder / "x-0.bin")
    X[5:].tofile(folder / "x-1.bin")
    Y.astype(">i8").tofile(folder / "y.bin")
    spec = {"x": Raw("x-*.bin", dtype="f4", shape=(-1, 3, 2)), "y": Raw("y.bin", dtype=">i8", shape=(N,))}
    return spec, {"x": X, "y": Y}


def misaligned(folder: Path) -> Saved:
    for name, fortran in (("c", False), ("f", True)):
        text = f"{{'descr': '<f4', 'fortran_order': {fortran}, 'shape': (13, 3, 2)}}".ljust(79).encode()
        start = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text  # 89 bytes: no multiple of 4
        (folder / f"{name}.npy").write_bytes(start + X.tobytes("F" if fortran else "C"))
    return {"c": "c.npy", "f": "f.npy"}, {"c": X, "f": X}


SAVERS: list[Saver] = [one_file, many_files, fortran_and_big_endian, fortran_beside_c, structured, raw, misaligned]


def below(base: "Path | str", spec: Mapping[str, "str | Raw"]) -> dict[str, "str | Raw"]:
    """The same files, where `base` is the folder or the URL that they lie below."""
    return {
        name: replace(files, paths=f"{base}/{files.paths}") if isinstance(files, Raw) else f"{base}/{files}"
        for name, files in spec.items()
    }
