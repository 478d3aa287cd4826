"""`kernels --aot --shapes`: what every launch of a model's step issues, moves and takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.command import Row
from bench.cost.case import Case, Walked, walked
from bench.cost.launches import cases
from bench.output.progress import progress
from bench.shapes import Inventory
from soap_fast.backends.triton import Precision

COLUMNS = (
    "name", "sm", "precision", "instructions_per_element", "sectors_ratio", "read_ratio",
    "dependent_loads", "predicted_us",
)  # fmt: skip
LEAST = 0.01  # of a step's bytes; less says nothing of how a launch reaches memory


def rows(
    inventory: Inventory, architectures: Sequence[int], precisions: Sequence[Precision]
) -> list[Row]:
    """A row for each launch of a plain step, and one of all of them."""
    found = []
    for sm in architectures:
        for precision in precisions:
            found += list(_step(inventory, sm, precision))
    return found


def _step(inventory: Inventory, sm: int, precision: Precision) -> Iterator[Row]:
    launches = list(cases(inventory, sm, precision))
    step = sum(case.bytes or 0 for case in launches)
    for case in progress(launches, f"sm_{sm} {precision}", "launch"):
        yield row(case, walked(case), inventory.numel, step) | {
            "precision": precision,
            "shapes": inventory.model,
        }


def row(case: Case, walk: Walked, elements: int, step: int) -> Row:
    """Of one launch.

    Args:
        elements: of the model.
        step: bytes of all launches.
    """
    counts = (case.bytes or 0) >= LEAST * step
    return {
        "name": case.name,
        "sm": case.sm,
        "instructions": walk.instructions,
        "instructions_per_element": 32 * walk.instructions / elements,
        "store_sectors": walk.sectors["store"],
        "load_sectors": walk.sectors["load"],
        "sectors_ratio": walk.ratio("store") if counts else None,
        "read_ratio": walk.ratio("load") if counts else None,
        "dependent_loads": None,
        "predicted_us": None,
    }
