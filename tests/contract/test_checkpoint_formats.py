"""State through other backends and other people's file formats, and training that goes on."""

from __future__ import annotations

import io

import pytest
import torch
from streams import assert_same_bits, through_a_file
from subject import BACKENDS, assert_equal, copies, device_of, follow, on_every_backend, started
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from soap_fast import SOAP

SHAPES = ((2, 3, 2, 2), (3,))
# Where one backend goes on from another's state, in units of the largest move: rounding, which
# n = m / (sqrt(v) + eps) amplifies where v is small. Recorded trajectories are held to the same.
ROUNDING = 5e-4


@pytest.mark.parametrize("saved_by", BACKENDS)
@pytest.mark.parametrize("loaded_by", BACKENDS)
def test_a_state_goes_on_under_any_backend(saved_by, loaded_by):
    params, optimizer = started(
        saved_by, ((3, 2), (2, 3, 2, 2), (3,)), calls=4, lr=0.01, weight_decay=0.0
    )
    start = copies(params)
    resumed = [torch.nn.Parameter(p.data.to(device_of(loaded_by))) for p in copies(params)]
    other = SOAP(resumed, backend=loaded_by)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    assert_same_bits(optimizer.state_dict(), other.state_dict())
    follow(optimizer, params, range(4, 6))
    follow(other, resumed, range(4, 6))
    if saved_by == loaded_by:
        assert_equal(params, resumed)
    for param, other_param, old in zip(params, resumed, start, strict=True):
        moved = (param - old).abs().max()
        assert moved > 0.003
        assert (param.cpu() - other_param.cpu()).abs().max() <= ROUNDING * moved


def as_names(value, name: str, tensors: dict[str, torch.Tensor]):
    """The same nest with the name of each tensor in its place."""
    if isinstance(value, torch.Tensor):
        tensors[name] = value
        return name
    if isinstance(value, dict):
        return {key: as_names(item, f"{name}.{key}", tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [as_names(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
    return value


def as_tensors(value, tensors: dict[str, torch.Tensor]):
    if isinstance(value, dict):
        return {key: as_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [as_tensors(item, tensors) for item in value]
    return tensors.get(value, value) if isinstance(value, str) else value


@on_every_backend
def test_safetensors_take_all_of_a_state(backend, tmp_path):
    """They refuse tensors that are not contiguous or share memory: ours are neither."""
    safetensors = pytest.importorskip("safetensors.torch")
    params, optimizer = started(backend, SHAPES, calls=4)
    tensors = {}
    outline = as_names(optimizer.state_dict(), "optimizer", tensors)
    assert len(tensors) >= 4 * len(params)
    safetensors.save_file(tensors, tmp_path / "run.safetensors")
    read = safetensors.load_file(tmp_path / "run.safetensors")

    resumed = copies(params)
    other = SOAP(resumed, backend=backend)
    other.load_state_dict(as_tensors(outline, read))
    assert_same_bits(optimizer.state_dict(), other.state_dict())
    follow(optimizer, params, range(4, 6))
    follow(other, resumed, range(4, 6))
    assert_equal(params, resumed)


@on_every_backend
def test_it_may_lie_anywhere_in_a_larger_checkpoint(backend):
    params, optimizer = started(backend, SHAPES, calls=3)
    buffer = io.BytesIO()
    torch.save({"epoch": 3, "all": [{"optimizer": optimizer.state_dict()}, params]}, buffer)
    buffer.seek(0)
    saved, values = torch.load(buffer, weights_only=True)["all"]
    other = SOAP(values, backend=backend)
    other.load_state_dict(saved["optimizer"])
    follow(optimizer, params, range(3, 5))
    follow(other, values, range(3, 5))
    assert_equal(params, values)


def network(backend: str) -> torch.nn.Module:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh(), torch.nn.Linear(2, 2))
    return layers.to(device_of(backend))


@on_every_backend
def test_distributed_checkpoints_take_it_by_name(backend):
    """torch asks a fresh optimizer for its state's layout by a step of lr 0 and zero gradients."""
    model, resumed = network(backend), network(backend)
    optimizer, other = (
        SOAP(m.parameters(), backend=backend, precondition_frequency=2) for m in (model, resumed)
    )
    params, others = list(model.parameters()), list(resumed.parameters())
    follow(optimizer, params, range(4))
    saved = through_a_file(get_optimizer_state_dict(model, optimizer))
    assert set(saved["state"]) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    resumed.load_state_dict(model.state_dict())
    before = copies(others)
    set_optimizer_state_dict(resumed, other, saved)
    assert_equal(others, before)
    assert_same_bits(optimizer.state_dict(), other.state_dict())
    follow(optimizer, params, range(4, 6))
    follow(other, others, range(4, 6))
    assert_equal(params, others)


@on_every_backend
def test_a_distributed_checkpoint_before_the_first_step_takes_none(backend):
    model = network(backend)
    params = list(model.parameters())
    before = copies(params)
    optimizer = SOAP(params, backend=backend, precondition_frequency=2)
    get_optimizer_state_dict(model, optimizer, options=StateDictOptions(cpu_offload=True))
    assert_equal(params, before)
    follow(optimizer, params, range(4))
    assert all(p.isfinite().all() for p in params)
    assert not torch.equal(params[0], before[0])
