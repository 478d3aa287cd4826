"""A state of parameters that FSDP2 spreads goes on with any number of ranks, or in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from spread_models import HSDP, Model, end_of, optimizer_of, spread, train
from streams import assert_same_bits, through_a_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
FROM_FIRST = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
PLAIN = "plain"
PLACES = [(1, ""), (2, ""), (4, HSDP), (4, ""), (1, PLAIN)]
BEFORE, AFTER = range(4), range(4, 8)


def built(group, kind):
    """Of 1, 2 or 4 ranks which all see the same images: the averages have the same bits."""
    if kind == PLAIN:
        model = Model()
        return model, optimizer_of(model, None)
    model = spread(group, kind)
    optimizer = optimizer_of(model, group)
    optimizer.consolidate_state_dict(always=True)
    return model, optimizer


def straight():
    model, optimizer = built(None, PLAIN)
    train(model, optimizer, [*BEFORE, *AFTER], 0)
    return end_of(model, optimizer)


def saving(group, kind, folder):
    model, optimizer = built(group, kind)
    train(model, optimizer, BEFORE, 0)
    optimizer.zero_grad()
    flat = get_optimizer_state_dict(model, optimizer, options=FLAT)
    content = {"model": get_model_state_dict(model), "optimizer": flat}
    dcp.save(content, checkpoint_id=folder, process_group=group)


def loading(group, kind, folder):
    """Into an optimizer that has taken no step, whose state torch makes begin with zeros."""
    model, optimizer = built(group, kind)
    flat = get_optimizer_state_dict(model, optimizer, options=FLAT)
    stored = set(dcp.FileSystemReader(folder).read_metadata().state_dict_metadata)
    wanted = {key: value for key, value in flat.items() if f"optimizer.{key}" in stored}
    content: dict[str, Any] = {"model": get_model_state_dict(model), "optimizer": wanted}
    dcp.load(content, checkpoint_id=folder, process_group=group)
    set_model_state_dict(model, content["model"])
    set_optimizer_state_dict(model, optimizer, content["optimizer"], options=FLAT)
    train(model, optimizer, AFTER, 0)
    return end_of(model, optimizer)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("before", "kind"), PLACES)
def test_files_of_torch_distributed_checkpoint(ranks, before, kind, tmp_path: Path):
    folder = str(tmp_path / "saved")
    expected = straight()
    ranks(before, saving, kind, folder)
    for after, other in PLACES:
        for found in ranks(after, loading, other, folder):
            assert_same_bits(found, expected)


def kept(group, kind):
    model, optimizer = built(group, kind)
    train(model, optimizer, BEFORE, 0)
    return end_of(model, optimizer)[0], through_a_file(optimizer.state_dict())


def gone_on(group, kind, values, saved):
    model, optimizer = built(group, kind)
    names = dict(zip((name for name, _ in model.named_parameters()), values, strict=True))
    set_model_state_dict(model, names, options=StateDictOptions(full_state_dict=True))
    optimizer.load_state_dict(saved)
    train(model, optimizer, AFTER, 0)
    return end_of(model, optimizer)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("before", "kind"), [(2, ""), (4, HSDP), (1, PLAIN)])
def test_state_dicts(ranks, before, kind):
    expected = straight()
    values, saved = ranks(before, kept, kind)[-1]
    for after, other in PLACES:
        for found in ranks(after, gone_on, other, values, saved):
            assert_same_bits(found, expected)


def frozen(group):
    """Torch wants a state of whatever could have a gradient, so the layer without one is frozen."""
    model, optimizer = built(group, "")
    model.unused.requires_grad_(False)
    return model, optimizer


def from_first(group):
    """The whole state on the first rank alone, which hands it to the others."""
    model, optimizer = frozen(group)
    train(model, optimizer, BEFORE, 0)
    optimizer.zero_grad()
    whole = get_optimizer_state_dict(model, optimizer, options=WHOLE)
    weights = get_model_state_dict(model, options=WHOLE)
    assert bool(whole) == (group.rank() == 0)
    other, resumed = frozen(group)
    set_model_state_dict(other, weights, options=FROM_FIRST)
    set_optimizer_state_dict(other, resumed, whole, options=FROM_FIRST)
    train(other, resumed, AFTER, 0)
    return end_of(other, resumed)


@pytest.mark.usefixtures("one_thread")
def test_a_state_that_the_first_rank_hands_out(ranks):
    expected = straight()
    for found in ranks(4, from_first):
        assert_same_bits(found, expected)


def before_any_step(group):
    """What torch does to make a state begin leaves parameters as they are."""
    model, optimizer = built(group, "")
    before = [p.detach().full_tensor().clone() for p in model.parameters()]
    flat = get_optimizer_state_dict(model, optimizer, options=FLAT)
    assert_same_bits([p.detach().full_tensor() for p in model.parameters()], before)
    return sorted(flat), [torch.is_tensor(value) for value in flat.values()].count(True)


def test_keys_are_the_same_on_every_rank(ranks):
    found = ranks(4, before_any_step)
    assert all(one == found[0] for one in found)
    assert "state.wide.weight.GG.0" in found[0][0]
