"""torch's arguments: the documented table names each of them, and they behave as it says."""

import inspect
import multiprocessing
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, SequentialSampler

import headrace as hr
from headrace.errors import ArgumentError
from tests.loader.stand_ins import delivered, flat, numbers

DATASET = numbers(12)
TORCH_S = {
    name: parameter.default
    for name, parameter in inspect.signature(torch.utils.data.DataLoader.__init__).parameters.items()
    if name != "self"
}
# Values besides torch's defaults, for each argument: for refused ones each must be refused, for others each must work.
VALUES: dict[str, list[Any]] = {
    "dataset": [numbers(4), [1, 2, 3], torch.utils.data.TensorDataset(torch.arange(3))],
    "batch_size": [5],
    "shuffle": [True, False, "global", "window"],
    "sampler": [SequentialSampler(range(12)), range(12)],
    "batch_sampler": [BatchSampler(SequentialSampler(range(12)), 2, drop_last=False)],
    "num_workers": [1, 2],
    "collate_fn": [list, torch.utils.data.default_collate],
    "pin_memory": [True],
    "drop_last": [True],
    "timeout": [60, 60.5],
    "worker_init_fn": [lambda worker: None],
    "multiprocessing_context": ["spawn", "forkserver", multiprocessing.get_context("spawn")],
    "generator": [torch.Generator()],
    "prefetch_factor": [1, 4],
    "persistent_workers": [True],
    "pin_memory_device": ["cuda"],
    "in_order": [False],
}


def tables() -> tuple[dict[str, str], set[str]]:
    """What becomes of each of torch's arguments, and the names of those that are ours alone."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "torch_arguments.md").read_text()
    torch_s, ours = text.split("## Arguments that torch's DataLoader does not have")
    rows = re.findall(r"^\| `(\w+)` \| ([a-z ]+) \|", torch_s, re.MULTILINE)
    names = re.findall(r"^\| `(\w+)` \|", ours, re.MULTILINE)
    assert len(rows) == len(dict(rows))
    assert len(names) == len(set(names))
    return dict(rows), set(names)


def loader_with(name: str, value: Any) -> hr.DataLoader:
    options: dict[str, Any] = {}
    if value != TORCH_S[name] and name in ("prefetch_factor", "timeout", "worker_init_fn"):
        options["num_workers"] = 1
    if value != TORCH_S[name] and name == "worker_init_fn":
        options["worker_type"] = "process"
    return hr.DataLoader(**{"dataset": DATASET, name: value}, **options)


def test_the_table_names_every_argument_of_torch_s_dataloader():
    here, _ = tables()
    assert list(here) == list(TORCH_S)
    assert set(here.values()) <= {"same", "mapped", "refused"}


def test_the_tables_together_name_every_argument_of_ours():
    here, ours = tables()
    parameters = set(inspect.signature(hr.DataLoader).parameters) - {"torch_arguments"}
    assert ours == parameters - set(TORCH_S)
    assert parameters - ours <= {name for name, meaning in here.items() if meaning in ("same", "mapped")}


@pytest.mark.parametrize("name", [name for name in TORCH_S if name != "dataset"])
def test_torch_s_default_is_always_accepted(name):
    assert sorted(flat(delivered(loader_with(name, TORCH_S[name])))) == list(range(12))


def test_all_of_torch_s_defaults_may_be_given_together():
    defaults = {name: value for name, value in TORCH_S.items() if name != "dataset"}
    assert len(hr.DataLoader(DATASET, **defaults)) == 12


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in VALUES for value in VALUES[name]])
def test_other_values_behave_as_the_table_says(name, value):
    here, _ = tables()
    if here[name] == "refused":
        with pytest.raises(ArgumentError, match=rf"^{name}: .+; got {name}="):
            loader_with(name, value)
    else:
        assert len(list(loader_with(name, value))) == len(loader_with(name, value))


def test_a_new_argument_of_torch_s_needs_values_to_be_tried():
    assert list(VALUES) == list(TORCH_S)


def test_a_default_may_be_a_number_of_another_kind_but_not_a_truth_value():
    assert loader_with("timeout", 0.0)
    with pytest.raises(ArgumentError, match=r"timeout: expected seconds, 0 or more .*, got False"):
        loader_with("timeout", False)


def test_the_first_three_arguments_go_by_position_as_in_torch():
    loader = hr.DataLoader(DATASET, 4, True)
    assert len(loader) == 3
    assert loader.state_dict()["shuffle"] == "global"
    with pytest.raises(TypeError):
        hr.DataLoader(DATASET, 4, True, None)
