"""The table of tensors: where each one's clocks lie, and its shares of what launches sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from soap_fast.fused.columns import ROTATE, TENSOR
from soap_fast.fused.layout import Layout, padded
from soap_fast.fused.plane_tables import plane_count
from soap_fast.fused.tuning import TUNING
from soap_fast.fused.work import Work

Shares = dict[int, tuple[int, int]]  # by tensor: the first tile that sums n² of it, and how many


def shares_of_directions(last: Work, adam: Work) -> tuple[Shares, int, int]:
    """Tiles of the last rotation, then those of `adam`, each with a sum of n².

    Returns:
        Each tensor's tiles, where those of `adam` begin, and how many there are.
    """
    shares: Shares = {}
    tiles = 0
    for records in last.tiles:
        index = int(records[0, ROTATE["tensor"]])
        first, count = shares.get(index, (tiles, 0))
        shares[index] = first, count + len(records)
        tiles += len(records)
    tiles = of_adam = padded(tiles)
    for task, covered in zip(adam.tasks, adam.tiles, strict=True):
        shares[task[0]] = (tiles, len(covered))
        tiles += len(covered)
    return shares, of_adam, tiles


def rows_of(
    layouts: Sequence[Layout], states: Sequence[Mapping[str, Any]], shares: Shares
) -> tuple[list[list[int]], int]:
    """Rows of TENSOR, their options yet to be filled in, and how many tiles `gather` sums g² of."""
    rows, squares = [], 0
    for index, (layout, state) in enumerate(zip(layouts, states, strict=True)):
        tiles = plane_count(layout, TUNING["gather"].constants)
        row = [0] * len(TENSOR)
        for clock in ("step", "skipped"):
            row[TENSOR[clock]] = state[clock].data_ptr()
        for factor in [k for k in state["GG"] if k is not None][:1]:
            row[TENSOR["factor"]] = factor.data_ptr()
            row[TENSOR["factor_size"]] = factor.shape[0]
        row[TENSOR["first_square"]], row[TENSOR["squares"]] = squares, tiles
        row[TENSOR["first_direction"]], row[TENSOR["directions"]] = shares[index]
        row[TENSOR["numel"]] = layout.numel
        squares += tiles
        rows.append(row)
    return rows, squares
