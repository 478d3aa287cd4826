"""torch.distributed.checkpoint names a state's tensors by their parameters, and puts them back."""

from __future__ import annotations

import pytest
import torch
import torch.distributed.checkpoint as dcp
from streams import ON_CPU, assert_same_bits
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from soap_fast import SOAP

FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def trained(backend, calls, **options):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    optimizer = SOAP(
        model.parameters(), backend=backend, **{"precondition_frequency": 3, **options}
    )
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


@pytest.mark.parametrize("schedule", ["periodic", "staggered"])
@pytest.mark.parametrize("calls", [0, 1, 4])
@pytest.mark.parametrize("backend", ON_CPU)
def test_a_flat_round_trip_goes_on_bit_for_bit(backend, calls, schedule, tmp_path):
    """Also into one that has taken no step: what torch makes it begin with is replaced."""
    model, optimizer = trained(backend, calls, refresh_schedule=schedule)
    flat = get_optimizer_state_dict(model, optimizer, options=FLAT)
    factors = [flat[f"state.0.weight.GG.{mode}"].shape for mode in range(2)]
    assert factors == [(3, 3), (4, 4)]
    assert "state.0.bias.GG.0" not in flat
    dcp.save({"optimizer": flat}, checkpoint_id=tmp_path, no_dist=True)

    resumed, other = trained(backend, 0, refresh_schedule=schedule)
    resumed.load_state_dict(model.state_dict())
    read = get_optimizer_state_dict(model, optimizer, options=FLAT)
    for value in read.values():
        if isinstance(value, torch.Tensor):
            value.zero_()
    dcp.load({"optimizer": read}, checkpoint_id=tmp_path, no_dist=True)
    set_optimizer_state_dict(resumed, other, read, options=FLAT)
    assert_same_bits(other.state_dict()["state"], optimizer.state_dict()["state"])
    train(model, optimizer, range(4, 9))
    train(resumed, other, range(4, 9))
    assert_same_bits(list(resumed.state_dict().values()), list(model.state_dict().values()))


def test_parameters_without_gradients_have_no_state_in_a_flat_one():
    model, optimizer = trained("eager", 0)
    for call in range(3):
        optimizer.zero_grad()
        model[0](torch.randn(5, 4, generator=torch.Generator().manual_seed(call))).sum().backward()
        optimizer.step()
    flat = get_optimizer_state_dict(model, optimizer, options=FLAT)
    assert not any(key.startswith("state.1.") for key in flat)
    resumed, other = trained("eager", 2)
    set_optimizer_state_dict(resumed, other, flat, options=FLAT)
    assert_same_bits(other.state_dict()["state"], optimizer.state_dict()["state"])


def test_a_flat_state_with_a_mode_too_many_is_refused():
    model, optimizer = trained("eager", 4)
    flat = get_optimizer_state_dict(model, optimizer, options=FLAT)
    flat["state.0.weight.Q.2"] = flat["state.0.weight.Q.1"]
    with pytest.raises(ValueError, match=r"Q has a mode '2', the parameter 2 modes"):
        set_optimizer_state_dict(model, optimizer, flat, options=FLAT)
