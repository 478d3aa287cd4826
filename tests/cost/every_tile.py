"""Prints, of a model's products, what the tiles that stand for others give and what all give.

Without TRITON_INTERPRET, which test_cost_rows.py sees to.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np

from bench import shapes
from bench.cost.case import walked
from bench.cost.launches import cases

found = []
for case in cases(shapes.load(sys.argv[1]), 90, "tf32x3"):
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
print(json.dumps(found))
