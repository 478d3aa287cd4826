"""What memory steps of the Triton backend need on a GPU beside parameters, gradients and state.

A model: sums over shapes, without a tensor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from soap_fast.backends.triton.memory import planes_of
from soap_fast.backends.triton.ops.derive import derived_elements
from soap_fast.backends.triton.ops.tiles import FLOAT
from soap_fast.backends.triton.programs import Planned
from soap_fast.backends.triton.rounds import (
    HOUSEHOLDER,
    OPERATOR,
    WORKSPACE,
    Spare,
    operator_rounds,
    room_for,
    rounds_of,
)
from soap_fast.step.layout import Layout, padded

LONG = 8  # bytes
MEASURES = (7, 5)  # float64 of the operator per row of a factor, and per factor
# Of first bases: a batch on each of four streams, between these bytes (csrc/eigh/batches.h).
STREAMS, LEAST_BATCH, MOST_BATCH = 4, 64 << 20, 256 << 20


@dataclass(frozen=True)
class Peak:
    """Bytes beside parameters, gradients and state.

    Attributes:
        planes, operands, tables: what a step keeps from call to call.
        results: what refreshes keep, but for carrying matrices and new bases.
        refresh: what one that refreshes all bases takes beside these, and gives back.
        first: at most what the first call takes for first bases, less the moments and workspace
            that are not there yet.
    """

    planes: int
    operands: int
    tables: int
    results: int
    refresh: int
    first: int

    @property
    def plain(self) -> int:
        return self.planes + self.operands + self.tables + self.results

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
    whole = torch.empty(planes.elements + operands // FLOAT, device="meta")
    refreshes = (
        _refresh([d for number in found for d in sizes[number]], whole, planes.elements)
        for found in rounds_of(sizes, workspace)
    )
    factors = FLOAT * sum(d * d for found in sizes.values() for d in found)
    results = sum(LONG * d + LONG + FLOAT for found in sizes.values() for d in found)
    batches = STREAMS * min(max(factors, LEAST_BATCH), MOST_BATCH) if factors else 0
    return Peak(
        FLOAT * (planes.first + planes.second),
        operands,
        tables,
        results,
        max(refreshes, default=0),
        max(0, batches - moments),
    )


def _refresh(sizes: Sequence[int], whole: torch.Tensor, planes: int) -> int:
    """Of one round: new bases, and of the operator what a step's memory does not hold.

    Args:
        sizes: of the factors.
        whole: planes and operands of the step.
        planes: elements of the planes.
    """
    due = Counter(sizes)
    room = room_for(sizes, whole, planes)
    spare, like = Spare(room.carries), torch.empty(0, device="meta")
    for d, n in due.items():  # carrying matrices
        spare.room(like, (n, d, d))
    bases = FLOAT * sum(d * d for d in sizes)
    own = max(operator_rounds(sizes, OPERATOR), default=0) if room.workspace is None else 0
    per_row, per_factor = MEASURES
    measures = LONG * sum(per_row * padded(d) + per_factor for d in sizes if d > HOUSEHOLDER)
    return spare.beside + bases + own + measures


def _table_bytes(launch: Planned) -> int:
    tiles = 0 if launch.tiles is None else launch.tiles.nbytes
    return tiles + LONG * sum(map(len, launch.work.tasks))
