"""gather against its twin: the plane, the sums of squares, and the Gram sums of folded modes."""

from __future__ import annotations

import torch
from compared import accurate, close, stepped
from kernel_cases import INVERSE_SCALE, PLANAR, POISONED, WITHOUT_GRADIENT
from launched import argument
from tf32 import product_error
from tolerances import U

from soap_fast.backends.triton.ops import fold_gram, gather
from soap_fast.triton_kernels.columns import PLANE


def test_gather(alone):
    before, after = alone.seen["gather"]
    planar = argument(*alone.engine.launches["gather"], "tasks").view(-1, len(PLANE))
    assert planar[:, PLANE["planar"]].nonzero().flatten().tolist() == [PLANAR]
    for index in stepped(alone):
        layout, grad = alone.layouts[index], alone.grads[index]
        basis = None
        if layout.folded:
            basis = alone.basis(before, index, layout.folded, back=False).T
        scale = float(torch.tensor(INVERSE_SCALE))
        wanted = gather.gather(grad, basis, layout, scale)
        sizes = gather.gather(grad.abs(), None if basis is None else basis.abs(), layout, scale)
        fold = product_error(accurate(alone), layout.fold) if layout.folded else 0.0
        close(alone.plane(after, index, "a", 0), wanted.plane, (fold + 2 * U) * sizes.plane, index)
        rows = product_error(accurate(alone), layout.numel // layout.fold) + 4 * U
        for mode, parts in (alone.fold_grams(after, index) if layout.folded else {}).items():
            zero = torch.zeros(parts.shape[1:], dtype=torch.float64)
            gram = fold_gram.fold_gram(wanted.joint, zero, 0.0, layout, mode)
            size = fold_gram.fold_gram(sizes.joint, zero, 0.0, layout, mode)
            close(parts.sum(0), gram, rows * size, (index, mode))
        if not layout.folded:
            rows = product_error("ieee", layout.numel) + 4 * U
        close(alone.sums(after, index, "squares").sum(), wanted.square, rows * sizes.square, index)
    assert not alone.sums(after, POISONED, "squares").sum().isfinite()
    assert (alone.sums(after, WITHOUT_GRADIENT, "squares") == 0).all()
