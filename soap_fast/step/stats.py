"""What became of gradients and bases: counted on the device, or found in the state when asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from soap_fast.names import label
from soap_fast.options import StepOptions, step_options
from soap_fast.step.rounding import noise_floor
from soap_fast.step.state import entry_of

OF_REFRESHES = ("refreshed", "kept", "failed")


def read_counters(
    groups: Sequence[Mapping[str, Any]], state: Mapping[torch.Tensor, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Counters by kind and parameter, see `SOAP.stats`; waits for the device."""
    counters: dict[str, dict[str, Any]] = {
        kind: {} for kind in ("skipped", "held_back", *OF_REFRESHES, "off_diagonal")
    }
    for place, group in enumerate(groups):
        for index, param in enumerate(group["params"]):
            name, entry = label(group, place, index), entry_of(state, param)
            counters["skipped"][name] = int(entry["skipped"])
            counters["held_back"][name] = _held_back(entry, step_options(group))
            counts = entry["refreshes"].tolist() if entry["calls"] else [0, 0, 0]
            for kind, count in zip(OF_REFRESHES, counts, strict=True):
                counters[kind][name] = count
            off_diagonal = entry["off_diagonal"].tolist() if entry["calls"] else []
            counters["off_diagonal"][name] = off_diagonal
    return counters


def _held_back(entry: Mapping[str, Any], options: StepOptions) -> int:
    """Entries of the rotated basis whose sqrt(v), as the last update left it, is below the floor.

    v and K are those that the update compared: a refresh permutes v and leaves K alone.
    """
    if not entry["calls"] or not entry["step"]:
        return 0
    return int((entry["exp_avg_sq"].sqrt() < noise_floor(entry["GG"], options)).sum())
