"""`count`: what became of bases into the counters; whose moments follow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from soap_fast.backends.triton.ops.work import table_row
from soap_fast.step.refresh import LEFT_OUT, REFRESHED
from soap_fast.triton_kernels.columns import (
    COUNT,
    COUNT_MODE,
)


def mode_rows(modes: Iterable[tuple[int, int, int]]) -> list[list[int]]:
    """Rows of `count` for modes that were due: (index of the mode, outcome, share)."""
    return [table_row(COUNT_MODE, mode=m, outcome=o, share=s) for m, o, s in modes]


def count_rows(counters: Iterable[tuple[int, int]], due: Sequence[int]) -> list[list[int]]:
    """Rows of `count` for every tensor.

    Args:
        counters: addresses of refreshes and off_diagonal.
        due: how many modes of each tensor were, whose rows follow each other.
    """
    rows, first = [], 0
    for (refreshes, off_diagonal), modes in zip(counters, due, strict=True):
        values = {"refreshes": refreshes, "off_diagonal": off_diagonal}
        rows.append(table_row(COUNT, **values, first_mode=first, modes=modes))
        first += modes
    return rows


def count(
    refreshes: torch.Tensor,
    off_diagonal: torch.Tensor,
    due: Sequence[int],
    outcomes: torch.Tensor,
    shares: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """refreshes[outcome - 1] += 1;  off_diagonal[mode] = share, for modes that were looked at.

    Args:
        refreshes: [3] int64.
        off_diagonal: [modes].
        due: modes whose refresh fell due.
        outcomes: [due] int64, see soap_fast/step/refresh.py.
        shares: [due].

    Returns:
        refreshes, off_diagonal, whether a basis was refreshed and moments follow.
    """
    refreshes, off_diagonal = refreshes.clone(), off_diagonal.clone()
    for mode, outcome, share in zip(due, outcomes.tolist(), shares, strict=True):
        if outcome != LEFT_OUT:
            refreshes[outcome - 1] += 1
            off_diagonal[mode] = share
    return refreshes, off_diagonal, bool((outcomes == REFRESHED).any())
