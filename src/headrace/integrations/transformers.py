"""transformers: a mixin for `Trainer` that trains on our loader, with its state in the checkpoints."""

import itertools
from collections.abc import Iterator
from typing import Any

from torch.utils.data import IterableDataset

from headrace.errors import ResumeError
from headrace.integrations.frameworks import based_on, framework
from headrace.integrations.tracking import TrackedLoader

_CALLBACK = "HeadraceData"


class LoaderMixin:
    """A `Trainer` that trains on a loader of ours and resumes amid an epoch without reading what it skips.

        class OurTrainer(LoaderMixin, transformers.Trainer):
            pass

        trainer = OurTrainer(model=model, args=arguments, train_loader=headrace.DataLoader(dataset, batch_size=32))
        trainer.train(resume_from_checkpoint=True)

    Batches are what the loader makes: the Trainer's `data_collator`, `per_device_train_batch_size`,
    `train_sampling_strategy` and `dataloader_...` arguments have no effect on them. Its state is kept in
    `trainer_state.json`. The Trainer counts epochs in steps, so these must be the same when it resumes: under another
    number of processes give the loader `global_batch_size=`.
    """

    def __init__(self, *args: Any, train_loader: Any, **kwargs: Any) -> None:
        """Takes what `Trainer` takes, and the loader to train on.

        Args:
            args: The Trainer's arguments.
            train_loader: What `TrackedLoader` takes.
            kwargs: The Trainer's arguments.
        """
        self._train_loader = _SkippingLoader(train_loader)
        super().__init__(*args, **kwargs)
        theirs = framework("transformers.trainer_callback", "transformers")
        keeper = based_on(_DataKeeper, theirs.TrainerCallback, theirs.ExportableState)
        keeper.__name__ = _CALLBACK
        self.add_callback(keeper())  # type: ignore[attr-defined]

    def get_train_dataloader(self) -> Any:
        """The loader to train on."""
        return self._train_loader


class _DataKeeper:
    """The TrainerCallback that keeps the state; the Trainer writes what `state` says into `trainer_state.json`."""

    def __init__(self) -> None:
        self._loader: _SkippingLoader | None = None
        self.data: dict[str, Any] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:  # noqa: ARG002
        kept = state.stateful_callbacks.setdefault(_CALLBACK, self.state())
        self._loader = loader = more["train_dataloader"]
        if state.global_step == 0 or args.ignore_data_skip:
            return
        if kept["attributes"]["data"] is None:
            raise ResumeError(
                "cannot resume: the checkpoint holds no state of the loader, since a Trainer without LoaderMixin saved "
                "it\n  give ignore_data_skip=True to begin with the loader where it stands"
            )
        loader.load_state_dict(kept["attributes"]["data"])
        updates = -(-len(loader) // args.gradient_accumulation_steps)
        epoch, update = divmod(state.global_step, updates)
        trainers = epoch, update * args.gradient_accumulation_steps
        ours = loader.state_dict()["epoch"], loader.step
        if trainers != ours:
            raise ResumeError(
                "cannot resume: the Trainer and the data don't stand at the same place\n"
                f"  data:    epoch {ours[0]}, after {ours[1]} of {len(loader)} batches\n"
                f"  Trainer: epoch {trainers[0]}, after {trainers[1]} batches (step {state.global_step})\n"
                "  the Trainer counts epochs in steps: give the loader global_batch_size=, so that these are the same "
                "for any number of processes, and the same gradient_accumulation_steps"
            )

    def state(self) -> dict[str, Any]:
        data = None if self._loader is None else self._loader.state_dict()
        return {"args": {}, "attributes": {"data": data}}


class _SkippingLoader(TrackedLoader):
    """The loader as `accelerate.skip_first_batches` can make another of it, which begins where the state stands.

    What it makes reads from `dataset` and drops as many batches as the Trainer has trained on in the epoch.
    """

    batch_size, drop_last, prefetch_factor = None, False, None  # as torch's DataLoader has them

    @staticmethod
    def collate_fn(batch: Any) -> Any:
        return batch

    @property
    def dataset(self) -> "_Rest":
        return _Rest(self)


class _Rest(IterableDataset[Any]):
    """The rest of an epoch, with nothing in the places of the batches before it."""

    def __init__(self, loader: TrackedLoader) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return self._loader.samples

    def __iter__(self) -> Iterator[Any]:
        return itertools.chain(itertools.repeat(None, self._loader.step), self._loader)
