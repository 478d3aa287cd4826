"""Classes of shapes that the parameters of compression models fall into, each small enough to time.

Counts are such that a plain step of a class takes milliseconds on a CPU: long against a call's own
cost where that is not what the class is about.
"""

from __future__ import annotations

from bench.shapes import Entry, Inventory

CLASSES: dict[str, tuple[tuple[int, ...], ...]] = {
    "small_conv": ((32, 32, 3, 3),) * 12,
    "large_conv": ((192, 192, 5, 5),),
    "square": ((512, 512),),
    "tall": ((1024, 64),),
    "vectors": ((192,),) * 64,  # no factors: Adam alone
    "tiny": ((8, 4),) * 200,  # the cost of a tensor, whatever is in it
}


def inventory(name: str) -> Inventory:
    """The parameters of a class."""
    entries = tuple(Entry(f"{name}.{i}", shape, True) for i, shape in enumerate(CLASSES[name]))
    return Inventory(name, entries)


def has_factors(name: str) -> bool:
    return any(len(shape) > 1 for shape in CLASSES[name])
