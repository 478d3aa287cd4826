"""Under torch.amp.GradScaler: gradients are unscaled within the step, or the step is left out."""

from __future__ import annotations

import torch
from streams import snapshot
from subject import assert_equal, device_of, follow, on_every_backend, started

SHAPES = ((3, 2, 3, 3), (3,), (2, 2))


def scaler_for(backend: str, **options) -> torch.amp.GradScaler:
    return torch.amp.GradScaler(device_of(backend), init_scale=2.0**12, **options)


def backward(optimizer, params, scaler, call, poison=None) -> None:
    """A backward pass whose gradients are those of call `call`, times the scale."""
    generator = torch.Generator().manual_seed(1000 + call)
    gradients = [torch.randn(p.shape, generator=generator).to(p.device) for p in params]
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


def assert_left_out(optimizer, params, values, state) -> None:
    assert_equal(params, values)
    for index, param in enumerate(params):
        entry = optimizer.state[param]
        assert torch.equal(entry["exp_avg"].cpu(), state["state"][index]["exp_avg"])
        assert int(entry["skipped"]) == 1


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
