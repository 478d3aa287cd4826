"""Channel counts of a model that is shrunk for the CPU."""

from __future__ import annotations


def scaled(channels: int, factor: float, multiple: int = 1) -> int:
    """channels * factor, rounded to a positive multiple of `multiple`; factor 1 changes nothing.

    Numbers of heads shrink alike, and channels are then multiples of these: attention of a smaller
    model costs less, which it would not if its heads only became narrower.
    """
    if factor == 1:
        return channels
    return max(1, round(channels * factor / multiple)) * multiple


def ramp(inputs: int, outputs: int, least: int) -> tuple[int, int]:
    """The two widths between inputs and outputs on a straight line, each raised to `least`."""
    first, second = (inputs + (outputs - inputs) * step // 3 for step in (1, 2))
    return max(first, least), max(second, least)
