"""State: a run in nine small values, and the states that are refused."""

import json
import math
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ResumeError
from headrace.order import Layout, State, check_dataset, check_given
from tests.order.strategies import examples, seeds

SAVED: dict[str, Any] = {
    "version": 1,
    "epoch": 3,
    "position": 1000,
    "seed": 7,
    "shuffle": "window",
    "lanes": 64,
    "window": 5000,
    "samples": 100_000,
    "fingerprint": "9f3c1a2077ab04d1",
}

_MISSING = object()


def changed(**values: object) -> dict[str, Any]:
    return {key: value for key, value in {**SAVED, **values}.items() if value is not _MISSING}


def refusal_of(state: object) -> str:
    with pytest.raises(ResumeError) as refusal:
        State.from_dict(state)
    return str(refusal.value)


@st.composite
def states(draw: st.DrawFn) -> State:
    samples = draw(st.integers(1, 2**53))
    shuffle = draw(st.sampled_from([False, "global", "window"]))
    window = draw(st.integers(1, samples)) if shuffle == "window" else None
    layout = Layout(shuffle, 1 << draw(st.integers(0, 16)), window)
    epoch, position = draw(st.integers(0, 2**62)), draw(st.integers(0, samples - 1))
    return State(epoch, position, draw(seeds), layout, samples, f"{draw(st.integers(0, 2**64 - 1)):016x}")


@given(states())
@examples(200)
def test_a_state_survives_json_and_pickle_and_stays_under_1_kb(state: State) -> None:
    text = json.dumps(state.as_dict())
    assert len(text) < 1000
    assert State.from_dict(json.loads(text)) == state
    assert State.from_dict(pickle.loads(pickle.dumps(state.as_dict()))) == state


def test_a_state_is_plain_values_in_a_fixed_order() -> None:
    state = State(3, 1000, 7, Layout("window", 64, 5000), 100_000, "9f3c1a2077ab04d1")
    assert state.as_dict() == SAVED
    assert list(state.as_dict()) == list(SAVED)


@pytest.mark.parametrize("value", [None, 3, "state", [("version", 1)], {1, 2}])
def test_anything_but_a_dict_is_refused(value: object) -> None:
    expected = f"cannot resume: expected a dict from state_dict(), got {type(value).__name__}"
    assert refusal_of(value) == expected


@pytest.mark.parametrize(("state", "got"), [({"_snapshot": 1, "_steps": 2}, "_snapshot, _steps"), ({}, "none")])
def test_another_librarys_state_is_refused_with_what_it_holds(state: dict[str, int], got: str) -> None:
    assert refusal_of(state) == (
        "cannot resume: expected a dict from state_dict(), got one without a version\n"
        "  expected: version, epoch, position, seed, shuffle, lanes, window, samples, fingerprint\n"
        f"  got:      {got}\n"
        "  states of other loaders, and of samplers other than OrderSampler, can't be continued here"
    )


def test_a_state_that_lost_its_version_is_refused() -> None:
    text = refusal_of(changed(version=_MISSING))
    assert "got one without a version" in text
    assert "got:      epoch, fingerprint, lanes, position, samples, seed, shuffle, window\n" in text


def test_a_newer_version_is_refused_whatever_else_it_holds() -> None:
    assert refusal_of({"version": 2, "mixture": [1, 2]}) == (
        "cannot resume: the state is of version 2, this headrace reads up to 1\n"
        "  update headrace to the release that wrote it, or a newer one"
    )


@pytest.mark.parametrize("version", [0, -1, -(10**30)])
def test_an_older_version_than_the_first_is_refused_and_the_text_says_why(version: int) -> None:
    assert refusal_of({"version": version, "epoch": 3}) == (
        f"cannot resume: the state is of version {version}, this headrace reads 1\n"
        "  no release has written a version below 1: the state is damaged, or of something else"
    )


def test_missing_and_unknown_keys_are_named() -> None:
    assert refusal_of(changed(seed=_MISSING, epoch=_MISSING, workers=3)) == (
        "cannot resume: the state's keys are not those of version 1\n  missing: epoch, seed\n  unknown: workers"
    )
    assert refusal_of(changed(lanes=_MISSING)).endswith("missing: lanes\n  unknown: none")


def test_unknown_keys_of_any_kind_and_number_are_a_short_text() -> None:
    text = refusal_of({**SAVED, 1: 2, None: 3, "a": 4, **{f"key {i}": i for i in range(1000)}})
    assert text.endswith(" and 995 more")
    assert len(text) < 300


