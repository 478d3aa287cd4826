"""The least time that steps shared among ranks can take, from flops, bytes and stated speeds.

A floor as `floor_seconds` gives it for launches: products and copies at rates that are assumed of
an H100, messages at the link's, the host and all waiting left out. A refresh reaches a part of that
rate, so sharing it saves more than is told here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from soap_fast.backends.triton.launch.floor import FLOPS_PER_SECOND
from soap_fast.distributed.planner import SharingPlan

BITS = 8


@dataclass(frozen=True)
class Steps:
    """Of one sharding, in seconds.

    Attributes:
        step: the fullest rank's own work in a step without a refresh.
        sent: at every step, until all parameters have come.
        refresh: the fullest rank's own work in a refresh.
        bases: of a refresh, until all bases have come.
    """

    step: float
    sent: float
    refresh: float
    bases: float

    def mean(self, frequency: int) -> float:
        """Of a step, with its share of a refresh every so many."""
        return self.step + self.sent + (self.refresh + self.bases) / frequency


@dataclass(frozen=True)
class Prediction:
    """What `predict` found; printed, it is a line for each sharding.

    Attributes:
        link_gbps: between ranks, in gigabits per second and direction.
        frequency: steps between refreshes.
        by_sharding: by its name.
    """

    link_gbps: float
    frequency: int
    by_sharding: dict[str, Steps]

    def __repr__(self) -> str:
        return "\n".join(_lines(self))


def predict(
    plan: SharingPlan, steps: Sequence[float], frequency: int, link_gbps: float
) -> Prediction:
    """The least time of steps under each sharding.

    Args:
        plan: how work is dealt.
        steps: per rank, seconds of a step of the tensors that it owns under "state".
        frequency: steps between refreshes.
        link_gbps: gigabits per second that a rank sends, and at once receives.

    Raises:
        ValueError: a link without speed.
    """
    if not link_gbps > 0:
        raise ValueError(f"link_gbps={link_gbps} is not above 0: gigabits per second, such as 400")
    whole = sum(share.refresh_flops for share in plan.shares) / FLOPS_PER_SECOND
    owned = max(share.owned_flops for share in plan.shares) / FLOPS_PER_SECOND

    def seconds(sent: Sequence[int]) -> float:
        """Until the rank that receives most has all that the others send."""
        return max(sum(sent) - own for own in sent) * BITS / (link_gbps * 1e9)

    bases = seconds([share.sent for share in plan.shares])
    params = seconds([share.owned_sent for share in plan.shares])
    return Prediction(
        link_gbps,
        frequency,
        {
            "none": Steps(sum(steps), 0.0, whole, 0.0),
            "refresh": Steps(sum(steps), 0.0, plan.slowest / FLOPS_PER_SECOND, bases),
            "state": Steps(max(steps), params, owned, 0.0),
        },
    )


def _lines(found: Prediction) -> Iterator[str]:
    yield (
        f"The least time of a step with its share of a refresh every {found.frequency}, at "
        f"{found.link_gbps:g} Gb/s between ranks and {FLOPS_PER_SECOND / 1e12:.0f} TFLOP/s "
        "(assumed of an H100, not measured)"
    )
    for name, steps in found.by_sharding.items():
        yield (
            f"  {name}: {1e3 * steps.mean(found.frequency):.2f} ms; a step {1e3 * steps.step:.2f}, "
            f"its parameters sent in {1e3 * steps.sent:.2f}; a refresh {1e3 * steps.refresh:.2f}, "
            f"its bases sent in {1e3 * steps.bases:.2f}"
        )
