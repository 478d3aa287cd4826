"""What messages between ranks cost in time, and how long work must take so that sharing it pays.

Messages alone are known from shapes and a stated speed. How long a rank computes is not: so instead
of a time of the whole, what it would have to be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from soap_fast.distributed.planner import SharingPlan

BITS = 8


@dataclass(frozen=True)
class Exchange:
    """What ranks tell each other under one sharding, in seconds.

    Attributes:
        least: until the rank that receives most has all of it; latency and waiting left out.
        share: of the work, what the fullest rank has; without unit.
    """

    least: float
    share: float

    @property
    def pays_from(self) -> float:
        """What one rank alone must take for the work, so that shared and sent it takes less."""
        return self.least / (1 - self.share) if self.share < 1 else float("inf")


@dataclass(frozen=True)
class Prediction:
    """What `predict` found; printed, it is a few lines.

    Attributes:
        link_gbps: between ranks, in gigabits per second and direction.
        refresh: of a refresh under "refresh".
        state: of a step under "state".
    """

    link_gbps: float
    refresh: Exchange
    state: Exchange

    def __repr__(self) -> str:
        return "\n".join(_lines(self))


def predict(plan: SharingPlan, steps: Sequence[float], link_gbps: float) -> Prediction:
    """What the messages of a plan cost.

    Args:
        plan: how work is dealt.
        steps: per rank, what a step of the tensors that it owns under "state" costs, in any unit.
        link_gbps: gigabits per second that a rank sends, and at once receives.

    Raises:
        ValueError: a link without speed.
    """
    if not link_gbps > 0:
        raise ValueError(f"link_gbps={link_gbps} is not above 0: gigabits per second, such as 400")

    def seconds(sent: Sequence[int]) -> float:
        return max(sum(sent) - own for own in sent) * BITS / (link_gbps * 1e9)

    refreshes = [share.refresh_flops for share in plan.shares]
    owned = [share.owned_flops for share in plan.shares]
    bases = seconds([share.sent for share in plan.shares])
    params = seconds([share.owned_sent for share in plan.shares])
    return Prediction(
        link_gbps,
        Exchange(bases, _share(refreshes)),
        Exchange(params, max(_share(steps), _share(owned))),
    )


def _share(work: Sequence[float]) -> float:
    """Of the fullest rank; where there is no work, nothing is shared."""
    return max(work) / sum(work) if any(work) else 1.0


def _lines(found: Prediction) -> Iterator[str]:
    yield f"Over links of {found.link_gbps:g} Gb/s, without latency and waiting"
    of_refresh, of_state = found.refresh, found.state
    yield (
        f"  sharding='refresh': {1e3 * of_refresh.least:.2f} ms until all bases have come; it pays "
        f"where one rank takes more than {1e3 * of_refresh.pays_from:.2f} ms for a refresh"
    )
    yield (
        f"  sharding='state': {1e3 * of_state.least:.2f} ms until all parameters have come; it "
        f"pays where one rank takes more than {1e3 * of_state.pays_from:.2f} ms for a step with "
        "its share of a refresh"
    )
