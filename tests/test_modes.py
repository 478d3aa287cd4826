"""Contractions along modes: against einsum, and as the group of rotations they are."""

from __future__ import annotations

import math

import tolerances
import torch
from factors import random_orthogonal
from hypothesis import given
from hypothesis import strategies as st
from oracle import OracleSOAP
from test_oracle import relative
from test_plan import plan_options, shapes

from soap_fast.step.modes import from_modes, grams, rotate, rotate_back, to_modes
from soap_fast.step.plan import plan_tensor


@given(shape=shapes, options=plan_options, seed=st.integers(0, 2**32 - 1), strided=st.booleans())
def test_rotations(shape, options, seed, strided):
    generator = torch.Generator().manual_seed(seed)
    plan = plan_tensor(shape, options)
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    if strided:  # the same values in reversed memory order
        backwards = list(reversed(range(x.dim())))
        x = x.permute(backwards).contiguous().permute(backwards)
    oracle = OracleSOAP(
        [],
        max_precond_dim=options.max_precond_dim,
        merge_dims=options.merge_dims,
        precondition_1d=options.precondition_1d,
        data_format=options.data_format,
    )
    bases = [None if d is None else random_orthogonal(d, generator) for d in plan.factors]

    rotated = rotate(x, bases, plan)
    assert relative(rotated, oracle.project(x, bases)) < tolerances.PRODUCTS_64
    assert rotated.shape == x.shape
    assert relative(rotate_back(rotated, bases, plan), x) < tolerances.PRODUCTS_64
    assert math.isclose(rotated.norm(), x.norm(), rel_tol=tolerances.PRODUCTS_64)
    for found, expected, size in zip(grams(x, plan), oracle.grams(x), plan.factors, strict=True):
        assert (found is None) == (size is None)
        if found is not None:
            assert relative(found, expected) < tolerances.PRODUCTS_64
            assert torch.equal(found, found.T)
    assert torch.equal(from_modes(to_modes(x, plan), plan), x)
