"""refresh_ as an operator of torch, and as a step of whole tensors."""

from __future__ import annotations

import pytest
import tolerances
import torch
from factors import random_factor, random_orthogonal
from streams import (
    assert_same_bits,
    backends,
    needs_native,
    parameters,
    set_gradients,
    snapshot,
    train,
)

from soap_fast import SOAP
from soap_fast.step.refresh import carries_in, refresh_by_cholesky, refresh_native


def arguments(*sizes: int, n: int = 3):
    generator = torch.Generator().manual_seed(0)
    factors = [torch.stack([random_factor(d, d, generator) for _ in range(n)]) for d in sizes]
    bases = [torch.stack([random_orthogonal(d, generator) for _ in range(n)]) for d in sizes]
    chosen = [torch.arange(n, dtype=torch.int32) for _ in sizes]
    return factors, bases, chosen, [torch.ones(n, dtype=torch.bool) for _ in sizes], 0.0


@needs_native
def test_opcheck():
    given = arguments(5, 40)
    results = refresh_native(*given)
    torch.library.opcheck(torch.ops.soap_fast.refresh_.default, (*given, *results))


@needs_native
def test_under_compile():
    def norms(factors, bases, chosen, allowed, tolerance):
        refreshed = refresh_native(factors, bases, chosen, allowed, tolerance)
        return [carry.norm() for carry in refreshed.carries]

    compiled = torch.compile(norms, fullgraph=True, backend="aot_eager")
    one, other = arguments(5, 12), arguments(5, 12)
    for found, expected in zip(compiled(*one), norms(*other), strict=True):
        assert torch.equal(found, expected)
    assert_same_bits(one[1], other[1])


@needs_native
@pytest.mark.parametrize("op", [refresh_native, refresh_by_cholesky])
def test_carrying_matrices_by_columns(op):
    """Where transposed ones are handed in, and of some stacks alone; nothing else changes."""
    sizes = (5, 12, 40, 45, 70)

    def by_columns(like, shape):
        turned = shape[-1] != 12
        return like.new_empty(tuple(shape)).mT if turned else like.new_empty(tuple(shape))

    one, other = arguments(*sizes), arguments(*sizes)
    for given in (one, other):
        given[3][2][1] = False
    usual = op(*one)
    with carries_in(by_columns):
        found = op(*other)
    assert_same_bits(one[1], other[1])
    assert_same_bits(usual.orders, found.orders)
    assert_same_bits(usual.outcomes, found.outcomes)
    for d, carry, expected in zip(sizes, found.carries, usual.carries, strict=True):
        assert carry.is_contiguous() == (d == 12)
        if op is refresh_native:
            assert torch.equal(carry, expected), d
        allowed = tolerances.qr(carry.dtype, d)
        assert (carry - expected).abs().max() <= allowed, d


