"""What ranks do in tests: steps of one optimizer, whose work they share or do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from streams import parameters, set_gradients

from soap_fast import SOAP

# Factors of many sizes, two of one size, one larger than the rest together.
SHAPES = ((12, 12), (6, 4, 3, 3), (5,), (24, 7), (4, 1, 4), (), (6, 4, 3, 3))
OPTIONS: dict[str, Any] = {"lr": 0.01, "precondition_frequency": 3, "precondition_1d": True}


def built(
    group: dist.ProcessGroup | None,
    shapes=SHAPES,
    dtype=torch.float32,
    sharding: str = "refresh",
    **options: Any,
):
    """Parameters, and an optimizer that shares its work in the group, or with nobody."""
    params = parameters(shapes, dtype)
    sharing = {} if group is None else {"sharding": sharding, "process_group": group}
    return params, SOAP(params, **{**OPTIONS, **sharing, **options})


def end_of(params, optimizer) -> tuple[list[torch.Tensor], dict[str, Any]]:
    return [p.detach().clone() for p in params], optimizer.state_dict()


def take(params, optimizer, calls, missing: bool = False) -> None:
    """Take these steps; where asked for, without some of the gradients."""
    for call in calls:
        set_gradients(params, call)
        if missing:
            for index, param in enumerate(params):
                if (call + index) % 3 == 0:
                    param.grad = None
        optimizer.step()


def steps(group, calls=range(8), dtype=torch.float32, missing: bool = False, **options: Any):
    """Parameters and state after these calls."""
    params, optimizer = built(group, dtype=dtype, **options)
    take(params, optimizer, calls, missing)
    optimizer.consolidate_state_dict()
    return end_of(params, optimizer)


class Broken(Exception):
    """What an injected fault raises."""


def broken_once(function, at: int = 0):
    """`function`, but for its call number `at`, which raises."""
    calls = []

    def called(*arguments):
        calls.append(None)
        if len(calls) == at + 1:
            raise Broken
        return function(*arguments)

    return called


NOTHING = "nothing"


def heard(call: Callable[[], object]) -> str:
    """What a call says where it raises."""
    try:
        call()
    except (Broken, RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return NOTHING


def heard_by_call(params, optimizer, calls, ahead: Callable[[int], object]) -> dict[int, str]:
    """What these steps say where they raise.

    Args:
        ahead: of the step of a call, behind its gradients.
    """
    said = {}
    for call in calls:
        set_gradients(params, call)
        ahead(call)
        said[call] = heard(optimizer.step)
    return {call: one for call, one in said.items() if one != NOTHING}
