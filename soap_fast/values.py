"""Options as configurations give them, as plain Python values.

OmegaConf gives sequences of its own, numpy and its schedules numbers of their own. A group of plain
values is compared, printed and saved as people expect: `torch.load` with `weights_only=True` reads
nothing else. What is no number, and no pair of numbers, is left for the checks to refuse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch

__all__ = ["plain", "plain_value"]

PLAIN = frozenset((float, int, bool, str))


def plain(options: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """A group's options with plain values, but for tensors that hold an lr.

    Args:
        options: of a group; may hold its parameters.
        known: names of ours. Of other people's options only numbers are made plain.
    """
    return {
        name: plain_value(name, value) if name in known or isinstance(value, Real) else value
        for name, value in options.items()
    }


def plain_value(name: str, value: Any) -> Any:
    """The plain value of one option; an lr may lie in a tensor, which somebody may change."""
    if type(value) in PLAIN or (name == "lr" and isinstance(value, torch.Tensor)):
        return value
    return _pair(value) if name == "betas" else _number(value)


def _number(value: Any) -> Any:
    """Of numpy's scalars, and of arrays and tensors on the CPU without dimensions."""
    if isinstance(value, torch.Tensor):
        readable = value.dim() == 0 and value.device.type == "cpu"  # others would be waited for
        return value.item() if readable else value
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # also bools and strings
        value = value.item()
    if type(value) not in PLAIN and isinstance(value, Real):
        return int(value) if isinstance(value, Integral) else float(value)
    return value


def _pair(value: Any) -> Any:
    """A tuple of a sequence, array or tensor on the CPU of one dimension."""
    if isinstance(value, torch.Tensor):
        value = value.tolist() if value.dim() == 1 and value.device.type == "cpu" else value
    elif getattr(value, "ndim", None) == 1 and hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return tuple(map(_number, value))
    return value
