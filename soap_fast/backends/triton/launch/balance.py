"""Which tiles a program walks: the longest are dealt first, back and forth, so that all programs
end at about the same time.

Programs take tiles in turns, whatever these cost: as they lie, the last program of ELIC's gram ends
39 % later than with equal loads, by the model of cost. An order changes no result.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from soap_fast.triton_kernels.columns import (
    GRAM,
    GRAM_ROWS,
    GRAM_WIDTHS,
    ROTATE,
    ROTATE_CLASSES,
)

# Cycles of a product's tile by the model of cost (sm_90, tf32x3), to tell which take longer: of 32
# terms so many and so many for each entry; what begins and ends a tile is as much as some terms.
TERMS, OF_TERMS, OF_ENTRY = 32, 550.0, 0.14
ENDS_OF_ROTATE, ENDS_OF_GRAM = 3, 5
OVER_ROWS = 1.35  # a sum over rows, which are transposed in registers


def dealt(op: str, tiles: torch.Tensor, programs: int) -> torch.Tensor:
    """Tiles in the order in which `programs` that take turns are to walk them."""
    costs = COSTS.get(op)
    if costs is None or len(tiles) <= programs:
        return tiles
    order = costs(tiles).argsort(descending=True, stable=True)
    for start in range(programs, len(order), 2 * programs):
        turn = slice(start, start + programs)
        order[turn] = order[turn].flip(0)
    return tiles[order]


def _of_rotate(records: torch.Tensor) -> torch.Tensor:
    moved = 0  # entries of a tile without a product, which has no terms either
    entries = torch.tensor([*(height * width for height, width, _ in ROTATE_CLASSES), moved])
    terms = -(-records[:, ROTATE["k"]] // TERMS) + ENDS_OF_ROTATE
    return terms * (OF_TERMS + OF_ENTRY * entries[records[:, ROTATE["kind"]]])


def _of_gram(records: torch.Tensor) -> torch.Tensor:
    along = torch.tensor([OF_TERMS + OF_ENTRY * GRAM_ROWS * width for width in GRAM_WIDTHS])
    each = torch.cat([along, OVER_ROWS * along])
    return (records[:, GRAM["chunks"]] + ENDS_OF_GRAM) * each[records[:, GRAM["kind"]]]


# Of rotations with Adam each tile's number is that of its sum; they lie as they are.
COSTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "rotate": _of_rotate,
    "settle": _of_rotate,
    "gram": _of_gram,
}
