"""Under torch.amp.GradScaler: gradients are unscaled within the step, or the step is left out."""

from __future__ import annotations

import pytest
import torch
from streams import assert_same_bits, snapshot
from subject import assert_equal, device_of, follow, on_every_backend, started

SHAPES = ((3, 2, 3, 3), (3,), (2, 2))


def scaler_for(backend: str, **options) -> torch.amp.GradScaler:
    return torch.amp.GradScaler(device_of(backend), init_scale=2.0**12, **options)


def backward(optimizer, params, scaler, call, poison=None) -> None:
    """A backward pass whose gradients are those of call `call`, times the scale."""
    generator = torch.Generator().manual_seed(1000 + call)
    gradients = [torch.randn(p.shape, generator=generator).to(p) for p in params]
    optimizer.zero_grad()
    loss = sum((p * g).sum() for p, g in zip(params, gradients, strict=True))
    scaler.scale(loss).backward()
    if poison is not None:
        params[0].grad.view(-1)[0] = poison


def scaled_step(optimizer, params, scaler, call, poison=None) -> None:
    backward(optimizer, params, scaler, call, poison)
    scaler.step(optimizer)
    scaler.update()


@on_every_backend
def test_a_scaled_gradient_gives_the_same_step(backend):
    plain, one = started(backend, SHAPES)
    scaled, other = started(backend, SHAPES)
    scaler = scaler_for(backend)
    for call in range(4):
        follow(one, plain, [call])
        scaled_step(other, scaled, scaler, call)
    assert_equal(plain, scaled)  # a power of two costs no bit


@on_every_backend
def test_an_infinite_gradient_leaves_out_the_step_of_every_tensor_and_halves_the_scale(backend):
    params, optimizer = started(backend, SHAPES)
    scaler = scaler_for(backend, growth_interval=100)
    for call in range(2):
        scaled_step(optimizer, params, scaler, call)
    values, state = snapshot(optimizer, params)
    scaled_step(optimizer, params, scaler, 2, poison=float("inf"))
    assert scaler.get_scale() == 2.0**11
    assert_left_out(optimizer, params, values, state)
    scaled_step(optimizer, params, scaler, 3)
    follow(optimizer, params, [4])  # without a scaler
    assert all(int(optimizer.state[p]["step"]) == 3 for p in params)


def assert_left_out(optimizer, params, values, state, skipped: int = 1) -> None:
    """All of every entry is as it was, but for the clock of calls and the count."""
    assert_equal(params, values)
    entries = optimizer.state_dict()["state"]
    for index in range(len(params)):
        old, new = dict(state["state"].get(index, {"calls": 0})), dict(entries[index])
        assert new.pop("calls") == old.pop("calls") + ("step" in new)
        assert int(new.pop("skipped")) == int(old.pop("skipped", 0)) + 1 == skipped
        assert_same_bits(new, old)


MOMENTS = {"first": 0, "second": 1, "steady": 2, "refresh": 3}


@pytest.mark.parametrize("moment", MOMENTS)
@on_every_backend
def test_an_infinite_gradient_at_every_kind_of_call(backend, moment):
    """Nothing has happened to any tensor; after a first call the next one is the first."""
    params, optimizer = started(backend, ((3, 2), (3,)), precondition_frequency=3)
    scaler = scaler_for(backend)
    for call in range(MOMENTS[moment]):
        scaled_step(optimizer, params, scaler, call)
    values, state = snapshot(optimizer, params)
    scaled_step(optimizer, params, scaler, 7, poison=float("inf"))
    assert_left_out(optimizer, params, values, state)
    if moment == "first":
        for call in range(2):
            scaled_step(optimizer, params, scaler, call)
        assert_equal(params, started(backend, ((3, 2), (3,)), calls=2)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@on_every_backend
def test_parameters_of_small_dtypes_are_scaled_as_others(backend, dtype):
    """Their gradients are unscaled in float32, by a power of two that costs no bit."""
    plain, one = started(backend, ((3, 2), (3,)), dtype=dtype)
    scaled, other = started(backend, ((3, 2), (3,)), dtype=dtype)
    scaler = torch.amp.GradScaler(device_of(backend), init_scale=2.0**6, growth_interval=100)
    for call in range(3):
        follow(one, plain, [call])
        scaled_step(other, scaled, scaler, call)
    assert_equal(plain, scaled)
    values, state = snapshot(other, scaled)
    scaled_step(other, scaled, scaler, 3, poison=float("inf"))
    assert_left_out(other, scaled, values, state)
    assert scaler.get_scale() == 2.0**5
    assert {entry["exp_avg"].dtype for entry in other.state.values()} == {torch.float32}


@on_every_backend
def test_gradients_that_were_unscaled_for_clipping_are_not_unscaled_again(backend):
    plain, one = started(backend, SHAPES)
    scaled, other = started(backend, SHAPES)
    scaler = scaler_for(backend)
    for call in range(3):
        follow(one, plain, [call])
        backward(other, scaled, scaler, call)
        scaler.unscale_(other)
        assert_equal([p.grad for p in scaled], [p.grad for p in plain])
        torch.nn.utils.clip_grad_norm_(scaled, 1e6)
        scaler.step(other)
        scaler.update()
    assert_equal(plain, scaled)


@on_every_backend
def test_an_infinite_gradient_found_while_clipping_leaves_out_every_tensor(backend):
    """Clipping turns the gradients of all tensors into NaN or zeros: the verdict is older."""
    params, optimizer = started(backend, SHAPES)
    scaler = scaler_for(backend)
    for call in range(2):
        scaled_step(optimizer, params, scaler, call)
    values, state = snapshot(optimizer, params)
    backward(optimizer, params, scaler, 2, poison=float("inf"))
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(params, 1.0)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**11
    assert_left_out(optimizer, params, values, state)


@on_every_backend
def test_of_two_optimizers_only_the_one_with_an_infinite_gradient_is_left_out(backend):
    first, one = started(backend, SHAPES[:1])
    second, other = started(backend, SHAPES[1:2])
    scaler = scaler_for(backend)
    for call in range(4):
        backward(one, first, scaler, call, poison=float("nan") if call == 3 else None)
        backward(other, second, scaler, call)
        scaler.step(one)
        scaler.step(other)
        scaler.update()
    assert int(one.state[first[0]]["skipped"]) == 1
    assert int(other.state[second[0]]["skipped"]) == 0
    assert scaler.get_scale() == 2.0**11
    expected, _ = started(backend, SHAPES[1:2], calls=4)
    assert_equal(second, expected)
