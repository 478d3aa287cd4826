"""What became of gradients and bases, counted on the device and read when somebody asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from soap_fast.names import label
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
            counters["held_back"][name] = int(entry["held_back"]) if entry["calls"] else 0
            counts = entry["refreshes"].tolist() if entry["calls"] else [0, 0, 0]
            for kind, count in zip(OF_REFRESHES, counts, strict=True):
                counters[kind][name] = count
            off_diagonal = entry["off_diagonal"].tolist() if entry["calls"] else []
            counters["off_diagonal"][name] = off_diagonal
    return counters
