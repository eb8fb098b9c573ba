"""torch.distributed.checkpoint, and plain folders: the state of a loader as one entry, or as one small file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace.errors import ResumeError
from headrace.integrations.tracking import TrackedLoader

STATE_FILE = "headrace.json"


class LoaderState:
    """A loader's state as a single entry of a checkpoint of torch.distributed.checkpoint.

        torch.distributed.checkpoint.save({"model": model, "data": LoaderState(data)}, checkpoint_id=folder)
        torch.distributed.checkpoint.load({"model": model, "data": LoaderState(data)}, checkpoint_id=folder)

    `headrace.DataLoader` has `state_dict` and `load_state_dict` and may be given as it is. But then each field of the
    state is an entry by itself, and a release whose states have other fields would find some missing before the loader
    can say what is wrong.

    Example:
        >>> from headrace import ArrayDataset, DataLoader
        >>> LoaderState(DataLoader(ArrayDataset({"x": range(4)}))).state_dict()
        {'state': '{"version": ...}'}
    """

    def __init__(self, loader: Any) -> None:
        """Keeps one loader's state.

        Args:
            loader: What `TrackedLoader` takes.
        """
        self._loader = TrackedLoader(loader) if not isinstance(loader, TrackedLoader) else loader

    def state_dict(self) -> dict[str, Any]:
        """The state of the loader as JSON."""
        return {"state": json.dumps(self._loader.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a state; as `headrace.DataLoader.load_state_dict`."""
        self._loader.load_state_dict(json.loads(state["state"]))


def write_state(loader: Any, folder: str | Path) -> Path:
    """Writes the state of a loader into a folder; one rank is enough, since it is the same on all.

    Args:
        loader: A `headrace.DataLoader` or `TrackedLoader`.
        folder: That of a checkpoint, which exists.

    Returns:
        The file.
    """
    path = Path(folder, STATE_FILE)
    path.write_text(json.dumps(loader.state_dict()), encoding="utf-8")
    return path


def read_state(loader: Any, folder: str | Path) -> None:
    """Makes a loader continue from the state in a folder.

    Args:
        loader: A `headrace.DataLoader` or `TrackedLoader`.
        folder: That of a checkpoint.

    Raises:
        ResumeError: The folder holds no state, or one of other data.
    """
    path = Path(folder, STATE_FILE)
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResumeError(f"cannot resume: expected the loader's state in {path}, got no such file") from None
    loader.load_state_dict(state)
