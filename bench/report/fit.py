"""How a cost grows: the exponent of a power law, fitted where the largest sizes are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

LEAST = 3  # points of a fit, where there are as many


class Exponent(NamedTuple):
    """cost = factor * x ** exponent, for x in start..end.

    Attributes:
        stderr: of the exponent; None where as few points as parameters leave no doubt to measure.
        points: that were fitted.
    """

    exponent: float
    factor: float
    stderr: float | None
    start: float
    end: float
    points: int


def exponent(xs: Sequence[float], costs: Sequence[float]) -> Exponent | None:
    """Fit log cost over log x by least squares; None for fewer than two different x.

    Only the upper half of the points, and at least three, are fitted: below, what a call costs
    whatever its size hides how it grows.
    """
    from scipy.stats import linregress

    pairs = sorted(zip(xs, costs, strict=True))
    kept = pairs[-max(LEAST, math.ceil(len(pairs) / 2)) :]
    if len({x for x, _ in kept}) < 2:
        return None
    found = linregress([math.log(x) for x, _ in kept], [math.log(y) for _, y in kept])
    stderr = float(found.stderr) if len(kept) > 2 else None
    start, end = kept[0][0], kept[-1][0]
    factor = math.exp(found.intercept)
    return Exponent(float(found.slope), factor, stderr, start, end, len(kept))
