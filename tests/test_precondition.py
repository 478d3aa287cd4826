"""What an optimizer would do to other gradients: the step's arithmetic, and no trace of it."""

from __future__ import annotations

import pytest
import tolerances
import torch
from streams import ON_CPU, SHAPES, assert_same_bits, parameters, snapshot, train

from soap_fast import SOAP, precondition

FEW = ((3, 2), (3,))  # for kernels that are interpreted


def shapes_of(backend: str) -> tuple[tuple[int, ...], ...]:
    return FEW if backend == "triton" else SHAPES


def other_gradients(seed=7, dtype=torch.float32, shapes=SHAPES) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def trained(calls=4, shapes=SHAPES, **options) -> tuple[list[torch.nn.Parameter], SOAP]:
    params = parameters(shapes, dtype=options.pop("dtype", torch.float32))
    optimizer = SOAP(params, precondition_frequency=2, **options)
    train(optimizer, params, range(calls))
    return params, optimizer


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("normalize", [False, True])
def test_with_momentum_it_is_the_direction_of_the_next_step(backend, normalize):
    shapes, options = shapes_of(backend), {"normalize_grads": normalize, "correct_bias": False}
    params, optimizer = trained(shapes=shapes, backend=backend, **options)
    optimizer.param_groups[0].update(lr=0.5, weight_decay=0.0)
    grads = other_gradients(shapes=shapes)
    directions = precondition(optimizer, grads, momentum=True)
    before = [param.detach().clone() for param in params]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    optimizer.step()
    for param, old, direction in zip(params, before, directions, strict=True):
        taken = (old - param.detach()) / 0.5
        torch.testing.assert_close(taken, direction, **tolerances.DIRECTION)


def test_without_it_is_a_linear_map_by_the_present_state():
    """In float64, against the formula written with full matrices."""
    params, optimizer = trained(dtype=torch.float64)
    one, two = other_gradients(1, torch.float64), other_gradients(2, torch.float64)
    sums = precondition(optimizer, [2 * a - b for a, b in zip(one, two, strict=True)])
    parts = zip(precondition(optimizer, one), precondition(optimizer, two), strict=True)
    for found, (a, b) in zip(sums, parts, strict=True):
        torch.testing.assert_close(found, 2 * a - b, **tolerances.EXACT_64)
    state = optimizer.state[params[0]]  # [8, 8]
    left, right = state["Q"]
    rotated = left.T @ one[0] @ right
    expected = left @ (rotated / (state["exp_avg_sq"].sqrt() + 1e-8)) @ right.T
    found = precondition(optimizer, one)[0]
    torch.testing.assert_close(found, expected, **tolerances.EXACT_64)


@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("backend", ON_CPU)
def test_nothing_changes(backend, momentum):
    params, optimizer = trained(shapes=shapes_of(backend), backend=backend)
    before, gradients = snapshot(optimizer, params), [param.grad.clone() for param in params]
    versions = [param._version for param in params]
    grads = other_gradients(shapes=shapes_of(backend))
    precondition(optimizer, grads, momentum=momentum)
    assert_same_bits(snapshot(optimizer, params), before)
    assert_same_bits([param.grad for param in params], gradients)
    assert [param._version for param in params] == versions


def test_gradients_as_autograd_gives_them():
    layer = torch.nn.Linear(4, 3)
    optimizer = SOAP(layer.parameters())
    losses = [layer(torch.randn(5, 4)).square().mean() for _ in range(2)]
    for _ in range(2):
        losses[0].backward(retain_graph=True)
        optimizer.step()
    losses = [layer(torch.randn(5, 4)).square().mean(), layer(torch.randn(5, 4)).abs().mean()]
    params = tuple(layer.parameters())
    one, two = (precondition(optimizer, torch.autograd.grad(loss, params)) for loss in losses)
    assert [tuple(u.shape) for u in one] == [tuple(u.shape) for u in two] == [(3, 4), (3,)]
    assert not any(u.requires_grad for u in one)


def test_a_missing_gradient_and_one_that_is_not_finite():
    _, optimizer = trained()
    grads: list[torch.Tensor | None] = list(other_gradients())
    grads[1] = None
    grads[0][2, 3] = float("inf")
    found = precondition(optimizer, grads, momentum=True)
    assert found[1] is None
    assert torch.equal(found[0], torch.zeros(8, 8))
    assert all(u.isfinite().all() and u.any() for u in (found[2], found[3], found[4]))


def test_small_dtypes_come_back_in_the_states():
    _, optimizer = trained(dtype=torch.bfloat16)
    found = precondition(optimizer, other_gradients(dtype=torch.float16))
    assert {u.dtype for u in found} == {torch.float32}


def test_what_cannot_be_preconditioned_says_why():
    params, optimizer = trained()
    with pytest.raises(ValueError, match="4 gradients for 5 parameters: give one for each"):
        precondition(optimizer, other_gradients()[:4])
    wrong = other_gradients()
    wrong[2] = torch.zeros(6)
    with pytest.raises(ValueError, match=r"parameter 2 of group 0 is \[5\].*its gradient \[6\]"):
        precondition(optimizer, wrong)
    fresh = SOAP([("first", params[0])])
    with pytest.raises(ValueError, match="parameter 'first' has not been stepped yet"):
        precondition(fresh, other_gradients()[:1])
    assert precondition(fresh, [None]) == [None]