@needs_native
@pytest.mark.parametrize("threads", [1, 2])
def test_large_factors_on_threads(threads):
    """MKL inside a parallel region must keep to its thread: see csrc/workers.cpp."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        factors, bases, chosen, allowed, tolerance = arguments(700, 96)
        refresh_native(factors, bases, chosen, allowed, tolerance)
        for stack in bases:
            gram = stack.mT @ stack
            assert (
                gram - torch.eye(stack.shape[1]).double()
            ).abs().max() < tolerances.ORTHOGONAL_64
    finally:
        torch.set_num_threads(before)


BAD = {
    "shapes differ": (lambda a: a[1].__setitem__(0, a[1][0][:2]), "must both be of one shape"),
    "dtypes differ": (
        lambda a: a[1].__setitem__(0, a[1][0].float()),
        "must both be float32 or both float64",
    ),
    "not contiguous": (lambda a: a[1].__setitem__(0, a[1][0].mT), "make it contiguous"),
    "int64": (lambda a: a[2].__setitem__(0, a[2][0].long()), "must be 1-D and int32"),
    "twice": (lambda a: a[2].__setitem__(0, a[2][0] * 0), "names 0 twice"),
    "outside": (lambda a: a[2].__setitem__(0, a[2][0] + 1), r"=3 is outside \[0, 3\)"),
    "flags": (lambda a: a[3].__setitem__(0, a[3][0][:1]), "must be bool with one entry"),
    "missing": (lambda a: a[3].pop(), "every list must have one entry per stack"),
}


@needs_native
@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    spoil, message = BAD[case]
    given = arguments(4)
    spoil(given)
    before = [stack.clone() for stack in given[1]]
    with pytest.raises(RuntimeError, match=message):
        refresh_native(*given)
    assert_same_bits(given[1], before)


@pytest.mark.parametrize("backend", backends())
def test_a_failure_while_moments_are_carried_gives_the_bases_back(monkeypatch, backend):
    """The first tensor's moments were carried over, the second's were not.

    In float64, whose moments every backend carries tensor by tensor; tests/test_cpu_step.py has a
    failure of the operator that carries all at once.
    """
    params = parameters(((8, 8), (8, 5)), dtype=torch.float64)
    optimizer = SOAP(params, precondition_frequency=4, backend=backend)
    train(optimizer, params, range(4))
    before = snapshot(optimizer, params)[1]["state"]
    import soap_fast.step.carry

    carry, carried = soap_fast.step.carry._carry, []

    def carry_one(*args):
        if carried:
            raise MemoryError
        carried.append(args)
        carry(*args)

    monkeypatch.setattr("soap_fast.step.carry._carry", carry_one)
    set_gradients(params, 4)
    with pytest.raises(MemoryError):
        optimizer.step()
    monkeypatch.undo()
    after = snapshot(optimizer, params)[1]["state"]
    assert_same_bits(after[1]["Q"], before[1]["Q"])
    assert not torch.equal(after[0]["Q"][0], before[0]["Q"][0])
    train(optimizer, params, range(5, 10))


@pytest.mark.parametrize("backend", backends())
def test_a_basis_replaced_by_the_user_is_refreshed_as_it_is(backend):
    params, others = parameters(((8, 8), (8, 8))), parameters(((8, 8), (8, 8)))
    optimizer, control = (
        SOAP(p, precondition_frequency=4, backend=backend) for p in (params, others)
    )
    train(optimizer, params, range(3))
    train(control, others, range(3))
    for mode in range(2):
        basis = optimizer.state[params[0]]["Q"][mode]
        basis = basis.T.contiguous().T if mode else basis.clone()
        optimizer.state[params[0]]["Q"][mode] = basis
    train(optimizer, params, range(3, 9))
    train(control, others, range(3, 9))
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, **tolerances.FEW_CALLS)


@pytest.mark.parametrize("backend", backends())
def test_the_moments_keep_their_meaning_across_a_refresh(backend):
    """exp_avg stands for the same tensor before and after; exp_avg_sq is only permuted."""
    from soap_fast.options import PlanOptions
    from soap_fast.step.modes import rotate_back
    from soap_fast.step.plan import plan_tensor

    params = parameters(((6, 5, 4),), dtype=torch.float64)
    optimizer = SOAP(params, betas=(0.9, 0.9), precondition_frequency=4, backend=backend)
    plan = plan_tensor((6, 5, 4), PlanOptions(10000, False, False, "channels_first"))
    train(optimizer, params, range(4))
    state = optimizer.state[params[0]]
    before = rotate_back(state["exp_avg"], state["Q"], plan)
    old_bases, old_squares = [q.clone() for q in state["Q"]], 0.9 * state["exp_avg_sq"]

    params[0].grad = torch.zeros(6, 5, 4, dtype=torch.float64)  # the refresh falls on this call
    optimizer.step()
    assert not torch.equal(state["Q"][0], old_bases[0])
    after = rotate_back(state["exp_avg"], state["Q"], plan)
    torch.testing.assert_close(after, 0.9 * before, **tolerances.EXACT_64)
    found, expected = (x.flatten().sort().values for x in (state["exp_avg_sq"], old_squares))
    torch.testing.assert_close(found, expected, **tolerances.PERMUTED_64)


@pytest.mark.parametrize("backend", backends())
def test_counters(backend):
    params = parameters(((8, 8), (6, 4, 3, 3), (5,)))
    optimizer = SOAP(params, precondition_frequency=2, refresh_tolerance=0.5, backend=backend)
    train(optimizer, params, range(7))
    stats = optimizer.stats()
    names = list(stats["skipped"])
    for name, modes in zip(names, (2, 4, 0), strict=True):
        done = [stats[kind][name] for kind in ("refreshed", "kept", "failed")]
        assert sum(done) == 3 * modes  # at calls 3, 5 and 7
        assert done[2] == 0
        assert len([x for x in stats["off_diagonal"][name] if x == x]) == modes
    assert sum(stats["kept"].values()) > 0
    params[0].grad.fill_(torch.nan)
    train(optimizer, params[1:], range(7, 8))
    params[0].grad.fill_(torch.nan)
    optimizer.step()  # call 9 of the first tensor is left out, its refresh with it
    assert sum(optimizer.stats()[k][names[0]] for k in ("refreshed", "kept", "failed")) == 6
