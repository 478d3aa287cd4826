"""Whether `make soak` runs the tests: then every point of a fault is tried, else some of them."""

from __future__ import annotations

import os

SOAKING = "SOAP_FAST_EXAMPLES" in os.environ


def some_of(count: int, most: int, soaking: int = 10_000) -> list[int]:
    """So many of 0 .. count - 1 at most, the last one among them; `soaking` under `make soak`."""
    step = max(1, -(-count // (soaking if SOAKING else most)))
    return [*range(0, count - 1, step), count - 1] if count else []
