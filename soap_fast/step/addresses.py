"""Where a tensor's state lies, for steps that name it by address.

Moments lie in the order of the planes of `Layout`, matrices by rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from soap_fast.step.call import TensorCall
from soap_fast.step.layout import Layout

FLOAT = 4  # bytes


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
