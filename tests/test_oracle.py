"""The eager step against the independent oracle in float64: trajectories, and single steps."""

from __future__ import annotations

import math

import tolerances
import torch
from factors import random_factor, random_orthogonal
from hypothesis import assume, example, given
from hypothesis import strategies as st
from oracle import OracleSOAP, TensorState

from soap_fast import SOAP

options = st.fixed_dictionaries(
    {
        "lr": st.floats(1e-4, 1e-1),
        "betas": st.tuples(st.floats(0.0, 0.99), st.floats(0.5, 0.999)),
        "shampoo_beta": st.sampled_from([-1, 0.0, 0.5, 0.95]),
        "eps": st.sampled_from([1e-8, 1e-3]),
        "weight_decay": st.sampled_from([0.0, 0.1]),
        "precondition_frequency": st.integers(1, 4),
        "max_precond_dim": st.sampled_from([3, 6, 12, 10000]),
        "merge_dims": st.booleans(),
        "precondition_1d": st.booleans(),
        "normalize_grads": st.booleans(),
        "data_format": st.sampled_from(["channels_first", "channels_last"]),
        "correct_bias": st.booleans(),
    }
)
shapes = st.lists(st.integers(1, 6), min_size=0, max_size=4).map(tuple)


def modes_with_factor(shape, kwargs) -> list[int | None]:
    """Sizes of the factors the oracle gives a tensor of this shape, per mode."""
    oracle = OracleSOAP([], **kwargs)
    return [None if k is None else len(k) for k in oracle.grams(torch.zeros(shape).double())]


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """|found - expected| / |expected|, 0 where both are zero."""
    return float((found.detach() - expected).norm() / expected.norm().clamp_min(1e-300))


@given(shape=shapes, kwargs=options, seed=st.integers(0, 2**32 - 1))
@example(shape=(), kwargs={"precondition_1d": True}, seed=0)
@example(shape=(1,), kwargs={"precondition_1d": True}, seed=0)
@example(shape=(1, 1, 1), kwargs={}, seed=0)
@example(shape=(4, 3, 3, 6), kwargs={"merge_dims": True, "data_format": "channels_last"}, seed=1)
def test_trajectory_where_every_factor_is_determined(shape, kwargs, seed):
    numel = math.prod(shape)
    factors = [size for size in modes_with_factor(shape, kwargs) if size is not None]
    assume(
        all(size * size <= numel for size in factors)
    )  # one gradient gives every factor full rank

    generator = torch.Generator().manual_seed(seed)
    init = torch.randn(shape, dtype=torch.float64, generator=generator)
    oracle = OracleSOAP([init], **kwargs)
    param = torch.nn.Parameter(init.clone())
    optimizer = SOAP([param], backend="eager", **kwargs)
    for call in range(1, 8):
        grad = torch.randn(shape, dtype=torch.float64, generator=generator)
        oracle.step([grad])
        param.grad = grad.clone()
        optimizer.step()
        if call == 1:
            assert torch.equal(param, init)
        else:
            moved = relative(param.detach() - init, oracle.params[0] - init)
            assert moved < tolerances.TRAJECTORY_64, f"call {call}: {moved:.1e}"


@given(
    shape=shapes,
    kwargs=options,
    rank=st.integers(0, 3),
    step=st.integers(0, 50),
    seed=st.integers(0, 2**32 - 1),
)
def test_one_step_from_an_injected_state(shape, kwargs, rank, step, seed):
    """Any state, rank-deficient factors included: one step agrees, whatever the bases are."""
    generator = torch.Generator().manual_seed(seed)
    init = torch.randn(shape, dtype=torch.float64, generator=generator)
    state = TensorState(
        step=step,
        exp_avg=torch.randn(shape, dtype=torch.float64, generator=generator),
        exp_avg_sq=torch.rand(shape, dtype=torch.float64, generator=generator),
    )
    for size in modes_with_factor(shape, kwargs):
        state.GG.append(None if size is None else random_factor(size, rank, generator))
        state.Q.append(None if size is None else random_orthogonal(size, generator))
    grad = torch.randn(shape, dtype=torch.float64, generator=generator)

    param = torch.nn.Parameter(init.clone())
    optimizer = SOAP([param], backend="eager", **kwargs)
    optimizer.load_state_dict(in_reference_layout(state, optimizer))
    ours = optimizer.state[param]
    oracle = OracleSOAP([init], **kwargs)
    oracle.states[0] = state
    old_bases = list(state.Q)

    param.grad = grad.clone()
    optimizer.step()
    oracle.step([grad])

    assert relative(param, oracle.params[0]) < tolerances.ONE_STEP_64
    assert ours["step"] == state.step == step + 1
    for k, expected in zip(ours["GG"], state.GG, strict=True):
        if k is not None:
            assert relative(k, expected) < tolerances.ONE_STEP_64
    # exp_avg_sq is only permuted at a refresh, by an order both sides find from the same numbers.
    assert relative(ours["exp_avg_sq"], state.exp_avg_sq) < tolerances.ONE_STEP_64
    # A rank-deficient factor leaves its basis open, and so exp_avg, but not what that stands for.
    found = oracle.project(ours["exp_avg"], with_units(ours["Q"], state.Q), back=True)
    expected = oracle.project(state.exp_avg, state.Q, back=True)
    assert relative(found, expected) < 10 * tolerances.ONE_STEP_64
    refreshed = (step + 1) % optimizer.param_groups[0]["precondition_frequency"] == 0
    for q, old, new, k in zip(ours["Q"], old_bases, state.Q, state.GG, strict=True):
        if q is None:
            continue
        if not refreshed:
            assert torch.equal(q, old)
            continue
        identity = torch.eye(len(q), dtype=torch.float64)
        assert (q.T @ q - identity).abs().max() < tolerances.ONE_STEP_64
        determined = int(torch.linalg.matrix_rank(k))
        agreement = (q * new).sum(0).abs()[:determined]  # columns have no sign of their own
        assert ((agreement - 1).abs() <= tolerances.COLUMN_64).all()


def with_units(bases, reference_bases):
    """Our bases, with the identity where the oracle keeps a 1 x 1 basis and we keep none."""
    return [
        torch.ones(1, 1, dtype=torch.float64) if q is None and other is not None else q
        for q, other in zip(bases, reference_bases, strict=True)
    ]


def in_reference_layout(state: TensorState, optimizer: SOAP) -> dict:
    """A state_dict as the reference would have saved it."""
    entry = {
        "step": state.step,
        "exp_avg": state.exp_avg.clone(),
        "exp_avg_sq": state.exp_avg_sq.clone(),
        "GG": [[] if k is None else k.clone() for k in state.GG],
        "Q": [[] if q is None else q.clone() for q in state.Q],
    }
    return {"state": {0: entry}, "param_groups": optimizer.state_dict()["param_groups"]}
