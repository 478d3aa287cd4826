"""Tiles that cover matrices: widths 64, 32 and 16, so that little is computed beyond the edges."""

from __future__ import annotations

from functools import lru_cache

import torch

from soap_fast.triton_kernels.columns import GRAM_ROWS, GRAM_WIDTHS

FLOAT = 4  # bytes


def cover(size: int, widths: tuple[int, ...]) -> list[tuple[int, int]]:
    """(start, width) of tiles over `size` elements: widest first, the rest tightly."""
    widest, narrowest = widths[0], widths[-1]
    found = [(start, widest) for start in range(0, size - widest + 1, widest)]
    start = len(found) * widest
    rest = -(-(size - start) // narrowest) * narrowest
    if rest == widest:
        return [*found, (start, widest)]
    for width in widths[1:]:
        while rest >= width:
            found.append((start, width))
            start, rest = start + width, rest - width
    return found


@lru_cache(maxsize=1024)
def triangle(size: int) -> tuple[tuple[int, int, int], ...]:
    """Tiles over a symmetric matrix, of each entry and its mirror at least one: those of a Gram.

    Returns:
        First row, first column and width of each. All have GRAM_ROWS rows, so a narrow band at the
        end is the columns of tiles. Where first row and column differ a tile holds no mirrors.
    """
    bands = cover(size, GRAM_WIDTHS)
    tiles = []
    for i, (start, width) in enumerate(bands):
        tiles += [(above, start, width) for above, high in bands[:i] if high == GRAM_ROWS]
        tiles.append((start, start, width))
    return tuple(tiles)


def linear_tiles(task: int, elements: int, rows: int) -> torch.Tensor:  # [tiles, 2] int32
    """Task and first element of tiles over what lies as it is."""
    starts = torch.arange(0, elements, rows, dtype=torch.int32)
    return torch.stack([torch.full_like(starts, task), starts], dim=1)
