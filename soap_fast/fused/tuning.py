"""Block shapes, warps and stages per op, each with its reason; no user's step waits for tuning.

What is said of compilers was read from Triton 3.6, ahead of time (`python -m bench kernels --aot`).
Nothing here has been timed: no GPU has run these kernels yet.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Tuning:
    """How an op is compiled and spread.

    Attributes:
        constants: `tl.constexpr` arguments.
        num_warps: warps of a program.
        programs_per_sm: persistent programs for each multiprocessor.
    """

    constants: dict[str, Any] = field(default_factory=dict)
    num_warps: int = 4
    programs_per_sm: int = 2


# Positions of a tile: enough rows that the Gram matrix a tile leaves behind is 4 % of what it read,
# few enough that a model of 10 million parameters has several tiles per program. BLOCK positions
# of 32 folded entries are 8 registers a thread for the tile; 64 positions spill in gather.
_PLANE = {"ROWS": 1024, "FOLD_ROWS": 1024, "BLOCK": 16}

TUNING = {
    "gather": Tuning(_PLANE, programs_per_sm=4),
    "clock": Tuning({"BLOCK": 256}, num_warps=1, programs_per_sm=8),
    # 64 x 64 x 32: every operand load is 16 bytes wide and no class of tile spills; 128-wide tiles
    # spill with the epilogue. Three stages hide a product's loads in 48 KiB of shared memory.
    "gram": Tuning({"BK": 32, "STAGES": 3}),
    "gram_reduce": Tuning(),
    "fold_gram": Tuning({"WIDTH": 32}, programs_per_sm=4),
    "rotate": Tuning({"BK": 32, "STAGES": 3}),
    "adam": Tuning({"ROWS": 1024}, programs_per_sm=4),
    "norm": Tuning({"BLOCK": 256}, num_warps=1, programs_per_sm=8),
    "apply": Tuning(_PLANE, programs_per_sm=4),
    "derive": Tuning({"BLOCK": 16}, programs_per_sm=4),
    "count": Tuning(num_warps=1, programs_per_sm=8),
    "permute": Tuning({"ROWS": 1024}, programs_per_sm=4),
    "settle": Tuning({"ROWS": 1024}, programs_per_sm=4),
    "grouped_matmul": Tuning({"GROUPS": 64, "BK": 32}),
}

# Chunks of BK terms that one program sums into a Gram tile: 128 chunks of a 64 x 64 tile are 33 us
# at 3 TFLOP/s a multiprocessor, 3 % of a step, and the parts are at most 16 % of a gradient.
GRAM_CHUNKS = 128
