"""First bases and refreshes shared among processes: each factor is computed by one of them.

Every rank has all of the state and takes every step. What a rank computes of its own factors, it
sends to the others, bit for bit, so that all go on with the same bases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

from soap_fast.distributed.agreement import FIRST_BASES, REFRESH
from soap_fast.distributed.exchange import (
    BASIS,
    NEW,
    TOLD,
    Deal,
    Exchange,
    Room,
    StackForm,
)
from soap_fast.distributed.meeting import Meeting
from soap_fast.distributed.own_share import compute_own
from soap_fast.distributed.together import (
    BeginOp,
    EighOp,
    Entries,
    Groups,
    RefreshOp,
    Step,
    Steps,
)
from soap_fast.distributed.unwritten import Unwritten, refreshed_alone
from soap_fast.step.call import TensorCall
from soap_fast.step.carry import underway
from soap_fast.step.refresh import Refreshed, stacked
from soap_fast.step.state import Owner


class Sharing(Meeting):
    """Refreshes that are shared."""

    refreshes_alone = False

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__(group)
        self._error: Exception | None = None  # of this rank's share, raised once the step is whole
        self._unwritten: list[Unwritten] = []
        self._alone = False
        self._room = Room()

    def take(self, step: Step, groups: Groups, state: Entries, backend: Steps) -> None:
        """Take one step, and raise what this rank's share of its refresh raised."""
        self._error = None
        super().take(step, groups, state, backend)
        self._drop_written()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _owes_alone(self) -> Callable[[Tensor], bool]:
        alone = {id(param) for one in self._unwritten for param in one.left(self.state)}
        return lambda param: id(param) in alone

    def _drop_written(self) -> None:
        """Nothing is left of what was written since."""
        for one in self._unwritten:
            one.drop_written(self.state)
        self._unwritten = [one for one in self._unwritten if any(one.owed)]

    def forget(self) -> None:
        super().forget()
        self._unwritten = []

    def begin(self, op: BeginOp, *arguments: Any) -> Entries:
        """What `op` makes of tensors on their first calls, on all ranks or on none.

        Args:
            arguments: of which the first are the calls.

        Raises:
            RuntimeError: on every rank, where one could not.
        """
        if self.ranks == 1 or not arguments[0]:
            return op(*arguments)
        error: Exception | None = None
        begun: Entries = {}
        try:
            begun = op(*arguments)
        except Exception as found:  # whatever it is, all ranks are told, and then all raise
            if self._heard:
                raise
            error = found
        places = self._places()
        usable = [places[id(param)] for param, entry in begun.items() if entry["calls"]]
        self._agree(FIRST_BASES, usable, error)
        return begun

    def first_bases(
        self,
        op: EighOp,
        factors: list[Tensor],
        selections: list[Tensor],
        owners: Sequence[Sequence[Owner]],
    ) -> list[Tensor]:  # [k, d, d] per stack
        """What `op` makes of these factors, each computed by one rank; within `begin`.

        Args:
            owners: of each factor, per stack.
        """
        deal = self._deal(factors, selections)
        if deal is None:
            return op(factors, selections)[1]
        exchange = Exchange(self.group, deal, (BASIS,), self._room)
        mine = exchange.own[0]
        chosen = [selections[s][deal.of(self.rank, s)] for s in mine]
        own = op([factors[s] for s in mine], chosen)[1] if mine else []
        for place, bases in zip(mine.values(), own, strict=True):
            place.copy_(bases)
        places = self._places()
        named = [[n for p, mode in some for n in (places[id(p)], mode)] for some in owners]
        self._agree(FIRST_BASES, (deal.work, named))
        exchange.mark(failed=False)
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
    ) -> Refreshed | None:
        """What `op` makes of these bases, each refreshed by one rank.

        Where a rank's share raises, its bases stay on every rank, counted as failed, and `take`
        raises there. Where ranks can meet on the host, they first see that they are at the same
        refresh; elsewhere that would wait for the device.

        Args:
            bases: the list gets others where all of a stack are refreshed.
            selections: of whole stacks in order, as `Batch.selected` has them, or of fewer factors.
                Bases are of the whole stack or of the selection, as `refresh_eager` has them.

        Raises:
            RuntimeError: ranks are at different refreshes, or one cannot take part; nothing is
                written.
        """
        arguments = (factors, bases, selections, allowed, tolerance)
        deal, due = self._deal(factors, selections), underway()
        if deal is None:
            return op(*arguments)
        if self._alone:
            return refreshed_alone(op, due, self._unwritten, *arguments)
        exchange = self._own_share(op, deal, self._room, *arguments)
        unwritten = Unwritten(due, exchange.shares)
        if self.by_host:
            self._agree(REFRESH, self._work(unwritten))
        self._unwritten.append(unwritten)
        self._run(exchange)
        return come(exchange, bases, selections)

    def _own_share(self, op: RefreshOp, deal: Deal, room: Room, *arguments: Any) -> Exchange:
        """An exchange in which this rank's share waits to be sent; `take` raises what it raised.

        Args:
            arguments: of `op`.
        """
        exchange = Exchange(self.group, deal, TOLD, room)
        error = compute_own(op, exchange, self.rank, *arguments)
        self._error = self._error or error
        exchange.mark(failed=error is not None)
        return exchange

    def make_up(self, calls: Sequence[TensorCall], backend: Steps) -> None:
        """What was exchanged already, and could not be written here, is computed here alone."""
        alone = self._owes_alone()
        own = [call for call in calls if call.owed is not None and alone(call.param)]
        if own:
            self._make_up_alone(own, backend)
        if any(call.owed is not None for call in calls):
            backend.make_up(calls)

    def _make_up_alone(self, calls: Sequence[TensorCall], backend: Steps) -> None:
        self._alone = True
        try:
            backend.make_up(calls)
        finally:
            self._alone = False
        self._drop_written()

    def _deal(self, factors: list[Tensor], selections: list[Tensor]) -> Deal | None:
        """None where there is nothing to share, or nobody to share it with."""
        if self.ranks == 1 or not any(map(len, selections)):
            return None
        pairs = zip(factors, selections, strict=True)
        stacks = [StackForm(len(c), k.shape[1], k.dtype, k.device) for k, c in pairs]
        return Deal(stacks, self.ranks)

    def _work(self, one: Unwritten) -> object:
        """What of a refresh must be the same on every rank."""
        return one.shares.deal.work, one.numbers(self._places())

    def _places(self) -> dict[int, int]:
        """Of each parameter among all, by its id."""
        params = (param for group in self.groups for param in group["params"])
        return {id(param): place for place, param in enumerate(params)}

    def _run(self, exchange: Exchange) -> None:
        self.traffic = exchange.messages, exchange.bytes
        self._heard = True
        exchange.run()
        self._met, self._heard = True, False


def come(exchange: Exchange, bases: list[Tensor], selections: Sequence[Tensor]) -> Refreshed:
    """What has come of a refresh, and its new bases among these.

    Args:
        bases: the list gets others where all of a stack are refreshed.
        selections: whose bases they are.
    """
    for stack, new in enumerate(exchange.apart(NEW)):
        if len(selections[stack]) == len(bases[stack]):
            bases[stack] = new
        else:
            bases[stack].index_copy_(0, selections[stack].long(), stacked([new])[0])
    return Refreshed(*(exchange.apart(field) for field in range(NEW)))
