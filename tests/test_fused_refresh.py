"""A refresh under the Triton backend, interpreted: bases, moments and counters as the eager one."""

from __future__ import annotations

import pytest
import tolerances
import torch
from streams import parameters, set_gradients, train
from test_fused import SHAPES, after_first_call, as_triton, pytestmark  # noqa: F401

from soap_fast import SOAP
from soap_fast.backends.triton.address_slots import AddressSlots


def refreshed_pair(options, calls, shapes=SHAPES):
    """Parameters and optimizers after the same calls, under eager and under triton."""
    params = parameters(shapes)
    eager = after_first_call(params, **options)
    triton, copies = as_triton(eager, params, **options)
    train(eager, params, calls)
    train(triton, copies, calls)
    return eager, params, triton, copies


def assert_same_refresh(eager: SOAP, params, triton: SOAP, copies) -> None:
    """Up to the signs of columns, which no refresh decides."""
    for index, (p, q) in enumerate(zip(params, copies, strict=True)):
        mine, theirs = eager.state[p], triton.state[q]
        assert mine["refreshes"].tolist() == theirs["refreshes"].tolist(), index
        shares = mine["off_diagonal"], theirs["off_diagonal"]
        assert torch.allclose(*shares, **tolerances.FUSED_SHARE, equal_nan=True), index
        plan_modes = [m for m, basis in enumerate(mine["Q"]) if basis is not None]
        moments = {key: (mine[key], theirs[key]) for key in ("exp_avg", "exp_avg_sq")}
        for mode in plan_modes:
            a, b = mine["Q"][mode], theirs["Q"][mode]
            agreement = a.T @ b
            sign = agreement.diagonal().sign()
            error = (agreement - torch.diag(sign)).abs().max()
            assert error < tolerances.FUSED_REFRESH, (index, mode)
            shape = [-1 if axis == mode else 1 for axis in range(mine["exp_avg"].ndim)]
            old, new = moments["exp_avg"]
            moments["exp_avg"] = (old, new * sign.reshape(shape))
        for key, (old, new) in moments.items():
            largest = old.abs().max() if old.numel() else 0.0
            assert ((old - new).abs() <= tolerances.FUSED_REFRESH * largest).all(), (index, key)


@pytest.mark.parametrize(
    "options",
    [
        {"precondition_frequency": 2},
        {"precondition_frequency": 3, "refresh_schedule": "staggered"},
        {"precondition_frequency": 2, "refresh_tolerance": 0.5, "precondition_1d": True},
        {"precondition_frequency": 1, "max_precond_dim": 6},
    ],
    ids=lambda options: ",".join(map(str, options.values())),
)
def test_a_refresh_is_the_eager_one(options):
    eager, params, triton, copies = refreshed_pair(options, [1, 2, 3])
    assert_same_refresh(eager, params, triton, copies)
    refreshed = sum(int(state["refreshes"][0]) for state in triton.state.values())
    assert refreshed > 0


def test_the_product_of_basis_and_moment_stays():
    """What a refresh must keep: exp_avg in the parameter's own coordinates, and all of v."""
    from soap_fast.step.modes import rotate_back
    from soap_fast.step.plan import plan_tensor

    params = parameters(SHAPES)
    optimizer = SOAP(params, backend="triton", precondition_frequency=10)
    train(optimizer, params, range(3))
    backend = optimizer._backend
    (engine,) = backend.engines.values()
    from soap_fast.options import plan_options, step_options

    group = optimizer.param_groups[0]
    plans = [plan_tensor(tuple(p.shape), plan_options(group)) for p in params]

    def unrotated():
        states = [optimizer.state[p] for p in params]
        pairs = zip(states, plans, strict=True)
        return [rotate_back(s["exp_avg"].double(), _double(s["Q"]), plan) for s, plan in pairs]

    from soap_fast.step.call import TensorCall

    before = unrotated()
    squares = [optimizer.state[p]["exp_avg_sq"].clone() for p in params]
    for state in optimizer.state.values():
        state["calls"] = 11
    calls = [
        TensorCall(p, p.grad, optimizer.state[p], plan, step_options(group))
        for p, plan in zip(params, plans, strict=True)
    ]
    engine.refresh([call for call in calls if call.modes_due()], backend.refresh_op)
    for p, old, new, square in zip(params, before, unrotated(), squares, strict=True):
        assert (old - new).abs().max() <= 64 * tolerances.U * old.abs().max()
        after = optimizer.state[p]["exp_avg_sq"]
        assert torch.equal(after.flatten().sort().values, square.flatten().sort().values)


def _double(bases):
    return [None if q is None else q.double() for q in bases]


def test_a_step_left_out_is_not_refreshed_and_the_rest_is():
    params = parameters(((6, 4, 3, 3), (8, 8)))
    optimizer = SOAP(params, backend="triton", precondition_frequency=2)
    train(optimizer, params, range(2))
    kept = [q.clone() for q in optimizer.state[params[0]]["Q"] if q is not None]
    set_gradients(params, 2)
    params[0].grad[0, 0, 0, 0] = float("nan")
    optimizer.step()
    bases = [q for q in optimizer.state[params[0]]["Q"] if q is not None]
    assert all(torch.equal(a, b) for a, b in zip(kept, bases, strict=True))
    assert optimizer.state[params[0]]["refreshes"].tolist() == [0, 0, 0]
    assert optimizer.state[params[1]]["refreshes"].tolist() == [2, 0, 0]


def test_a_refresh_that_fails_leaves_bases_and_moments_as_they_were():
    params = parameters(((6, 4, 3, 3), (8, 8)))
    optimizer = SOAP(params, backend="triton", precondition_frequency=2)
    train(optimizer, params, range(2))
    backend = optimizer._backend
    working = backend.refresh_op

    def breaks(factors, bases, selections, allowed, tolerance):
        working(factors, bases, selections, allowed, tolerance)
        raise MemoryError

    backend.refresh_op = breaks
    kept = [q.clone() for p in params for q in optimizer.state[p]["Q"]]
    with pytest.raises(MemoryError):
        train(optimizer, params, [2])
    after = [q for p in params for q in optimizer.state[p]["Q"]]
    assert all(torch.equal(a, b) for a, b in zip(kept, after, strict=True))
    backend.refresh_op = working
    train(optimizer, params, [3, 4])
    assert all(bool(p.isfinite().all()) for p in params)


def test_address_slots_become_addresses():
    slots = AddressSlots()
    rows = [[5, slots.add(1, 8), 0], [slots.add(0, 0), 7, slots.add(1, 16)]]
    filled = slots.table(rows).filled(torch.tensor([1000, 2000]))
    assert filled.tolist() == [5, 2008, 0, 1000, 7, 2016]
