"""torch.distributed.checkpoint names a state's tensors by their parameters, and puts them back."""

from __future__ import annotations

import pytest
import torch
import torch.distributed.checkpoint as dcp
from streams import ON_CPU, assert_same_bits
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from soap_fast import SOAP


def trained(backend, calls):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    optimizer = SOAP(model.parameters(), backend=backend, precondition_frequency=3)
    train(model, optimizer, range(calls))
    return model, optimizer


def train(model, optimizer, calls):
    for call in calls:
        optimizer.zero_grad()
        batch = torch.randn(5, 4, generator=torch.Generator().manual_seed(call))
        model(batch).square().mean().backward()
        optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("backend", ON_CPU)
def test_a_round_trip_goes_on_bit_for_bit(backend):
    model, optimizer = trained(backend, 4)
    named = get_optimizer_state_dict(model, optimizer)
    assert set(named["state"]) == {name for name, _ in model.named_parameters()}
    resumed, other = trained(backend, 0)
    resumed.load_state_dict(model.state_dict())
    set_optimizer_state_dict(resumed, other, named)
    assert_same_bits(other.state_dict()["state"], optimizer.state_dict()["state"])
    train(model, optimizer, range(4, 7))
    train(resumed, other, range(4, 7))
    assert_same_bits(list(resumed.state_dict().values()), list(model.state_dict().values()))


@pytest.mark.parametrize("backend", ON_CPU)
def test_files_written_by_it(backend, tmp_path):
    model, optimizer = trained(backend, 4)
    kept = get_optimizer_state_dict(model, optimizer)
    dcp.save({"optimizer": kept}, checkpoint_id=tmp_path, no_dist=True)
    resumed, other = trained(backend, 2)
    resumed.load_state_dict(model.state_dict())
    named = get_optimizer_state_dict(resumed, other)
    dcp.load({"optimizer": named}, checkpoint_id=tmp_path, no_dist=True)
    set_optimizer_state_dict(resumed, other, named)
    assert_same_bits(other.state_dict()["state"], optimizer.state_dict()["state"])
