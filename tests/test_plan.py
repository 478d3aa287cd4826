"""Which modes carry a factor: against the oracle's own reading of the rules."""

from __future__ import annotations

from dataclasses import replace

import golden
import tolerances
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import OracleSOAP

from soap_fast.options import PlanOptions
from soap_fast.step.modes import grams
from soap_fast.step.plan import eligible_modes, plan_tensor

shapes = st.lists(st.integers(1, 9), max_size=5).map(tuple)
plan_options = st.builds(
    PlanOptions,
    max_precond_dim=st.integers(0, 40),
    merge_dims=st.booleans(),
    precondition_1d=st.booleans(),
    data_format=st.sampled_from(["channels_first", "channels_last"]),
)


@given(shape=shapes, options=plan_options)
def test_modes_and_factors_are_the_references(shape, options):
    plan = plan_tensor(shape, options)
    oracle = OracleSOAP(
        [],
        max_precond_dim=options.max_precond_dim,
        merge_dims=options.merge_dims,
        precondition_1d=options.precondition_1d,
        data_format=options.data_format,
    )
    x = torch.zeros(shape)
    assert plan.modes == tuple(oracle.fold(x).shape)
    expected = [None if k is None else len(k) for k in oracle.grams(x)]
    assert plan.factors == tuple(None if size == 1 else size for size in expected)
    eligible = eligible_modes(plan.shape, plan.modes, options)
    assert list(eligible) == [size is not None for size in expected]


def test_a_vector_merged_from_a_matrix_has_a_factor():
    options = PlanOptions(100, merge_dims=True, precondition_1d=False, data_format="channels_first")
    assert plan_tensor((4, 5), options).factors == (20,)
    assert plan_tensor((20,), options).factors == (None,)


def test_only_merging_looks_at_the_data_format():
    for merge, order in ((False, (0, 1, 2, 3)), (True, (0, 3, 1, 2))):
        options = PlanOptions(12, merge, precondition_1d=False, data_format="channels_last")
        assert plan_tensor((6, 3, 3, 4), options).order == order
    assert plan_tensor((6, 3, 4), options).order == (0, 1, 2)


def test_channels_last_permutes_the_tensor_and_not_only_its_shape():
    """The reference's own factors tell: the notes we started from spoke of the shape alone."""
    trace = golden.load("merge_nhwc")
    grad, factors = trace.grads[0][0].double(), trace.states[1][0]["GG"]
    options = PlanOptions(12, merge_dims=True, precondition_1d=False, data_format="channels_last")
    permuted = plan_tensor(tuple(grad.shape), options)
    reshaped = replace(permuted, order=(0, 1, 2, 3))
    errors = {}
    for plan in (permuted, reshaped):
        found = grams(grad, plan)
        pairs = [(0.05 * found[mode], factors[mode]) for mode in range(3)]
        errors[plan] = [float((k - recorded).abs().max() / k.abs().max()) for k, recorded in pairs]
    assert max(errors[permuted]) < tolerances.RECORDED_GRAM
    assert errors[reshaped][1] > 0.5
    assert errors[reshaped][2] > 0.1


def test_empty_tensors_have_no_factors():
    options = PlanOptions(100, False, precondition_1d=True, data_format="channels_first")
    assert plan_tensor((0, 5), options).factors == (None, None)
