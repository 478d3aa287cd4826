"""Block shapes, warps and stages per op, read from tuning.json; no user's step waits for tuning.

Every entry there has a reason and, once a GPU has timed it, the measurement that chose it, which
`python -m bench tune --write` takes and writes. What reasons say of compilers was read from Triton
3.6, ahead of time (`python -m bench kernels --aot`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from soap_fast.versions import triton_version

FILE = Path(__file__).with_suffix(".json")


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


def read(path: Path = FILE) -> tuple[dict[str, Tuning], int]:
    """The tuning of every op, and GRAM_CHUNKS."""
    content = json.loads(path.read_text(encoding="utf-8"))
    tunings = {op: on_this_triton(op, tuning_of(entry)) for op, entry in content["ops"].items()}
    return tunings, content["gram_chunks"]["value"]


def tuning_of(entry: dict[str, Any]) -> Tuning:
    """What a step reads of an op's entry."""
    return Tuning(entry["constants"], entry["num_warps"], entry["programs_per_sm"])


def on_this_triton(op: str, tuning: Tuning) -> Tuning:
    """An op's tuning with the Triton at hand, of which the file holds the lowest's.

    By Triton 3.9 128 lanes of folds spill 8 bytes in gather and 112 in apply on sm_90.
    """
    if op not in ("gather", "apply") or is_lowest_triton():
        return tuning
    return replace(tuning, constants={**tuning.constants, "FOLD_LANES": 64})


def constants_on(op: str, constants: dict[str, Any], sm: int) -> dict[str, Any]:
    """An op's constants on an architecture: others where tiles would spill.

    Those of rotate with 128 rows do on sm_120 by Triton 3.6, and on sm_90 by Triton 3.9; with Adam,
    and those of settle, on sm_86 and sm_89 as well; those of grouped_matmul do everywhere but in
    tf32x3 on sm_90 by Triton 3.6.
    """
    lowest = is_lowest_triton()
    beside_moments = lowest and sm in (80, 90, 100)
    tall = {
        "rotate": beside_moments if constants.get("ADAM") else lowest and sm < 120,
        "settle": beside_moments,
        "grouped_matmul": lowest and sm == 90 and constants.get("PRECISION") == "tf32x3",
    }
    return constants if tall.get(op, True) else {**constants, "TALL": 64}


def is_lowest_triton() -> bool:
    return (triton_version() or "").startswith("3.6.")


# By op; and how many chunks of BK terms one program sums into a Gram tile.
TUNING, GRAM_CHUNKS = read()
