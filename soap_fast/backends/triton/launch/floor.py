"""The least time a launch can take on a GPU whose roofs are known.

max(flops / rate of products, bytes / rate of copies), a launch; their sum is a step's floor.
"""

from __future__ import annotations

# Assumed of an H100, tf32x3 products and copies: none has been measured yet.
FLOPS_PER_SECOND, BYTES_PER_SECOND = 130e12, 3e12


def floor_seconds(flops: int, moved: int) -> float:
    return max(flops / FLOPS_PER_SECOND, moved / BYTES_PER_SECOND)
