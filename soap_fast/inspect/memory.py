"""What memory steps of the Triton backend need on a GPU beside parameters, gradients and state.

A model: sums over shapes, without a tensor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from soap_fast.backends.triton.memory import planes_of
from soap_fast.backends.triton.ops.derive import derived_elements, is_rotated_as_it_lies
from soap_fast.backends.triton.ops.tiles import FLOAT
from soap_fast.backends.triton.programs import Planned
from soap_fast.backends.triton.rounds import OPERATOR, WORKSPACE, Spare, rounds_of, workspace_bytes
from soap_fast.step.layout import Layout, padded

LONG = 8  # bytes
HOUSEHOLDER = 32  # sizes up to this have no workspace (csrc/refresh/factor.h)
MEASURES = (7, 5)  # float64 of the operator per row of a factor, and per factor
# Of first bases: a batch on each of four streams, between these bytes (csrc/eigh/batches.h).
STREAMS, LEAST_BATCH, MOST_BATCH = 4, 64 << 20, 256 << 20


@dataclass(frozen=True)
class Peak:
    """Bytes beside parameters, gradients and state.

    Attributes:
        planes, operands, tables: what a step keeps from call to call.
        refresh: what one that refreshes all bases takes for itself, and gives back.
        first: at most what the first call takes for first bases, less the moments and workspace
            that are not there yet.
    """

    planes: int
    operands: int
    tables: int
    refresh: int
    first: int

    @property
    def plain(self) -> int:
        return self.planes + self.operands + self.tables

    @property
    def most(self) -> int:
        return max(self.plain + self.refresh, self.first)

    def __repr__(self) -> str:
        plain, most = (f"{bytes_ / 1e6:.0f} MB" for bytes_ in (self.plain, self.most))
        return (
            f"{plain} beside parameters, gradients and state from call to call, at most {most} "
            "while bases are refreshed or begin; a model, of the tensors that Triton steps"
        )


def peak_of(
    layouts: Sequence[Layout], launches: Iterable[Planned], workspace: int = WORKSPACE
) -> Peak:
    """The peak of an optimizer's steps.

    Args:
        layouts: of all tensors, as the engine has them.
        launches: of a plain step.
        workspace: bytes of the operator's for tensors that are refreshed together.
    """
    planes = planes_of(layouts)
    operands = FLOAT * sum(map(derived_elements, layouts))
    moments = 2 * FLOAT * sum(layout.elements for layout in layouts)
    tables = sum(map(_table_bytes, launches))
    sizes = {
        number: [size for size in layout.plan.factors if size is not None]
        for number, layout in enumerate(layouts)
        if any(layout.plan.factors)
    }
    pieces = (planes.first, planes.second)
    stacks = Counter(size for found in sizes.values() for size in found)
    rounds = rounds_of(sizes, workspace)
    refreshes = (_refresh(stacks, [layouts[i] for i in found], pieces) for found in rounds)
    factors = FLOAT * sum(d * d * n for d, n in stacks.items())
    batches = STREAMS * min(max(factors, LEAST_BATCH), MOST_BATCH) if factors else 0
    return Peak(
        FLOAT * sum(pieces),
        operands,
        tables,
        max(refreshes, default=0),
        max(0, batches - moments),
    )


def _refresh(stacks: Counter[int], layouts: Sequence[Layout], pieces: Iterable[int]) -> int:
    """Of one round: new bases and orders, the operator's workspace, what the planes do not hold."""
    factors = [
        (size, is_rotated_as_it_lies(layout, mode))
        for layout in layouts
        for mode, size in enumerate(layout.plan.factors)
        if size is not None
    ]
    due = Counter(size for size, _ in factors)
    apart = {size for size, in_place in factors if not in_place}
    spare = Spare(torch.empty(elements, device="meta") for elements in pieces)
    like = torch.empty(0, device="meta")
    for d, n in due.items():  # copies of factors, where not all of a stack are due
        if n < stacks[d]:
            spare.room(like, (n, d, d))
    for d, n in due.items():  # carrying matrices that have no place among the operands
        if d in apart:
            spare.room(like, (n, d, d))
    bases = FLOAT * sum(n * d * d for d, n in due.items())
    results = sum(n * (LONG * d + LONG + FLOAT) for d, n in due.items())
    large = {d: n for d, n in due.items() if d > HOUSEHOLDER}
    matrices = sum(n * workspace_bytes([d]) for d, n in large.items())
    most = max(OPERATOR, max(map(workspace_bytes, ([d] for d in large)), default=0))
    per_row, per_factor = MEASURES
    measures = LONG * sum(n * (per_row * padded(d) + per_factor) for d, n in large.items())
    return spare.beside + bases + results + min(matrices, most) + measures


def _table_bytes(launch: Planned) -> int:
    tiles = 0 if launch.tiles is None else launch.tiles.nbytes
    return tiles + LONG * sum(map(len, launch.work.tasks))
