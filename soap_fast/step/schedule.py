"""When factors are refreshed: all every f calls, or each at its own phase so that no step is slow.

Under `refresh_schedule="staggered"` a factor with phase φ in 1..f is refreshed when its tensor's
calls after the first reach φ, and every f calls from then on; `"periodic"` is φ = f for all. Who
has which phase is decided in `phases.py`. Nobody else asks a clock whether a refresh is due.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import lcm

Factors = Sequence[int | None]  # per mode its size, None without a factor
Phases = Sequence[int | None]  # per mode, None without a factor


def is_staggered(refresh_schedule: str) -> bool:
    return refresh_schedule == "staggered"


def falls_due(calls: int, frequency: int, phase: int | None = None) -> bool:
    """Whether a factor is refreshed by the call with so many before it, the first left out.

    Args:
        calls: of the factor's tensor.
        phase: of the factor; None under the periodic schedule.
    """
    return (calls - (phase or 0)) % frequency == 0


def modes_due(factors: Factors, calls: int, frequency: int, phases: Phases | None) -> list[int]:
    """The modes of a tensor that a call refreshes, as `falls_due` says of each.

    Args:
        phases: None under the periodic schedule.
    """
    if phases is None and not falls_due(calls, frequency):
        return []
    return [
        mode
        for mode, size in enumerate(factors)
        if size is not None and falls_due(calls, frequency, phases[mode] if phases else None)
    ]


def calls_until_due(
    factors: Factors, calls: int, frequency: int, phases: Phases | None
) -> Iterator[int]:
    """Per factor how many calls from now its next refresh is due, 1 for the next call.

    Args:
        calls: that its tensor has had.
        phases: None under the periodic schedule.
    """
    for mode, size in enumerate(factors):
        if size is not None:
            phase = (phases[mode] if phases else None) or 0
            yield frequency - (calls - 1 - phase) % frequency


def period(frequencies: Iterable[int]) -> int:
    """After how many calls what falls due repeats."""
    return lcm(*frequencies)
