"""First bases and refreshes that fail: by report or by an exception, and training goes on."""

from __future__ import annotations

import math

import pytest
import tolerances
import torch
from streams import assert_same_bits
from subjects import (
    BACKENDS,
    Broken,
    assert_orthogonal,
    built,
    give,
    gradients,
    one_thread,  # noqa: F401
    take,
    tensor_by_tensor,
)

from soap_fast.step.refresh import FAILED, Refreshed

pytestmark = pytest.mark.usefixtures("one_thread")
DUE = 3  # the call that refreshes


def failing(factors, bases, selections, allowed, tolerance):
    """An operator that could refresh nothing: bases as they were, every outcome says so."""
    widths = [(k, len(s), k.shape[1]) for k, s in zip(factors, selections, strict=True)]
    return Refreshed(
        [torch.arange(d).repeat(k, 1) for _, k, d in widths],
        [torch.eye(d).repeat(k, 1, 1) for _, k, d in widths],
        [torch.full((k,), FAILED) for _, k, _ in widths],
        [torch.full((k,), math.nan) for _, k, _ in widths],
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_the_operator_reports_as_failed_is_counted_and_kept(backend, monkeypatch):
    params, optimizer = built(backend)
    take(optimizer, params, range(DUE))
    without, plain = built(backend, precondition_frequency=100)
    take(plain, without, range(DUE))
    monkeypatch.setattr(optimizer._backend, "refresh_op", failing)
    take(optimizer, params, [DUE])
    take(plain, without, [DUE])
    for one, other in zip(
        tensor_by_tensor(optimizer, params), tensor_by_tensor(plain, without), strict=True
    ):
        modes = sum(q is not None for q in one["Q"])
        assert one.pop("refreshes").tolist() == [0, 0, modes]
        other.pop("refreshes")
        carried, left_alone = one.pop("exp_avg"), other.pop("exp_avg")
        assert_same_bits(one, other)
        # exp_avg went through a carry by the identity, which a matrix product may round
        assert torch.allclose(carried, left_alone, **tolerances.IDENTITY)
    assert sum(optimizer.stats()["failed"].values()) > 0
    monkeypatch.undo()
    take(optimizer, params, range(DUE + 1, 2 * DUE + 1))
    assert sum(optimizer.stats()["refreshed"].values()) > 0
    assert_orthogonal(optimizer)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_factor_that_is_not_finite_fails_alone(backend):
    params, optimizer = built(backend)
    take(optimizer, params, range(DUE))
    optimizer.state[params[0]]["GG"][0][0, 0] = math.nan
    before = optimizer.state[params[0]]["Q"][0].clone()
    take(optimizer, params, range(DUE, DUE + 2))
    entry = optimizer.state[params[0]]
    assert entry["refreshes"].tolist() == [1, 0, 1]
    assert torch.equal(entry["Q"][0], before)
    assert math.isnan(entry["off_diagonal"][0])
    assert_orthogonal(optimizer)
    assert all(param.isfinite().all() for param in params)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_operator_that_raises_leaves_the_bases_of_before(backend, when, monkeypatch):
    """Whether it had changed them already or not; the update of that call stays."""
    params, optimizer = built(backend)
    take(optimizer, params, range(DUE))
    without, plain = built(backend, precondition_frequency=100)
    take(plain, without, range(DUE + 1))
    working = optimizer._backend.refresh_op

    def raising(*arguments):
        if when == "after":
            working(*arguments)
        raise Broken

    monkeypatch.setattr(optimizer._backend, "refresh_op", raising)
    give(params, gradients(params, DUE))
    with pytest.raises(Broken):
        optimizer.step()
    assert_same_bits(tensor_by_tensor(optimizer, params), tensor_by_tensor(plain, without))
    monkeypatch.undo()
    take(optimizer, params, range(DUE + 1, 2 * DUE + 1))
    assert sum(optimizer.stats()["refreshed"].values()) > 0
    assert_orthogonal(optimizer)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_solver_that_raises_at_the_first_call_begins_nothing(backend, monkeypatch):
    """Not the vector either, which needs no bases; the next call is the first."""
    params, optimizer = built(backend)

    def raising(*_):
        raise Broken

    monkeypatch.setattr(optimizer._backend, "eigh", raising)
    give(params, gradients(params, 0))
    values = [param.detach().clone() for param in params]
    with pytest.raises(Broken):
        optimizer.step()
    assert not optimizer.state
    assert_same_bits([param.detach() for param in params], values)
    monkeypatch.undo()
    take(optimizer, params, range(5))
    others, straight = built(backend)
    take(straight, others, range(5))
    assert_same_bits(tensor_by_tensor(optimizer, params), tensor_by_tensor(straight, others))


@pytest.mark.parametrize("backend", BACKENDS)
def test_newcomers_whose_solver_raises_leave_the_others_stacks_alone(backend, monkeypatch):
    """The newcomer's factors would have stood in the stacks of the tensors that step."""
    params, optimizer = built(backend, ((4, 3), (4, 3)))
    early, late = params
    take(optimizer, [early], range(2))
    before = tensor_by_tensor(optimizer, params)

    def raising(*_):
        raise Broken

    monkeypatch.setattr(optimizer._backend, "eigh", raising)
    give(params, gradients(params, 2))
    with pytest.raises(Broken):
        optimizer.step()
    assert_same_bits(tensor_by_tensor(optimizer, params), before)
    assert late not in optimizer.state
    monkeypatch.undo()
    optimizer.step()
    assert [optimizer.state[p]["calls"] for p in params] == [3, 1]


@pytest.mark.parametrize("backend", ["eager"])
def test_a_solver_that_finds_nothing_leaves_the_identity(backend, monkeypatch):
    """LAPACK gives up on every factor, in float64 too: bases start as the identity, and follow."""
    params, optimizer = built(backend)

    def gives_up(*_):
        raise torch.linalg.LinAlgError

    monkeypatch.setattr(torch.linalg, "eigh", gives_up)
    take(optimizer, params, [0])
    for q in optimizer.state[params[0]]["Q"]:
        assert torch.equal(q, torch.eye(len(q)))
    take(optimizer, params, range(1, 5))
    assert optimizer.state[params[0]]["refreshes"].tolist() == [2, 0, 0]
    assert_orthogonal(optimizer)
