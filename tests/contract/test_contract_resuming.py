"""Training goes on bit for bit from a state saved by others' formats, or loaded midway."""

from __future__ import annotations

import io

import pytest
import torch
from streams import assert_same_bits, through_a_file
from subject import assert_equal, copies, device_of, follow, on_every_backend, started
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from soap_fast import SOAP

SHAPES = ((3, 2, 3, 3), (3,))  # moments of the first are permuted by Triton


@on_every_backend
def test_it_is_deterministic_and_of_the_layout_torch_has(backend):
    _, optimizer = started(backend, calls=2)
    _, again = started(backend, calls=2)
    saved = optimizer.state_dict()
    assert list(saved) == ["state", "param_groups"]
    assert list(saved["state"]) == saved["param_groups"][0]["params"] == list(range(5))
    assert_same_bits(saved, optimizer.state_dict())
    assert_same_bits(saved, again.state_dict())
    assert [list(entry) for entry in saved["state"].values()] == [
        list(entry) for entry in again.state_dict()["state"].values()
    ]


@on_every_backend
def test_it_loads_into_an_optimizer_in_the_middle_of_its_own_steps(backend):
    """Nothing that a backend has prepared for the state it had is used for the one it gets."""
    params, optimizer = started(backend, SHAPES, calls=2)
    saved, start = optimizer.state_dict(), copies(params)
    follow(optimizer, params, range(2, 5))
    expected = copies(params)
    for param, old in zip(params, start, strict=True):
        param.data.copy_(old.data)
    optimizer.load_state_dict(saved)
    follow(optimizer, params, range(2, 5))
    assert_equal(params, expected)


@on_every_backend
@pytest.mark.parametrize("named", ["both", "saved", "loading"])
def test_names_may_be_missing_on_either_side(backend, named):
    params, _ = started(backend, SHAPES)
    with_names = list(zip(["weight", "bias"], params, strict=True))
    optimizer = SOAP(with_names if named != "loading" else params, backend=backend)
    follow(optimizer, params, range(2))
    other = SOAP(with_names if named != "saved" else params, backend=backend)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["param_names"] == ["weight", "bias"]
    follow(other, params, [2])


@on_every_backend
def test_a_scheduler_goes_on_from_what_was_saved(backend):
    params, optimizer = started(backend, SHAPES)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for call in range(3):
        follow(optimizer, params, [call])
        scheduler.step()
    resumed = copies(params)
    other = SOAP(resumed, backend=backend)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    later = torch.optim.lr_scheduler.ExponentialLR(other, 0.5)
    later.load_state_dict(through_a_file(scheduler.state_dict()))
    assert other.param_groups[0]["lr"] == 3e-3 / 8
    for call in range(3, 5):
        for each, own, schedule in ((optimizer, params, scheduler), (other, resumed, later)):
            follow(each, own, [call])
            schedule.step()
    assert_equal(params, resumed)


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


@on_every_backend
def test_a_distributed_checkpoint_before_the_first_step_takes_none(backend):
    model = torch.nn.Linear(3, 2).to(device_of(backend))
    params = list(model.parameters())
    before = copies(params)
    optimizer = SOAP(params, backend=backend, precondition_frequency=2)
    get_optimizer_state_dict(model, optimizer)
    assert_equal(params, before)
    follow(optimizer, params, range(4))
    assert all(p.isfinite().all() for p in params)
    assert not torch.equal(params[0], before[0])
