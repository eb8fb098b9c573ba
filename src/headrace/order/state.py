"""The state of a run as a small JSON-able dict, and what it must agree with to be loaded."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from headrace.errors import ResumeError
from headrace.order.layout import MAX_LANES, Layout
from headrace.order.permutation import MAX_SAMPLES
from headrace.order.progress import MAX_EPOCH

VERSION = 1
_SHOWN, _SHOWN_CHARACTERS = 10**40, 60  # no value that a state can have is longer
_TYPES: Mapping[str, tuple[type, ...]] = {
    "version": (int,),
    "epoch": (int,),
    "position": (int,),
    "seed": (int,),
    "shuffle": (bool, str),
    "lanes": (int,),
    "window": (int, type(None)),
    "samples": (int,),
    "fingerprint": (str,),
}


@dataclass(frozen=True, slots=True)
class State:
    """Everything that an exact continuation needs; the same on all ranks.

    Attributes:
        epoch: The epoch that the run stands in, 0 or more.
        position: Samples of it consumed by all ranks together, in [0, samples).
        seed: The order's seed.
        layout: The order's shuffle mode, as resolved, lanes and window.
        samples: Samples in the dataset.
        fingerprint: The dataset's fingerprint.
    """

    epoch: int
    position: int
    seed: int
    layout: Layout
    samples: int
    fingerprint: str

    def as_dict(self) -> dict[str, Any]:
        """The state as `state_dict()` gives it: JSON-able, under 1 KB."""
        return {
            "version": VERSION,
            "epoch": self.epoch,
            "position": self.position,
            "seed": self.seed,
            "shuffle": self.layout.shuffle,
            "lanes": self.layout.lanes,
            "window": self.layout.window,
            "samples": self.samples,
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_dict(cls, state: object) -> "State":
        """Reads what `as_dict` gave.

        Raises:
            ResumeError: It is not such a state, or of a version that this headrace doesn't read.
        """
        if not isinstance(state, Mapping):
            raise ResumeError(f"cannot resume: expected a dict from state_dict(), got {type(state).__name__}")
        _check_version(state)
        missing, unknown = _TYPES.keys() - state.keys(), state.keys() - _TYPES.keys()
        if missing or unknown:
            raise ResumeError(
                f"cannot resume: the state's keys are not those of version {VERSION}\n"
                f"  missing: {_listed(missing)}\n  unknown: {_listed(unknown)}"
            )
        for name, types in _TYPES.items():
            value = state[name]
            if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
                expected = " or ".join(kind.__name__ for kind in types)
                got = _shown(value) if isinstance(value, int | float | None) else type(value).__name__
                raise ResumeError(f"cannot resume: {name}: expected {expected}, got {got}")
        _check_values(state)
        layout = Layout(state["shuffle"], state["lanes"], state["window"])
        return cls(state["epoch"], state["position"], state["seed"], layout, state["samples"], state["fingerprint"])


def _check_version(state: Mapping[Any, Any]) -> None:
    """Refuses what was written otherwise than this reads, and says what to do; the version comes before all else."""
    if "version" not in state:
        raise ResumeError(
            "cannot resume: expected a dict from state_dict(), got one without a version\n"
            f"  expected: {', '.join(_TYPES)}\n  got:      {_listed(state)}\n"
            "  states of other loaders, and of samplers other than OrderSampler, can't be continued here"
        )
    version = state["version"]
    if not isinstance(version, int) or isinstance(version, bool):
        return  # refused with its type
    if version > VERSION:
        raise ResumeError(
            f"cannot resume: the state is of version {_shown(version)}, this headrace reads up to {VERSION}\n"
            "  update headrace to the release that wrote it, or a newer one"
        )
    if version < VERSION:
        raise ResumeError(
            f"cannot resume: the state is of version {_shown(version)}, this headrace reads {VERSION}\n"
            f"  no release has written a version below {VERSION}: the state is damaged, or of something else"
        )


def _listed(keys: Iterable[Any]) -> str:
    """A few keys as text, whatever they are."""
    names = sorted(map(str, keys))
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "none"


def _shown(value: Any) -> str:
    """A value as a short text, whatever was damaged: Python itself writes no number of thousands of digits."""
    if isinstance(value, int) and abs(value) > _SHOWN:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _check_values(state: Mapping[str, Any]) -> None:
    lanes, window, samples = state["lanes"], state["window"], state["samples"]
    checks = {
        "epoch": 0 <= state["epoch"] <= MAX_EPOCH,
        "samples": 1 <= samples <= MAX_SAMPLES,
        "position": 0 <= state["position"] < samples,
        "seed": -(2**63) <= state["seed"] < 2**64,
        "shuffle": state["shuffle"] in (False, "global", "window"),
        "lanes": 1 <= lanes <= MAX_LANES and lanes & (lanes - 1) == 0,
        "window": (window is not None and 1 <= window <= samples) if state["shuffle"] == "window" else window is None,
    }
    for name, holds in checks.items():
        if not holds:
            raise ResumeError(f"cannot resume: {name}: {_shown(state[name])} is not a value that a state can have")


def check_dataset(state: State, samples: int, fingerprint: str) -> None:
    """Refuses a state of another dataset.

    Raises:
        ResumeError: The number of samples or the fingerprint differs.
    """
    if (state.samples, state.fingerprint) != (samples, fingerprint):
        raise ResumeError(
            "cannot resume: the dataset is not the one that the state was saved with\n"
            f"  state: {state.samples} samples (fingerprint {state.fingerprint})\n"
            f"  now:   {samples} samples (fingerprint {fingerprint})"
        )


def check_given(
    state: State,
    *,
    seed: int | None,
    shuffle: bool | str | None,
    lanes: int | None,
    window: int | None,
) -> None:
    """Refuses a state whose order differs from what the user asked for; what was left at None may be anything.

    Raises:
        ResumeError: An explicit value differs from the state's; both are shown.
    """
    saved = state.layout
    same_shuffle = shuffle is None or shuffle == saved.shuffle or (shuffle is True and saved.shuffle is not False)
    given = {
        "seed": (seed is None or (seed - state.seed) % 2**64 == 0, state.seed, seed),
        "shuffle": (same_shuffle, saved.shuffle, shuffle),
        "lanes": (lanes is None or lanes == saved.lanes, saved.lanes, lanes),
        "shuffle_window": (
            window is None or (saved.window is not None and min(window, state.samples) == saved.window),
            saved.window,
            window,
        ),
    }
    for name, (agrees, then, now) in given.items():
        if not agrees:
            raise ResumeError(
                f"cannot resume: {name} differs from the state's\n  state: {name}={then!r}\n  now:   {name}={now!r}\n"
                f"  leave {name} out to continue in the state's order"
            )
