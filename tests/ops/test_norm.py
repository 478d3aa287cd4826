"""norm against its twin: the step size of groups with normalize_grads."""

from __future__ import annotations

from compared import close, stepped
from tf32 import product_error
from tolerances import U

from soap_fast.backends.triton.ops import norm
from soap_fast.backends.triton.ops.plane import from_plane


def test_norm(alone):
    before, after = alone.seen["norm"]
    for index in stepped(alone):
        old, new = (alone.scalar(memory, index, "size") for memory in (before, after))
        layout = alone.layouts[index]
        if not alone.options[index].normalize_grads:
            assert old == new
            continue
        count = len(layout.products)
        n = alone.plane(before, index, "a" if count % 2 == 0 else "b", count)
        wanted = norm.norm(old, from_plane(n, layout))
        close(new, wanted, (product_error("ieee", layout.numel) + 8 * U) * wanted, index)
