"""Lightning: exact resume of what `Trainer.fit` trains on, wherever a checkpoint was saved."""

from collections.abc import Callable
from typing import Any, Self

from headrace.errors import ArgumentError
from headrace.integrations.frameworks import based_on, framework
from headrace.integrations.tracking import TrackedLoader


class ResumeData:
    """A Callback that keeps the training loader's state in Lightning's checkpoints and loads it from them.

        data = headrace.DataLoader(dataset, batch_size=32, shuffle=True)
        trainer = Trainer(callbacks=[ResumeData(data), ModelCheckpoint(every_n_train_steps=500)])
        trainer.fit(model, data, ckpt_path="last")

    Lightning by itself keeps the state of a loader that has one, but loads it only where a checkpoint was saved amid an
    epoch; else it would begin with epoch 0 again. It counts batches of its epochs, whose size may have changed since:
    these counts are set to what the state says, so that it does not stop before the epoch's last sample. Where
    `limit_train_batches` ends its epochs early, the next one is the next epoch of the data, resumed or not; where
    `max_steps` has ended one, it is the rest of that of the data, when it is resumed.

    With more than one process make the loader where the process group exists: in `setup` of a LightningDataModule or
    LightningModule, and give a function that returns it. Lightning starts a script once more for each further device;
    a loader that is made before that in the first one takes it for the only one. That is refused here.
    """

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """A Callback, as Lightning wants it."""
        ours: Any = cls
        made: Self = object.__new__(based_on(ours, framework("lightning.pytorch", "lightning").Callback))
        return made

    def __init__(self, loader: Any, *, name: str = "train") -> None:
        """Keeps one loader's state.

        Args:
            loader: The `headrace.DataLoader`, or `TrackedLoader`, that `fit` trains on; or a function without arguments
                that returns it, once Lightning has called `setup`. For `strategy="ddp_spawn"` it must pickle, as a
                method of the LightningDataModule does.
            name: What the state is called in the checkpoint; one for each loader. Of several loaders, one that ends
                before Lightning's epoch does, as in "max_size" modes, begins its next epoch when it is resumed.

        Raises:
            DependencyError: Lightning is not installed.
        """
        self._given, self._name = loader, name
        self._trained: dict[str, Any] = {}  # the state after the last step that was done

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Spawned processes make it anew, since its class has no name of its own."""
        return _resume_data, (self._given, self._name)

    @property
    def _loader(self) -> TrackedLoader:
        is_function = callable(self._given) and not hasattr(self._given, "state_dict")
        return TrackedLoader(self._given() if is_function else self._given)

    @property
    def _key(self) -> str:
        return f"headrace.{self._name}"

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 (Lightning's signature)
        """Refuses a loader whose ranks are not those of the strategy.

        Raises:
            ArgumentError: Each process would read other samples than its own.
        """
        expected = getattr(trainer.strategy, "distributed_sampler_kwargs", {"num_replicas": 1, "rank": 0})
        loader = self._loader
        if (loader.rank, loader.world_size) != (expected["rank"], expected["num_replicas"]):
            raise ArgumentError(
                f"the loader reads as rank {loader.rank} of {loader.world_size}, but Lightning's strategy trains here "
                f"as rank {expected['rank']} of {expected['num_replicas']}\n"
                "  make the loader in `setup` of the LightningDataModule, where the processes exist, or give it rank= "
                "and world_size="
            )

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Adds the state as of the last step that was done; that of the next epoch where Lightning's own is over."""
        now = self._loader.state_dict()
        state = self._trained if _is_amid_step(trainer) else self._state(trainer)
        checkpoint[self._key] = state
        kept = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader", [])
        kept[:] = [state if other == now else other for other in kept]

    def _state(self, trainer: Any) -> dict[str, Any]:
        """As of the last batch."""
        now = self._loader.state_dict()
        return {**now, "epoch": now["epoch"] + 1, "position": 0} if now["position"] and _is_over(trainer) else now

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Keeps the state for a checkpoint that is saved amid the next step, as one on an exception is."""
        self._trained = self._state(trainer)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Loads the state, before Lightning begins a pass; without one the loader stays where it stands."""
        if self._key in checkpoint and trainer.state.fn == "fit":
            self._trained = checkpoint[self._key]
            self._loader.load_state_dict(self._trained)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """Counts the batches before a resumed place in steps of the size that they have now.

        Raises:
            ArgumentError: Lightning reads ahead of the training step.
        """
        if trainer.num_training_batches == float("inf"):
            raise ArgumentError(
                "expected loaders with a length, got one without: Lightning then reads a batch ahead, which would be "
                "lost when training is resumed\n"
                "  give Trainer limit_train_batches="
            )
        self._trained = self._loader.state_dict()
        if not trainer.fit_loop.restarting:
            return
        progress = trainer.fit_loop.epoch_loop.batch_progress
        current = progress.current
        epochs = trainer.fit_loop.epoch_progress.current
        is_between = epochs.completed == epochs.ready and current.completed == current.processed
        progress.is_last_batch &= not (_is_amid_step(trainer) or is_between)
        now = trainer.num_training_batches if progress.is_last_batch else self._loader.step
        current.completed += now - current.processed
        current.ready = current.started = current.processed = now


def _is_amid_step(trainer: Any) -> bool:
    """Whether a batch came that the model is not trained on yet."""
    current = trainer.fit_loop.epoch_loop.batch_progress.current
    return bool(current.ready > current.processed)


def _is_over(trainer: Any) -> bool:
    """Whether no more batches of the current epoch come."""
    return bool(trainer.fit_loop.epoch_loop.batch_progress.is_last_batch)


def _resume_data(loader: Any, name: str) -> ResumeData:
    return ResumeData(loader, name=name)
