"""What the fused step of some tensors keeps on the device besides their state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from soap_fast.backends.triton.launch.tuning import GRAM_CHUNKS, TUNING
from soap_fast.backends.triton.ops.derive import Operands
from soap_fast.backends.triton.ops.gram import gram_parts
from soap_fast.backends.triton.ops.plane import plane_count
from soap_fast.backends.triton.ops.tiles import FLOAT
from soap_fast.backends.triton.ops.work import Member
from soap_fast.step.addresses import adopt_moments, straighten_bases
from soap_fast.step.layout import Layout, padded
from soap_fast.triton_kernels.columns import SCALARS


class Memory:
    """Two planes per tensor, the operands of products, and what a step decides per tensor.

    exp_avg and exp_avg_sq move into the order of the planes, once.

    Attributes:
        members: the tensors, by the addresses of all this.
        a, b: first and second planes. While Gram matrices are in parts the second ones are not in
            use yet, and the parts lie there.
        gram_partials: the parts of those Gram matrices that products sum.
        scalars: [n + 1, SCALARS] float32, of the step; `carried` the same, of a refresh. The last
            row is that of no tensor, always zero: tiles that pad a table belong to it.
        inverse_scale: [1] float32, 1 / grad_scale.
        found_inf: [1] float32, not zero where no tensor may take a step.
    """

    def __init__(
        self,
        layouts: Sequence[Layout],
        states: Sequence[dict[str, Any]],
        device: torch.device,
        rounds: Sequence[Sequence[int]] = (),
    ) -> None:
        """Memory of these tensors, of which some are refreshed together where all are due."""
        adopt_moments(layouts, states, device)
        straighten_bases(states)
        self.operands = Operands(layouts, [state["Q"] for state in states], rounds)
        planes = planes_of(layouts)
        n = len(layouts)
        self.a, self.b = empty(planes.first, device), empty(planes.second, device)
        self.gram_partials = self.b[planes.partials :]
        self.scalars = torch.zeros((n + 1) * len(SCALARS), dtype=torch.float32, device=device)
        self.carried = torch.zeros_like(self.scalars)
        self.inverse_scale = torch.ones(1, dtype=torch.float32, device=device)
        self.found_inf = torch.zeros(1, dtype=torch.float32, device=device)
        self.members = self._members(layouts, states, planes.folded)

    def _members(
        self, layouts: Sequence[Layout], states: Sequence[dict[str, Any]], folded: Sequence[int]
    ) -> list[Member]:
        members, a, b = [], self.a.data_ptr(), self.b.data_ptr()
        partials = b
        for index, (layout, state) in enumerate(zip(layouts, states, strict=True)):
            members.append(
                Member(
                    index,
                    layout,
                    a,
                    b,
                    state["exp_avg"].data_ptr(),
                    state["exp_avg_sq"].data_ptr(),
                    self.operands.forward[index],
                    self.operands.backward[index],
                    {m: k.data_ptr() for m, k in enumerate(state["GG"]) if k is not None},
                    partials + FLOAT * folded[index],
                )
            )
            a += FLOAT * layout.memory[0]
            b += FLOAT * layout.memory[1]
        return members


class Planes(NamedTuple):
    """Elements of the workspace of a step.

    Attributes:
        first, second: of all tensors' planes; parts of Gram matrices lie in the second ones.
        folded: where there those of each tensor's folded modes begin.
        partials: where behind them those of products begin.
    """

    first: int
    second: int
    folded: list[int]
    partials: int


def planes_of(layouts: Sequence[Layout]) -> Planes:
    """What the planes of these tensors need."""
    folded, total = [], 0
    for layout in layouts:
        folded.append(total)
        if layout.folded:
            tiles = plane_count(layout, TUNING["gather"].constants)
            total += tiles * layout.fold_sums
    total = padded(total)
    grams = [gram for layout in layouts for gram in layout.grams]
    parts = gram_parts(grams, TUNING["gram"].constants["BK"], GRAM_CHUNKS)
    first, second = (sum(layout.memory[place] for layout in layouts) for place in (0, 1))
    return Planes(first, max(second, total + parts), folded, total)


def empty(elements: int, device: torch.device) -> torch.Tensor:
    return torch.empty(max(elements, 1), dtype=torch.float32, device=device)
