"""Backend `native`: the eager step, its first bases and refreshes by the extension on the CPU.

Tensors on other devices are computed as `eager` does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from soap_fast.backends.eager import EagerBackend
from soap_fast.eigh import Pairs, eigh_eager, eigh_native
from soap_fast.refresh import Refreshed, refresh_eager, refresh_native


class NativeBackend(EagerBackend):
    name = "native"

    def refuses(self, param: torch.Tensor) -> str | None:
        if param.device.type == "cpu":
            return None
        return f"is on {param.device}, where backend 'native' does not compute: use backend=None"

    def eigh(self, factors: list[torch.Tensor], selections: list[torch.Tensor]) -> Pairs:
        here, elsewhere = _by_place(factors)
        native = eigh_native(_take(factors, here), _take(selections, here))
        eager = eigh_eager(_take(factors, elsewhere), _take(selections, elsewhere))
        values, bases = (
            _merged(here, ours, elsewhere, theirs)
            for ours, theirs in zip(native, eager, strict=True)
        )
        return values, bases

    def refresh_op(
        self,
        factors: list[torch.Tensor],
        bases: list[torch.Tensor],
        selections: list[torch.Tensor],
        allowed: list[torch.Tensor],
        tolerance: float,
    ) -> Refreshed:
        here, elsewhere = _by_place(factors)
        results = (
            op(
                _take(factors, places),
                _take(bases, places),
                _take(selections, places),
                _take(allowed, places),
                tolerance,
            )
            for op, places in ((refresh_native, here), (refresh_eager, elsewhere))
        )
        columns = zip(*results, strict=True)
        return Refreshed(*(_merged(here, ours, elsewhere, theirs) for ours, theirs in columns))


def _by_place(stacks: Sequence[torch.Tensor]) -> tuple[list[int], list[int]]:
    """Indices of the stacks on the CPU, and of the others."""
    here = [i for i, stack in enumerate(stacks) if stack.device.type == "cpu"]
    return here, [i for i in range(len(stacks)) if i not in set(here)]


def _take(values: Sequence[torch.Tensor], indices: list[int]) -> list[torch.Tensor]:
    return [values[i] for i in indices]


def _merged(
    here: list[int],
    ours: list[torch.Tensor],
    elsewhere: list[int],
    theirs: list[torch.Tensor],
) -> list[torch.Tensor]:
    """Results of both places in the order of the stacks."""
    places = {**dict(zip(here, ours, strict=True)), **dict(zip(elsewhere, theirs, strict=True))}
    return [places[i] for i in range(len(places))]
