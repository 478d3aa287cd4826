"""gram and gram_reduce against their twin: factors follow the gradient."""

from __future__ import annotations

import torch
from compared import accurate, close, stepped
from tf32 import product_error
from tolerances import U

from soap_fast.backends.triton.ops import gram


def test_gram(alone):
    before, after = alone.seen["gram"].before, alone.seen["gram_reduce"].after
    for index in stepped(alone):
        layout, beta_s = alone.layouts[index], alone.options[index].shampoo_beta
        plane = alone.plane(before, index, "a", 0)
        for group in layout.products:
            name = f"K{group.modes[0]} {index}"
            old, new = before[name].double(), after[name]
            wanted = gram.gram(plane, old, beta_s, layout, group)
            sizes = gram.gram(plane.abs(), old.abs(), beta_s, layout, group)
            kept = beta_s * old.abs()
            error = product_error(accurate(alone), layout.numel // group.size)
            close(new, wanted, error * (sizes - kept) + 4 * U * sizes, name)
            assert torch.equal(new, new.T)
