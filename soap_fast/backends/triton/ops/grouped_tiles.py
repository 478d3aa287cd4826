"""Which tiles a grouped product is made of, and how long a GPU is at one.

Cycles are what the model of cost makes of sm_90's machine code (`docs/cost.md`), two programs on a
multiprocessor together. By them products of 165888 x 192 x 192 and x 320 x 320 run at 69 and 79
TFLOP/s in tiles of 128 rows and at 48 and 58 in tiles of 64. A kernel of the same tiles was
measured at 63 and 73, and at 52 to 58 and 60 to 65 (NVIDIA H100 80GB HBM3).
"""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

from soap_fast.step.grouped_matmul import ROUNDED, SUBTRACT
from soap_fast.triton_kernels.columns import GROUPED_CLASSES, GROUPED_NARROW

__all__ = ["BLOCK", "kind_of", "tile_cycles"]

BLOCK = 32  # terms of a sum at a time


class Cycles(NamedTuple):
    """Of a tile: beside its sum, for 32 terms of it, and for 32 terms in rounded operands."""

    tile: float
    block: float
    rounded: float


OF = (
    Cycles(7200, 2450, 1460),
    Cycles(6200, 1530, 1040),
    Cycles(5300, 1120, 860),
)
TAKEN_FROM = 2300  # more where there is something to subtract from


def kind_of(m: int, n: int, k: int, narrow: bool = False) -> int:
    """The class of tiles by which a product [m, n] of k terms takes the least.

    Args:
        narrow: without tensor cores, where wide tiles spill.
    """

    def taken(kind: int) -> float:
        height, width = GROUPED_CLASSES[kind]
        number: int = ceil(m / height) * ceil(n / width)
        return number * tile_cycles(kind, k, 0)

    return min(range(GROUPED_NARROW if narrow else 0, len(GROUPED_CLASSES)), key=taken)


def tile_cycles(kind: int, k: int, structure: int) -> float:
    """Of one tile."""
    of = OF[kind]
    block = of.rounded if structure & ROUNDED else of.block
    beside = of.tile + (TAKEN_FROM if structure & SUBTRACT else 0)
    return beside + ceil(k / BLOCK) * block
