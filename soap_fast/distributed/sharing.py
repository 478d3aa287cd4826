"""First bases and refreshes shared among processes: each factor is computed by one of them.

Every rank has all of the state and takes every step. What a rank computes of its own factors, it
sends to the others, bit for bit, so that all go on with the same bases.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from soap_fast.distributed.agreement import (
    FIRST_BASES,
    OCCASIONS,
    REFRESH,
    Point,
    moment,
    points_of_all,
)
from soap_fast.distributed.exchange import (
    BASIS,
    NEW,
    TOLD,
    Deal,
    Exchange,
    Room,
    StackForm,
)
from soap_fast.distributed.together import (
    EighOp,
    Entries,
    Groups,
    NameOn,
    RefreshOp,
    Step,
    Together,
)
from soap_fast.step.refresh import FAILED, LEFT_OUT, Refreshed, stacked


class Sharing(Together):
    """Refreshes that are shared."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__(group)
        self._error: Exception | None = None  # of this rank's share, raised once the step is whole
        self._unwritten: list[Tensor] = []  # statuses of exchanges of a refresh not written yet
        self._alone = False
        self._room = Room()

    def take(self, step: Step, groups: Groups, state: Entries, name_on: NameOn) -> None:
        """Take one step, and raise what this rank's share of its refresh raised."""
        self._error = None
        super().take(step, groups, state, name_on)
        self._unwritten = []
        error, self._error = self._error, None
        if error is not None:
            raise error

    def forget(self) -> None:
        super().forget()
        self._unwritten = []

    def first_bases(
        self, op: EighOp, factors: list[Tensor], selections: list[Tensor]
    ) -> list[Tensor]:  # [k, d, d] per stack
        """What `op` makes of these factors, each computed by one rank.

        Raises:
            RuntimeError: on every rank, where one could not compute its share.
        """
        deal = self._deal(factors, selections)
        if deal is None:
            return op(factors, selections)[1]
        exchange = Exchange(self.group, deal, (BASIS,), self._room)
        error: Exception | None = None
        try:
            mine = exchange.own[0]
            chosen = [selections[s][deal.of(self.rank, s)] for s in mine]
            own = op([factors[s] for s in mine], chosen)[1] if mine else []
            for place, bases in zip(mine.values(), own, strict=True):
                place.copy_(bases)
        except Exception as found:
            error = found
        points = self._agree(FIRST_BASES, deal, error is not None)
        unable = [rank for rank, point in enumerate(points) if point.failed]
        if unable:
            raise RuntimeError(f"ranks {unable} could not compute their first bases") from error
        self._run(exchange)
        return exchange.together(0)

    def refresh(
        self,
        op: RefreshOp,
        factors: list[Tensor],
        bases: list[Tensor],
        selections: list[Tensor],
        allowed: list[Tensor],
        tolerance: float,
    ) -> Refreshed:
        """What `op` makes of these bases, each refreshed by one rank.

        Where a rank's share raises, its bases stay on every rank, counted as failed, and `take`
        raises there. On the CPU ranks first see that they are at the same refresh; on a GPU that
        would wait for the device.

        Args:
            bases: the list gets others where all of a stack are refreshed.
            selections: of whole stacks in order, as `Batch.copied` makes them, or of fewer factors.

        Raises:
            RuntimeError: ranks are at different refreshes; nothing is written.
        """
        deal = self._deal(factors, selections)
        if deal is None or self._alone:
            return op(factors, bases, selections, allowed, tolerance)
        exchange = Exchange(self.group, deal, TOLD, self._room)
        self._own_share(op, exchange, factors, bases, selections, allowed, tolerance)
        if all(stack.device.type == "cpu" for stack in deal.stacks):
            self._agree(REFRESH, deal, self._error is not None)
        self._unwritten += self._run(exchange, self._error is not None)
        for stack, new in enumerate(exchange.apart(NEW)):
            if len(selections[stack]) == len(bases[stack]):
                bases[stack] = new
            else:
                bases[stack].index_copy_(0, selections[stack].long(), stacked([new])[0])
        return Refreshed(*(exchange.apart(field) for field in range(NEW)))

    def _own_share(
        self,
        op: RefreshOp,
        exchange: Exchange,
        factors: list[Tensor],
        bases: list[Tensor],
        selections: list[Tensor],
        allowed: list[Tensor],
        tolerance: float,
    ) -> None:
        """Put this rank's results where they are sent from; the bases of all stay as they were."""
        k, q, may = [], [], []
        for stack in exchange.own[NEW]:
            own = exchange.deal.of(self.rank, stack)
            both = factors[stack], bases[stack]
            if len(selections[stack]) == len(bases[stack]):
                found = [one[own] for one in both]
            else:
                found = [one.index_select(0, selections[stack][own]) for one in both]
            k.append(found[0])
            q.append(found[1])
            may.append(allowed[stack][own])
        if not q:
            return
        everything = [torch.arange(len(b), dtype=torch.int32, device=b.device) for b in q]
        renewed = list(exchange.own[NEW].values())
        torch._foreach_copy_(renewed, q)
        try:
            results = op(k, renewed, everything, may, tolerance)
        except Exception as error:
            self._error = error
            torch._foreach_copy_(renewed, q)
            results = _as_they_were(q, may)
        for places, column in zip(exchange.own[:NEW], results, strict=True):
            torch._foreach_copy_(list(places.values()), column)

    @contextmanager
    def making_up(self) -> Iterator[None]:
        """Within it, refreshes that steps before still owe.

        Those that were exchanged, and could not be written here alone, are computed here alone: the
        other ranks have them.

        Raises:
            RuntimeError: they were left out elsewhere, where computing them had raised.
        """
        if any(bool(status) for status in self._unwritten):
            raise RuntimeError(
                f"rank {self.rank} could not write a refresh that another rank could not compute: "
                "load a state on every rank to go on"
            )
        self._alone = bool(self._unwritten)
        try:
            yield
        finally:
            self._alone = False
        self._unwritten = []

    def _deal(self, factors: list[Tensor], selections: list[Tensor]) -> Deal | None:
        """None where there is nothing to share, or nobody to share it with."""
        if self.ranks == 1 or not any(map(len, selections)):
            return None
        pairs = zip(factors, selections, strict=True)
        stacks = [StackForm(len(c), k.shape[1], k.dtype, k.device) for k, c in pairs]
        return Deal(stacks, self.ranks)

    def _agree(self, occasion: int, deal: Deal, failed: bool) -> list[Point]:
        work = [(s.number, s.size, str(s.dtype), s.device.type) for s in deal.stacks]
        numbers = moment(self.groups, self.state, work)
        point = Point(occasion, self.steps, failed, numbers)
        points = points_of_all(point, self.group, deal.stacks[0].device)
        for rank, other in enumerate(points):
            if other.numbers != points[0].numbers:
                raise RuntimeError(
                    f"rank {rank} is at {OCCASIONS[occasion]} of other factors than rank "
                    "0: the same parameters must have gradients on every rank, as "
                    "DistributedDataParallel sees to"
                )
        return points

    def _run(self, exchange: Exchange, failed: bool = False) -> list[Tensor]:
        self.traffic = exchange.messages, exchange.bytes
        return [status.clone() for status in exchange.run(failed)]


def _as_they_were(bases: Sequence[Tensor], allowed: Sequence[Tensor]) -> Refreshed:
    """Results of a refresh that changes no basis, counted as failed."""
    pairs = list(zip(bases, allowed, strict=True))
    identities = [torch.eye(q.shape[1], dtype=q.dtype, device=q.device) for q in bases]
    return Refreshed(
        orders=[torch.arange(q.shape[1], device=q.device).expand(q.shape[:2]) for q in bases],
        carries=[one.expand(q.shape) for one, q in zip(identities, bases, strict=True)],
        outcomes=[torch.where(may, FAILED, LEFT_OUT) for _, may in pairs],
        off_diagonals=[q.new_full(q.shape[:1], torch.nan) for q in bases],
    )
