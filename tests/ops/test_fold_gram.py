"""fold_gram against its twin: factors of folded modes, of the sums that gather leaves."""

from __future__ import annotations

import torch
from compared import close, stepped
from tf32 import product_error
from tolerances import U


def test_fold_gram(alone):
    before, after = alone.seen["fold_gram"]
    for index in stepped(alone):
        layout, beta_s = alone.layouts[index], alone.options[index].shampoo_beta
        if layout.folded is None:
            continue
        for mode, parts in alone.fold_grams(before, index).items():
            name = f"K{mode} {index}"
            old, new = before[name].double(), after[name]
            wanted = beta_s * old + (1 - beta_s) * parts.sum(0)
            sizes = beta_s * old.abs() + (1 - beta_s) * parts.abs().sum(0)
            terms = len(parts) * layout.fold // layout.plan.modes[mode]
            close(new, wanted, (product_error("ieee", terms) + 4 * U) * sizes, name)
            assert torch.equal(new, new.T)
