"""The twins of the kernels, one after the other, are the eager step on any shape: in float64."""

from __future__ import annotations

import tolerances
import torch
from factors import random_orthogonal
from hypothesis import given
from hypothesis import strategies as st
from test_oracle import relative
from test_plan import plan_options, shapes

from soap_fast.backends.triton.ops import apply, derive, fold_gram, gather, gram
from soap_fast.backends.triton.ops import rotate as product
from soap_fast.backends.triton.ops.plane import from_plane, to_plane
from soap_fast.step.layout import layout_of
from soap_fast.step.modes import grams, rotate, rotate_back
from soap_fast.step.plan import plan_tensor


def joined(bases, group, *, transposed: bool) -> torch.Tensor:
    members = [bases[mode] for mode in group.modes]
    return derive.derive(members, transposed, group.size, group.size)


@given(shape=shapes, options=plan_options, seed=st.integers(0, 2**32 - 1))
def test_twins_compose_to_the_eager_step(shape, options, seed):
    generator = torch.Generator().manual_seed(seed)
    plan = plan_tensor(shape, options)
    layout = layout_of(plan)
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    bases = [None if d is None else random_orthogonal(d, generator) for d in plan.factors]
    folded = layout.folded and joined(bases, layout.folded, transposed=False)
    zeros = {
        mode: torch.zeros(d, d, dtype=torch.float64)
        for mode, d in enumerate(plan.factors)
        if d is not None
    }

    plane, square, joint = gather.gather(x, folded, layout)
    assert plane.shape == (layout.fold, layout.positions)
    assert relative(square, x.square().sum()) < tolerances.PRODUCTS_64
    found = {
        group.modes[0]: gram.gram(plane, zeros[group.modes[0]], 0.0, layout, group)
        for group in layout.products
    }
    for mode in layout.folded.modes if layout.folded else ():
        found[mode] = fold_gram.fold_gram(joint, zeros[mode], 0.0, layout, mode)
    assert found.keys() == zeros.keys()
    expected = grams(x, plan)
    for mode, k in found.items():
        assert relative(k, expected[mode]) < tolerances.PRODUCTS_64

    products = list(enumerate(reversed(layout.products)))
    for number, group in products:
        plane = product.rotate(plane, joined(bases, group, transposed=True), layout, number)
    assert relative(from_plane(plane, layout), rotate(x, bases, plan)) < tolerances.PRODUCTS_64

    plane = to_plane(x, layout)
    for number, group in products:
        plane = product.rotate(plane, joined(bases, group, transposed=False), layout, number)
    one, zero = torch.ones(()), torch.zeros(())
    moved = apply.apply(torch.zeros_like(x), plane, folded, -one, zero, layout)
    assert relative(moved, rotate_back(x, bases, plan)) < tolerances.PRODUCTS_64
