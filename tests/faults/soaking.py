"""Whether `make soak` runs the tests: then every point of a fault is tried, else some of them."""

from __future__ import annotations

import os

SOAKING = "SOAP_FAST_EXAMPLES" in os.environ


def some_of(count: int, most: int) -> list[int]:
    """All of 0 .. count - 1 under `make soak`, else at most so many, the last one among them."""
    step = 1 if SOAKING else max(1, -(-count // most))
    return [*range(0, count - 1, step), count - 1] if count else []
