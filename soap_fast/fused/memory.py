"""What the fused step of some tensors keeps on the device besides their state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from soap_fast.call import TensorCall
from soap_fast.fused import plane_tables
from soap_fast.fused.columns import SCALARS
from soap_fast.fused.gram_tables import gram_parts
from soap_fast.fused.layout import Layout, padded
from soap_fast.fused.operands import Operands
from soap_fast.fused.tuning import GRAM_CHUNKS, TUNING
from soap_fast.fused.work import Member

FLOAT = 4  # bytes


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
        self, layouts: Sequence[Layout], states: Sequence[dict[str, Any]], device: torch.device
    ) -> None:
        adopt_moments(layouts, states, device)
        straighten_bases(states)
        self.operands = Operands(layouts, [state["Q"] for state in states])
        folded, total = [], 0
        for layout in layouts:
            folded.append(total)
            if layout.folded:
                tiles = plane_tables.plane_count(layout, TUNING["gather"].constants)
                total += tiles * layout.fold_sums
        total = padded(total)
        grams = [gram for layout in layouts for gram in layout.grams]
        parts = gram_parts(grams, TUNING["gram"].constants["BK"], GRAM_CHUNKS)
        second = sum(layout.memory[1] for layout in layouts)
        n = len(layouts)
        self.a = empty(sum(layout.memory[0] for layout in layouts), device)
        self.b = empty(max(second, total + parts), device)
        self.gram_partials = self.b[total:]
        self.scalars = torch.zeros((n + 1) * len(SCALARS), dtype=torch.float32, device=device)
        self.carried = torch.zeros_like(self.scalars)
        self.inverse_scale = torch.ones(1, dtype=torch.float32, device=device)
        self.found_inf = torch.zeros(1, dtype=torch.float32, device=device)
        self.members = self._members(layouts, states, folded)

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


def empty(elements: int, device: torch.device) -> torch.Tensor:
    return torch.empty(max(elements, 1), dtype=torch.float32, device=device)


def adopt_moments(
    layouts: Sequence[Layout],
    states: Sequence[dict[str, Any]],
    device: torch.device,
    *,
    padding: bool = True,
) -> None:
    """exp_avg and exp_avg_sq lie as the planes do from here on, each in memory of its own.

    Args:
        padding: whether with that of the planes, which the CPU step does without.
    """
    for layout, state in zip(layouts, states, strict=True):
        elements = layout.elements if padding else layout.numel
        strides = layout.state_strides if padding else layout.dense_strides
        for name in ("exp_avg", "exp_avg_sq"):
            whole = state[name].untyped_storage().nbytes() == FLOAT * elements
            if state[name].stride() != strides or not whole:
                flat = torch.zeros(elements, dtype=torch.float32, device=device)
                state[name] = layout.state_view(flat).copy_(state[name])


def straighten_bases(states: Sequence[dict[str, Any]]) -> None:
    """Bases and factors lie by rows, also those that a user has put there."""
    for state in states:
        for matrices in (state["GG"], state["Q"]):
            for mode, matrix in enumerate(matrices):
                if matrix is not None and not matrix.is_contiguous():
                    matrices[mode] = matrix.contiguous()


NAMED = ("step", "skipped", "exp_avg", "exp_avg_sq", "refreshes", "off_diagonal")


def state_tensors(call: TensorCall) -> list[torch.Tensor]:
    """The tensors of a state that tables name by address."""
    state = call.state
    matrices = [m for m in (*state["GG"], *state["Q"]) if m is not None]
    return [*(state[name] for name in NAMED), *matrices]


def state_addresses(call: TensorCall) -> tuple[Any, ...]:
    """What must stay as it is for tables that hold addresses of a tensor's state."""
    tensors = state_tensors(call)
    straight = all(matrix.is_contiguous() for matrix in tensors[len(NAMED) :])
    return (call.plan, straight, *(tensor.data_ptr() for tensor in tensors))
