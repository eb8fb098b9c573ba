"""WebDataset tar shards as a stream that splits itself, whose samples have numbers all the same."""

import functools
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

from headrace.datasets.arrays import store_of
from headrace.datasets.iterable import IterableView
from headrace.datasets.mapstyle import MapDataset
from headrace.errors import ArgumentError
from headrace.formats import Column, Pad
from headrace.formats.column_files import PathLike
from headrace.formats.tar_source import TarSource
from headrace.order import DECODE, hash_words
from headrace.storage import Store


class TarDataset(IterableView):
    """WebDataset shards as an IterableDataset: each sample once an epoch over all ranks and workers, in exact order.

    The shards are read as they are. An index of their members is made when they are first opened, by reading headers,
    and found again later; so every epoch is shuffled over all shards, any number of ranks and workers shares it evenly,
    and a run goes on exactly where it stopped, under another number of them too.

    With `batch_size=` it yields ready batches, for torch's `DataLoader(tars, batch_size=None)`; without it, single
    samples, for torch's own batching or a webdataset pipeline, `wds.DataPipeline(tars, wds.map(...))`. Given to
    `headrace.DataLoader`, it is read in threads: then batch size, shuffle and so on are given there.

    A sample's columns are its fields, decoded by their last extension: numbers (cls, id), text, JSON, arrays (npy, npz,
    ten), msgpack, images; all else are bytes. What would run code that the data brings (pickles) is refused unless
    `decode=` asks for it.

    Attributes:
        samples: The same as a map-style dataset: `tars.samples[i]`, `select`, `take`, `split`, in file order. What is
            decoded at random (a random crop) comes alike each time there.

    Example:
        >>> import io, pathlib, tarfile, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "train-000000.tar")
        >>> with tarfile.open(path, "w") as tar:
        ...     for number in range(3):
        ...         member = tarfile.TarInfo(f"{number:03}.cls")
        ...         member.size = 1
        ...         tar.addfile(member, io.BytesIO(b"%d" % (number * number)))
        >>> tars = TarDataset(path, batch_size=2)
        >>> [batch["cls"].tolist() for batch in tars]
        [[0, 1], [4]]
        >>> tars.samples[tars.find("002")]
        {'cls': tensor(4)}
    """

    def __init__(
        self,
        paths: PathLike | Sequence[PathLike],
        columns: Sequence[str] | None = None,
        *,
        batch_size: int | None = None,
        global_batch_size: int | None = None,
        shuffle: bool | str | None = None,
        seed: int | None = None,
        lanes: int | None = None,
        shuffle_window: int | None = None,
        drop_last: bool = False,
        pad_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        process_group: Any = None,
        on_error: str = "raise",
        max_errors: int = 100,
        decode: Mapping[str, Any] | None = None,
        pad_to: Mapping[str, int | Pad] | None = None,
        as_tuple: bool = False,
        store: Store | None = None,
        storage_options: Mapping[str, Any] | None = None,
        memory_bytes: int | None = None,
        index_dir: str | os.PathLike[str] | None = None,
        allow: Collection[str] = (),
        verify: bool = False,
        compressed: str = "cache",
    ) -> None:
        """Finds or makes the index, and reads no sample.

        Args:
            paths: A shard, a pattern (`*`, `{000000..001023}`) or a list of them: local paths, or URLs such as
                `s3://bucket/train-{000..127}.tar`.
            columns: Fields, in this order; by default all. `"jpg;png"` is whichever a sample has, under the first name;
                `"__key__"` and `"__url__"` are a sample's key and its shard.
            batch_size: Samples of a batch on each rank; None yields single samples.
            global_batch_size: Samples of a step over all ranks, instead.
            shuffle: True or "window": samples are permuted within windows of blocks of a few MiB, so that each block is
                read once; "global" over all; False, the default, is file order.
            seed: Any 64-bit integer; 0, or a loaded state's, where it is None.
            lanes: Streams that the order is cut into, a power of two.
            shuffle_window: Samples permuted together; by default 1 GiB of them.
            drop_last: Whether the samples that don't fill a last step are left out.
            pad_last: Whether the last step is filled up with repeats; batches then have a column `__valid__`.
            rank: This process's rank; with `world_size`, by default as `torch.distributed` has it.
            world_size: The number of ranks.
            process_group: Instead of both, the `torch.distributed` group whose ranks share the data, or a `DeviceMesh`
                of one dimension: `mesh["dp"]`.
            on_error: "raise", or "skip": a sample that cannot be read or decoded, or lacks a column, is left out,
                logged and counted in `skipped`. Steps and single samples are counted as they were planned, so
                `state_dict(steps=)` counts skipped ones.
            max_errors: With "skip", the most different samples that may be skipped in one process.
            decode: By column what makes values of its bytes: `headrace.image(224)`, an extension ("npy", "txt"),
                "bytes", one of webdataset's image names ("rgb8", "torchrgb", "pil"), or any function of bytes, or of
                (key, bytes) as webdataset's handlers are.
            pad_to: By column of arrays the length that they are filled up to, or a `Pad` with the value for it.
            as_tuple: Whether samples are tuples; by default dicts.
            store: What reads URLs: a `Store`, perhaps with a disk cache.
            storage_options: Instead of a store, the options (credentials, endpoint) of one without a cache.
            memory_bytes: The most memory that blocks take that are not memory-mapped, in each process that reads.
            index_dir: A folder for the index, where it can't lie beside the shards.
            allow: What is accepted instead of being an error, by name: "no_end", "data_after_end", "recurring_keys",
                "duplicate_fields", "missing_fields", "bad_shards". The errors' texts say which would help.
            verify: Whether local shards are compared with checksums, which the index then holds. Stored ones always
                are; for what comes altered when it is read for the index, give the store `confirm=True`.
            compressed: What happens to .tar.gz and .tar.zst: "cache" decompresses each once into the store's disk
                cache; "stream" reads them in file order only.

        Raises:
            ArgumentError: No shard, no sample, no such column, or arguments that don't go together.
            DependencyError: A package is missing; the text names the pip line.
            ShardError: A shard is damaged, or its members don't make samples.
            StorageError: A shard cannot be opened.
        """
        source = TarSource(
            paths,
            columns,
            store_of(store, storage_options),
            decode=decode,
            pad_to=pad_to,
            memory_bytes=memory_bytes,
            index_dir=index_dir,
            allow=allow,
            verify=verify,
            compressed=compressed,
        )
        # a key for each sample, so that what is drawn differs between them; passes draw by keys of their own
        self.samples = MapDataset(source.keyed(functools.partial(hash_words, 0, 0, DECODE)), as_tuple=as_tuple)
        options: dict[str, Any] = {
            "batch_size": batch_size,
            "global_batch_size": global_batch_size,
            "shuffle": shuffle,
            "seed": seed,
            "lanes": lanes,
            "shuffle_window": shuffle_window,
            "drop_last": drop_last,
            "pad_last": pad_last,
            "rank": rank,
            "world_size": world_size,
            "process_group": process_group,
            "on_error": on_error,
            "max_errors": max_errors,
        }
        defaults: dict[str, Any] = {"drop_last": False, "pad_last": False, "on_error": "raise", "max_errors": 100}
        self._given = [name for name, value in options.items() if value != defaults.get(name)]
        try:
            super().__init__(self.samples, **options)
        except ArgumentError as error:
            if self._given:
                raise
            # as for a loader with options of its own it need not be
            self._refusal = error

    def __len__(self) -> int:
        """With a batch size the batches of a full epoch on this rank, without one its samples, as they are planned.

        torch's `DataLoader(tars, batch_size=32)` computes its own length of the samples. Its workers each leave a last,
        smaller batch of theirs, so that there may be some batches more than that, of which torch warns. Give the batch
        size here, and `batch_size=None` there, for a length that is exact with any number of workers.
        """
        self._check_planned()
        return len(self._schedule.steps)

    @property
    def _source(self) -> TarSource:
        return cast(TarSource, self.samples.source)

    @property
    def schema(self) -> Mapping[str, Column]:
        """The columns by name: dtype and one sample's shape."""
        return self._source.schema

    @property
    def fingerprint(self) -> str:
        """Hex digits that tell these shards from others: of names, bytes and numbers of samples."""
        return self._source.fingerprint

    def find(self, key: str) -> int:
        """The id of the first sample with this key: `tars.samples[tars.find("n01440764/10026")]`.

        Raises:
            KeyError: There is none.
        """
        return self._source.find(key)

    @property
    def ignored(self) -> dict[str, int]:
        """How many members of the shards belong to no sample, by why: "directory", "link", "no_field" and so on."""
        return dict(self._source.index.ignored)

    @property
    def bad_shards(self) -> tuple[tuple[str, str], ...]:
        """The shards that were left out, with why; none unless they are allowed to be bad."""
        return self._source.index.bad_shards

    def counts(self) -> dict[str, int]:
        """What this process has read of blocks that are not memory-mapped, and what it holds in memory, by name."""
        return self._source.counts()

    def samples_for_a_loader(self) -> MapDataset:
        if type(self).__iter__ is not IterableView.__iter__:
            raise ArgumentError(
                "dataset: expected a dataset whose samples are read by number, got "
                f"{type(self).__qualname__}, which has an __iter__ of its own\n"
                "  give its `samples` and transform=, or iterate over it with torch's DataLoader"
            )
        if self._given:
            names = ", ".join(f"{name}=" for name in self._given)
            raise ArgumentError(
                f"dataset: expected a TarDataset without options of its own for the order, got one with {names}\n"
                "  give them to headrace.DataLoader; or iterate over this dataset with torch's DataLoader"
            )
        return self.samples

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._source!r})"
