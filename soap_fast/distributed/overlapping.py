"""Refreshes that are shared, and travel while their ranks go on to the next step.

The step by which a refresh falls due computes this rank's share, starts the messages and leaves the
refresh owed. The next step begins with the results: factors have not moved, so the bits are those
of a refresh at once. Whatever reads the state in between has them written first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from soap_fast import ambient
from soap_fast.distributed.agreement import REFRESH
from soap_fast.distributed.exchange import Exchange, Room
from soap_fast.distributed.sharing import Sharing, come
from soap_fast.distributed.together import Entries, Groups, RefreshOp, Step, Steps
from soap_fast.distributed.unwritten import Unwritten
from soap_fast.options import plan_options, step_options
from soap_fast.step.call import TensorCall
from soap_fast.step.carry import Batch, underway
from soap_fast.step.plan import plan_tensor
from soap_fast.step.refresh import Refreshed

Factors = tuple[tuple[int, int, tuple[int, ...]], ...]  # addresses of K and Q, places in them


class AnotherWorkError(Exception):
    """What is refreshed is not what was started: others lie there, or a part is written."""


class Travelling(NamedTuple):
    """A refresh with its messages, and without."""

    exchange: Exchange
    unwritten: Unwritten


class Started(NamedTuple):
    """A refresh that is underway between ranks.

    Attributes:
        calls: that owe it, with the options of their step and without gradients.
        parts: by the factors they are of.
    """

    calls: list[TensorCall]
    parts: dict[Factors, Travelling]

    def receive(self) -> None:
        """Wait for all messages. All ranks have sent theirs: nobody has to do anything for it."""
        for part in self.parts.values():
            part.exchange.receive()
        for call in self.calls:  # which may be read on another stream than they were made on
            if call.owed is not None and call.owed.flags.is_cuda:
                flags = call.owed.flags
                flags.record_stream(torch.cuda.current_stream(flags.device))


class Overlapping(Sharing):
    """`Sharing` whose refreshes are written when the next step begins, or earlier if asked for.

    Ranks meet once in a step that refreshes, at its end: whoever has failed in it tells the others
    there, and nothing is sent.
    """

    overlap = True

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__(group)
        self._rooms = [self._room]  # of each exchange that is underway
        self._ready: dict[Factors, Travelling] = {}  # to be started
        self._owing: list[TensorCall] = []
        self._started: Started | None = None
        self._come: dict[Factors, Travelling] | None = None  # while they are written
        self._at_once = False

    def take(self, step: Step, groups: Groups, state: Entries, backend: Steps) -> None:
        """Take one step, after what the last one has started."""
        self._ready = {}

        def finished_first(groups: Groups, state: Entries) -> None:
            self._write(self._arrived(backend), backend)
            step(groups, state)
            self._owing = owing(groups, state) if self._ready else []

        try:
            super().take(finished_first, groups, state, backend)
        finally:
            if self._ready:  # and not started: the next step makes up for it, no steady one
                self._ready = {}
                backend.forget()

    def finish(self, backend: Steps) -> None:
        """Write what the last step has started.

        Where a message is lost, as of a rank that died, the refresh stays owed, and is saved so.
        """
        with self.held:
            started = None
            with suppress(RuntimeError):  # torch's; the next step will tell
                started = self._arrived(backend)
            self._write(started, backend)

    def forget(self) -> None:
        super().forget()
        started, self._started = self._started, None
        if started is not None:
            with suppress(RuntimeError):  # torch's; the next step will tell
                self._receive(started)  # into memory that others may have from here on

    def refresh(
        self,
        op: RefreshOp,
        factors: list[Tensor],
        bases: list[Tensor],
        selections: list[Tensor],
        allowed: list[Tensor],
        tolerance: float,
    ) -> Refreshed | None:
        """This rank's share, to be sent at the end of the step; later on, what has come of all."""
        arguments = (factors, bases, selections, allowed, tolerance)
        deal, due = self._deal(factors, selections), underway()
        if self._come is not None:
            return come(self._come_of(factors_of(due.batches)), bases, selections)
        if deal is None or self._alone or self._at_once:
            return super().refresh(op, *arguments)
        if len(self._ready) == len(self._rooms):
            self._rooms.append(Room())
        room = self._rooms[len(self._ready)]
        exchange = self._own_share(op, deal, room, *arguments)
        part = Travelling(exchange, Unwritten(due, exchange.shares))
        self._ready[factors_of(due.batches)] = part
        return None

    def make_up(self, calls: Sequence[TensorCall], backend: Steps) -> None:
        """At once: the update that follows needs the bases."""
        self._at_once = True
        try:
            super().make_up(calls, backend)
        finally:
            self._at_once = False

    def _owes_alone(self) -> Callable[[Tensor], bool]:
        others = super()._owes_alone()
        if self._started is None:
            return others
        ours = {id(call.param) for call in self._started.calls}
        return lambda param: id(param) in ours or others(param)

    def _conclude(self) -> None:
        """Agree on what is ready, and start it."""
        if not self._ready:
            super()._conclude()
            return
        if self.by_host:
            self._agree(REFRESH, [self._work(part.unwritten) for part in self._ready.values()])
        try:
            for exchange, _ in self._ready.values():
                self.traffic = exchange.messages, exchange.bytes
                exchange.start()
        except BaseException:
            self._give_up_rooms()
            raise
        self._started = Started(self._owing, self._ready)
        self._ready, self._owing = {}, []

    def _arrived(self, backend: Steps) -> Started | None:
        """What was started, once it has come.

        Raises:
            RuntimeError: torch's, where not all of it will.
        """
        started, self._started = self._started, None
        if started is None:
            return None
        try:
            self._receive(started)
        except RuntimeError:
            backend.forget()
            raise
        return started

    def _receive(self, started: Started) -> None:
        """
        Raises:
            RuntimeError: torch's, where a message is lost.
        """
        try:
            started.receive()
        except RuntimeError:
            self._give_up_rooms()
            raise

    def _give_up_rooms(self) -> None:
        """Nobody knows what is still written to them."""
        self._room = Room()
        self._rooms = [self._room]

    def _write(self, started: Started | None, backend: Steps) -> None:
        """Write a refresh as the one that its tensors owe, or keep it to try again.

        Where other factors are found than it was started for, this rank computes alone what is
        left: nobody knows whether others have found the same. Bases whose share had raised stay.
        """
        if started is None:
            return
        # A user may have put other entries in their place.
        entries = [self.state.get(call.param) or {} for call in started.calls]
        pairs = zip(started.calls, entries, strict=True)
        calls = [replace(call, state=entry) for call, entry in pairs if "owed" in entry]
        parts = [part.unwritten for part in started.parts.values()]
        self._unwritten += [one for one in parts if one not in self._unwritten]
        try:
            with ambient.neutral({call.param.device.type for call in calls}):
                try:
                    self._come = started.parts
                    backend.make_up(calls)
                except AnotherWorkError:
                    self._come = None
                    self._make_up_alone(calls, backend)
        except BaseException:
            self._started = started
            backend.forget()
            raise
        finally:
            self._come = None
        self._drop_written()

    def _come_of(self, factors: Factors) -> Exchange:
        """The exchange that was started for these factors.

        Raises:
            AnotherWorkError: there is none.
        """
        found = self._come.get(factors) if self._come is not None else None
        if found is None:
            raise AnotherWorkError
        return found.exchange


def factors_of(batches: Sequence[Batch]) -> Factors:
    """What tells factors apart, as long as they are held."""
    return tuple((b.K.data_ptr(), b.Q.data_ptr(), tuple(b.slots)) for b in batches)


def owing(groups: Groups, state: Entries) -> list[TensorCall]:
    """The calls of a step at its end that owe a refresh, as they are but for their gradients."""
    found: dict[int, TensorCall] = {}
    for group in groups:
        params: Sequence[Tensor] = [
            p for p in group["params"] if p.grad is not None and "owed" in state.get(p, ())
        ]
        if params:
            planning, options = plan_options(group), step_options(group)
            for p in params:
                plan = plan_tensor(tuple(p.shape), planning)
                found[id(p)] = TensorCall(p, without_memory(p), state[p], plan, options)
    return list(found.values())


def without_memory(param: Tensor) -> Tensor:
    """In place of the gradient of a parameter: of its dtype, by which moments are carried over."""
    assert param.grad is not None
    if param.grad.dtype == param.dtype:
        return param
    return param.grad.new_empty(()).expand(param.shape)
