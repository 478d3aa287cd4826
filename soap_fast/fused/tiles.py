"""Tiles that cover matrices: widths 64, 32 and 16, so that little is computed beyond the edges."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch

ROW_WIDTHS = (64, 32, 16)
ADAM_HEIGHTS = (32, 16)  # the moments of 64 rows would not fit in registers beside the product
ROTATE_CLASSES = {
    (m, n): i for i, (n, m) in enumerate((n, m) for n in (64, 16) for m in ROW_WIDTHS)
}
GRAM_CLASSES = {(64, 64): 0, (32, 32): 1, (16, 64): 2, (16, 16): 3}
ACROSS = len(GRAM_CLASSES)  # added to the class of a Gram tile that sums over rows


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


def rotate_tiles(task: int, m: int, n: int, heights: tuple[int, ...]) -> torch.Tensor:
    """[tiles, 4] int32: task, class, first row, first position."""
    columns = cover(n, (64, 16))
    wide = torch.tensor([start for start, width in columns if width == 64], dtype=torch.int32)
    narrow = torch.tensor([start for start, width in columns if width == 16], dtype=torch.int32)
    parts = []
    for start, height in cover(m, heights):
        for width, starts in ((64, wide), (16, narrow)):
            part = torch.empty((len(starts), 4), dtype=torch.int32)
            part[:, 0], part[:, 1] = task, ROTATE_CLASSES[height, width]
            part[:, 2], part[:, 3] = start, starts
            parts.append(part)
    return torch.cat(parts)


def rotate_area(m: int, n: int, heights: tuple[int, ...]) -> int:
    """Entries of out that tiles compute."""
    height = sum(width for _, width in cover(m, heights))
    return height * sum(width for _, width in cover(n, (64, 16)))


@lru_cache(maxsize=1024)
def triangle(size: int) -> tuple[tuple[int, int, int, int], ...]:
    """(first row, first column, height, width) of tiles over the lower triangle of a matrix."""
    return tuple(_triangle(size))


def _triangle(size: int) -> Iterator[tuple[int, int, int, int]]:
    bands = cover(size, (64, 16))
    for i, (row, height) in enumerate(bands):
        for column, width in bands[:i]:
            yield row, column, height, width
        if height == 64:  # three quarters of the tile on the diagonal
            yield row, row, 32, 32
            yield row + 32, row, 32, 32
            yield row + 32, row + 32, 32, 32
        else:
            yield row, row, height, height
