"""What to call a parameter in messages and counters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

Group = Mapping[str, Any]


def label(group: Group, place: int, index: int) -> str:
    """The parameter's name where it has one, else where it stands: `index` of group `place`."""
    if "param_names" in group:
        return f"parameter {group['param_names'][index]!r}"
    return f"parameter {index} of group {place}"


def label_of(groups: Sequence[Group], param: torch.Tensor) -> str:
    """The same for a parameter that is somewhere in these groups."""
    labels = (
        label(group, place, index)
        for place, group in enumerate(groups)
        for index, one in enumerate(group["params"])
        if one is param
    )
    return next(labels)
