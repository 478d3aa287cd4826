"""What sharing an optimizer's refresh among ranks comes to, from shapes alone: no process, no GPU.

Counted is a refresh of all bases at once, as under the periodic schedule. A rank goes on as soon as
the slowest has computed its share and all messages have come.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from soap_fast.distributed.exchange import STATUS, TOLD, Deal, StackForm

# Flops of a factor over d³. A refresh: K Q, QᵀKQ and Q_oldᵀ Q_new are 2 each, Householder's QR 4/3
# and its Q another 4/3. First bases: Golub and Van Loan, Matrix Computations, 8.3, which counts 9.
REFRESH_FLOPS, FIRST_FLOPS = 26 / 3, 9.0
CPU = torch.device("cpu")


@dataclass(frozen=True)
class RankShare:
    """One rank's part.

    Attributes:
        factors: that it computes.
        refresh_flops, first_flops: of a refresh of all, and of their first bases.
        sent: bytes that it sends the others at a refresh, once.
    """

    factors: int
    refresh_flops: int
    first_flops: int
    sent: int


@dataclass(frozen=True)
class SharingPlan:
    """What a refresh of all factors comes to.

    Attributes:
        shares: by rank.
        largest: flops of the dearest factor, which no number of ranks divides.
        messages: per refresh, of all ranks together.
        bases: bytes of all bases; those that are sent are more, see docs/distributed.md.
        state: bytes of factors, bases and moments, which every rank has.
    """

    shares: Sequence[RankShare]
    largest: int
    messages: int
    bases: int
    state: int

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


def plan_sharing(
    sizes: Sequence[tuple[int, torch.dtype]], numel: Sequence[tuple[int, torch.dtype]], ranks: int
) -> SharingPlan:
    """Deal factors to ranks as `sharding="refresh"` does.

    Args:
        sizes: size and dtype of each factor's state.
        numel: elements and dtype of each tensor's moments.
        ranks: processes, at least 1.

    Raises:
        ValueError: there is no rank.
    """
    if ranks < 1:
        raise ValueError(f"ranks={ranks} is not an integer >= 1: one process is a rank of its own")
    kinds = dict.fromkeys(sizes)
    stacks = [StackForm(sizes.count(kind), *kind, CPU) for kind in kinds]
    deal = Deal(stacks, ranks)
    shares = []
    for positions in deal.positions:
        cubes = sum(len(chosen) * stacks[s].size ** 3 for s, chosen in positions.items())
        told = (f.form(stacks[s], len(c)).bytes for s, c in positions.items() for f in TOLD)
        shares.append(
            RankShare(
                sum(map(len, positions.values())),
                round(REFRESH_FLOPS * cubes),
                round(FIRST_FLOPS * cubes),
                sum(told) + STATUS.bytes if positions and ranks > 1 else 0,
            )
        )
    bases = sum(size**2 * dtype.itemsize for size, dtype in sizes)
    return SharingPlan(
        shares,
        round(REFRESH_FLOPS * max((size for size, _ in sizes), default=0) ** 3),
        sum(share.sent > 0 for share in shares),
        bases,
        2 * bases + 2 * sum(n * dtype.itemsize for n, dtype in numel),
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
