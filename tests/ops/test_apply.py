"""apply against its twin: parameters move."""

from __future__ import annotations

import torch
from compared import close, stepped
from tf32 import product_error
from tolerances import U

from soap_fast.backends.triton.ops import apply


def test_apply(alone):
    before, after = alone.seen["apply"]
    for index in stepped(alone):
        layout, name = alone.layouts[index], f"param {index}"
        plane = alone.plane(before, index, "a", 0)
        basis, fold = None, 0.0
        if layout.folded:
            basis = alone.basis(before, index, layout.folded, back=True)
            fold = product_error(alone.engine.precision, layout.fold)
        size, decay = (alone.scalar(before, index, scalar) for scalar in ("size", "decay"))
        param = before[name].double()
        wanted = apply.apply(param, plane, basis, size, decay, layout)
        still = torch.zeros_like(decay)
        moved = apply.apply(
            0 * param, plane.abs(), None if basis is None else basis.abs(), -size, still, layout
        )
        # bfloat16 is cut off by the interpreter, to nearest by a GPU: by eps at most.
        info = torch.finfo(after[name].dtype)
        bound = (1 + decay) * (fold * moved + 4 * U * (param.abs() + moved))
        bound = bound + info.eps * wanted.abs() + info.smallest_normal * info.eps
        close(after[name], wanted, bound, name)
        assert not torch.equal(after[name], before[name])
