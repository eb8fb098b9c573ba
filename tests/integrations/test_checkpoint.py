"""torch.distributed.checkpoint: saved by two processes, loaded by one; and the state in a plain folder."""

import pytest
import torch.distributed.checkpoint as dcp

import headrace as hr
from headrace.integrations.checkpoint import LoaderState, read_state, write_state
from tests.integrations.parts import BATCH, RANKS, SEED, dataset, loader, order, over_ranks

TAKEN = 8 * BATCH * RANKS - len(order(0))


def rest_of_epoch(data):
    return [sample for batch in data for sample in batch["labels"].tolist()]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")
@pytest.mark.parametrize(("folder", "name"), [("saved", "data"), ("saved", "entry"), ("async", "data")])
def test_what_two_ranks_have_saved_goes_on_in_one(seen, two_ranks, folder, name):
    assert over_ranks(seen("checkpoint", "saved")) == order(0) + order(1)[:TAKEN]
    data = loader(rank=0, world_size=1)
    stateful = LoaderState(data) if name == "entry" else data
    dcp.load({name: stateful}, checkpoint_id=two_ranks / "checkpoint" / folder)
    assert (data.epoch, data.position) == (1, TAKEN)
    assert rest_of_epoch(data) == order(1)[TAKEN:]


def test_a_state_in_a_folder_goes_on_where_it_was_written(tmp_path):
    first, second = loader(rank=0, world_size=1), loader(rank=0, world_size=1)
    next(iter(first))
    write_state(first, tmp_path)
    read_state(second, tmp_path)
    assert rest_of_epoch(second) == order(0)[BATCH:]


def test_a_folder_without_a_state_is_refused(tmp_path):
    with pytest.raises(hr.ResumeError, match=r"expected the loader's state in .*headrace\.json, got no such file"):
        read_state(loader(rank=0, world_size=1), tmp_path)


def test_a_state_of_other_data_is_refused(tmp_path):
    write_state(hr.DataLoader(dataset().take(9), shuffle=True, seed=SEED), tmp_path)
    with pytest.raises(hr.ResumeError, match="9 samples"):
        read_state(loader(rank=0, world_size=1), tmp_path)