@pytest.mark.parametrize(
    ("key", "value", "expected", "got"),
    [
        ("version", "1", "int", "str"),
        ("version", True, "int", "True"),
        ("version", 1.0, "int", "1.0"),
        ("version", None, "int", "None"),
        ("epoch", 3.0, "int", "3.0"),
        ("epoch", False, "int", "False"),
        ("position", math.nan, "int", "nan"),
        ("position", math.inf, "int", "inf"),
        ("position", True, "int", "True"),
        ("position", np.int64(5), "int", "int64"),
        ("seed", None, "int", "None"),
        ("seed", "7" * 5000, "int", "str"),
        ("shuffle", 0, "bool or str", "0"),
        ("shuffle", None, "bool or str", "None"),
        ("lanes", [64] * 5000, "int", "list"),
        ("lanes", True, "int", "True"),
        ("window", "5000", "int or NoneType", "str"),
        ("window", True, "int or NoneType", "True"),
        ("samples", {}, "int", "dict"),
        ("fingerprint", 9, "str", "9"),
        ("fingerprint", b"9f3c", "str", "bytes"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(key: str, value: object, expected: str, got: str) -> None:
    assert refusal_of(changed(**{key: value})) == f"cannot resume: {key}: expected {expected}, got {got}"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epoch", -1),
        ("epoch", 2**62 + 1),
        ("position", -1),
        ("position", 100_000),
        ("position", 10**30),
        ("seed", 2**64),
        ("seed", -(2**63) - 1),
        ("shuffle", True),
        ("shuffle", "Window"),
        ("shuffle", ""),
        ("shuffle", False),
        ("shuffle", "global"),
        ("lanes", 0),
        ("lanes", -64),
        ("lanes", 48),
        ("lanes", 1 << 17),
        ("window", 0),
        ("window", None),
        ("window", 100_001),
        ("window", 10**30),
        ("samples", 0),
        ("samples", 2**53 + 1),
    ],
)
def test_a_value_out_of_range_is_refused(key: str, value: object) -> None:
    text = refusal_of(changed(**{key: value}))
    assert text.startswith("cannot resume: ")
    assert text.endswith(" is not a value that a state can have")
    # whether there may be a window depends on the shuffle: the text may name either
    assert f"{key}: {value!r}" in text or key == "shuffle"


@pytest.mark.parametrize("key", ["version", "epoch", "position", "seed", "lanes", "window", "samples"])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_number_too_long_to_be_written_is_refused_by_its_length(key: str, sign: int) -> None:
    text = refusal_of(changed(**{key: sign * 10**5000}))
    assert text.startswith("cannot resume: ")
    assert "a number of 16610 bits" in text


def test_a_long_text_is_refused_by_its_beginning() -> None:
    assert refusal_of(changed(shuffle="w" * 10**6)) == (
        f"cannot resume: shuffle: '{'w' * 59}... is not a value that a state can have"
    )


@given(
    st.dictionaries(
        st.sampled_from(list(SAVED)),
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.floats(),
            st.text(max_size=5),
            st.lists(st.integers(), max_size=2),
        ),
        max_size=4,
    )
)
@examples(300)
def test_a_damaged_state_is_refused_or_is_one_that_can_be_saved(damage: dict[str, Any]) -> None:
    try:
        state = State.from_dict({**SAVED, **damage})
    except ResumeError:
        return
    assert State.from_dict(state.as_dict()) == state


STATE = State.from_dict(SAVED)


def test_a_state_of_another_dataset_is_refused_and_both_sides_are_shown() -> None:
    check_dataset(STATE, 100_000, "9f3c1a2077ab04d1")
    with pytest.raises(ResumeError) as refusal:
        check_dataset(STATE, 99_999, "77ab04d19f3c1a20")
    assert str(refusal.value) == (
        "cannot resume: the dataset is not the one that the state was saved with\n"
        "  state: 100000 samples (fingerprint 9f3c1a2077ab04d1)\n"
        "  now:   99999 samples (fingerprint 77ab04d19f3c1a20)"
    )
    with pytest.raises(ResumeError):
        check_dataset(STATE, 100_000, "77ab04d19f3c1a20")


AS_GIVEN: dict[str, Any] = {"seed": None, "shuffle": None, "lanes": None, "window": None}


@pytest.mark.parametrize(
    "given_values",
    [
        {},
        {"seed": 7},
        {"seed": 7 - 2**64},
        {"shuffle": "window"},
        {"shuffle": True},
        {"lanes": 64},
        {"window": 5000},
        {"seed": 7, "shuffle": True, "lanes": 64, "window": 5000},
    ],
)
def test_defaults_and_equal_values_agree_with_a_state(given_values: dict[str, Any]) -> None:
    # -2**64 + 7 is no seed that an order takes, but the same number modulo 2**64
    check_given(STATE, **{**AS_GIVEN, **given_values})


@pytest.mark.parametrize(
    ("name", "argument", "value", "then"),
    [
        ("seed", "seed", 8, "7"),
        ("shuffle", "shuffle", False, "'window'"),
        ("shuffle", "shuffle", "global", "'window'"),
        ("lanes", "lanes", 32, "64"),
        ("shuffle_window", "window", 4999, "5000"),
    ],
)
def test_an_explicit_different_value_is_refused_and_both_sides_are_shown(
    name: str, argument: str, value: object, then: str
) -> None:
    with pytest.raises(ResumeError) as refusal:
        check_given(STATE, **{**AS_GIVEN, argument: value})
    assert str(refusal.value) == (
        f"cannot resume: {name} differs from the state's\n  state: {name}={then}\n  now:   {name}={value!r}\n"
        f"  leave {name} out to continue in the state's order"
    )


def test_a_window_larger_than_the_dataset_agrees_with_a_state_over_all_of_it() -> None:
    whole = State.from_dict(changed(window=100_000))
    check_given(whole, **{**AS_GIVEN, "window": 10**9})
    with pytest.raises(ResumeError, match=r"^cannot resume: shuffle_window differs"):
        check_given(STATE, **{**AS_GIVEN, "window": 10**9})


def test_a_window_given_for_a_state_without_one_is_refused() -> None:
    state = State.from_dict(changed(shuffle="global", window=None))
    with pytest.raises(
        ResumeError, match=r"^cannot resume: shuffle_window differs from the state's\n  state: .*=None\n"
    ):
        check_given(state, **{**AS_GIVEN, "window": 5000})


def test_shuffle_true_does_not_agree_with_a_state_in_file_order() -> None:
    state = State.from_dict(changed(shuffle=False, window=None))
    check_given(state, **{**AS_GIVEN, "shuffle": False})
    with pytest.raises(ResumeError, match=r"^cannot resume: shuffle differs"):
        check_given(state, **{**AS_GIVEN, "shuffle": True})
