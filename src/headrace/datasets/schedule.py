"""A source's order, cut into steps for one rank, and where a run over it stands: what every face of headrace drives."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from headrace.datasets.world import check_taken_world, resolve_world
from headrace.errors import ArgumentError
from headrace.formats import Array, Ids, Source
from headrace.order import (
    DECODE,
    BlockTotals,
    Layout,
    Order,
    Progress,
    State,
    Steps,
    check_dataset,
    check_given,
    hash_words,
    resolve_layout,
    whole_number,
)


class Plan(NamedTuple):
    """One rank's samples of some consecutive steps.

    Attributes:
        sample_ids: int64, shape (m,): the samples of all the steps, one step after the other.
        bounds: int64, shape (steps + 1,): step i holds rows [bounds[i], bounds[i + 1]).
        valid: bool, shape (m,), with `pad_last`: False where a row only fills up the last step; else None.
    """

    sample_ids: Ids
    bounds: Ids
    valid: Array | None


class Schedule:
    """Which samples one rank reads at every step of every epoch, and the state of the run.

    Attributes:
        order: The order of all epochs.
        steps: How an epoch is cut into steps and shares.
        progress: Where the run stands.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int | None = 1,
        global_batch_size: int | None = None,
        shuffle: bool | str | None = None,
        seed: int | None = None,
        lanes: int | None = None,
        shuffle_window: int | None = None,
        drop_last: bool = False,
        pad_last: bool = False,
        may_pad: bool = True,
        rank: int | None = None,
        world_size: int | None = None,
        process_group: Any = None,
    ) -> None:
        """Plans a source; the arguments are those of `headrace.DataLoader`, and `may_pad` is that of `Steps`.

        Raises:
            ArgumentError: The arguments can't work, alone or together; the text says which and what to do.
        """
        self._source = source
        seed, lanes, shuffle_window = (
            _whole_number(name, value)
            for name, value in (("seed", seed), ("lanes", lanes), ("shuffle_window", shuffle_window))
        )
        batch_size, global_batch_size = (
            _whole_number(name, value, least=1)
            for name, value in (("batch_size", batch_size), ("global_batch_size", global_batch_size))
        )
        self._given: dict[str, Any] = {"seed": seed, "shuffle": shuffle, "lanes": lanes, "window": shuffle_window}
        self._takes_world = rank is None and process_group is None
        rank, world_size = resolve_world(rank, world_size, process_group)
        self._step_rules: dict[str, Any] = {
            "global_batch_size": _global_batch_size(batch_size, global_batch_size, world_size),
            "rank": rank,
            "world_size": world_size,
            "drop_last": drop_last,
            "pad_last": pad_last,
            "may_pad": may_pad,
        }
        blocks = source.blocks
        totals = BlockTotals(int(np.count_nonzero(blocks.lengths)), int(blocks.bytes.sum()))
        layout = resolve_layout(
            len(source),
            totals,
            random_access=source.random_access,
            shuffle=False if shuffle is None else shuffle,
            lanes=lanes,
            window=shuffle_window,
            world_size=world_size,
        )
        self.progress = Progress()
        self.lay_out(layout, 0 if seed is None else seed)

    def lay_out(self, layout: Layout, seed: int) -> None:
        """Takes another order: a loaded state's, or one that the main process loaded.

        Raises:
            ArgumentError: It shuffles what can be read in file order alone.
        """
        if layout.shuffle and self._source.is_sequential:
            raise ArgumentError(
                f'shuffle: expected False with compressed="stream", which reads shards in file order, '
                f"got {layout.shuffle!r}\n"
                '  give compressed="cache" and a Store(cache_dir=...), which decompresses each shard once'
            )
        lengths = self._source.blocks.lengths if layout.shuffle == "window" else None
        self.order = Order(len(self._source), layout, seed=seed, block_lengths=lengths)
        self.steps = Steps(len(self._source), layout.lanes, **self._step_rules)

    def begin(self) -> tuple[int, int]:
        """Begins a pass and says where: (epoch, position).

        Raises:
            ArgumentError: Rank and world size were taken by default, and are others by now.
        """
        self.check_world()
        return self.progress.begin(self.steps)

    def check_world(self) -> None:
        """Raises ArgumentError where rank and world size were taken by default, and are others by now."""
        if self._takes_world:
            check_taken_world(self.steps.rank, self.steps.world_size)

    def plan(self, epoch: int, position: int, count: int, every: int = 1) -> Plan:
        """This rank's samples of `count` steps from a position on, taking one in `every`; see `Steps.share`."""
        share = self.steps.share(position, count, every)
        return Plan(self.order.sample_ids(epoch, share.sequence), share.bounds, share.valid)

    def source_of(self, epoch: int) -> Source:
        """What a pass over an epoch reads: the source, whose random decoding draws for this epoch."""
        return self._source.keyed(functools.partial(hash_words, self.order.seed, epoch, DECODE))

    def state_dict(self) -> dict[str, Any]:
        """The state of the run: JSON-able, under 1 KB, the same on all ranks."""
        return self.state_at(self.progress.epoch, self.progress.position)

    def state_at(self, epoch: int, position: int) -> dict[str, Any]:
        """The state of a run that stands at a position of an epoch."""
        layout, samples = self.order.layout, self.order.samples
        return State(epoch, position, self.order.seed, layout, samples, self._source.fingerprint).as_dict()

    def state_after(self, epoch: int, position: int, steps: int) -> dict[str, Any]:
        """The state after some steps of a pass that began at a position of an epoch.

        Raises:
            ArgumentError: A pass from there has not that many steps.
        """
        left, taken = self.steps.remaining(position), whole_number(steps)
        if taken is None or not 0 <= taken <= left:
            raise ArgumentError(f"steps: expected the steps taken in this pass, 0..{left}, got {steps!r}")
        position = self.steps.advanced(position, taken)
        if self.steps.remaining(position) == 0:
            epoch, position = epoch + 1, 0
        return self.state_at(epoch, position)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a state, whatever the world size, batch size and last-step rule that it was saved under.

        Order parameters left at None are taken from the state. Where it leaves too few samples for one step, the next
        epoch begins.

        Raises:
            ResumeError: The state is of another dataset or version, or an explicit order parameter differs from it.
            ArgumentError: The last step would hold fewer samples than there are ranks.
        """
        saved = State.from_dict(state)
        check_dataset(saved, len(self._source), self._source.fingerprint)
        check_given(saved, **self._given)
        steps = Steps(len(self._source), saved.layout.lanes, **self._step_rules)
        if steps.remaining(saved.position):
            steps.check_last(saved.position)
        self.lay_out(saved.layout, saved.seed)
        self.progress.resume(saved.epoch, saved.position, self.steps)


def _whole_number(name: str, value: Any, least: int | None = None) -> int | None:
    """The value as a plain int; None stays None."""
    if value is None:
        return None
    number = whole_number(value)
    if number is None or (least is not None and number < least):
        expected = "a whole number" if least is None else f"a number of samples, {least} or more"
        raise ArgumentError(f"{name}: expected {expected}, got {value!r}")
    return number


def _global_batch_size(batch_size: int | None, global_batch_size: int | None, world_size: int) -> int:
    if global_batch_size is not None:
        if batch_size not in (None, 1):
            raise ArgumentError(
                f"batch_size and global_batch_size: expected one of them, got {batch_size} and {global_batch_size}"
            )
        return global_batch_size
    if batch_size is None:
        raise ArgumentError(
            "batch_size: expected a number of samples, got None; iterate over the dataset itself for single samples"
        )
    return batch_size * world_size
