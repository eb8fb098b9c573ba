"""Accelerate: our loaders prepared, split over the processes once, and gradients flushed at the end of an epoch.

What `accelerator.prepare` itself makes of torch's DataLoader with `shuffle=True`, over whatever dataset, under
`use_seedable_sampler=True`: each process shuffles by its own torch seed, so that samples come twice or not at all where
the seeds differ, as they do unless they are set. Give `DataLoaderConfiguration` a `data_seed=`, or call
`accelerate.utils.set_seed` with the same number in all processes, without `device_specific=True`, before `prepare`.
"""

from collections.abc import Iterator
from typing import Any

from headrace.errors import ArgumentError
from headrace.integrations.frameworks import framework
from headrace.integrations.tracking import TrackedLoader, is_ours


def prepare(accelerator: Any, *objects: Any) -> Any:
    """What `accelerator.prepare` makes of models, optimizers and others, and a `PreparedLoader` of each loader of ours.

        model, optimizer, data = prepare(accelerator, model, optimizer, headrace.DataLoader(dataset, batch_size=32))
        accelerator.register_for_checkpointing(data)

    Accelerate's own would split a second time what our loaders have split over the processes already, and read only
    every N-th of those batches. So torch's DataLoader over an `OrderSampler` or our IterableDatasets comes here, too.

    Returns:
        As many as were given; a single one by itself.
    """
    others = [thing for thing in objects if not is_ours(thing)]
    prepared = accelerator.prepare(*others) if others else ()
    rest = iter((prepared,) if len(others) == 1 else prepared)
    made = tuple(PreparedLoader(thing, accelerator) if is_ours(thing) else next(rest) for thing in objects)
    return made[0] if len(made) == 1 else made


class PreparedLoader(TrackedLoader):
    """A loader that tells Accelerate when its last batch has come, so that gradient accumulation takes its last step.

    Its batches come on the accelerator's device. Give it, or the loader in it, to
    `accelerator.register_for_checkpointing`: what `load_state` restores goes on with just the samples that are left, so
    don't `skip_first_batches`, which reads what it skips. `gather_for_metrics` can't know which rows `pad_last` has
    repeated: gather `__valid__`, too, and take those rows.

    Attributes:
        end_of_dataloader: Whether the batch that came last is the last one of its pass.
        remainder: 0: no rows that Accelerate should cut off.
    """

    def __init__(self, loader: Any, accelerator: Any) -> None:
        """Prepares a loader.

        Args:
            loader: What `TrackedLoader` takes.
            accelerator: The Accelerator that trains on it.

        Raises:
            ArgumentError: The loader's ranks are not the accelerator's processes.
            DependencyError: Accelerate is not installed.
        """
        super().__init__(loader)
        self._device = accelerator.device if accelerator.device_placement else None
        self._send = framework("accelerate.utils", "accelerate").send_to_device
        self.gradient_state = accelerator.gradient_state
        self.end_of_dataloader, self.remainder = False, 0
        theirs = accelerator.process_index, accelerator.num_processes
        # in a mesh some processes may share their samples: what a loader is then given is obeyed
        if accelerator.torch_device_mesh is None and (self.rank, self.world_size) != theirs:
            raise ArgumentError(
                f"loader: expected one that reads as rank {theirs[0]} of {theirs[1]}, as Accelerate trains here, got "
                f"rank {self.rank} of {self.world_size}\n"
                "  make it after the Accelerator, and leave rank= and world_size= to it"
            )

    def __iter__(self) -> Iterator[Any]:
        """Begins a pass; until its end it is Accelerate's current one."""
        self.end_of_dataloader = False
        self.gradient_state._add_dataloader(self)  # noqa: SLF001 (as Accelerate's own loaders do)
        try:
            for batch in super().__iter__():
                self.end_of_dataloader = self.is_last
                yield batch if self._device is None else self._send(batch, self._device)
        finally:
            self.gradient_state._remove_dataloader(self)  # noqa: SLF001
