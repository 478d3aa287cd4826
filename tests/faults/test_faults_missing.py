"""Gradients that are zero, partly zero for ever, late, missing for a while, or never there."""

from __future__ import annotations

from itertools import product

import pytest
import tolerances
import torch
from streams import assert_same_bits
from subjects import (
    BACKENDS,
    SHAPES,
    assert_orthogonal,
    built,
    for_each,
    give,
    gradients,
    one_thread,  # noqa: F401
    take,
    tensor_by_tensor,
)

pytestmark = pytest.mark.usefixtures("one_thread")
ZEROS = 50


@pytest.mark.parametrize("backend", BACKENDS)
def test_fifty_zero_gradients_and_then_real_ones(backend):
    """Until the first real one bases are the identity: that update is Adam's, to rounding."""
    options = {"weight_decay": 0.0, "precondition_frequency": 5}
    shapes = SHAPES[backend] if backend != "triton" else ((4, 3),)
    params, optimizer = built(backend, shapes, **options)
    start = [param.detach().clone() for param in params]
    for _ in range(ZEROS):
        give(params, [torch.zeros_like(param) for param in params])
        optimizer.step()
    assert_same_bits([param.detach() for param in params], start)
    for entry in optimizer.state.values():
        assert all(q is None or torch.equal(q, torch.eye(len(q))) for q in entry["Q"])
    assert optimizer.state[params[0]]["refreshes"].tolist() == [0, 2 * ((ZEROS - 1) // 5), 0]

    found = gradients(params, 0)
    give(params, found)
    optimizer.step()
    taken = ZEROS  # the first of all began the state; then every zero was a step, and this one is
    size = 3e-3 * (1 - 0.95**taken) ** 0.5 / (1 - 0.95**taken)
    for param, value, grad in zip(params, start, found, strict=True):
        direction = 0.05 * grad / ((0.05 * grad.square()).sqrt() + 1e-8)
        assert torch.allclose(param, value - size * direction, rtol=0, atol=tolerances.ADAM)
    take(optimizer, params, range(1, 12))
    assert_orthogonal(optimizer)
    assert int(optimizer.state[params[0]]["refreshes"][0]) >= 4
    assert all(param.isfinite().all() for param in params)
    assert all(not torch.equal(p, value) for p, value in zip(params, start, strict=True))


DEAD = list(product([(4, 6), (6, 2, 3)], [1e-8, 1e-4]))


@pytest.mark.parametrize(("backend", "shape", "eps"), for_each(DEAD, DEAD[:2]))
def test_a_dead_row_makes_nothing_infinite(backend, shape, eps):
    """A channel without a gradient, whose factor is singular for ever.

    Along its direction there is nothing but the rounding of the products, 1e-7 of the gradient, and
    the published eps of 1e-8 makes a step of it: the row moves as fast as the others, and does so
    by tests/oracle.py as well. An eps above the rounding keeps it in place.
    """
    params, optimizer = built(backend, (shape,), weight_decay=0.0, eps=eps)
    (param,) = params
    start = param.detach().clone()
    for call in range(8 if backend != "triton" else 5):
        found = gradients(params, call)
        found[0][1] = 0
        give(params, found)
        optimizer.step()
    assert_orthogonal(optimizer)
    assert int(optimizer.state[param]["refreshes"][0]) > 0
    assert param.isfinite().all()
    moved = (param.detach() - start).abs()
    alive = [row for row in range(shape[0]) if row != 1]
    assert (moved[alive] > 0).all()
    share = 1.5 if eps == 1e-8 else 1e-2
    assert moved[1].max() <= share * moved[alive].max()


# Calls of a training run at which each tensor has a gradient.
PRESENCE = {
    "never": range(0),
    "late": range(4, 9),
    "stops": range(5),
    "comes back": [*range(3), *range(6, 9)],
    "now and then": range(1, 9, 2),
    "always": range(9),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("presence", [name for name in PRESENCE if name != "always"])
def test_a_tensor_steps_as_if_alone_whenever_it_has_a_gradient(backend, presence):
    shapes = SHAPES["triton"]
    calls = (PRESENCE["always"], PRESENCE[presence])
    params, optimizer = built(backend, shapes)
    for call in PRESENCE["always"]:
        found = gradients(params, call)
        give(params, [g if call in own else None for g, own in zip(found, calls, strict=True)])
        optimizer.step()
    together = tensor_by_tensor(optimizer, params)
    for place, own in enumerate(calls):
        params, alone = built(backend, shapes)
        for call in own:
            found = gradients(params, call)
            give(params, [g if i == place else None for i, g in enumerate(found)])
            alone.step()
        assert_same_bits(together[place], tensor_by_tensor(alone, params)[place], f"{place}")
    assert ("calls" in together[1]) == (presence != "never")
    assert together[0]["calls"] == len(PRESENCE["always"])
    if presence == "never":
        assert set(together[1]) == {"value"}
