"""Which tiles a grouped product is made of, and how long a GPU is at one.

Cycles are what the model of cost makes of sm_90's machine code (`docs/cost.md`), two programs on a
multiprocessor together. By them products of 165888 x 192 x 192 and x 320 x 320 run at 69 and 79
TFLOP/s in tiles of 128 rows and at 48 and 58 in tiles of 64. A kernel of the same tiles was measured
at 63 and 73, and at 52 to 58 and 60 to 65 (NVIDIA H100 80GB HBM3).
"""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

from soap_fast.step.grouped_matmul import ROUNDED, SUBTRACT
from soap_fast.triton_kernels.columns import ANY_TILE, GROUPED_CLASSES

__all__ = ["ANY", "BLOCK", "TILES", "kind_of", "tile_cycles"]

TILES = (*GROUPED_CLASSES, ANY_TILE)
ANY = len(GROUPED_CLASSES)  # the kind of a group whose operands lie in any other way
BLOCK = 32  # terms of a sum at a time


class Cycles(NamedTuple):
    """Of a tile: beside its sum, for 32 terms of it, and for 32 terms in rounded operands."""

    tile: float
    block: float
    rounded: float


OF = (Cycles(7200, 2450, 1460), Cycles(6200, 1530, 1040), Cycles(5300, 1120, 860))
OF_ANY = Cycles(15500, 9000, 9000)  # element by element
TAKEN_FROM = 2300  # more where there is something to subtract from


def kind_of(m: int, n: int, k: int) -> int:
    """The class of tiles [m, n] of k terms that takes the least."""
    return min(range(ANY), key=lambda kind: _number(kind, m, n) * _cycles(OF[kind], k, 0))


def tile_cycles(kind: int, k: int, structure: int) -> float:
    """Of one tile."""
    return _cycles(OF_ANY if kind == ANY else OF[kind], k, structure)


def _number(kind: int, m: int, n: int) -> int:
    height, width = TILES[kind]
    return ceil(m / height) * ceil(n / width)


def _cycles(of: Cycles, k: int, structure: int) -> float:
    block = of.rounded if structure & ROUNDED else of.block
    return of.tile + ceil(k / BLOCK) * block + (TAKEN_FROM if structure & SUBTRACT else 0)
