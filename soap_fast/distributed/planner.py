"""What sharing an optimizer's work among ranks comes to, from shapes alone: no process, no GPU.

Counted is a refresh of all bases at once, as under the periodic schedule. A rank goes on as soon as
the slowest has computed its share and all messages have come.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch

from soap_fast.distributed.exchange import STATUS, TOLD, Deal, StackForm
from soap_fast.distributed.owning import bytes_of_state
from soap_fast.distributed.partition import dealt
from soap_fast.step.plan import TensorPlan

# Flops of a factor over d³. A refresh: K Q, QᵀKQ and Q_oldᵀ Q_new are 2 each, Householder's QR 4/3
# and its Q another 4/3. First bases: Golub and Van Loan, Matrix Computations, 8.3, which counts 9.
REFRESH_FLOPS, FIRST_FLOPS = 26 / 3, 9.0
CPU = torch.device("cpu")


class Planned(NamedTuple):
    """A tensor: its plan, the dtypes of the parameter and of its state."""

    plan: TensorPlan
    dtype: torch.dtype
    state: torch.dtype

    @property
    def sizes(self) -> list[int]:
        """Of its factors."""
        return [size for size in self.plan.factors if size is not None]

    @property
    def bytes(self) -> int:
        return prod(self.plan.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class RankShare:
    """One rank's part.

    Attributes:
        factors: that it computes under sharding="refresh".
        sizes: and dtypes of these.
        refresh_flops, first_flops: of a refresh of all, and of their first bases.
        sent: bytes that it sends the others at a refresh, once.
        owned: tensors that it steps under sharding="state".
        owned_flops: of a refresh of all their bases.
        owned_state: bytes of their factors, bases and moments.
        owned_sent: bytes of parameters that it sends the others at every step, once.
    """

    factors: int
    sizes: Sequence[tuple[int, torch.dtype]]
    refresh_flops: int
    first_flops: int
    sent: int
    owned: int
    owned_flops: int
    owned_state: int
    owned_sent: int


@dataclass(frozen=True)
class SharingPlan:
    """What sharing comes to.

    Attributes:
        shares: by rank.
        largest: flops of the dearest factor, which no number of ranks divides.
        messages: per refresh, of all ranks together.
        bases: bytes of all bases; those that are sent are more, see docs/distributed.md.
        state: bytes of factors, bases and moments, which under "refresh" every rank has.
        owners: the rank of each tensor under "state".
    """

    shares: Sequence[RankShare]
    largest: int
    messages: int
    bases: int
    state: int
    owners: Sequence[int]

    @property
    def slowest(self) -> int:
        """Flops of the fullest rank."""
        return max(share.refresh_flops for share in self.shares)

    @property
    def imbalance(self) -> float:
        """The fullest rank over the mean, or over the dearest factor where that is more, less 1."""
        mean = sum(share.refresh_flops for share in self.shares) / len(self.shares)
        least = max(mean, self.largest)
        return self.slowest / least - 1 if least else 0.0

    @property
    def sent(self) -> int:
        return sum(share.sent for share in self.shares)

    def __repr__(self) -> str:
        return "\n".join(_lines(self))


def plan_sharing(tensors: Sequence[Planned], ranks: int) -> SharingPlan:
    """Deal factors and tensors to ranks as sharding="refresh" and "state" do.

    Args:
        tensors: in the order of the optimizer's groups.
        ranks: processes, at least 1.

    Raises:
        ValueError: there is no rank.
    """
    if ranks < 1:
        raise ValueError(f"ranks={ranks} is not an integer >= 1: one process is a rank of its own")
    sizes = [(size, tensor.state) for tensor in tensors for size in tensor.sizes]
    stacks = [StackForm(sizes.count(kind), *kind, CPU) for kind in dict.fromkeys(sizes)]
    states = [bytes_of_state(tensor.plan, tensor.state) for tensor in tensors]
    owners = dealt(states, [0] * ranks)
    shares = []
    for rank, positions in enumerate(Deal(stacks, ranks).positions):
        cubes = sum(len(chosen) * stacks[s].size ** 3 for s, chosen in positions.items())
        told = (f.form(stacks[s], len(c)).bytes for s, c in positions.items() for f in TOLD)
        own = [tensor for tensor, owner in zip(tensors, owners, strict=True) if owner == rank]
        shares.append(
            RankShare(
                sum(map(len, positions.values())),
                [(stacks[s].size, stacks[s].dtype) for s, c in positions.items() for _ in c],
                round(REFRESH_FLOPS * cubes),
                round(FIRST_FLOPS * cubes),
                sum(told) + STATUS.bytes if positions and ranks > 1 else 0,
                len(own),
                round(REFRESH_FLOPS * sum(size**3 for tensor in own for size in tensor.sizes)),
                sum(size for size, owner in zip(states, owners, strict=True) if owner == rank),
                sum(tensor.bytes for tensor in own) if ranks > 1 else 0,
            )
        )
    return SharingPlan(
        shares,
        round(REFRESH_FLOPS * max((size for size, _ in sizes), default=0) ** 3),
        sum(share.sent > 0 for share in shares),
        sum(size**2 * dtype.itemsize for size, dtype in sizes),
        sum(states),
        owners,
    )


def _lines(found: SharingPlan) -> Iterator[str]:
    flops = [share.refresh_flops for share in found.shares]
    yield (
        f"A refresh of all bases by {len(flops)} ranks, sharding='refresh': "
        f"{sum(flops) / 1e9:.1f} GFLOP, of which the fullest rank has {found.slowest / 1e9:.1f} "
        f"({found.imbalance:.1%} above the least possible)"
    )
    yield (
        f"  {found.messages} messages of {found.sent / 1e6:.0f} MB in all; bases are "
        f"{found.bases / 1e6:.0f} MB; state on every rank {found.state / 1e6:.0f} MB"
    )
    for rank, share in enumerate(found.shares):
        yield (
            f"  rank {rank}: {share.factors} factors, {share.refresh_flops / 1e9:.1f} GFLOP a "
            f"refresh, {share.first_flops / 1e9:.1f} at first contact, sends "
            f"{share.sent / 1e6:.1f} MB"
        )
    sent = sum(share.owned_sent for share in found.shares)
    yield (
        f"Steps of {len(flops)} ranks, sharding='state': {found.state / 1e6:.0f} MB of state in "
        f"all; {sent / 1e6:.0f} MB of parameters are sent at every step"
    )
    for rank, share in enumerate(found.shares):
        yield (
            f"  rank {rank}: {share.owned} tensors, {share.owned_state / 1e6:.1f} MB of state, "
            f"{share.owned_flops / 1e9:.1f} GFLOP a refresh, sends {share.owned_sent / 1e6:.1f} MB"
        )
