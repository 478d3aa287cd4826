"""Words of 32 bits out of results of 64."""

from __future__ import annotations

import numpy as np

from bench.cost.operands import Array

LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


def word(value: Array) -> Array:
    return (value & LOW).astype(np.uint32)


def halves(value: Array) -> tuple[Array, Array]:
    return word(value), word(value >> HALF)
