"""What messages between ranks cost in time, when sharing work pays, and how long steps then take.

Messages are known from shapes and a stated speed. How long a rank computes is not. So for when
sharing pays it is said what that would have to be. Steps are predicted from what is known of them:
the least time of each launch and, of a refresh, the model of `refresh_cost.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from soap_fast.distributed.planner import SharingPlan

BITS = 8


class Work(NamedTuple):
    """What a rank computes, in seconds.

    Attributes:
        plain: a step, the least time of its launches.
        refresh: bases by the operator, as its model predicts; None without the extension, which
            plans its launches.
        carry: moments to new bases, the least time of their products.
    """

    plain: float
    refresh: float | None
    carry: float


class Steps(NamedTuple):
    """How long steps take at least, in seconds: plain ones, and those that refresh all bases."""

    plain: float
    refreshing: float

    def mean(self, frequency: int) -> float:
        """Of as many steps, one of which refreshes."""
        return self.plain + (self.refreshing - self.plain) / frequency


@dataclass(frozen=True)
class Exchange:
    """What ranks tell each other under one sharding, in seconds.

    Attributes:
        least: until the rank that receives most has all of it; latency and waiting left out.
        share: of the work, what the fullest rank has; without unit.
        steps: with these messages; None without the extension.
    """

    least: float
    share: float
    steps: Steps | None

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
        alone: steps of one rank that shares nothing.
    """

    link_gbps: float
    refresh: Exchange
    state: Exchange
    alone: Steps | None

    def __repr__(self) -> str:
        return "\n".join(_lines(self))


def predict(
    plan: SharingPlan,
    whole: Work,
    bases: Sequence[float | None],
    owned: Sequence[Work],
    link_gbps: float,
) -> Prediction:
    """What the messages of a plan cost, and steps with them.

    Args:
        plan: how work is dealt.
        whole: of one rank that shares nothing.
        bases: per rank, seconds of the operator for the bases that it computes under "refresh".
        owned: per rank, of the tensors that it owns under "state".
        link_gbps: gigabits per second that a rank sends, and at once receives.

    Raises:
        ValueError: a link without speed.
    """
    if not link_gbps > 0:
        raise ValueError(f"link_gbps={link_gbps} is not above 0: gigabits per second, such as 400")

    def seconds(sent: Sequence[int]) -> float:
        return max(sum(sent) - own for own in sent) * BITS / (link_gbps * 1e9)

    shares = plan.shares
    of_bases = seconds([share.sent for share in shares])
    of_params = seconds([share.owned_sent for share in shares])
    each = [whole._replace(refresh=own) for own in bases]
    owners_share = max(_share([w.plain for w in owned]), _share([s.owned_flops for s in shares]))
    return Prediction(
        link_gbps,
        Exchange(of_bases, _share([s.refresh_flops for s in shares]), _steps(each, 0, of_bases)),
        Exchange(of_params, owners_share, _steps(owned, of_params, 0)),
        _steps([whole], 0, 0),
    )


def _steps(ranks: Sequence[Work], of_each: float, of_refresh: float) -> Steps | None:
    """Of ranks that go on once the slowest has computed, and the messages have come.

    Args:
        of_each, of_refresh: seconds of messages at every step, and at a refresh besides.
    """
    if any(rank.refresh is None for rank in ranks):
        return None
    longest = max(rank.plain + (rank.refresh or 0) + rank.carry for rank in ranks)
    plain = max(rank.plain for rank in ranks)
    return Steps(plain + of_each, longest + of_each + of_refresh)


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
    if found.alone is None:
        return
    yield "  Steps of an H100: floors of launches, the model of a refresh, the products that carry"
    yield "  moments to new bases, and these messages; without the host"
    for kind, steps in (
        ("one rank alone", found.alone),
        ("sharding='refresh'", of_refresh.steps),
        ("sharding='state'", of_state.steps),
    ):
        if steps is not None:
            plain, refreshing = 1e3 * steps.plain, 1e3 * steps.refreshing
            yield f"    {kind}: {plain:.2f} ms, with a refresh of all bases {refreshing:.2f} ms"
