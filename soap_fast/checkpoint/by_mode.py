"""Lists with one item per mode, as saved: a dict from mode to item, without the modes of none.

torch.distributed.checkpoint flattens states of tensors, numbers and dicts of these, and knows
neither lists nor None. Its dicts come back with names in place of the numbers of modes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

FACTORS = ("GG", "Q")
LISTS = (*FACTORS, "phases")


def to_saved(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of `optimizer.state` with dicts in place of its lists."""
    return {
        key: _without_none(value) if key in LISTS and isinstance(value, list) else value
        for key, value in entry.items()
    }


def from_saved(entry: Mapping[str, Any], modes: int) -> Mapping[str, Any]:
    """The same entry with lists; those that are lists already, as older files have, stay.

    Raises:
        ValueError: a dict has other keys than modes.
    """
    found = {
        key: _listed(key, value, modes) if key in LISTS and isinstance(value, Mapping) else value
        for key, value in entry.items()
    }
    # Of phases that were never given, torch makes an empty dict.
    if isinstance(entry.get("phases"), Mapping) and not entry["phases"]:
        found["phases"] = None
    return found


def without_factors(factors: Sequence[int | None]) -> dict[str, Any]:
    """What an entry may lack where no mode has a factor, as lists.

    Their dicts have no modes, and torch leaves such a dict out of a state that it flattens, as it
    does for one that the first rank hands to the others.
    """
    return {} if any(factors) else {key: [None] * len(factors) for key in FACTORS}


def is_empty(entry: Any) -> bool:
    """Whether an entry holds nothing: torch makes one of empty dicts where nothing was saved."""
    if not isinstance(entry, Mapping):
        return False
    return all(isinstance(value, Mapping) and not value for value in entry.values())


def _without_none(values: list[Any]) -> dict[int, Any]:
    return {mode: value for mode, value in enumerate(values) if value is not None}


def _listed(name: str, values: Mapping[Any, Any], modes: int) -> list[Any]:
    listed: list[Any] = [None] * modes
    places = {str(mode): mode for mode in range(modes)}
    for key, value in values.items():
        if str(key) not in places:
            raise ValueError(f"{name} has a mode {key!r}, the parameter {modes} modes")
        listed[places[str(key)]] = value
    return listed
