"""What reads the same tar shards and does nothing else: a gather from one memory map, and a bare pool that decodes."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.tar_data import BLOCK

NPY_HEADER = 128  # of a .npy file whose header is short
IMAGE_SIZE = 224


class KnownOffsets:
    """Shuffled batches of the arrays in small samples, gathered by NumPy from one memory map into fresh arrays.

    It knows where every array lies, looks at no header and reads no label.

    Args:
        path: All shards end to end.
        places: int64 (samples, 2), where each `.npy` begins, and its bytes, the same of all.
        sample_ids: int64 (samples,), the order.
        batch_size: Samples a batch; only whole batches are read.
    """

    def __init__(
        self,
        path: Path,
        places: npt.NDArray[np.int64],
        sample_ids: npt.NDArray[np.int64],
        batch_size: int,
    ) -> None:
        mapped = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
        values = (int(places[0, 1]) - NPY_HEADER) // 4
        # (blocks, values): the array that would lie at each multiple of 512 bytes; NumPy's indexing copies only rows
        blocks = (len(mapped) - NPY_HEADER - values * 4) // BLOCK + 1
        self._rows = np.lib.stride_tricks.as_strided(
            mapped[NPY_HEADER : NPY_HEADER + values * 4].view(np.float32), (blocks, values), (BLOCK, 4), writeable=False
        )
        self._first_blocks, self._batch_size = places[sample_ids, 0] // BLOCK, batch_size

    def __iter__(self) -> Iterator[npt.NDArray[np.float32]]:
        size = self._batch_size
        for start in range(0, len(self._first_blocks) - size + 1, size):
            yield self._rows[self._first_blocks[start : start + size]]


@dataclass(frozen=True, slots=True)
class BarePool:
    """Batches of images, uint8 (batch, 3, 224, 224): decoded and resized in a pool of threads, and nothing else.

    Attributes:
        path: All shards end to end.
        places: int64 (samples, 2), where each JPEG begins, and its bytes.
        sample_ids: int64 (samples,), the order.
        batch_size: Images a batch; the last one may have fewer.
        threads: How many decode.
    """

    path: Path
    places: npt.NDArray[np.int64]
    sample_ids: npt.NDArray[np.int64]
    batch_size: int
    threads: int

    def __iter__(self) -> Iterator[npt.NDArray[np.uint8]]:
        mapped = np.memmap(self.path, np.uint8, mode="r").data
        coming: deque[Future[npt.NDArray[np.uint8]]] = deque()
        with ThreadPoolExecutor(self.threads) as pool:
            for start in range(0, len(self.sample_ids), self.batch_size):
                places = self.places[self.sample_ids[start : start + self.batch_size]].tolist()
                coming.append(pool.submit(_decoded, [mapped[first : first + size] for first, size in places]))
                if len(coming) > 2 * self.threads:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()


def _decoded(payloads: list[Any]) -> npt.NDArray[np.uint8]:
    import simplejpeg
    import torch

    out = np.empty((len(payloads), 3, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    for place, payload in enumerate(payloads):
        pixels = torch.from_numpy(simplejpeg.decode_jpeg(payload, "RGB")).permute(2, 0, 1)[None]
        out[place] = torch.nn.functional.interpolate(pixels, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", antialias=True)[
            0
        ].numpy()
    return out
