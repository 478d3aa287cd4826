"""The order of launches, of a step and of a refresh's carry, and what those of a step work.

Pure: plans in, tables out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from soap_fast.backends.triton.launch.tuning import GRAM_CHUNKS, TUNING
from soap_fast.backends.triton.ops.adam import adam_work
from soap_fast.backends.triton.ops.apply import apply_work
from soap_fast.backends.triton.ops.fold_gram import fold_gram_work
from soap_fast.backends.triton.ops.gather import gather_work
from soap_fast.backends.triton.ops.gram import gram_work
from soap_fast.backends.triton.ops.plane import Strided
from soap_fast.backends.triton.ops.rotate import rotate_work
from soap_fast.backends.triton.ops.work import Member, Work
from soap_fast.step.layout import Layout

# A step. There is a rotation's launch for each product, `norm` only where an update is normalised,
# and none of what has nothing to do.
STEP = (
    "gather", "clock", "gram", "gram_reduce", "fold_gram", "rotate", "adam", "norm", "rotate back",
    "apply",
)  # fmt: skip

# What follows the new bases of a refresh: outcomes into the counters; carrying matrices in place of
# the transposed bases; exp_avg; exp_avg_sq; both to their places; operands from the new bases.
CARRY = (
    "count", "derive carries", "gather exp_avg", "rotate exp_avg", "permute", "settle", "derive",
)  # fmt: skip


@dataclass(frozen=True)
class Planned:
    """A launch without its tables' memory.

    Attributes:
        place: in `STEP` or `CARRY`.
        name: the same, numbered where there are several.
        op: name of the kernel.
        work: what it walks and costs.
        tables: what follows the tiles, each [rows, columns] int64 or the number of a late one.
        arguments: what follows the tables, without the count.
        constants: `tl.constexpr` arguments.
        tensors: how many a kernel walks that has no tiles.
    """

    place: str
    name: str
    op: str
    work: Work
    tables: tuple[torch.Tensor | int, ...] = ()
    arguments: tuple[torch.Tensor, ...] = ()
    constants: dict[str, Any] = field(default_factory=dict)
    tensors: int | None = None

    @property
    def count(self) -> int:
        """Of tiles or tensors."""
        return self.work.count if self.tensors is None else self.tensors

    @cached_property
    def tiles(self) -> torch.Tensor | None:
        """[n, fields] int32, or records int64; None where a kernel walks tensors."""
        if self.tensors is not None:
            return None
        tiles = self.work.tiles
        return torch.cat(tiles) if tiles else torch.empty((0, 4), dtype=torch.int32)


def fixed_launches(members: Sequence[Member]) -> list[Planned]:
    """Those of a step that no stride of a gradient or parameter decides."""
    gram, reduce = gram_work(members, TUNING["gram"].constants["BK"], GRAM_CHUNKS)
    works = {
        "gram": gram,
        "gram_reduce": reduce,
        "fold_gram": fold_gram_work(members, TUNING["gather"].constants),
        "adam": adam_work(members, TUNING["adam"].constants["ROWS"]),
    }
    alone = (Planned(op, op, op, work) for op, work in works.items())
    rotations = (*_rotations(members, back=False), *_rotations(members, back=True))
    return in_order([*alone, *rotations], STEP)


def gather_launch(members: Sequence[Member], gradients: Sequence[Strided]) -> Planned:
    work = gather_work(members, gradients, TUNING["gather"].constants)
    return Planned("gather", "gather", "gather", work)


def apply_launch(members: Sequence[Member], parameters: Sequence[Strided]) -> Planned:
    work = apply_work(members, parameters, TUNING["apply"].constants)
    return Planned("apply", "apply", "apply", work)


def _rotations(members: Sequence[Member], *, back: bool) -> Iterator[Planned]:
    deepest = max((len(member.layout.levels) for member in members), default=0)
    place = "rotate back" if back else "rotate"
    for number in range(deepest):
        work = rotate_work(members, number, deepest, back=back)
        yield Planned(place, f"{place} {number}", "rotate", work)


def in_order(launches: Sequence[Planned], order: Sequence[str]) -> list[Planned]:
    """As `STEP` or `CARRY` says; those of one place stay as they are."""
    return sorted(launches, key=lambda launch: order.index(launch.place))


def plain_step(layouts: Sequence[Layout], parameters: Sequence[Strided]) -> list[Planned]:
    """Every launch over tiles of a plain step; gradients lie as the parameters do.

    No tensor is needed, addresses are 0. The clock, and norm where an update is normalised, are
    launches over tensors and left out here.
    """
    nowhere: dict[object, int] = defaultdict(int)
    members = [
        Member(index, layout, 0, 0, 0, 0, nowhere, nowhere, nowhere, 0)  # type: ignore[arg-type]
        for index, layout in enumerate(layouts)
    ]
    at_the_ends = (gather_launch(members, parameters), apply_launch(members, parameters))
    found = in_order([*fixed_launches(members), *at_the_ends], STEP)
    return [launch for launch in found if launch.work.count]
