"""`kernels --aot --shapes`: what every launch of a model's step issues, moves and takes."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from bench.command import Row, progress
from bench.cost.case import ARGUMENTS_AT, Case, Walked, walked
from bench.cost.chain import dependent_loads
from bench.cost.launches import cases
from bench.cost.time import SM, seconds
from bench.files import BadInput
from bench.shapes import Inventory
from soap_fast.backends.triton.backend import Precision

COLUMNS = (
    "name", "sm", "precision", "instructions_per_element", "sectors_ratio", "read_ratio",
    "dependent_loads", "predicted_us", "predicted_ms",
)  # fmt: skip
LEAST = 0.01  # of a step's bytes; less says nothing of how a launch reaches memory


def rows(
    inventory: Inventory, architectures: Sequence[int], precisions: Sequence[Precision]
) -> list[Row]:
    """A row for each launch of a plain step, and one of all of them.

    Architectures whose machine code the model does not read are named and left out.

    Raises:
        BadInput: there are no others.
    """
    found = []
    if unread := [f"sm_{sm}" for sm in architectures if sm not in ARGUMENTS_AT]:
        said = f"the model of cost does not read machine code of {', '.join(unread)}"
        if len(unread) == len(architectures):
            raise BadInput(f"--shapes: {said}")
        print(f"{said}; left out", file=sys.stderr)
    for sm in (sm for sm in architectures if sm in ARGUMENTS_AT):
        for precision in precisions:
            found += list(_step(inventory, sm, precision))
    return found


def _step(inventory: Inventory, sm: int, precision: Precision) -> Iterator[Row]:
    launches = list(cases(inventory, sm, precision))
    named = {"precision": precision, "shapes": inventory.model}
    step = sum(case.bytes or 0 for case in launches)
    found = []
    for case in progress(launches, f"sm_{sm} {precision}", "launch"):
        found.append(row(case, walked(case), inventory.numel, step, precision) | named)
        yield found[-1]
    yield total(found) | named


def row(case: Case, walk: Walked, elements: int, step: int, precision: str) -> Row:
    """Of one launch.

    Args:
        elements: of the model.
        step: bytes of all launches.
    """
    counts = (case.bytes or 0) >= LEAST * step
    taken = seconds(case, walk, precision) if case.sm == SM else None
    return {
        "name": case.name,
        "sm": case.sm,
        "instructions": walk.instructions,
        "instructions_per_element": 32 * walk.instructions / elements,
        "store_sectors": walk.sectors["store"],
        "load_sectors": walk.sectors["load"],
        "sectors_ratio": walk.ratio("store") if counts else None,
        "read_ratio": walk.ratio("load") if counts else None,
        "dependent_loads": _most_tiles(case, walk),
        "predicted_us": None if taken is None else 1e6 * taken,
        "registers": case.registers,
        "shared_bytes": case.shared,
        "programs": case.programs,
        "tiles": case.tiles,
    }


def total(rows: Sequence[Row]) -> Row:
    """Of a step, launch behind launch."""
    taken = [row["predicted_us"] for row in rows]
    return {
        "name": "all",
        "sm": rows[0]["sm"],
        "instructions": sum(row["instructions"] for row in rows),
        "instructions_per_element": sum(row["instructions_per_element"] for row in rows),
        "predicted_us": None if None in taken else sum(taken),
        "predicted_ms": None if None in taken else 1e-3 * sum(taken),
    }


def _most_tiles(case: Case, walk: Walked) -> int:
    """Dependent loads of most tiles."""
    loads: Counter[int] = Counter()
    for tile, count in zip(*np.unique(case.stands, return_counts=True), strict=True):
        loads[dependent_loads(walk.code, walk.tiles[int(tile)])] += int(count)
    return max(loads, key=lambda n: (loads[n], n))
