"""What one launch does, and one tensor of a step by its addresses."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from soap_fast.step.layout import Layout
from soap_fast.step.plan import Group


@dataclass
class Work:
    """Tasks and tiles of one launch, and what they cost.

    Attributes:
        tasks: [m, columns] int64; none where tiles are records.
        tiles: [n, fields] int32; empty where the kernel walks tasks. Or [n, columns] int64, records
            that hold all of a tile.
        needed: floating point operations of the mathematics.
        executed: those of the tiles, padding included.
        bytes: every operand once read, every result once written.
    """

    tasks: list[list[int]] = field(default_factory=list)
    tiles: list[torch.Tensor] = field(default_factory=list)
    count: int = 0
    needed: int = 0
    executed: int = 0
    bytes: int = 0

    def add_records(self, records: torch.Tensor) -> None:
        self.tiles.append(records)
        self.count += len(records)

    def add(self, columns: dict[str, int], tiles: torch.Tensor, /, **values: int) -> None:
        self.tasks.append(table_row(columns, **values))
        self.tiles.append(tiles)
        self.count += len(tiles)


@dataclass(frozen=True)
class Member:
    """One tensor of a fused step, by addresses.

    Attributes:
        a, b: its two planes in the workspace.
        exp_avg, exp_avg_sq: elements in the plane's order.
        forward, backward: by group, the basis transposed and the basis, rows padded.
        factors: by mode.
        partials: of the folded mode's Gram matrix.
    """

    index: int
    layout: Layout
    a: int
    b: int
    exp_avg: int
    exp_avg_sq: int
    forward: dict[Group, int]
    backward: dict[Group, int]
    factors: dict[int, int]
    partials: int


def table_row(columns: dict[str, int], /, **values: int) -> list[int]:
    """A row of a table by its columns' names, 0 where nothing is said."""
    row = [0] * len(columns)
    for name, value in values.items():
        row[columns[name]] = value
    return row
