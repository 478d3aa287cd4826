"""Who computes what: work dealt to ranks by its cost, the same way on every rank."""

from __future__ import annotations

from collections.abc import Sequence


def dealt(costs: Sequence[int], loads: Sequence[int]) -> list[int]:
    """The rank of each piece of work: the dearest first, each to the rank with the least so far.

    Of equal costs the first comes first, and of ranks with equally little the lowest takes it. So
    the answer follows from the arguments alone. Of ranks that have nothing yet the fullest gets at
    most 4/3 of what the best possible deal gives it.

    Args:
        loads: what each rank has already.

    Source: R. L. Graham, Bounds on multiprocessing timing anomalies, SIAM J. Appl. Math. 17, 1969.
    """
    loads = list(loads)
    owners = [0] * len(costs)
    for piece in sorted(range(len(costs)), key=lambda piece: -costs[piece]):
        owner = loads.index(min(loads))
        owners[piece] = owner
        loads[owner] += costs[piece]
    return owners


def loads_of(costs: Sequence[int], owners: Sequence[int], ranks: int) -> list[int]:
    """The sum of each rank's costs."""
    loads = [0] * ranks
    for cost, owner in zip(costs, owners, strict=True):
        loads[owner] += cost
    return loads
