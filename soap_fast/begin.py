"""First calls of tensors: their state begins, and no parameter moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from soap_fast.backends import Backend
from soap_fast.step.call import TensorCall
from soap_fast.step.state import State, bind, fresh, grown


def begin(
    calls: Sequence[TensorCall], state: State, backend: Backend
) -> dict[torch.Tensor, dict[str, Any]]:
    """Entries of tensors after their first call; where the gradient is unusable, one more skipped.

    Those in the state already see their factors at another place, of equal values. Nothing else of
    it changes.
    """
    usable = backend.usable(calls)
    left_out = [call for call, flag in zip(calls, usable, strict=True) if not flag]
    calls = [call for call, flag in zip(calls, usable, strict=True) if flag]

    skipped = {c.param: {**c.state, "skipped": c.state["skipped"] + 1} for c in left_out}
    stacks = grown(state, backend.first_bases(calls))
    begun = {
        call.param: {**call.state, **fresh(call.param, call.plan, call.state["skipped"])}
        for call in calls
    }
    bind(stacks, {**state, **begun})
    return {**begun, **skipped}
