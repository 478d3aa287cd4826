"""Rows of `kernels --aot --shapes`, and tiles beside those that stand for them, by one process.

    python tests/cost/compiling.py '{"rows": [FILE, ...], "tiles": [FILE, ...]}'

prints a list for each file of shapes, under the same names. A kernel that several of them launch is
compiled and read once. Without TRITON_INTERPRET, which test_cost_rows.py sees to.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from dataclasses import replace
from typing import Any

import numpy as np

from bench import shapes
from bench.__main__ import main as bench
from bench.cost.case import walked
from bench.cost.launches import cases


def rows(file: str) -> list[dict[str, Any]]:
    """What the command writes, of sm_90."""
    written = io.StringIO()
    with contextlib.redirect_stdout(written):
        options = ("--sm", "90", "--precision", "tf32x3", "--json", "-")
        assert bench(["kernels", "--aot", "--shapes", file, *options]) == 0
    return list(json.loads(written.getvalue())["results"])


def tiles(file: str) -> list[dict[str, Any]]:
    """Of a model's products what the tiles that stand for others give, and what all give."""
    found = []
    for case in cases(shapes.load(file), 90, "tf32x3"):
        if case.name not in ("gram", "rotate 0"):
            continue
        every = replace(case, stands=np.arange(case.tiles, dtype=np.int32))
        some, all_of_them = walked(case), walked(every)
        found.append(
            {
                "name": case.name,
                "walked": [len(some.tiles), len(all_of_them.tiles)],
                "instructions": [some.instructions, all_of_them.instructions],
                "store": [some.sectors["store"], all_of_them.sectors["store"]],
                "load": [some.sectors["load"], all_of_them.sectors["load"]],
            }
        )
    return found


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    found = {"rows": list(map(rows, asked["rows"])), "tiles": list(map(tiles, asked["tiles"]))}
    print(json.dumps(found))
